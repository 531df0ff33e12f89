/* order.c - requests go back in the order in which they came, where the driver was promised that
 * (IN_ORDER): what is done waits for what came before it.
 *
 * virtio 1.3, 2.7.9 and 2.8.9.  The order is that of the pops, whatever the driver writes: one that
 * acked IN_ORDER and does not keep its own side of it is served like any other. */
#include "vq.h"

void vhb_order_enter(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    req->order_prev = q->order_last;
    req->order_next = NULL;
    if (q->order_last)
        q->order_last->order_next = req;
    else
        q->order_first = req;
    q->order_last = req;
}

static void leave(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    if (req->order_prev)
        req->order_prev->order_next = req->order_next;
    else
        q->order_first = req->order_next;
    if (req->order_next)
        req->order_next->order_prev = req->order_prev;
    else
        q->order_last = req->order_prev;
}

void vhb_order_done(struct vhb_queue *q)
{
    struct vhb_req *req;
    while ((req = q->order_first) && req->state == VHB_REQ_DONE && !q->order_stuck) {
        leave(req);
        done_append(q, req);
    }
}

void vhb_order_replace(struct vhb_req *req, struct vhb_req *by)
{
    struct vhb_queue *q = req->queue;
    by->order_prev = req->order_prev;
    by->order_next = req->order_next;
    *(req->order_prev ? &req->order_prev->order_next : &q->order_first) = by;
    *(req->order_next ? &req->order_next->order_prev : &q->order_last) = by;
}

void vhb_order_withhold(struct vhb_req *req)
{
    leave(req);
    req->queue->order_stuck = true;
}

void vhb_order_give_up(struct vhb_queue *q)
{
    for (struct vhb_req *req = q->order_first, *next; req; req = next) {
        next = req->order_next;
        if (req->state == VHB_REQ_DONE) {
            leave(req);
            done_append(q, req);
        }
    }
}
