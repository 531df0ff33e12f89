/* use.c - who still uses memory that is to go: the control plane names it while it owns the ring,
 * the worker marks what is in flight there and says when the last of that is over.
 *
 * What is popped later is never marked, so the ring may run meanwhile. */
#include <errno.h>
#include <stdlib.h>

#include "vq.h"

/* ---- the control plane ---------------------------------------------------------------- */

static bool are_ranges(const struct vhb_piece *pieces, size_t n)
{
    uintptr_t before = 0, end;
    for (size_t i = 0; i < n; i++) {
        uintptr_t start = (uintptr_t)pieces[i].host;
        if (start < before || !pieces[i].len || __builtin_add_overflow(start, pieces[i].len, &end))
            return false;
        before = end;
    }
    return true;
}

int vhb_queue_watch_use(struct vhb_queue *q, const struct vhb_piece *pieces, size_t n)
{
    if (!is_ours(q))
        return -EBUSY;
    if (!are_ranges(pieces, n))
        return -EINVAL;
    struct vhb_use *use = malloc(sizeof(*use) + n * sizeof(*pieces));
    if (!use)
        return -ENOMEM;
    use->number = ++q->use_number;
    use->n = n;
    for (size_t i = 0; i < n; i++)
        use->pieces[i] = pieces[i];
    free(__atomic_exchange_n(&q->use_asked, use, __ATOMIC_ACQ_REL)); /* pair: use */
    vhb_worker_wake(q->worker);
    return 0;
}

int vhb_queue_in_use(struct vhb_queue *q)
{
    return load_acquire(&q->use_ended) != q->use_number; /* pair: use-ended */
}

/* ---- the worker ----------------------------------------------------------------------- */

static bool meets(const struct vhb_use *use, const void *host, size_t len)
{
    uintptr_t start = (uintptr_t)host;
    size_t low = 0, high = use->n; /* of the first that ends behind *start* */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)use->pieces[middle].host + use->pieces[middle].len <= start)
            low = middle + 1;
        else
            high = middle;
    }
    return len && low < use->n && (uintptr_t)use->pieces[low].host < start + len;
}

/* A dead request's status is written. */
static bool touches(const struct vhb_req *req, const struct vhb_use *use)
{
    if (req->state == VHB_REQ_LIVE && req->status && meets(use, req->status, 1))
        return true;
    bool data = req->op == VHB_READ || req->op == VHB_WRITE;
    for (uint32_t i = 0; data && i < req->niov; i++)
        if (meets(use, req->iov[i].iov_base, req->iov[i].iov_len))
            return true;
    return false;
}

static void end(struct vhb_queue *q)
{
    store_release(&q->use_ended, q->use_current); /* pair: use-ended */
    vhb_queue_post(q, VHB_UNUSED);
}

void vhb_use_begin(struct vhb_queue *q)
{
    struct vhb_use *use =
        __atomic_exchange_n(&q->use_asked, NULL, __ATOMIC_ACQ_REL); /* pair: use */
    q->use_current = use->number;
    q->users = 0;
    uint32_t left = q->in_flight + q->dead; /* the rest of the slots was never touched */
    for (uint32_t i = 0; i < slot_count(q) && left; i++) {
        struct vhb_req *req = &q->slots[i];
        if (req->state != VHB_REQ_LIVE && req->state != VHB_REQ_DEAD)
            continue;
        left--;
        req->awaited = touches(req, use);
        q->users += req->awaited;
    }
    free(use);
    if (q->users == 0)
        end(q);
}

void vhb_use_over(struct vhb_req *req)
{
    req->awaited = false;
    if (--req->queue->users == 0)
        end(req->queue);
}
