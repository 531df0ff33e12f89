/* split.c - the split virtqueue: pop, push, should_call, arm, quiet, and its saved state.
 *
 * virtio 1.3, 2.7.  Everything in the ring may change while we look: each field is loaded once
 * into a local, and only the local is checked and used. */
#include <errno.h>

#include "chain.h"
#include "inflight.h"
#include "split.h"

_Static_assert(sizeof(struct vring_used_elem) == 8, "virtio 1.3, 2.7.8");

/* ---- a chain ------------------------------------------------------------------------- */

static int walk_entries(struct vhb_walk *walk, struct vhb_table *table, uint32_t index)
{
    struct vhb_queue *q = walk->q;
    uint32_t i = 0;
    for (uint32_t walked = 0; walked < table->n; walked++) {
        struct vring_desc d;
        int r = table_load(walk, table, i, &d);
        if (r < 0)
            return r;
        if (d.flags & VRING_DESC_F_INDIRECT)
            return vhb_break(q, VHB_INDIRECT, i, d.len);
        r = walk_add(walk, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
        if (r < 0)
            return r;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        if (d.next >= table->n)
            return vhb_break(q, VHB_NEXT, i, d.next);
        i = d.next;
    }
    return vhb_break(q, VHB_LOOP, index, table->n);
}

/* Spec: virtio 1.3, 2.7.5.3. */
static int walk_table(struct vhb_walk *walk, const struct vring_desc *from, uint32_t index)
{
    struct vhb_table table;
    if (from->flags & VRING_DESC_F_NEXT)
        return vhb_break(walk->q, VHB_INDIRECT, index, from->len);
    int r = table_open(walk, &table, from->addr, from->len, index);
    if (r < 0)
        return r;
    r = walk_entries(walk, &table, index);
    table_close(walk, &table);
    return r;
}

/* Spec: virtio 1.3, 2.7.5. */
static int walk_chain(struct vhb_walk *walk, uint32_t head)
{
    struct vhb_queue *q = walk->q;
    uint32_t i = head;
    for (uint32_t walked = 0; walked < q->size; walked++) {
        struct vring_desc d;
        load_desc(part_at(&q->part[VHB_PART_DESC], (size_t)i * sizeof(d)), &d);
        if (d.flags & VRING_DESC_F_INDIRECT)
            return walk_table(walk, &d, i);
        int r = walk_add(walk, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
        if (r < 0)
            return r;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        if (d.next >= q->size)
            return vhb_break(q, VHB_NEXT, i, d.next);
        i = d.next;
    }
    return vhb_break(q, VHB_LOOP, head, q->size);
}

/* ---- pop ----------------------------------------------------------------------------- */

/* Take the chain at *head*, which the driver has made available. */
static int take_chain(struct vhb_queue *q, struct vhb_req *req, uint16_t head)
{
    struct vhb_walk walk;
    walk_begin(&walk, q, req, head);
    int r = vhb_walk_end(&walk, walk_chain(&walk, head));
    if (r < 0) {
        q->space.miss.index = q->next_avail;
        return r;
    }
    q->space.n_denied = 0;
    return 1;
}

/* Take a chain again that a predecessor took: it is behind next_avail, and noted. */
static int split_replay(struct vhb_queue *q, struct vhb_req *req)
{
    struct vhb_inflight *in = &q->inflight;
    int r = take_chain(q, req, in->replay[in->replayed].entry);
    if (r == 1)
        in->replayed++;
    return r;
}

static int split_pop(struct vhb_queue *q, struct vhb_req *req)
{
    if (must_replay(q))
        return split_replay(q, req);
    /* The entry was stored before the index that covers it.  pair: avail-idx (driver) */
    uint16_t ahead = (uint16_t)(load_acquire(avail_idx(q)) - q->next_avail);
    if (ahead == 0)
        return 0;
    if (ahead > q->size)
        return vhb_break(q, VHB_AVAIL_INDEX, q->next_avail, (uint16_t)(q->next_avail + ahead));
    uint16_t head = load_relaxed(avail_ring(q, q->next_avail & (q->size - 1)));
    if (head >= q->size)
        return vhb_break(q, VHB_HEAD, q->next_avail, head);

    int r = take_chain(q, req, head);
    if (r < 0)
        return r;
    if (is_tracked(q))
        vhb_split_mark(q, head);
    q->next_avail++;
    return 1;
}

/* ---- push, calls, kicks -------------------------------------------------------------- */

/* The elements from *first* on are written; they may run over the end of the ring. */
static void log_elements(struct vhb_queue *q, uint16_t first, size_t n)
{
    size_t at = first & (q->size - 1), here = q->size - at < n ? q->size - at : n;
    vhb_log_part(q, VHB_PART_USED, 4 + 8 * at, 8 * here);
    if (here < n)
        vhb_log_part(q, VHB_PART_USED, 4, 8 * (n - here));
}

/* Write an element for each that needs one, in the place of the first it speaks for; how many
 * requests there are. */
static uint16_t write_elements(struct vhb_queue *q, const struct vhb_req *batch)
{
    uint16_t n = 0, at = q->next_used;
    for (const struct vhb_req *req = batch; req; req = req->next) {
        n++;
        if (q->in_order && may_skip(req))
            continue;
        struct vring_used_elem *elem = used_elem(q, at & (q->size - 1));
        store_relaxed(&elem->id, req->head);
        store_relaxed(&elem->len, used_len(req));
        VHB_CRASH(split_push_element);
        at = (uint16_t)(q->next_used + n);
    }
    if (q->log)
        log_elements(q, q->next_used, n);
    return n;
}

static void split_push(struct vhb_queue *q)
{
    const struct vhb_req *batch = q->done;
    if (is_tracked(q))
        vhb_split_prepare(q, batch);
    q->next_used = (uint16_t)(q->next_used + write_elements(q, batch));
    /* Published last: the driver must not see the index before the elements.
     * pair: used-idx (driver) */
    store_release(used_idx(q), q->next_used);
    VHB_CRASH(split_push_index);
    if (q->log)
        vhb_log_part(q, VHB_PART_USED, 2, 2);
    if (is_tracked(q))
        vhb_split_commit(q, batch);
}

/* Spec: virtio 1.3, 2.7.10. */
static bool split_should_call(struct vhb_queue *q)
{
    uint16_t old = q->signalled_used, new = q->next_used;
    if (old == new)
        return false;
    q->signalled_used = new;
    /* The index must be visible before we look whether the driver sleeps: it stores used_event
     * (or the flag) and then looks at the index.  pair: used-event (driver) */
    full_fence();
    if (!q->event_idx)
        return !(load_relaxed(avail_flags(q)) & VRING_AVAIL_F_NO_INTERRUPT);
    return (uint16_t)(new - load_relaxed(used_event(q)) - 1) < (uint16_t)(new - old);
}

static void split_look_back(struct vhb_queue *q)
{
    q->signalled_used = (uint16_t)(q->next_used - q->size);
}

/* The word by which kicks are asked for was written. */
static void log_event(struct vhb_queue *q)
{
    vhb_log_part(q, VHB_PART_USED, q->event_idx ? 4 + 8 * (size_t)q->size : 0, 2);
}

static bool split_arm(struct vhb_queue *q)
{
    if (q->event_idx)
        store_relaxed(avail_event(q), q->next_avail);
    else if (q->quiet)
        store_relaxed(used_flags(q), (uint16_t)0);
    if (q->log && (q->event_idx || q->quiet))
        log_event(q);
    q->quiet = false;
    /* Ask first, then look: the driver stores the index and then looks whether to kick.
     * pair: avail-event (driver) */
    full_fence();
    return load_relaxed(avail_idx(q)) != q->next_avail;
}

static void split_quiet(struct vhb_queue *q)
{
    /* With EVENT_IDX an avail_event in the past is quiet enough. */
    if (!q->event_idx && !q->quiet) {
        store_relaxed(used_flags(q), (uint16_t)VRING_USED_F_NO_NOTIFY);
        if (q->log)
            log_event(q);
    }
    q->quiet = true;
}

/* ---- the saved state ----------------------------------------------------------------- */

static void split_load(struct vhb_queue *q)
{
    q->next_avail = (uint16_t)q->base;
    q->next_used = load_relaxed(used_idx(q));
    q->signalled_used = q->next_used;
    /* The ring may come from a device that died while it wanted no kicks: take that back. */
    q->quiet = true;
    if (q->inflight.host)
        vhb_split_recover(q);
    if (q->inflight.host && q->log) /* a predecessor may have died before he had */
        vhb_log_part(q, VHB_PART_USED, 0, 4 + 8 * (size_t)q->size);
}

static uint32_t split_save(const struct vhb_queue *q)
{
    return q->next_avail;
}

/* Spec: virtio 1.3, 2.7: the queue size is a power of 2. */
static bool split_is_set(const struct vhb_queue *q)
{
    size_t n = q->size;
    return n && !(n & (n - 1)) && q->part[VHB_PART_DESC].len >= 16 * n &&
           q->part[VHB_PART_AVAIL].len >= 6 + 2 * n && q->part[VHB_PART_USED].len >= 6 + 8 * n &&
           vhb_inflight_fits(q, sizeof(struct split_region), sizeof(struct split_state));
}

const struct vhb_ring_ops vhb_split_ops = {
    .pop = split_pop,
    .push = split_push,
    .should_call = split_should_call,
    .look_back = split_look_back,
    .arm = split_arm,
    .quiet = split_quiet,
    .load = split_load,
    .save = split_save,
    .is_set = split_is_set,
};
