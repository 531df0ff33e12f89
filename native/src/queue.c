/* queue.c - the life of a virtqueue: who owns its ring, what was asked, one visit of the worker.
 *
 * Read worker.c for who calls vhb_queue_serve, split.c for the ring, blk.c for requests. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "io.h"
#include "vq.h"

enum { BUDGET = 64 /* requests taken in one visit, so that queues share a worker fairly */ };

/* ---- making and freeing: the control plane ------------------------------------------- */

/* Twice the descriptors: every request in flight can be cancelled, its head then goes back
 * through a second slot.  Untouched slots cost address space only. */
static uint32_t slot_count(const struct vhb_queue *q)
{
    return 2 * q->max_size;
}

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

static const size_t borrow_size = VHB_BORROW_COUNT * VHB_MAX_IOV * sizeof(struct iovec);

static void queue_dispose(struct vhb_queue *q)
{
    if (q->slots)
        munmap(q->slots, slots_size(q));
    if (q->borrow)
        munmap(q->borrow, borrow_size);
    for (int i = 0; i < 3; i++)
        free(q->part[i].pieces);
    free(q->free_slots);
    free(q->space.segments);
    free(q);
}

int vhb_queue_new(struct vhb_worker *worker, struct vhb_disk *disk, struct vhb_graveyard *graveyard,
                  uint32_t max_size, struct vhb_queue **out)
{
    if (max_size == 0 || max_size > 32768 || (max_size & (max_size - 1)))
        return -EINVAL;
    struct vhb_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    *q = (struct vhb_queue){.worker = worker,
                            .disk = disk,
                            .graveyard = graveyard,
                            .max_size = max_size,
                            .kick = -1,
                            .call = -1,
                            .err = -1,
                            .watched = -1,
                            .attached = true,
                            .state = VHB_OWNED_BY_CONTROL,
                            .served = VHB_OWNED_BY_CONTROL,
                            .borrow_free = (1u << VHB_BORROW_COUNT) - 1};
    q->done_tail = &q->done;
    q->slots = reserve(slots_size(q));
    q->borrow = reserve(borrow_size);
    q->free_slots = calloc(slot_count(q), sizeof(*q->free_slots));
    if (!q->slots || !q->borrow || !q->free_slots) {
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

int vhb_queue_set_space(struct vhb_queue *q, const struct vhb_segment *segments, size_t n)
{
    return ours(q) ? vhb_space_set(&q->space, segments, n) : -EBUSY;
}

int vhb_queue_set_size(struct vhb_queue *q, uint32_t size)
{
    if (!ours(q))
        return -EBUSY;
    if (size == 0 || size > q->max_size || (size & (size - 1)))
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
    if (!ours(q))
        return -EBUSY;
    q->next_avail = (uint16_t)base;
    q->loaded = false;
    q->broken = false;
    q->fault = (struct vhb_fault){0};
    return 0;
}

int vhb_queue_base(struct vhb_queue *q)
{
    return ours(q) ? q->next_avail : -EBUSY;
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
    if (!ours(q))
        return -EBUSY;
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

/* ---- asking: the control plane -------------------------------------------------------- */

static bool ring_is_set(const struct vhb_queue *q)
{
    size_t n = q->size;
    return n && q->blk.block_size && q->part[VHB_PART_DESC].len >= 16 * n &&
           q->part[VHB_PART_AVAIL].len >= 6 + 2 * n && q->part[VHB_PART_USED].len >= 6 + 8 * n;
}

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
    if (!ring_is_set(q))
        return -EINVAL;
    hand_over(q, VHB_ASK_RUN);
    return 0;
}

int vhb_queue_park(struct vhb_queue *q)
{
    if (ask_again(q, VHB_ASK_RUN, VHB_ASK_PARK))
        return 0;
    if (!ours(q))
        return -EBUSY;
    vhb_queue_post(q, VHB_PARKED);
    return 0;
}

int vhb_queue_drain(struct vhb_queue *q)
{
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
    if (!ours(q))
        return -EBUSY;
    hand_over(q, VHB_ASK_DETACH);
    return 0;
}

uint32_t vhb_queue_take_events(struct vhb_queue *q)
{
    uint32_t events = __atomic_exchange_n(&q->events, 0, __ATOMIC_ACQ_REL); /* pair: events */
    if (events & VHB_DETACHED) /* the worker's last touch was to say so */
        q->attached = false;
    return events;
}

int vhb_queue_fault(struct vhb_queue *q, struct vhb_fault *out)
{
    *out = q->fault; /* written before VHB_BROKEN was posted */
    return 0;
}

int vhb_queue_counters(struct vhb_queue *q, struct vhb_counters *out)
{
    const uint64_t *from = (const uint64_t *)&q->counters;
    for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++)
        ((uint64_t *)out)[i] = load_relaxed(&from[i]);
    return 0;
}

/* ---- the worker's side ---------------------------------------------------------------- */

void vhb_queue_post(struct vhb_queue *q, uint32_t event)
{
    struct vhb_worker *worker = q->worker; /* q may be freed behind VHB_DETACHED */
    __atomic_fetch_or(&q->events, event, __ATOMIC_ACQ_REL); /* pair: events */
    vhb_worker_notify(worker);
}

static void signal_fd(int fd)
{
    if (fd >= 0)
        eventfd_write(fd, 1);
}

int vhb_break(struct vhb_queue *q, enum vhb_reason reason, uint32_t index, uint64_t value)
{
    if (!q->broken) {
        q->broken = true;
        if (vhb_fault_seen() != q->lost) { /* what looks wrong is a page of zeroes */
            reason = VHB_MEMORY_GONE;
            value = 0;
        }
        q->fault = (struct vhb_fault){.reason = reason, .index = index, .value = value};
        signal_fd(q->err);
        vhb_queue_post(q, VHB_BROKEN);
    }
    return -EPROTO;
}

void vhb_doom(struct vhb_queue *q, enum vhb_reason reason, uint32_t index, uint64_t value)
{
    if (q->doom.reason == VHB_OK)
        q->doom = (struct vhb_fault){.reason = reason, .index = index, .value = value};
}

static void meet_doom(struct vhb_queue *q)
{
    if (q->doom.reason == VHB_OK)
        return;
    vhb_break(q, q->doom.reason, q->doom.index, q->doom.value);
    q->doom = (struct vhb_fault){0};
}

static void call_driver(struct vhb_queue *q)
{
    if (q->call < 0)
        return;
    signal_fd(q->call);
    count(&q->counters.calls, 1);
}

/* Publish what is done.  A broken ring gets nothing more: its slots are simply free again. */
static int push_done(struct vhb_queue *q)
{
    if (q->broken) {
        struct vhb_req *next;
        for (struct vhb_req *req = q->done; req; req = next) {
            next = req->next;
            vhb_req_release(req);
        }
        q->done = NULL;
        q->done_tail = &q->done;
        return 0;
    }
    int n = vhb_split_push(q);
    if (n && vhb_split_should_call(q))
        call_driver(q);
    return n;
}

struct vhb_req *vhb_slot_peek(struct vhb_queue *q)
{
    uint16_t tag = q->free_slots[q->n_free - 1];
    struct vhb_req *req = &q->slots[tag];
    req->queue = q;
    req->tag = tag;
    return req;
}

static bool has_slot(const struct vhb_queue *q)
{
    /* One for the request, and one for each that may have to be cancelled. */
    return q->n_free >= q->in_flight + 2 && !q->starved;
}

static int pop_some(struct vhb_queue *q, struct vhb_io *io)
{
    int n = 0;
    while (n < BUDGET && !q->broken && has_slot(q)) {
        struct vhb_req *req = vhb_slot_peek(q);
        int r = vhb_split_pop(q, req);
        q->starved = r == -EAGAIN;
        if (r <= 0)
            break;
        q->n_free--;
        n++;
        vhb_blk_start(q, req, io);
    }
    return n;
}

static void retry_held(struct vhb_queue *q, struct vhb_io *io)
{
    struct vhb_req *req = q->held, *next;
    q->held = NULL;
    for (; req; req = next) {
        next = req->next;
        vhb_blk_submit(req, io);
    }
}

/* Everything still under way ends with IOERR now; what the disk has of it is dead. */
static void cancel_all(struct vhb_queue *q, struct vhb_io *io)
{
    q->held = NULL;
    for (uint32_t i = 0; i < slot_count(q) && q->in_flight; i++) {
        struct vhb_req *req = &q->slots[i];
        if (req->state != VHB_REQ_LIVE)
            continue;
        bool with_disk = !req->held;
        vhb_blk_abandon(req);
        if (with_disk && q->disk->ops->cancel)
            q->disk->ops->cancel(q->disk, req, io);
    }
}

/* Give the ring back, unless something else was asked meanwhile. */
static void give(struct vhb_queue *q, uint32_t ask, uint32_t event)
{
    uint32_t expected = ask;
    if (__atomic_compare_exchange_n(&q->state, &expected, ask | VHB_OWNED_BY_CONTROL, false,
                                    __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)) /* pair: state */
        vhb_queue_post(q, event);
}

/* Do what the control plane asked, if its time has come. */
static void answer(struct vhb_queue *q, uint32_t ask)
{
    bool idle = q->in_flight == 0 && !q->done;
    if (ask == VHB_ASK_PARK)
        give(q, ask, VHB_PARKED);
    else if ((ask == VHB_ASK_DRAIN || ask == VHB_ASK_CANCEL) && idle)
        give(q, ask, VHB_DRAINED);
}

static void check_memory(struct vhb_queue *q)
{
    if (vhb_fault_seen() == q->lost)
        return;
    count(&q->counters.faults, 1);
    vhb_break(q, VHB_MEMORY_GONE, q->next_avail, 0);
}

/* What a ring that was handed over needs once. */
static void take_over(struct vhb_queue *q)
{
    if (!q->loaded)
        vhb_split_load(q);
    q->loaded = true;
    if (q->greet)
        call_driver(q);
    q->greet = false;
}

int vhb_queue_serve(struct vhb_queue *q, struct vhb_io *io, uint32_t ask)
{
    q->served = ask;
    int n = q->disk->ops->reap ? q->disk->ops->reap(q->disk, false) : 0;
    if (q->held)
        retry_held(q, io);
    if (ask & VHB_OWNED_BY_CONTROL)
        return n;

    q->lost = vhb_fault_seen();
    if (ask == VHB_ASK_RUN)
        take_over(q);
    if (ask == VHB_ASK_RUN && q->enabled)
        n += pop_some(q, io);
    if (ask == VHB_ASK_CANCEL && !q->cancelled)
        cancel_all(q, io);
    q->cancelled = ask == VHB_ASK_CANCEL;
    n += push_done(q);
    store_relaxed(&q->counters.in_flight, q->in_flight);
    check_memory(q);
    meet_doom(q);
    answer(q, ask);
    return n;
}

/* Touching the ring outside a visit: memory that is lost there breaks the queue at the next one. */
static void doom_if_lost(struct vhb_queue *q, uint32_t lost)
{
    if (vhb_fault_seen() != lost)
        vhb_doom(q, VHB_MEMORY_GONE, q->next_avail, 0);
}

static bool may_pop(struct vhb_queue *q)
{
    if (!q->enabled || q->broken)
        return false;
    uint32_t lost = vhb_fault_seen();
    bool more = vhb_split_arm(q);
    doom_if_lost(q, lost);
    return more && has_slot(q);
}

void vhb_queue_quiet(struct vhb_queue *q)
{
    bool running = q->served == VHB_ASK_RUN && load_acquire(&q->state) == VHB_ASK_RUN;
    if (!running || !q->enabled || q->broken || q->quiet)
        return;
    uint32_t lost = vhb_fault_seen();
    vhb_split_quiet(q);
    doom_if_lost(q, lost);
}

bool vhb_queue_wants_visit(struct vhb_queue *q)
{
    if (q->disk->ops->reap && q->disk->ops->reap(q->disk, true))
        return true;
    uint32_t ask = load_acquire(&q->state); /* pair: state */
    if (ask & VHB_OWNED_BY_CONTROL)
        return false;
    if (ask != q->served) /* asked behind the last visit, by somebody who saw us awake */
        return true;
    switch (ask) {
    case VHB_ASK_RUN:
        return q->done || may_pop(q) || q->doom.reason != VHB_OK;
    case VHB_ASK_PARK:
        return true;
    case VHB_ASK_DRAIN:
        return q->done || q->in_flight == 0;
    case VHB_ASK_CANCEL:
        return q->done || q->in_flight == 0 || !q->cancelled;
    case VHB_ASK_DETACH:
        return q->dead == 0;
    default:
        return false; /* the control plane's */
    }
}
