/* visit.c - a virtqueue as its worker sees it: one visit takes completions, new requests and what
 * the control plane asked for.
 *
 * Read worker.c for when that is, queue.c for the other side. */
#include <errno.h>
#include <sys/eventfd.h>

#include "inflight.h"
#include "io.h"
#include "visit.h"

/* When a ring is looked at again that has gone quiet: look_again(). */
enum { LOOK_US = 10000 };

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

void vhb_break_as(struct vhb_queue *q, enum vhb_reason reason, uint32_t index, uint64_t value)
{
    if (q->broken)
        return;
    q->broken = true;
    q->fault.index = index;
    q->fault.value = value;
    store_release(&q->fault.reason, (uint32_t)reason); /* pair: fault */
    signal_fd(q->err);
    vhb_queue_post(q, VHB_BROKEN);
}

int vhb_break(struct vhb_queue *q, enum vhb_reason reason, uint32_t index, uint64_t value)
{
    if (lost_memory(q)) /* what looks wrong is a page of zeroes */
        vhb_break_as(q, VHB_MEMORY_GONE, index, 0);
    else
        vhb_break_as(q, reason, index, value);
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
    q->order_stuck = false; /* nothing goes back until there is another ring */
}

static void call_driver(struct vhb_queue *q)
{
    if (q->call < 0)
        return;
    signal_fd(q->call);
    count(&q->counters.calls, 1);
}

/* The slots of the done list are free again; how many. */
static int release_done(struct vhb_queue *q)
{
    int n = 0;
    for (struct vhb_req *req = q->done, *next; req; req = next, n++) {
        next = req->next;
        vhb_req_release(req);
    }
    q->done = NULL;
    q->done_tail = &q->done;
    return n;
}

/* Publish what is done; how many.  A broken ring gets nothing more. */
static int push_done(struct vhb_queue *q, struct vhb_io *io)
{
    if (q->broken)
        vhb_order_give_up(q);
    if (!q->done)
        return 0;
    if (q->log)
        vhb_log_done(q);
    if (q->broken) {
        release_done(q);
        return 0;
    }
    q->ring->push(q);
    if (q->ring->should_call(q))
        call_driver(q);
    io->now = vhb_clock(); /* the driver waits for none of this any more */
    io->batched = io->pass;
    vhb_latency_done(q, io);
    int n = release_done(q);
    q->given = true;
    q->look_at = io->now + LOOK_US * 1000ull;
    return n;
}

/* Once more, when the ring has gone quiet.  QEMU emulates a machine on one thread, and one of one
 * CPU, without the barrier between what the driver stores (used_event) and then loads (the used
 * index): each side may miss what the other has just said, and both would sleep for good.  By now
 * both are visible.  Requests that were missed that way are popped by the visit itself.  Only of a
 * ring that runs: behind a drain its memory may be gone. */
static void look_again(struct vhb_queue *q, struct vhb_io *io)
{
    if (!q->look_at || io->now < q->look_at)
        return;
    q->look_at = 0;
    if (q->broken || !q->given)
        return;
    q->given = false;
    q->ring->look_back(q);
    if (!q->ring->should_call(q))
        return;
    call_driver(q);
    count(&q->counters.late_calls, 1);
}

static void retry_held(struct vhb_queue *q, struct vhb_io *io)
{
    struct vhb_req *req = q->held, *next;
    q->held = NULL;
    q->held_tail = &q->held;
    for (; req; req = next) {
        next = req->next;
        vhb_blk_submit(req, io);
    }
}

