/* packed.h - places in a packed virtqueue, and what the flags of a descriptor say there.
 *
 * A place is a number of descriptors on two laps of the ring: on the first the wrap counter is 1,
 * on the second 0. */
#ifndef VHB_PACKED_H
#define VHB_PACKED_H

#include "chain.h"

enum {
    FLAG_AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
    FLAG_USED = 1 << VRING_PACKED_DESC_F_USED,
    WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
};

static inline uint32_t slot_of(const struct vhb_queue *q, uint32_t place)
{
    return place < q->size ? place : place - q->size;
}

static inline bool wrap_of(const struct vhb_queue *q, uint32_t place)
{
    return place < q->size;
}

static inline uint16_t behind(const struct vhb_queue *q, uint32_t place, uint32_t n)
{
    uint32_t sum = place + n;
    return (uint16_t)(sum < 2 * q->size ? sum : sum - 2 * q->size);
}

/* Descriptors from one place to another that is not before it. */
static inline uint32_t between(const struct vhb_queue *q, uint32_t from, uint32_t to)
{
    return to >= from ? to - from : to + 2 * q->size - from;
}

/* As a base and an event suppression say it: slot and wrap counter. */
static inline uint16_t as_wire(const struct vhb_queue *q, uint32_t place)
{
    return (uint16_t)(slot_of(q, place) | (wrap_of(q, place) ? WRAP : 0));
}

static inline uint32_t from_wire(const struct vhb_queue *q, uint16_t wire)
{
    return (wire & (WRAP - 1)) + (wire & WRAP ? 0 : q->size);
}

static inline struct vring_packed_desc *desc_at(const struct vhb_queue *q, uint32_t place)
{
    return part_at(&q->part[VHB_PART_DESC], (size_t)slot_of(q, place) * DESC_SIZE);
}

static inline bool is_avail(const struct vhb_queue *q, uint32_t place, uint16_t flags)
{
    return (flags & (FLAG_AVAIL | FLAG_USED)) == (wrap_of(q, place) ? FLAG_AVAIL : FLAG_USED);
}

/* Whether what stands there is a used element of this lap. */
static inline bool is_used(const struct vhb_queue *q, uint32_t place, uint16_t flags)
{
    return (flags & (FLAG_AVAIL | FLAG_USED)) == (wrap_of(q, place) ? FLAG_AVAIL | FLAG_USED : 0);
}

#endif
