/* layer_delay.c - a layer that has requests wait before the disk below gets them. */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "vq.h"

enum { DELAYED, N_COUNTERS };

struct delay {
    struct vhb_stage stage; /* first */
    struct vhb_delay set; /* read and written field by field */
    uint64_t drawn; /* random numbers so far */
};

/* -log2 of a random number, 32.32, by a straight line in each doubling: 1.5 on average. */
static uint64_t bits_of(uint64_t random)
{
    uint64_t u = random | 1;
    uint32_t zeroes = (uint32_t)__builtin_clzll(u);
    uint64_t fraction = zeroes == 63 ? 0 : u << (zeroes + 1) >> 32;
    return ((uint64_t)(zeroes + 1) << 32) - fraction;
}

static uint64_t scaled(uint64_t ns, uint64_t by, uint64_t one)
{
    return (uint64_t)((unsigned __int128)ns * by / one);
}

static uint64_t time_of(struct delay *d, const struct vhb_delay_time *time)
{
    uint64_t least = load_relaxed(&time->least_ns), more = load_relaxed(&time->more_ns);
    if (!more)
        return least;
    uint64_t n = __atomic_fetch_add(&d->drawn, 1, __ATOMIC_RELAXED);
    uint64_t random = vhb_layer_random(load_relaxed(&d->set.seed), n);
    if (load_relaxed(&time->spread) == VHB_DELAY_EVEN)
        return least + scaled(more, random >> 32, UINT32_MAX);
    return least + scaled(more, bits_of(random), 3ull << 31);
}

static int delay_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct delay *d = (struct delay *)layer->stage;
    uint64_t ns = time_of(d, &d->set.times[req->op]);
    if (!ns)
        return vhb_layer_hand_on(layer, req, io);
    count(&vhb_stage_shard(layer->stage, io)[DELAYED], 1);
    /* Of now, not of when the pass began: it may have come since. */
    return vhb_layer_hand_on_at(layer, req, io, vhb_clock() + ns);
}

static const struct vhb_layer_ops delay_ops = {.submit = delay_submit};

/* ---- the stage ------------------------------------------------------------------------ */

static bool is_delay(const struct vhb_delay *delay)
{
    for (int op = 0; op < VHB_CANCEL; op++) {
        const struct vhb_delay_time *time = &delay->times[op];
        if (time->least_ns > VHB_DELAY_MAX_NS || time->more_ns > VHB_DELAY_MAX_NS ||
            time->spread > VHB_DELAY_EXPONENTIAL)
            return false;
    }
    return true;
}

int vhb_stage_delay_set(struct vhb_stage *stage, const struct vhb_delay *delay)
{
    if (stage->kind != &delay_ops || !is_delay(delay))
        return -EINVAL;
    struct delay *d = (struct delay *)stage;
    for (int op = 0; op < VHB_CANCEL; op++) {
        store_relaxed(&d->set.times[op].least_ns, delay->times[op].least_ns);
        store_relaxed(&d->set.times[op].spread, delay->times[op].spread);
        store_relaxed(&d->set.times[op].more_ns, delay->times[op].more_ns);
    }
    if (load_relaxed(&d->set.seed) != delay->seed) {
        store_relaxed(&d->set.seed, delay->seed);
        store_relaxed(&d->drawn, 0u);
    }
    return 0;
}

int vhb_stage_delay_new(const struct vhb_delay *delay, struct vhb_stage **out)
{
    if (!is_delay(delay))
        return -EINVAL;
    struct delay *d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    int r = vhb_stage_init(&d->stage, &delay_ops, N_COUNTERS);
    if (r < 0) {
        free(d);
        return r;
    }
    vhb_stage_delay_set(&d->stage, delay);
    *out = &d->stage;
    return 0;
}
