/* tracked_packed.h - a rig whose packed ring has an inflight region, and what a predecessor may
 * have left there.
 *
 * Offsets and order are written from the standard (vhost-user, "Inflight I/O tracking"). */
#ifndef VHB_TRACKED_PACKED_H
#define VHB_TRACKED_PACKED_H

#include <sys/mman.h>

#include "slow.h"

enum { SIZE = 8, REGION = 32 + 32 * SIZE, IN_HEADER = 0xffff };

/* QueueRegionPacked: offsets, and of an entry in the array behind it. */
enum { FEATURES = 0, VERSION = 8, DESC_NUM = 10, FREE_HEAD = 12, OLD_FREE_HEAD = 14 };
enum { USED_IDX = 16, OLD_USED_IDX = 18, USED_WRAP = 20, OLD_USED_WRAP = 21, STATES = 32 };
enum { INFLIGHT = 0, NEXT = 2, LAST = 4, NUM = 6, COUNTER = 8, ID = 16, FLAGS = 18, LEN = 20 };
enum { ADDR = 24, STATE = 32 };

struct tracked {
    struct slow slow;
    uint8_t *region;
};

static inline uint64_t get(struct tracked *t, size_t at, size_t bytes)
{
    uint64_t value = 0;
    memcpy(&value, t->region + at, bytes);
    return value;
}

static inline void put(struct tracked *t, size_t at, size_t bytes, uint64_t value)
{
    memcpy(t->region + at, &value, bytes);
}

static inline size_t state_at(uint32_t entry, size_t field)
{
    return STATES + STATE * (size_t)entry + field;
}

static inline void open_tracked(struct tracked *t)
{
    *t = (struct tracked){0};
    void *region = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(region != MAP_FAILED);
    t->region = region;
    open_slow(&t->slow,
              &(struct rig_config){.size = SIZE, .features = RIG_PACKED, .stopped = true});
    CHECK_EQ(vhb_queue_set_inflight(t->slow.rig.queue, t->region, REGION, SIZE), 0);
}

static inline void close_tracked(struct tracked *t)
{
    close_slow(&t->slow);
    munmap(t->region, 4096);
}

static inline void leave_desc(struct tracked *t, uint32_t entry, uint64_t addr, uint32_t len,
                              uint32_t flags, uint32_t id)
{
    put(t, state_at(entry, ADDR), 8, addr);
    put(t, state_at(entry, LEN), 4, len);
    put(t, state_at(entry, FLAGS), 2, flags | PACKED_AVAIL);
    put(t, state_at(entry, ID), 2, id);
}

/* The chain of request *id*, which reads *id*, in entries *a*, *b* and *c*. */
static inline void leave(struct tracked *t, uint32_t id, uint64_t counter, uint32_t a, uint32_t b,
                         uint32_t c)
{
    put_request(&t->slow.rig, id, BLK_IN, id, RIG_DATA + 512 * id, 512);
    leave_desc(t, a, rig_at(header_at(id)), 16, DESC_NEXT, 0xbad);
    leave_desc(t, b, rig_at(RIG_DATA + 512 * id), 512, DESC_NEXT | DESC_WRITE, 0xbad);
    leave_desc(t, c, rig_at(status_at(id)), 1, DESC_WRITE, id);
    put(t, state_at(a, NEXT), 2, b);
    put(t, state_at(b, NEXT), 2, c);
    put(t, state_at(a, LAST), 2, c);
    put(t, state_at(a, NUM), 2, 3);
    put(t, state_at(a, COUNTER), 8, counter);
    put(t, state_at(a, INFLIGHT), 1, 1);
}

/* Entries 7 and 3 are free; in flight are 5, 0, 6 (request 4, taken second) and 4, 1, 2 (request 1,
 * taken first): they were in the ring at 6 of the first lap to 3 of the second, where there is
 * something else by now. */
static inline void leave_two(struct tracked *t)
{
    struct packed_driver *driver = &t->slow.rig.packed;
    put(t, VERSION, 2, 1);
    put(t, DESC_NUM, 2, SIZE);
    put(t, FREE_HEAD, 2, 7);
    put(t, OLD_FREE_HEAD, 2, 7);
    put(t, state_at(7, NEXT), 2, 3);
    put(t, state_at(3, NEXT), 2, SIZE);
    put(t, USED_IDX, 2, 6);
    put(t, OLD_USED_IDX, 2, 6);
    put(t, USED_WRAP, 1, 1);
    put(t, OLD_USED_WRAP, 1, 1);
    leave(t, 4, 71, 5, 0, 6);
    leave(t, 1, 70, 4, 1, 2);
    for (uint32_t slot = 0; slot < SIZE; slot++)
        put_packed(&t->slow.rig, RIG_DESC, slot, UINT64_MAX, UINT32_MAX, 0xbad,
                   slot >= 6 || slot >= 4 ? PACKED_AVAIL : PACKED_USED);
    put_packed(&t->slow.rig, RIG_DESC, 4, 0, 0, 0, PACKED_AVAIL | PACKED_USED);
    put_packed(&t->slow.rig, RIG_DESC, 5, 0, 0, 0, PACKED_AVAIL | PACKED_USED);
    driver->used = (struct place){6, true};
    driver->avail = (struct place){4, false};
    driver->slots[4] = driver->slots[1] = 3;
    CHECK_EQ(vhb_queue_set_base(t->slow.rig.queue, 0x80008000), 0); /* QEMU's: it cannot know */
}

#endif
