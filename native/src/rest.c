/* rest.c - which of its queues a worker visits: those that had something to do of late.
 *
 * A visit is some cache misses, and so a thousand idle queues would cost each request of a busy one
 * a thousand visits.  A queue that was idle for a while rests: its driver is asked to kick, and
 * that kick, its disk, or anything that the control plane wants of any queue wakes it.  Where there
 * are few queues, or the worker polls without an end, all are visited. */
#include "worker.h"

/* REST_NS: some windows of polling, which a kick would cost more than the visits they save. */
enum { FEW = 8, REST_NS = 200000 };

void vhb_rest_end(struct vhb_worker *w, const struct vhb_queue *q)
{
    w->awake[q->position / 64] |= 1ull << q->position % 64;
}

struct vhb_queue *vhb_next_awake(const struct vhb_worker *w, uint32_t *at)
{
    for (uint32_t i = *at; i < w->n_queues; i = (i | 63) + 1) {
        uint64_t left = w->awake[i / 64] >> i % 64;
        if (left) {
            *at = i + (uint32_t)__builtin_ctzll(left);
            return w->queues[*at];
        }
    }
    return NULL;
}

static void wake_all(struct vhb_worker *w)
{
    for (uint32_t i = 0; i < w->n_queues; i++)
        if (w->queues[i])
            vhb_rest_end(w, w->queues[i]);
}

void vhb_rest_wake_asked(struct vhb_worker *w)
{
    uint32_t losses = vhb_fault_total();
    bool due = w->rest_until && w->io.now >= w->rest_until;
    if (!load_relaxed(&w->asked) && !due && losses == w->losses)
        return;
    __atomic_exchange_n(&w->asked, 0, __ATOMIC_ACQ_REL); /* what was stored is seen.  pair: asked */
    w->losses = losses;
    w->rest_until = 0;
    wake_all(w);
}

/* Nothing of it ends without a kick, a word of the disk, or of the control plane. */
static bool is_idle(struct vhb_queue *q)
{
    if (q->in_flight || q->dead || q->held || q->doom.reason != VHB_OK)
        return false;
    return !vhb_is_polled(q) && !vhb_queue_wants_visit(q); /* which asks for kicks */
}

void vhb_rest_after(struct vhb_worker *w, struct vhb_queue *q, bool worked)
{
    uint64_t now = w->io.now;
    if (worked || q->active == 0)
        q->active = now;
    bool rests = w->n_queues > FEW && w->poll.mode != VHB_POLL_ALWAYS && load_relaxed(&w->running);
    if (!rests || now - q->active < REST_NS + w->poll.cap || !is_idle(q))
        return;
    /* It is to be looked at once more: all that rest are, together and a bit later. */
    int64_t patience = vhb_queue_patience(q);
    if (patience >= 0 && !w->rest_until)
        w->rest_until = now + (uint64_t)patience * 1000;
    w->awake[q->position / 64] &= ~(1ull << q->position % 64);
}

int64_t vhb_rest_patience(const struct vhb_worker *w)
{
    if (!w->rest_until)
        return -1;
    return w->rest_until > w->io.now ? (int64_t)((w->rest_until - w->io.now) / 1000) + 1 : 0;
}
