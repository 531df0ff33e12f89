/* layer_limit.c - a layer that lets requests on no faster than it is told.
 *
 * For each limit there is one time, shared by all workers: when what was let on until now is paid
 * for.  A request adds what it costs, and goes on when that time, less what may be saved up, has
 * come.  So requests go on in the order in which they came, whatever queues they came by, and one
 * that costs more than can be saved up passes all the same, and those behind it pay.
 *
 * Who waits looks now and then whether the limits have changed, and is then counted anew. */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "vq.h"

enum { WAITED, WAITED_NS, N_COUNTERS };
enum { LOOK_NS = 20000000 }; /* how often one that waits looks */
enum { SECOND = 1000000000 };

struct limit {
    struct vhb_stage stage; /* first */
    uint32_t live; /* some limit is set */
    uint32_t generation; /* of the settings */
    uint64_t burst_ns;
    uint64_t rates[VHB_LIMITS]; /* a second; 0: no limit */
    uint64_t paid[VHB_LIMITS]; /* ns; when all that was let on is paid for */
};

static void limit_again(struct vhb_req *req, int result, struct vhb_io *io);

/* What a request costs of a limit: a request, or its bytes. */
static uint64_t amount(const struct vhb_req *req, uint32_t limit)
{
    bool reads = req->op == VHB_READ, moves = reads || req->op == VHB_WRITE;
    switch (limit) {
    case VHB_LIMIT_IOPS:
        return 1;
    case VHB_LIMIT_READ_IOPS:
        return reads;
    case VHB_LIMIT_WRITE_IOPS:
        return !reads;
    case VHB_LIMIT_BPS:
        return moves ? req->len : 0;
    case VHB_LIMIT_READ_BPS:
        return reads ? req->len : 0;
    default:
        return moves && !reads ? req->len : 0;
    }
}

/* Let *cost* nanoseconds of a limit on; when. */
static uint64_t pay(uint64_t *paid, uint64_t cost, uint64_t burst, uint64_t now)
{
    uint64_t until = load_relaxed(paid), from;
    do
        from = until > now ? until : now;
    while (!__atomic_compare_exchange_n(paid, &until, from + cost, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
    return from - now > burst ? from - burst : now;
}

static uint64_t due_of(struct limit *l, const struct vhb_req *req, uint64_t now)
{
    uint64_t due = now, burst = load_relaxed(&l->burst_ns);
    for (uint32_t i = 0; i < VHB_LIMITS; i++) {
        uint64_t rate = load_relaxed(&l->rates[i]), n = rate ? amount(req, i) : 0;
        if (!n)
            continue;
        uint64_t at =
            pay(&l->paid[i], (uint64_t)((unsigned __int128)n * SECOND / rate), burst, now);
        due = at > due ? at : due;
    }
    return due;
}

/* done: when it goes on; step: by which settings.  Both are the layer's until it does. */
static int hold(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io, uint64_t now)
{
    req->disk = &layer->disk;
    req->resume = limit_again;
    vhb_io_hold(io, req, req->done - now > LOOK_NS ? now + LOOK_NS : req->done);
    return VHB_PENDING;
}

static int let_on(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct limit *l = (struct limit *)layer->stage;
    if (!load_relaxed(&l->live) || req->op == VHB_FLUSH)
        return vhb_layer_hand_on(layer, req, io);
    uint64_t now = vhb_clock();
    req->step = load_acquire(&l->generation); /* pair: limit */
    req->done = due_of(l, req, now);
    if (req->done <= now)
        return vhb_layer_hand_on(layer, req, io);
    uint64_t *counters = vhb_stage_shard(layer->stage, io);
    count(&counters[WAITED], 1);
    count(&counters[WAITED_NS], req->done - now);
    return hold(layer, req, io, now);
}

static void limit_again(struct vhb_req *req, int result, struct vhb_io *io)
{
    struct vhb_layer *layer = (struct vhb_layer *)req->disk;
    struct limit *l = (struct limit *)layer->stage;
    uint64_t now = vhb_clock();
    bool gone = result != 0 || req->state == VHB_REQ_DEAD;
    if (gone)
        result = -ECANCELED;
    else if (req->step != load_relaxed(&l->generation))
        result = let_on(layer, req, io);
    else if (req->done > now)
        result = hold(layer, req, io, now);
    else
        result = vhb_layer_hand_on(layer, req, io);
    if (result != VHB_PENDING)
        vhb_req_done(req, result);
}

static int limit_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    return let_on(layer, req, io);
}

static const struct vhb_layer_ops limit_ops = {.submit = limit_submit};

/* ---- the stage ------------------------------------------------------------------------ */

static bool is_limit(const struct vhb_limit *limit)
{
    for (int i = 0; i < VHB_LIMITS; i++)
        if (limit->rates[i] >> 63)
            return false;
    return limit->burst_ns <= VHB_DELAY_MAX_NS;
}

int vhb_stage_limit_set(struct vhb_stage *stage, const struct vhb_limit *limit)
{
    if (stage->kind != &limit_ops || !is_limit(limit))
        return -EINVAL;
    struct limit *l = (struct limit *)stage;
    bool live = false;
    store_relaxed(&l->burst_ns, limit->burst_ns);
    for (int i = 0; i < VHB_LIMITS; i++) {
        store_relaxed(&l->rates[i], limit->rates[i]);
        store_relaxed(&l->paid[i], 0u);
        live = live || limit->rates[i];
    }
    store_relaxed(&l->live, (uint32_t)live);
    store_release(&l->generation, l->generation + 1); /* pair: limit */
    return 0;
}

int vhb_stage_limit_new(const struct vhb_limit *limit, struct vhb_stage **out)
{
    if (!is_limit(limit))
        return -EINVAL;
    struct limit *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    int r = vhb_stage_init(&l->stage, &limit_ops, N_COUNTERS);
    if (r < 0) {
        free(l);
        return r;
    }
    vhb_stage_limit_set(&l->stage, limit);
    *out = &l->stage;
    return 0;
}
