/* split.h - the fields of a split virtqueue, wherever its parts live.
 *
 * virtio 1.3, 2.7.  They are the guest's memory: each is loaded once, into a local. */
#ifndef VHB_SPLIT_H
#define VHB_SPLIT_H

#include "vq.h"

static inline uint16_t *avail_flags(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_AVAIL], 0);
}

static inline uint16_t *avail_idx(struct vhb_queue *q)
{
    return (uint16_t *)part_at(&q->part[VHB_PART_AVAIL], 0) + 1;
}

static inline uint16_t *avail_ring(struct vhb_queue *q, uint32_t i)
{
    return part_at(&q->part[VHB_PART_AVAIL], 4 + 2 * (size_t)i);
}

static inline uint16_t *used_event(struct vhb_queue *q)
{
    return avail_ring(q, q->size);
}

static inline uint16_t *used_flags(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_USED], 0);
}

static inline uint16_t *used_idx(struct vhb_queue *q)
{
    return (uint16_t *)part_at(&q->part[VHB_PART_USED], 0) + 1;
}

static inline struct vring_used_elem *used_elem(struct vhb_queue *q, uint32_t i)
{
    return part_at(&q->part[VHB_PART_USED], 4 + 8 * (size_t)i);
}

static inline uint16_t *avail_event(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_USED], 4 + 8 * (size_t)q->size);
}

#endif