/* Everything still under way ends with IOERR now; what the disk has of it is dead. */
static void cancel_all(struct vhb_queue *q, struct vhb_io *io)
{
    vhb_errors_give_up(q);
    q->held = NULL;
    q->held_tail = &q->held;
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

/* Touching the ring outside a visit: memory that is lost there breaks the queue at the next one. */
static void doom_if_lost(struct vhb_queue *q, uint32_t lost)
{
    if (vhb_fault_seen() != lost)
        vhb_doom(q, VHB_MEMORY_GONE, next_at(q), 0);
}

/* Leave a ring that somebody else may serve next, who does not know that it wants no kicks. */
static void unquiet(struct vhb_queue *q)
{
    if (!q->loaded || !q->quiet || q->broken)
        return;
    uint32_t lost = vhb_fault_seen();
    q->ring->arm(q);
    doom_if_lost(q, lost);
}

/* Do what the control plane asked, if its time has come. */
static void answer(struct vhb_queue *q, uint32_t ask)
{
    bool idle = q->in_flight == 0 && !q->done && !q->order_first && !vhb_may_take(q, ask);
    if (ask == VHB_ASK_PARK) {
        give(q, ask, VHB_PARKED);
    } else if ((ask == VHB_ASK_DRAIN || ask == VHB_ASK_CANCEL) && idle) {
        unquiet(q);
        give(q, ask, VHB_DRAINED);
    }
}

static void check_memory(struct vhb_queue *q)
{
    if (!lost_memory(q))
        return;
    count(&q->counters.faults, 1);
    vhb_break(q, VHB_MEMORY_GONE, next_at(q), 0);
}

/* A page that was lost, by whomever, is not the guest's any more: whoever goes on in its mapping
 * reads and writes what the guest does not see.  So no queue does, until it is mapped anew. */
static void check_mappings(struct vhb_queue *q)
{
    uint32_t losses = vhb_fault_total();
    if (losses == q->losses)
        return;
    q->losses = losses;
    for (size_t i = 0; i < q->space.n; i++)
        if (vhb_fault_lost(q->space.segments[i].host, q->space.segments[i].len))
            vhb_break(q, VHB_MEMORY_GONE, next_at(q), 0);
    if (q->log && vhb_log_lost(q->log))
        vhb_break_as(q, VHB_LOG_GONE, next_at(q), 0);
    if (q->inflight.host && vhb_fault_lost(q->inflight.host, q->inflight.len))
        vhb_break(q, VHB_MEMORY_GONE, next_at(q), 0);
}

/* What a ring that was handed over needs once. */
static void take_over(struct vhb_queue *q)
{
    if (!q->loaded)
        q->ring->load(q);
    q->loaded = true;
    if (q->greet)
        call_driver(q);
    q->greet = false;
}

static int serve(struct vhb_queue *q, struct vhb_io *io, uint32_t ask)
{
    q->served = ask;
    if (load_relaxed(&q->use_asked))
        vhb_use_begin(q);
    int n = q->disk->ops->reap ? q->disk->ops->reap(q->disk, false) : 0;
    if (q->held)
        retry_held(q, io);
    if (load_relaxed(&q->errors.resume))
        vhb_errors_resume(q, io);
    store_relaxed(&q->counters.in_flight, q->in_flight);
    if (ask & VHB_OWNED_BY_CONTROL)
        return n;

    q->lost = vhb_fault_seen();
    check_mappings(q);
    if (q->was_run && !q->broken) /* its end may have been asked for before we saw it */
        take_over(q);
    n += vhb_take_some(q, io, ask);
    if (ask == VHB_ASK_CANCEL && !q->cancelled)
        cancel_all(q, io);
    q->cancelled = ask == VHB_ASK_CANCEL;
    if (q->broken && is_stalled(q))
        vhb_errors_give_up(q);
    n += push_done(q, io);
    if (ask == VHB_ASK_RUN)
        look_again(q, io);
    store_relaxed(&q->counters.in_flight, q->in_flight);
    store_relaxed(&q->counters.next_avail, q->next_avail);
    store_relaxed(&q->counters.next_used, q->next_used);
    check_memory(q);
    meet_doom(q);
    answer(q, ask);
    return n;
}

int vhb_queue_serve(struct vhb_queue *q, struct vhb_io *io, uint32_t ask)
{
    int n = serve(q, io, ask);
    if (q->disk->ops->flush)
        q->disk->ops->flush(q->disk);
    return n;
}

static bool may_pop(struct vhb_queue *q)
{
    if (!q->enabled || q->broken || q->missing || is_stalled(q))
        return false;
    /* Told something new, the driver may have missed it, and we what it has stored just now. */
    bool new = q->quiet || q->armed != q->next_avail;
    uint32_t lost = vhb_fault_seen();
    bool more = q->ring->arm(q);
    doom_if_lost(q, lost);
    q->armed = q->next_avail;
    if (new && !q->look_at)
        q->look_at = vhb_clock() + LOOK_US * 1000ull;
    return (more || must_replay(q)) && vhb_has_slot(q);
}

void vhb_queue_quiet(struct vhb_queue *q)
{
    bool running = q->served == VHB_ASK_RUN && load_acquire(&q->state) == VHB_ASK_RUN;
    if (!running || !q->enabled || q->broken || q->quiet)
        return;
    uint32_t lost = vhb_fault_seen();
    q->ring->quiet(q);
    doom_if_lost(q, lost);
}

bool vhb_queue_wants_visit(struct vhb_queue *q)
{
    if (q->disk->ops->reap && q->disk->ops->reap(q->disk, true))
        return true;
    if (load_relaxed(&q->use_asked) || load_relaxed(&q->errors.resume))
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
        return q->done || (vhb_may_take(q, ask) ? vhb_has_slot(q) : q->in_flight == 0);
    case VHB_ASK_CANCEL:
        return q->done || q->in_flight == 0 || !q->cancelled;
    case VHB_ASK_DETACH:
        return q->dead == 0;
    default:
        return false; /* the control plane's */
    }
}

int64_t vhb_queue_patience(const struct vhb_queue *q)
{
    if (load_acquire(&q->state) != VHB_ASK_RUN) /* pair: state */
        return -1;
    return q->look_at ? LOOK_US : -1;
}
