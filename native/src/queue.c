/* queue.c - a virtqueue as the control plane sees it: set, and asked for.
 *
 * Read queue_make.c for how one comes and goes, visit.c for what the worker does with it, split.c
 * for the ring, blk.c for requests. */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>

#include "inflight.h"

/* ---- settings: the control plane, while it owns the ring ------------------------------ */

/* The chain that waits is looked at anew.  What was posted about it is of no use any more. */
static void forget_miss(struct vhb_queue *q)
{
    q->missing = false;
    __atomic_fetch_and(&q->events, ~(uint32_t)VHB_MISS, __ATOMIC_ACQ_REL); /* pair: events */
}

int vhb_queue_set_space(struct vhb_queue *q, const struct vhb_segment *segments, size_t n)
{
    if (!is_ours(q))
        return -EBUSY;
    q->losses = 0;
    int r = vhb_space_set(&q->space, segments, n);
    if (r == 0)
        forget_miss(q);
    return r;
}

int vhb_queue_set_ask(struct vhb_queue *q, bool ask)
{
    if (!is_ours(q))
        return -EBUSY;
    q->space.asks = ask;
    q->space.n_denied = 0;
    forget_miss(q);
    return 0;
}

int vhb_queue_deny(struct vhb_queue *q, uint64_t iova, uint64_t len)
{
    if (!is_ours(q))
        return -EBUSY;
    vhb_space_deny(&q->space, iova, len);
    forget_miss(q);
    return 0;
}

int vhb_queue_miss(struct vhb_queue *q, struct vhb_miss *out)
{
    *out = q->space.miss; /* written before VHB_MISS was posted, and not again until a run */
    return q->missing;
}

int vhb_queue_set_size(struct vhb_queue *q, uint32_t size)
{
    if (!is_ours(q))
        return -EBUSY;
    if (size == 0 || size > q->max_size)
        return -EINVAL;
    q->size = size;
    return 0;
}

int vhb_queue_set_part(struct vhb_queue *q, int part, const struct vhb_piece *pieces, size_t n)
{
    if (!is_ours(q))
        return -EBUSY;
    if (part < VHB_PART_DESC || part > VHB_PART_USED)
        return -EINVAL;
    return vhb_part_set(&q->part[part], part, pieces, n);
}

int vhb_queue_set_base(struct vhb_queue *q, uint32_t base)
{
    /* What is in flight is in the region, too: it would be taken for a predecessor's. */
    if (!is_ours(q) || (q->inflight.live && is_parked(load_acquire(&q->state))))
        return -EBUSY;
    vhb_inflight_forget(q);
    q->base = base;
    q->was_run = q->loaded = false;
    q->broken = false;
    q->losses = 0;
    q->space.n_denied = 0;
    forget_miss(q);
    q->fault = (struct vhb_fault){0};
    return 0;
}

int vhb_queue_base(struct vhb_queue *q, uint32_t *out)
{
    if (!is_ours(q))
        return -EBUSY;
    *out = q->loaded ? q->ring->save(q) : q->base;
    return 0;
}

int vhb_queue_set_kick(struct vhb_queue *q, int fd)
{
    if (!is_ours(q))
        return -EBUSY;
    q->kick = fd;
    return 0;
}

int vhb_queue_set_call(struct vhb_queue *q, int fd)
{
    if (!is_ours(q))
        return -EBUSY;
    q->call = fd;
    q->greet = fd >= 0;
    return 0;
}

int vhb_queue_set_err(struct vhb_queue *q, int fd)
{
    if (!is_ours(q))
        return -EBUSY;
    q->err = fd;
    return 0;
}

int vhb_queue_set_enabled(struct vhb_queue *q, bool enabled)
{
    if (!is_ours(q))
        return -EBUSY;
    q->enabled = enabled;
    return 0;
}

int vhb_queue_set_features(struct vhb_queue *q, uint64_t features)
{
    uint32_t state = load_acquire(&q->state); /* pair: state */
    bool packed = features >> VIRTIO_F_RING_PACKED & 1,
         in_order = features >> VIRTIO_F_IN_ORDER & 1;
    bool other_format = packed != (q->ring == &vhb_packed_ops);
    /* What is in flight goes back as it came. */
    bool parked = is_parked(state);
    if (!(state & VHB_OWNED_BY_CONTROL) || (parked && (other_format || in_order != q->in_order)))
        return -EBUSY;
    if (other_format)
        q->was_run = q->loaded = false;
    q->ring = packed ? &vhb_packed_ops : &vhb_split_ops;
    q->in_order = in_order;
    q->event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1;
    q->indirect = features >> VIRTIO_RING_F_INDIRECT_DESC & 1;
    return 0;
}

