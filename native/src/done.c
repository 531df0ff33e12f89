/* done.c - how a request ends: from what the disk says to a status byte and the done list.
 *
 * virtio 1.3, 5.2.6.  Read blk.c for how it begins. */
#include <errno.h>
#include <linux/virtio_blk.h>

#include "crash.h"
#include "layer.h"
#include "vq.h"

/* Of a live request: the queue is about to break, and the head must not be given back before. */
static void withhold(struct vhb_req *req)
{
    req->queue->in_flight--;
    if (req->queue->in_order)
        vhb_order_withhold(req);
    vhb_req_release(req);
}

void vhb_blk_finish(struct vhb_req *req, uint8_t result)
{
    struct vhb_queue *q = req->queue;
    req->result = result;
    if (result == VIRTIO_BLK_S_IOERR)
        count(&q->counters.errors, 1);
    else if (result == VIRTIO_BLK_S_UNSUPP)
        count(&q->counters.unsupported, 1);
    if (result != VIRTIO_BLK_S_OK)
        req->written = 0;
    uint32_t lost = vhb_fault_seen();
    if (req->status) /* The status is written before its element is published.  pair: used-idx */
        store_relaxed(req->status, result);
    VHB_CRASH(status);
    if (vhb_fault_seen() != lost) { /* given back, it could read as success */
        vhb_doom(q, VHB_MEMORY_GONE, req->head, 0);
        withhold(req);
        return;
    }
    let_go(req);
    q->in_flight--;
    store_relaxed(&req->state, VHB_REQ_DONE);
    if (q->in_order)
        vhb_order_done(q);
    else
        done_append(q, req);
}

static void account(struct vhb_req *req)
{
    struct vhb_counters *c = &req->queue->counters;
    switch (req->op) {
    case VHB_READ:
        count(&c->reads, 1);
        count(&c->bytes_read, req->len);
        req->written = (uint32_t)req->len;
        break;
    case VHB_WRITE:
        count(&c->writes, 1);
        count(&c->bytes_written, req->len);
        break;
    case VHB_FLUSH:
        count(&c->flushes, 1);
        break;
    case VHB_DISCARD:
        count(&c->discards, 1);
        break;
    case VHB_WRITE_ZEROES:
        count(&c->write_zeroes, 1);
        break;
    case VHB_CANCEL:
        break;
    }
}

void vhb_blk_next_range(struct vhb_req *req)
{
    const struct vhb_range *range = &wide_of(req)->ranges[req->range];
    store_relaxed(&req->offset, range->offset);
    store_relaxed(&req->len, range->len);
    req->flags = range->flags;
}

/* What is not pushed was perhaps written all the same.  While the ring is the control plane's so is
 * the log; a guest that was told of the failure has given such memory up. */
static void log_unpushed(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    if (!is_ours(q) && q->log)
        vhb_log_data(q, req);
}

static void bury_result(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    log_unpushed(req);
    vhb_grave_leave(q->graveyard, req);
    q->dead--;
    store_relaxed(&q->counters.dead, q->dead);
    vhb_req_release(req);
}

void vhb_req_done(struct vhb_req *req, int result)
{
    struct vhb_queue *q = req->queue;
    if (req->depth && (result = vhb_layers_done(req, result, q->io)) == VHB_PENDING)
        return;
    if (result == -EFAULT || result == VHB_RESULT_LOST_MEMORY)
        count(&q->counters.faults, 1);
    if (result == VHB_RESULT_LOST_MEMORY)
        vhb_doom(q, VHB_MEMORY_GONE, req->head, 0);
    if (result == VHB_RESULT_KEPT_VIEW)
        vhb_doom(q, VHB_DISK_KEPT_VIEW, req->head, req->offset);
    if (req->state == VHB_REQ_DEAD) {
        bury_result(req);
        return;
    }
    if (result == VHB_RESULT_KEPT_VIEW) { /* given back, its memory would be used again */
        log_unpushed(req);
        withhold(req);
        return;
    }
    if (result < 0) {
        if (!vhb_error_holds(req, -result))
            vhb_blk_finish(req, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (++req->range < req->n_ranges) {
        vhb_blk_next_range(req);
        vhb_blk_submit(req, q->io);
        return;
    }
    account(req);
    vhb_blk_finish(req, VIRTIO_BLK_S_OK);
}

void vhb_blk_abandon(struct vhb_req *req)
{
    struct vhb_queue *q = req->queue;
    if (req->held) { /* the disk never saw it: nothing can come late */
        vhb_blk_finish(req, VIRTIO_BLK_S_IOERR);
        return;
    }
    /* The head goes back through a slot of its own: this one stays with the disk.  There is one:
     * a queue has a spare slot for every descriptor. */
    struct vhb_req *ghost = vhb_slot_peek(q);
    q->n_free--;
    ghost->head = req->head;
    ghost->n_slots = req->n_slots;
    ghost->entry = req->entry;
    ghost->last_entry = req->last_entry;
    ghost->writable = req->writable;
    if (q->in_order)
        vhb_order_replace(req, ghost);
    ghost->status = req->status;
    ghost->vec = ghost->own;
    ghost->written = 0;
    ghost->fills = false;
    store_relaxed(&ghost->op, req->op);
    store_relaxed(&ghost->popped, req->popped); /* its time runs on until it is given back */
    ghost->bounce_slots = req->bounce_slots; /* the guest has them back with the head */
    req->bounce_slots = 0;
    store_relaxed(&ghost->state, VHB_REQ_LIVE); /* takes over req's place among those in flight */
    store_relaxed(&req->state, VHB_REQ_DEAD);
    q->dead++;
    store_relaxed(&q->counters.dead, q->dead);
    vhb_grave_bury(q->graveyard, req);
    log_unpushed(req); /* what the disk has written until now */
    vhb_blk_finish(ghost, VIRTIO_BLK_S_IOERR);
}
