/* layer_error.c - a layer that fails requests in place of the disk below, which never sees them. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "layer.h"
#include "vq.h"

enum { MATCHED, INJECTED, N_COUNTERS };
enum { LOOK_NS = 5000000, MAX_ERRNO = 4095 }; /* how often is looked for the file */

struct error {
    struct vhb_stage stage; /* first */
    struct vhb_error set; /* read and written field by field */
    uint64_t looked; /* ns; when somebody looked for the file last */
    uint32_t file_is_there;
    uint32_t live; /* it may fail something: all else is looked at only then */
    uint64_t met; /* requests that are of the kind, since it was set */
    uint64_t failed; /* of these; more than *count* when that is reached */
};

static bool file_is_there(struct error *e)
{
    uint64_t now = vhb_clock(), looked = load_relaxed(&e->looked);
    if (now - looked >= LOOK_NS && __atomic_compare_exchange_n(&e->looked, &looked, now, false,
                                                               __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        store_relaxed(&e->file_is_there, (uint32_t)(access(e->set.file, F_OK) == 0));
    return load_relaxed(&e->file_is_there);
}

/* A flush is of no place: no range leaves it out. */
static bool is_of_the_kind(const struct error *e, const struct vhb_req *req)
{
    if (!(load_relaxed(&e->set.ops) & 1u << req->op))
        return false;
    uint64_t at = vhb_req_at(req);
    return req->op == VHB_FLUSH ||
           (at < load_relaxed(&e->set.end) && load_relaxed(&e->set.offset) < at + req->len);
}

static bool is_hit(struct error *e)
{
    uint64_t n = __atomic_fetch_add(&e->met, 1, __ATOMIC_RELAXED);
    if (n < load_relaxed(&e->set.after))
        return false;
    if (vhb_layer_random(load_relaxed(&e->set.seed), n) >> 32 >= load_relaxed(&e->set.rate))
        return false;
    uint64_t count = load_relaxed(&e->set.count);
    return !count || __atomic_fetch_add(&e->failed, 1, __ATOMIC_RELAXED) < count;
}

static int error_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct error *e = (struct error *)layer->stage;
    if (!load_relaxed(&e->live) ||
        !(load_relaxed(&e->set.on) || (e->set.file[0] && file_is_there(e))) ||
        !is_of_the_kind(e, req))
        return vhb_layer_hand_on(layer, req, io);
    uint64_t *counters = vhb_stage_shard(layer->stage, io);
    count(&counters[MATCHED], 1);
    if (!is_hit(e))
        return vhb_layer_hand_on(layer, req, io);
    count(&counters[INJECTED], 1);
    return -(int)load_relaxed(&e->set.error);
}

static const struct vhb_layer_ops error_ops = {.submit = error_submit};

/* ---- the stage ------------------------------------------------------------------------ */

static bool is_error(const struct vhb_error *error)
{
    return error->error >= 1 && error->error <= MAX_ERRNO && error->rate <= VHB_ERROR_ALWAYS &&
           error->offset <= error->end && memchr(error->file, 0, sizeof(error->file));
}

static void put(struct error *e, const struct vhb_error *error)
{
    store_relaxed(&e->set.ops, error->ops);
    store_relaxed(&e->set.error, error->error);
    store_relaxed(&e->set.offset, error->offset);
    store_relaxed(&e->set.end, error->end);
    store_relaxed(&e->set.rate, error->rate);
    store_relaxed(&e->set.seed, error->seed);
    store_relaxed(&e->set.after, error->after);
    store_relaxed(&e->set.count, error->count);
    store_relaxed(&e->met, 0u);
    store_relaxed(&e->failed, 0u);
    store_relaxed(&e->set.on, error->on);
    store_relaxed(&e->live, (uint32_t)(error->on || e->set.file[0]));
}

int vhb_stage_error_set(struct vhb_stage *stage, const struct vhb_error *error)
{
    if (stage->kind != &error_ops || !is_error(error))
        return -EINVAL;
    put((struct error *)stage, error); /* one that passes meanwhile may meet some of both */
    return 0;
}

int vhb_stage_error_new(const struct vhb_error *error, struct vhb_stage **out)
{
    if (!is_error(error))
        return -EINVAL;
    struct error *e = calloc(1, sizeof(*e));
    if (!e)
        return -ENOMEM;
    int r = vhb_stage_init(&e->stage, &error_ops, N_COUNTERS);
    if (r < 0) {
        free(e);
        return r;
    }
    memcpy(e->set.file, error->file, sizeof(e->set.file));
    put(e, error);
    *out = &e->stage;
    return 0;
}
