/* tracked.h - a rig whose split ring has an inflight region, and what a predecessor may have left
 * there.
 *
 * Offsets and order are written from the standard (vhost-user, "Inflight I/O tracking"). */
#ifndef VHB_TRACKED_H
#define VHB_TRACKED_H

#include <sys/mman.h>

#include "slow.h"

enum { SIZE = 16, REGION = 16 + 16 * SIZE, IN_HEADER = 0xffff };

/* QueueRegionSplit: offsets, and of an entry in the array behind it. */
enum { FEATURES = 0, VERSION = 8, DESC_NUM = 10, BATCH_HEAD = 12, USED_IDX = 14, STATES = 16 };
enum { STATE = 16, INFLIGHT = 0, NEXT = 6, COUNTER = 8 };

struct tracked {
    struct slow slow;
    uint8_t *region;
};

static inline uint16_t region16(struct tracked *t, size_t at)
{
    uint16_t value;
    memcpy(&value, t->region + at, 2);
    return value;
}

static inline void region_put16(struct tracked *t, size_t at, uint16_t value)
{
    memcpy(t->region + at, &value, 2);
}

static inline size_t state_at(uint32_t head)
{
    return STATES + STATE * (size_t)head;
}

static inline bool is_in_flight(struct tracked *t, uint32_t head)
{
    return t->region[state_at(head) + INFLIGHT] == 1;
}

static inline uint64_t counter_of(struct tracked *t, uint32_t head)
{
    uint64_t value;
    memcpy(&value, t->region + state_at(head) + COUNTER, 8);
    return value;
}

/* A head that a predecessor took as number *counter*. */
static inline void leave(struct tracked *t, uint32_t head, uint64_t counter)
{
    t->region[state_at(head) + INFLIGHT] = 1;
    memcpy(t->region + state_at(head) + COUNTER, &counter, 8);
}

/* What a predecessor left: nothing in flight yet, everything up to *used* given back. */
static inline void leave_region(struct tracked *t, uint16_t used)
{
    region_put16(t, VERSION, 1);
    region_put16(t, DESC_NUM, SIZE);
    region_put16(t, USED_IDX, used);
    put16(&t->slow.rig, RIG_USED + 2, used);
    t->slow.rig.used_seen = used;
    put_avail_idx(&t->slow.rig, used);
}

/* A request for sector *head* that the driver has made available. */
static inline void offer(struct tracked *t, uint16_t head)
{
    put_request(&t->slow.rig, head, BLK_IN, head, RIG_DATA + 512u * head, 512);
    put_avail(&t->slow.rig, head);
}

static inline void open_tracked(struct tracked *t)
{
    *t = (struct tracked){0};
    void *region = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(region != MAP_FAILED);
    t->region = region;
    open_slow(&t->slow, &(struct rig_config){.size = SIZE, .stopped = true});
    CHECK_EQ(vhb_queue_set_inflight(t->slow.rig.queue, t->region, REGION, SIZE), 0);
}

static inline void close_tracked(struct tracked *t)
{
    close_slow(&t->slow);
    munmap(t->region, 4096);
}

/* The next job at the disk is the request for *sector*. */
static inline struct vhb_job expect_job(struct tracked *t, uint64_t sector)
{
    struct vhb_job job;
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    while (vhb_mailbox_take(t->slow.box, &job, 1) == 0) {
        CHECK(rig_now_ms() < end);
        rig_pass(&t->slow.rig);
    }
    CHECK_EQ(job.offset, 512 * sector);
    return job;
}

static inline void expect_no_job(struct tracked *t)
{
    struct vhb_job job;
    settle(&t->slow.rig);
    CHECK_EQ(vhb_mailbox_take(t->slow.box, &job, 1), 0);
}

static inline void finish_and_take(struct tracked *t, const struct vhb_job *job, uint32_t head)
{
    finish(&t->slow, job);
    wait_used(&t->slow.rig);
    CHECK_EQ(t->slow.rig.last_id, head);
    CHECK_EQ(status_of(&t->slow.rig, head), BLK_OK);
}

/* In flight: heads 6, 0 and 9, in this order; not taken: 3. */
static inline void leave_three(struct tracked *t)
{
    leave_region(t, 40);
    offer(t, 6);
    offer(t, 0);
    offer(t, 9);
    offer(t, 3);
    leave(t, 6, 70);
    leave(t, 0, 71);
    leave(t, 9, 90);
    CHECK_EQ(vhb_queue_set_base(t->slow.rig.queue, 40), 0); /* QEMU's: the used index */
}

#endif
