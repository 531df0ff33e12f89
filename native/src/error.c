/* error.c - what the disk cannot do: told of, or held until an operator has helped.
 *
 * A request that is held goes on as if the disk had not answered yet: it is in flight, its memory
 * is in use, a drain waits for it.  The queue pops nothing meanwhile, as a driver would fail one
 * request after the other.  Held requests are the worker's, as all are; only whether they are tried
 * again is asked from outside.  pair: resume */
#include <errno.h>

#include "vq.h"

enum { MAX_ERRNO = 4095 };

/* ---- the worker ----------------------------------------------------------------------- */

/* Read while the worker writes: only if the control plane has just resumed, and for a log line. */
static void note(struct vhb_stall *to, const struct vhb_req *req, int error)
{
    store_relaxed(&to->offset, req->offset);
    store_relaxed(&to->len, req->len);
    store_relaxed(&to->op, (uint32_t)req->op);
    store_relaxed(&to->error, error);
}

static void tell(struct vhb_queue *q, const struct vhb_req *req, int error)
{
    struct vhb_errors *e = &q->errors;
    if (load_acquire(&e->failed)) /* the last was not taken yet: counted only.  pair: failure */
        return;
    note(&e->failure, req, error);
    store_release(&e->failed, 1u); /* pair: failure */
    vhb_queue_post(q, VHB_FAILED);
}

static void hold(struct vhb_queue *q, struct vhb_req *req, int error)
{
    struct vhb_errors *e = &q->errors;
    bool first = !is_stalled(q);
    req->held = true;
    req->next = NULL;
    *e->tail = req;
    e->tail = &req->next;
    count(&q->counters.held, 1);
    if (!first)
        return;
    count(&q->counters.stalls, 1);
    note(&e->stall, req, error);
    store_release(&e->stalled, 1u); /* pair: stall */
    vhb_queue_post(q, VHB_STALLED);
}

bool vhb_error_holds(struct vhb_req *req, int error)
{
    struct vhb_queue *q = req->queue;
    if (error > MAX_ERRNO) /* not the disk's: the queue breaks */
        return false;
    uint32_t policy = load_relaxed(&q->errors.policy);
    bool stops = policy == VHB_ON_ERROR_STOP || (policy == VHB_ON_ERROR_ENOSPC && error == ENOSPC);
    if (!stops || error == EFAULT) { /* memory of the guest's that is gone does not come back */
        tell(q, req, error);
        return false;
    }
    hold(q, req, error);
    return true;
}

static struct vhb_req *take_held(struct vhb_queue *q)
{
    struct vhb_errors *e = &q->errors;
    struct vhb_req *first = e->held;
    store_relaxed(&q->counters.held, 0u);
    e->held = NULL;
    e->tail = &e->held;
    store_release(&e->stalled, 0u); /* pair: stall */
    return first;
}

void vhb_errors_resume(struct vhb_queue *q, struct vhb_io *io)
{
    __atomic_store_n(&q->errors.resume, 0u, __ATOMIC_SEQ_CST); /* pair: resume */
    struct vhb_req *req = take_held(q), *next;
    for (; req; req = next) {
        next = req->next;
        vhb_blk_submit(req, io);
    }
}

void vhb_errors_give_up(struct vhb_queue *q)
{
    struct vhb_req *req = take_held(q), *next;
    for (; req; req = next) {
        next = req->next;
        vhb_blk_abandon(req);
    }
}

/* ---- the control plane ---------------------------------------------------------------- */

int vhb_queue_set_on_error(struct vhb_queue *q, uint32_t policy)
{
    if (!is_ours(q))
        return -EBUSY;
    if (policy > VHB_ON_ERROR_ENOSPC)
        return -EINVAL;
    store_relaxed(&q->errors.policy, policy); /* requests may fail just now */
    return 0;
}

static void read_note(const struct vhb_stall *from, struct vhb_stall *out)
{
    *out = (struct vhb_stall){.offset = load_relaxed(&from->offset),
                              .len = load_relaxed(&from->len),
                              .op = load_relaxed(&from->op),
                              .error = load_relaxed(&from->error)};
}

int vhb_queue_stall(struct vhb_queue *q, struct vhb_stall *out)
{
    if (!load_acquire(&q->errors.stalled)) /* pair: stall */
        return 0;
    read_note(&q->errors.stall, out);
    return 1;
}

int vhb_queue_failure(struct vhb_queue *q, struct vhb_stall *out)
{
    if (!load_acquire(&q->errors.failed)) /* pair: failure */
        return 0;
    read_note(&q->errors.failure, out);
    store_release(&q->errors.failed, 0u); /* pair: failure */
    return 1;
}

int vhb_queue_resume(struct vhb_queue *q)
{
    __atomic_store_n(&q->errors.resume, 1u, __ATOMIC_SEQ_CST); /* pair: resume */
    vhb_worker_wake(q->worker);
    return 0;
}
