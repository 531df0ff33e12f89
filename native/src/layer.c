/* layer.c - layers: what each is to the queue, and the way back through them. */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "vq.h"

enum { SHARDS = VHB_SHARDS, LINE = VHB_SHARD_LINE, MAX_ERRNO = 4095 };

static struct vhb_layer *layer_of(struct vhb_disk *disk)
{
    return (struct vhb_layer *)disk;
}

/* ---- the way back -------------------------------------------------------------------- */

static int frame_done(struct vhb_req *req, int result, struct vhb_io *io)
{
    struct vhb_frame *frame = &layered_of(req)->frames[--req->depth];
    struct vhb_layer *layer = frame->layer;
    req->shift = frame->shift;
    int r = layer->kind->done(layer, req, result, frame->note, io);
    return r != VHB_PENDING && result < -MAX_ERRNO ? result : r;
}

int vhb_layer_hand_on_noted(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io,
                            uint64_t note)
{
    layered_of(req)->frames[req->depth++] = (struct vhb_frame){layer, note, req->shift};
    int r = layer->below->ops->submit(layer->below, req, io);
    return r == VHB_PENDING ? r : frame_done(req, r, io);
}

int vhb_layers_done(struct vhb_req *req, int result, struct vhb_io *io)
{
    while (req->depth && result != VHB_PENDING)
        result = frame_done(req, result, io);
    return result;
}

/* ---- what several kinds do ------------------------------------------------------------ */

static void time_has_come(struct vhb_req *req, int result, struct vhb_io *io)
{
    if (result == 0)
        result = vhb_layer_hand_on(layer_of(req->disk), req, io);
    if (result != VHB_PENDING)
        vhb_req_done(req, result);
}

int vhb_layer_hand_on_at(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io,
                         uint64_t due)
{
    req->disk = &layer->disk;
    req->resume = time_has_come;
    vhb_io_hold(io, req, due);
    return VHB_PENDING;
}

uint64_t vhb_layer_look(struct vhb_io *io)
{
    io->now = vhb_clock();
    io->looked = io->enters;
    return io->now;
}

/* The mixing of splitmix64: every bit of a place goes into every bit of its number. */
uint64_t vhb_layer_random(uint64_t seed, uint64_t n)
{
    uint64_t x = seed + (n + 1) * 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* ---- a layer as a disk: what is asked of the whole stack goes to its bottom ------------ */

static int layer_submit(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_layer *layer = layer_of(disk);
    return layer->kind->submit(layer, req, io);
}

/* A request is held by one of the layers, or is with the bottom. */
static void layer_cancel(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_disk *bottom = layer_of(disk)->bottom;
    if (vhb_io_let_go(io, req))
        req->resume(req, -ECANCELED, io);
    else if (bottom->ops->cancel)
        bottom->ops->cancel(bottom, req, io);
}

static void layer_flush(struct vhb_disk *disk)
{
    struct vhb_disk *bottom = layer_of(disk)->bottom;
    bottom->ops->flush(bottom);
}

static int layer_poll_fd(struct vhb_disk *disk)
{
    struct vhb_disk *bottom = layer_of(disk)->bottom;
    return bottom->ops->poll_fd(bottom);
}

static int layer_reap(struct vhb_disk *disk, bool arm)
{
    struct vhb_disk *bottom = layer_of(disk)->bottom;
    return bottom->ops->reap(bottom, arm);
}

static void layer_free(struct vhb_disk *disk)
{
    struct vhb_layer *layer = layer_of(disk);
    layer->below->users--;
    layer->stage->users--;
    free(layer);
}

static struct vhb_disk_ops ops_over(const struct vhb_disk_ops *below)
{
    return (struct vhb_disk_ops){
        .submit = layer_submit,
        .cancel = layer_cancel,
        .flush = below->flush ? layer_flush : NULL,
        .poll_fd = below->poll_fd ? layer_poll_fd : NULL,
        .reap = below->reap ? layer_reap : NULL,
        .at_once = below->at_once,
        .waits = below->waits,
        .free = layer_free,
    };
}

int vhb_layer_new(struct vhb_disk *below, struct vhb_stage *stage, struct vhb_disk **out)
{
    const struct vhb_layer *next = below->ops->submit == layer_submit ? layer_of(below) : NULL;
    if (next && next->height == VHB_MAX_LAYERS)
        return -E2BIG;
    struct vhb_layer *layer = calloc(1, sizeof(*layer));
    if (!layer)
        return -ENOMEM;
    layer->ops = ops_over(below->ops);
    layer->disk.ops = &layer->ops;
    layer->below = below;
    layer->bottom = next ? next->bottom : below;
    layer->stage = stage;
    layer->kind = stage->kind;
    layer->height = next ? next->height + 1 : 1;
    below->users++;
    stage->users++;
    *out = &layer->disk;
    return 0;
}

/* ---- stages -------------------------------------------------------------------------- */

int vhb_stage_init(struct vhb_stage *stage, const struct vhb_layer_ops *kind, uint32_t counters)
{
    size_t bytes = counters * sizeof(uint64_t);
    stage->kind = kind;
    stage->counters = counters;
    stage->stride = (bytes + LINE - 1) / LINE * LINE;
    if (counters == 0)
        return 0;
    /* Those that nobody owns cost no memory. */
    stage->memory = calloc(1, (SHARDS + 1) * stage->stride + LINE);
    if (!stage->memory)
        return -ENOMEM;
    stage->shards = stage->memory + (LINE - (uintptr_t)stage->memory % LINE) % LINE;
    return 0;
}

size_t vhb_shard_find(struct vhb_stage *stage, const struct vhb_io *io, size_t from)
{
    for (size_t i = 0; i < SHARDS; i++) {
        size_t at = (from + i) % SHARDS;
        const struct vhb_io *owner = load_acquire(&stage->owners[at]); /* pair: shard */
        if (!owner && __atomic_compare_exchange_n(&stage->owners[at], &owner, io, false,
                                                  __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
            return at;
        if (owner == io)
            return at;
    }
    return SHARDS;
}

uint64_t vhb_stage_sum(const struct vhb_stage *stage, uint32_t counter)
{
    uint64_t sum = 0;
    for (size_t i = 0; i <= SHARDS; i++)
        sum += load_relaxed(&vhb_shard_at(stage, i)[counter]);
    return sum;
}

int vhb_stage_counters(struct vhb_stage *stage, uint64_t *out, uint32_t n)
{
    for (uint32_t c = 0; c < n && c < stage->counters; c++)
        out[c] = stage->counted ? stage->counted(stage, c) : vhb_stage_sum(stage, c);
    return (int)stage->counters;
}

int vhb_stage_free(struct vhb_stage *stage)
{
    if (!stage)
        return 0;
    if (atomic_load(&stage->users))
        return -EBUSY;
    free(stage->memory);
    if (stage->free)
        stage->free(stage);
    else
        free(stage);
    return 0;
}
