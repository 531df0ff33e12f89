/* queue.h - a queue of the load generator, and what its parts want of each other. */
#ifndef VHB_GUEST_QUEUE_H
#define VHB_GUEST_QUEUE_H

#include <linux/virtio_blk.h>

#include "ring.h"

enum { SECTOR = 512, PAGE = 4096 };

/* What lies in guest memory beside table and data, on a cache line of its own. */
struct drv_small {
    struct virtio_blk_outhdr header;
    uint8_t status;
    uint8_t unused[47];
};

_Static_assert(sizeof(struct drv_small) == 64, "a cache line");

struct drv_slot {
    struct drv_chain chain;
    struct drv_small *small;
    uint8_t *data;
    uint64_t block;
    uint64_t started;
    uint32_t
        generation; /* with verify: that is written, or that must be read; 0: anything may be */
    bool write;
};

struct drv_queue {
    struct drv_config config;
    struct drv_ring ring;
    struct drv_slot *slots;
    uint32_t *free; /* slots that are not in flight */
    uint32_t n_free;
    uint32_t *generations; /* with verify: of each block */
    uint32_t stop;         /* other threads write it: 0, 1, or 2 for at once */
    struct drv_counters counters;

    /* The run. */
    struct drv_job job;
    struct drv_fault *fault;
    uint64_t random, next;  /* of the order; next block in sequence */
    uint64_t issued;
    uint64_t now;           /* as last read: once for each batch */
    uint64_t begun, heard;  /* when it was, and something was used last */
    uint64_t watched;       /* when watch_fd was looked at last, polling */
    uint64_t cpu_ns;        /* of the thread, at begin_ns */
    bool warm, over;        /* after the warm-up; nothing more is begun or counted */
};

uint64_t drv_clock(void);

/* Wait until something was used, or a reason to end. */
int drv_wait(struct drv_queue *q);

/* What the next request is about. */
void drv_choose(struct drv_queue *q, struct drv_slot *slot);
/* A request that *slot* made has ended; *ok*: with status OK.  0 or DRV_MISMATCH. */
int drv_verify(struct drv_queue *q, struct drv_slot *slot, bool ok);

void drv_count_latency(struct drv_counters *counters, bool write, uint64_t ns);

#endif
