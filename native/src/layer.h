/* layer.h - a disk in front of a disk, and the stage that layers of one kind share.
 *
 * A layer hands a request on as it came, and is out of the way then; or with a note, and is called
 * once more with what became of it.  Or it ends the request by itself, or holds it for a while
 * (vhb_io_hold), with req->disk and req->resume set as any disk sets them.  Between those calls the
 * fields of a request that are "the disk's own" are free for it.
 *
 * All of it happens on the worker of the request's queue; layers of several queues run at the same
 * time. */
#ifndef VHB_LAYER_H
#define VHB_LAYER_H

#include "atomics.h"
#include "io.h"

struct vhb_layer_ops {
    /* As vhb_disk_ops.submit.  Hands on by vhb_layer_hand_on() or vhb_layer_hand_on_noted(). */
    int (*submit)(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io);
    /* What a request that was handed on with *note* ends with: 0, -errno, or VHB_PENDING and
     * vhb_req_done() later.  What is less than any -errno (VHB_RESULT_*) it cannot change. */
    int (*done)(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                struct vhb_io *io);
};

struct vhb_layer {
    struct vhb_disk disk; /* first */
    struct vhb_disk_ops ops; /* its own: what the disk below lacks is NULL here, too */
    struct vhb_disk *below;
    struct vhb_disk *bottom; /* the first that is no layer */
    struct vhb_stage *stage; /* shared: settings and counters */
    const struct vhb_layer_ops *kind;
    uint32_t height; /* layers from here to the bottom */
};

/* ---- stages: settings are atomics, set by any thread ---- */

/* Of a stage: a shard of its counters is one worker's, whose thread alone writes them. */
enum { VHB_SHARDS = 64, VHB_SHARD_LINE = 64 };

struct vhb_stage {
    const struct vhb_layer_ops *kind;
    void (*free)(struct vhb_stage *stage); /* or NULL: free() */
    /* What a counter is, where it follows from others; or NULL: vhb_stage_sum(). */
    uint64_t (*counted)(const struct vhb_stage *stage, uint32_t counter);
    atomic_int users; /* layers */
    uint32_t counters; /* of each shard */
    size_t stride; /* bytes from one shard to the next */
    uint8_t *memory, *shards; /* the second aligned; one more, which is everybody's */
    /* Apart from what they own: a worker that looks for its own disturbs no other. */
    const struct vhb_io *owners[VHB_SHARDS]; /* pair: shard */
};

/* Make the start of a kind's own struct, which is zeroed, a stage with so many counters. */
int vhb_stage_init(struct vhb_stage *stage, const struct vhb_layer_ops *kind, uint32_t counters);

static inline uint64_t *vhb_shard_at(const struct vhb_stage *stage, size_t i)
{
    return (uint64_t *)(void *)(stage->shards + i * stage->stride);
}

/* Which is a worker's whose is not *from*: rare, its first request, and where two hash alike. */
__attribute__((cold)) size_t vhb_shard_find(struct vhb_stage *stage, const struct vhb_io *io,
                                            size_t from);

/* A worker's counters, for count(); those of more than 64 workers share some, which are then not
 * exact. */
static inline uint64_t *vhb_stage_shard(struct vhb_stage *stage, const struct vhb_io *io)
{
    size_t at = (uintptr_t)io / VHB_SHARD_LINE % VHB_SHARDS;
    if (load_acquire(&stage->owners[at]) != io) /* pair: shard */
        at = vhb_shard_find(stage, io, at);
    return vhb_shard_at(stage, at);
}

/* Of a counter of all workers. */
uint64_t vhb_stage_sum(const struct vhb_stage *stage, uint32_t counter);

/* ---- layers ---- */

/* To the disk below; the layer has nothing to do with the request any more. */
static inline int vhb_layer_hand_on(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    return layer->below->ops->submit(layer->below, req, io);
}

/* To the disk below; *done* follows, perhaps before this returns what *done* did. */
int vhb_layer_hand_on_noted(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io,
                            uint64_t note);

/* To the disk below at *due* (ns): VHB_PENDING. */
int vhb_layer_hand_on_at(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io,
                         uint64_t due);

__attribute__((cold)) uint64_t vhb_layer_look(struct vhb_io *io); /* at the clock */

/* The time.  It costs as much as all else a layer does, so it is looked at once where much of it
 * may have gone: behind a system call of the worker, and behind what waits in submit. */
static inline uint64_t vhb_layer_time(const struct vhb_layer *layer, struct vhb_io *io)
{
    if (io->enters != io->looked || layer->ops.waits)
        return vhb_layer_look(io);
    return io->now;
}

/* A number that a seed and a place in its row give, any of 64 bits. */
uint64_t vhb_layer_random(uint64_t seed, uint64_t n);

/* A disk has ended a request that has frames: what it ends with, or VHB_PENDING. */
int vhb_layers_done(struct vhb_req *req, int result, struct vhb_io *io);

#endif
