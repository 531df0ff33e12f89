/* take.c - what a visit takes from the ring: which requests, and how many. */
#include <errno.h>

#include "inflight.h"
#include "io.h"
#include "visit.h"

/* What is taken in one visit, so that queues share a worker fairly. */
enum { BUDGET = 32, BUDGET_BYTES = 4 << 20 };

/* How long the first of a visit waits for others that the disk does at once: about as long as a
 * driver takes to fall asleep and be woken. */
enum { LONG_NS = 50000 };

struct vhb_req *vhb_slot_peek(struct vhb_queue *q)
{
    uint16_t tag = q->free_slots[q->n_free - 1];
    struct vhb_req *req = &q->slots[tag];
    req->queue = q;
    req->tag = tag;
    return req;
}

void vhb_req_release(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    let_go(req);
    if (give_back_array(q, req))
        q->starved = false;
    q->bounce_slots -= req->bounce_slots;
    store_relaxed(&q->counters.slots, q->bounce_slots);
    store_relaxed(&req->state, VHB_REQ_FREE);
    q->free_slots[q->n_free++] = (uint16_t)req->tag;
}

bool vhb_has_slot(const struct vhb_queue *q)
{
    /* One for the request, and one for each that may have to be cancelled.  More than the ring is
     * long are not given back only where a head is made available again before it is. */
    uint32_t not_back = slot_count(q) - q->n_free - q->dead;
    return q->n_free >= q->in_flight + 2 && not_back < q->size && !q->starved &&
           samples_have_room(&q->samples);
}

bool vhb_may_take(const struct vhb_queue *q, uint32_t ask)
{
    if (q->missing || q->broken || is_stalled(q))
        return false;
    return ask == VHB_ASK_RUN ? q->enabled : ask == VHB_ASK_DRAIN && q->loaded && must_replay(q);
}

/* For who looks on: that something is under way. */
static void note_taken(struct vhb_queue *q)
{
    if (load_relaxed(&q->busy_asked)) {
        store_relaxed(&q->busy_asked, 0u);
        vhb_queue_post(q, VHB_BUSY);
    }
}

/* Take the next chain and start its request.  False: there is none that can be taken. */
static bool pop_one(struct vhb_queue *q, struct vhb_io *io, uint64_t *bytes)
{
    struct vhb_req *req = vhb_slot_peek(q);
    int r = q->ring->pop(q, req);
    q->starved = r == -EAGAIN;
    if (r == -ENODATA) {
        q->missing = true;
        vhb_queue_post(q, VHB_MISS);
    }
    if (r <= 0)
        return false;
    q->n_free--;
    if (req->tag >= q->touched)
        store_relaxed(&q->touched, req->tag + 1);
    if (!io->found)
        io->found = io->now;
    store_relaxed(&req->popped, io->now);
    if (q->in_order)
        vhb_order_enter(req);
    vhb_blk_start(q, req, io);
    *bytes += req->len;
    return true;
}

static uint32_t smaller(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static bool took_long(const struct vhb_queue *q, const struct vhb_io *io)
{
    return q->disk->ops->waits && vhb_clock() - io->now > LONG_NS;
}

/* What the disk does inside submit is over, and waits until the visit ends: the first for all the
 * others.  So the first is given back alone, then two, and twice as many as long as there are that
 * many: a driver that waits for one is answered before it sleeps, one that has many under way is
 * called for many.  Likewise a device begins with the first while we take the others.  Who is told
 * by flush gets them together: each time costs a thread its sleep. */
int vhb_take_some(struct vhb_queue *q, struct vhb_io *io, uint32_t ask)
{
    uint32_t most = q->disk->ops->at_once ? q->disk->ops->at_once : BUDGET;
    uint32_t n = 0, over = 0, limit = smaller(q->pace, most);
    uint32_t budget = q->disk->ops->flush ? BUDGET : smaller(q->pace, BUDGET);
    uint64_t bytes = 0;
    while (n < budget && over < limit && bytes < BUDGET_BYTES && vhb_may_take(q, ask) &&
           !lost_memory(q) && vhb_has_slot(q)) {
        uint32_t in_flight = q->in_flight;
        if (!pop_one(q, io, &bytes))
            break;
        n++;
        if (q->in_flight != in_flight)
            continue;
        if (++over < limit && took_long(q, io))
            break;
    }
    if (n == 0)
        q->pace = 1;
    else if ((q->disk->ops->flush ? over : n) == q->pace)
        q->pace *= 2;
    if (n)
        note_taken(q);
    return (int)n;
}
