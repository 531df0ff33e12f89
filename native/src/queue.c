/* queue.c - a virtqueue as the control plane sees it: made, set, asked for and freed.
 *
 * Read visit.c for what the worker does with it, split.c for the ring, blk.c for requests. */
#include <errno.h>
#include <linux/virtio_config.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "inflight.h"

/* ---- making and freeing: the control plane ------------------------------------------- */

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static size_t slots_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_req);
}

static size_t wide_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_wide);
}

static size_t layered_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_layered);
}

static const size_t samples_size = VHB_SAMPLE_RING * sizeof(struct vhb_sample);
static const size_t borrow_size = VHB_BORROW_COUNT * VHB_MAX_IOV * sizeof(struct iovec);

static void queue_dispose(struct vhb_queue *q)
{
    if (q->slots)
        munmap(q->slots, slots_size(q));
    if (q->wide)
        munmap(q->wide, wide_size(q));
    if (q->layered)
        munmap(q->layered, layered_size(q));
    if (q->borrow)
        munmap(q->borrow, borrow_size);
    if (q->samples.ring)
        munmap(q->samples.ring, samples_size);
    for (int i = 0; i < 3; i++)
        free(q->part[i].pieces);
    free(q->free_slots);
    free(q->ids);
    free(q->space.segments);
    free(q->use_asked);
    free(q->log);
    vhb_inflight_dispose(&q->inflight);
    free(q);
}

int vhb_queue_new(struct vhb_worker *worker, struct vhb_disk *disk, struct vhb_graveyard *graveyard,
                  uint32_t max_size, struct vhb_queue **out)
{
    if (max_size == 0 || max_size > 32768)
        return -EINVAL;
    struct vhb_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    *q = (struct vhb_queue){.worker = worker,
                            .io = vhb_worker_io(worker),
                            .disk = disk,
                            .graveyard = graveyard,
                            .max_size = max_size,
                            .ring = &vhb_split_ops,
                            .kick = -1,
                            .call = -1,
                            .err = -1,
                            .watched = -1,
                            .pace = 1,
                            .attached = true,
                            .state = VHB_OWNED_BY_CONTROL,
                            .served = VHB_OWNED_BY_CONTROL,
                            .borrow_free = (1u << VHB_BORROW_COUNT) - 1};
    q->done_tail = &q->done;
    q->held_tail = &q->held;
    q->errors.tail = &q->errors.held;
    q->slots = reserve(slots_size(q));
    q->wide = reserve(wide_size(q));
    q->layered = reserve(layered_size(q));
    q->borrow = reserve(borrow_size);
    q->samples.ring = reserve(samples_size);
    q->free_slots = calloc(slot_count(q), sizeof(*q->free_slots));
    q->ids = calloc(1, ids_size(q));
    if (!q->slots || !q->wide || !q->layered || !q->borrow || !q->samples.ring || !q->free_slots ||
        !q->ids) {
        queue_dispose(q);
        return -ENOMEM;
    }
    q->n_free = slot_count(q);
    for (uint32_t i = 0; i < q->n_free; i++)
        q->free_slots[i] = (uint16_t)(q->n_free - 1 - i);
    disk->users++;
    vhb_worker_adopt(worker, q);
    *out = q;
    return 0;
}

int vhb_queue_free(struct vhb_queue *q)
{
    if (q->attached)
        return -EBUSY;
    q->disk->users--;
    queue_dispose(q);
    return 0;
}

/* ---- settings: the control plane, while it owns the ring ------------------------------ */

static bool ours(struct vhb_queue *q)
{
    return load_acquire(&q->state) & VHB_OWNED_BY_CONTROL; /* pair: state */
}

/* The chain that waits is looked at anew.  What was posted about it is of no use any more. */
static void forget_miss(struct vhb_queue *q)
{
    q->missing = false;
    __atomic_fetch_and(&q->events, ~(uint32_t)VHB_MISS, __ATOMIC_ACQ_REL); /* pair: events */
}

int vhb_queue_set_space(struct vhb_queue *q, const struct vhb_segment *segments, size_t n)
{
    if (!ours(q))
        return -EBUSY;
    q->losses = 0;
    int r = vhb_space_set(&q->space, segments, n);
    if (r == 0)
        forget_miss(q);
    return r;
}

int vhb_queue_set_ask(struct vhb_queue *q, bool ask)
{
    if (!ours(q))
        return -EBUSY;
    q->space.asks = ask;
    q->space.n_denied = 0;
    forget_miss(q);
    return 0;
}

int vhb_queue_deny(struct vhb_queue *q, uint64_t iova, uint64_t len)
{
    if (!ours(q))
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
    if (!ours(q))
        return -EBUSY;
    if (size == 0 || size > q->max_size)
        return -EINVAL;
    q->size = size;
    return 0;
}

int vhb_queue_set_part(struct vhb_queue *q, int part, const struct vhb_piece *pieces, size_t n)
{
    if (!ours(q))
        return -EBUSY;
    if (part < VHB_PART_DESC || part > VHB_PART_USED)
        return -EINVAL;
    return vhb_part_set(&q->part[part], part, pieces, n);
}

int vhb_queue_set_base(struct vhb_queue *q, uint32_t base)
{
    /* What is in flight is in the region, too: it would be taken for a predecessor's. */
    if (!ours(q) || (q->inflight.live && is_parked(load_acquire(&q->state))))
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
    if (!ours(q))
        return -EBUSY;
    *out = q->loaded ? q->ring->save(q) : q->base;
    return 0;
}

int vhb_queue_set_kick(struct vhb_queue *q, int fd)
{
    if (!ours(q))
        return -EBUSY;
    q->kick = fd;
    return 0;
}

int vhb_queue_set_call(struct vhb_queue *q, int fd)
{
    if (!ours(q))
        return -EBUSY;
    q->call = fd;
    q->greet = fd >= 0;
    return 0;
}

int vhb_queue_set_err(struct vhb_queue *q, int fd)
{
    if (!ours(q))
        return -EBUSY;
    q->err = fd;
    return 0;
}

int vhb_queue_set_enabled(struct vhb_queue *q, bool enabled)
{
    if (!ours(q))
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
    if (!ours(q))
        return -EBUSY;
    bool size_ok = blk->block_size >= 512 && !(blk->block_size & (blk->block_size - 1));
    if (!size_ok || blk->max_discard_seg > VHB_MAX_RANGES ||
        blk->max_write_zeroes_seg > VHB_MAX_RANGES)
        return -EINVAL;
    q->blk = *blk;
    return 0;
}

int vhb_queue_set_sampling(struct vhb_queue *q, uint32_t first, uint32_t every)
{
    if (!ours(q))
        return -EBUSY;
    struct vhb_samples *s = &q->samples;
    *s = (struct vhb_samples){.ring = s->ring,
                              .stored = s->stored,
                              .taken = s->stored,
                              .first = first,
                              .every = every,
                              .wait = every};
    return 0;
}

int vhb_queue_condemn(struct vhb_queue *q)
{
    if (!ours(q))
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
    if (!ours(q))
        return -EBUSY;
    if (!q->blk.block_size || !q->space.segments || !q->ring->is_set(q))
        return -EINVAL;
    q->was_run = true;
    hand_over(q, VHB_ASK_RUN);
    return 0;
}

int vhb_queue_park(struct vhb_queue *q)
{
    if (!ask_again(q, VHB_ASK_RUN, VHB_ASK_PARK) && ours(q))
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
