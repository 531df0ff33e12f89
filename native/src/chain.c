/* chain.c - what every chain has, whatever the format: tables across segments, a status, what is
 * noted of it.
 *
 * virtio 1.3, 2.7.5 and 2.8.  The driver may change a descriptor while we look: it is copied once,
 * and only the copy is checked and used. */
#include <errno.h>

#include "chain.h"

/* Rare: not inlined, so that the walk stays short. */
__attribute__((cold)) void vhb_walk_sample(struct vhb_walk *walk, uint64_t iova, uint32_t len,
                                           uint32_t role)
{
    uint32_t flag = walk->noted ? VHB_ROLE_OUTSIDE : 0;
    struct vhb_sample sample = {.iova = iova, .len = len, .role = (uint16_t)(role | flag)};
    walk->outside |= walk->noted;
    walk->n_samples = vhb_samples_store(walk->q, walk->n_samples, sample);
}

/* What was looked up is not for us: -ENODATA if it is asked for, -EPROTO if going there is fatal,
 * 0 if it is denied. */
int vhb_walk_denied(struct vhb_walk *walk, uint64_t at, uint64_t len, uint32_t access)
{
    struct vhb_queue *q = walk->q;
    if (vhb_space_missing(&q->space, at, len, access))
        return -ENODATA;
    walk->noted = true;
    if (q->space.last->access & VHB_ACCESS_FATAL)
        return vhb_break(q, VHB_OUTSIDE, walk->req->head, at);
    return 0;
}

static int move_to(struct vhb_walk *walk, struct iovec *array, uint32_t room)
{
    memcpy(array, walk->req->vec, walk->n * sizeof(*array));
    walk->req->vec = array;
    walk->room = room;
    return 0;
}

/* Move a long chain to the slot's wide array, or to a borrowed one.  -EAGAIN: all are lent. */
int vhb_walk_grow(struct vhb_walk *walk)
{
    struct vhb_queue *q = walk->q;
    if (walk->room == VHB_SLOT_IOV)
        return move_to(walk, wide_of(walk->req)->vec, VHB_WIDE_IOV);
    if (walk->room == VHB_MAX_IOV) { /* nobody's chain: it fails, its status is still found */
        walk->req->bad = true;
        return 0;
    }
    if (!q->borrow_free)
        return -EAGAIN;
    uint32_t i = (uint32_t)__builtin_ctz(q->borrow_free);
    q->borrow_free &= ~(1u << i);
    return move_to(walk, q->borrow + (size_t)i * VHB_MAX_IOV, VHB_MAX_IOV);
}

int vhb_table_load_slow(struct vhb_walk *walk, struct vhb_table *table, uint32_t i, void *desc)
{
    struct vhb_queue *q = walk->q;
    uint64_t run, at = table->addr + (uint64_t)i * 16, end = table->addr + table->len;
    for (size_t got = 0; got < 16; got += run, at += run) {
        void *host = vhb_space_find(&q->space, at, 16 - got, VHB_ACCESS_READ, &run);
        if (!host) {
            walk->noted = false;
            int r = vhb_walk_denied(walk, at, end - at, VHB_ACCESS_READ);
            table->noted |= walk->noted;
            return r < 0 ? r : vhb_break(q, VHB_TABLE_ADDRESS, i, table->addr);
        }
        table->noted |= (q->space.last->access & VHB_ACCESS_NOTED) != 0;
        copy_in((uint8_t *)desc + got, host, run);
    }
    return 0;
}

/* ---- the end -------------------------------------------------------------------------- */

static int find_status(struct vhb_walk *walk)
{
    struct vhb_queue *q = walk->q;
    struct vhb_req *req = walk->req;
    uint64_t run, at = walk->status_at;
    int r = 0;
    req->status = vhb_space_find(&q->space, at, 1, VHB_ACCESS_WRITE, &run);
    walk->noted = req->status && (q->space.last->access & VHB_ACCESS_NOTED);
    if (!req->status) {
        r = vhb_walk_denied(walk, at, 1, VHB_ACCESS_WRITE);
        if (r == 0)
            r = vhb_break(q, VHB_STATUS_ADDRESS, req->head, at);
    }
    if (walk->noted && !walk->outside) /* of a bad chain: its descriptor was not looked at */
        vhb_walk_sample(walk, at, 1, VHB_ROLE_WRITABLE);
    return r;
}

/* The chain is popped, or the queue broke on it.  For one that is neither sampled nor outside this
 * is all that sampling costs. */
static void count_chain(struct vhb_walk *walk)
{
    struct vhb_samples *s = &walk->q->samples;
    bool due = s->first || (s->wait && --s->wait == 0);
    if (walk->outside)
        count(&walk->q->counters.outside, 1);
    if (due || walk->outside)
        vhb_samples_publish(walk->q, walk->n_samples, walk->outside);
    s->chain++;
}

static void count_request(struct vhb_walk *walk)
{
    struct vhb_queue *q = walk->q;
    count(&q->counters.descriptors, walk->n_descriptors);
    if (walk->longest > q->counters.segment_max)
        store_relaxed(&q->counters.segment_max, walk->longest);
    walk->req->bounce_slots = walk->bounce_slots;
    walk->req->writable = walk->writable;
    q->bounce_slots += walk->bounce_slots;
    store_relaxed(&q->counters.slots, q->bounce_slots);
    if (q->bounce_slots > q->counters.slots_high)
        store_relaxed(&q->counters.slots_high, q->bounce_slots);
}

int vhb_walk_end(struct vhb_walk *walk, int r)
{
    struct vhb_queue *q = walk->q;
    if (r == 0 && walk->writable)
        r = find_status(walk);
    if (r == 0 && lost_memory(q))
        r = vhb_break(q, VHB_MEMORY_GONE, walk->req->head, 0);
    if (r == 0 || r == -EPROTO)
        count_chain(walk);
    if (r == 0)
        count_request(walk);
    else
        give_back_array(q, walk->req);
    return r;
}