int vhb_queue_set_blk(struct vhb_queue *q, const struct vhb_blk *blk)
{
    if (!is_ours(q))
        return -EBUSY;
    bool size_ok = blk->block_size >= 512 && !(blk->block_size & (blk->block_size - 1));
    if (!size_ok || blk->max_discard_seg > VHB_MAX_RANGES ||
        blk->max_write_zeroes_seg > VHB_MAX_RANGES)
        return -EINVAL;
    q->blk = *blk;
    return 0;
}

int vhb_queue_condemn(struct vhb_queue *q)
{
    if (!is_ours(q))
        return -EBUSY;
    vhb_break_as(q, VHB_CONDEMNED, next_at(q), 0);
    return 0;
}

/* ---- asking: the control plane -------------------------------------------------------- */

/* Whatever was asked before, and whether or not the ring was given back meanwhile. */
static void hand_over(struct vhb_queue *q, enum vhb_ask ask)
{
    __atomic_store_n(&q->state, (uint32_t)ask, __ATOMIC_SEQ_CST); /* pair: state */
    vhb_worker_wake(q->worker);
}

/* Change what is asked of the worker, if it still owns the ring and is asked *from* now. */
static bool ask_again(struct vhb_queue *q, enum vhb_ask from, enum vhb_ask to)
{
    uint32_t expected = from;
    bool changed = __atomic_compare_exchange_n(&q->state, &expected, (uint32_t)to, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
    if (changed)
        vhb_worker_wake(q->worker);
    return changed;
}

int vhb_queue_run(struct vhb_queue *q)
{
    if (!is_ours(q))
        return -EBUSY;
    if (!q->blk.block_size || !q->space.segments || !q->ring->is_set(q))
        return -EINVAL;
    q->was_run = true;
    hand_over(q, VHB_ASK_RUN);
    return 0;
}

int vhb_queue_park(struct vhb_queue *q)
{
    if (!ask_again(q, VHB_ASK_RUN, VHB_ASK_PARK) && is_ours(q))
        vhb_queue_post(q, VHB_PARKED);
    return 0; /* else: it was asked for before, and is on its way */
}

int vhb_queue_drain(struct vhb_queue *q)
{
    uint32_t state = load_acquire(&q->state); /* pair: state */
    if (state == (VHB_OWNED_BY_CONTROL | VHB_ASK_DRAIN) ||
        state == (VHB_OWNED_BY_CONTROL | VHB_ASK_CANCEL))
        vhb_queue_post(q, VHB_DRAINED); /* it is; its memory may be gone */
    else
        hand_over(q, VHB_ASK_DRAIN);
    return 0;
}

int vhb_queue_cancel(struct vhb_queue *q)
{
    ask_again(q, VHB_ASK_DRAIN, VHB_ASK_CANCEL); /* or it drained meanwhile */
    return 0;
}

int vhb_queue_detach(struct vhb_queue *q)
{
    /* Parked is not enough: what is in flight would come back to a queue that is gone. */
    uint32_t state = load_acquire(&q->state); /* pair: state */
    if (!(state & VHB_OWNED_BY_CONTROL) || is_parked(state))
        return -EBUSY;
    free(q->log); /* its memory may go; what is dead now is not logged any more */
    q->log = NULL;
    hand_over(q, VHB_ASK_DETACH);
    return 0;
}

int vhb_queue_attach(struct vhb_queue *q, struct vhb_worker *worker)
{
    if (q->attached)
        return -EBUSY;
    q->worker = worker;
    q->io = vhb_worker_io(worker);
    q->attached = true;
    q->watching = q->watching_disk = q->deaf = false; /* those were the other one's */
    q->watched = -1;
    q->served = VHB_OWNED_BY_CONTROL | VHB_ASK_DRAIN;
    store_relaxed(&q->state, q->served); /* nobody else looks before it is adopted.  pair: inbox */
    vhb_worker_adopt(worker, q);
    return 0;
}

uint32_t vhb_queue_take_events(struct vhb_queue *q)
{
    uint32_t events = __atomic_exchange_n(&q->events, 0, __ATOMIC_ACQ_REL); /* pair: events */
    if (events & VHB_DETACHED) /* the worker's last touch was to say so */
        q->attached = false;
    return events;
}

uint32_t vhb_queues_take_events(struct vhb_queue *const *queues, uint32_t n, uint32_t from,
                                uint32_t *out)
{
    uint32_t i = from;
    while (i < n && !load_relaxed(&queues[i]->events))
        i++;
    if (i < n)
        *out = vhb_queue_take_events(queues[i]);
    return i;
}

int vhb_queue_fault(struct vhb_queue *q, struct vhb_fault *out)
{
    /* The queue may be breaking just now.  pair: fault */
    *out = load_acquire(&q->fault.reason) == VHB_OK ? (struct vhb_fault){0} : q->fault;
    return 0;
}

int vhb_queue_counters(struct vhb_queue *q, struct vhb_counters *out)
{
    const uint64_t *from = (const uint64_t *)&q->counters;
    for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++)
        ((uint64_t *)out)[i] = load_relaxed(&from[i]);
    return 0;
}
