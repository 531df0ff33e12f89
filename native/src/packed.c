/* packed.c - the packed virtqueue: pop, push, should_call, arm, quiet, and its saved state.
 *
 * virtio 1.3, 2.8.  One ring of descriptors that both sides write, and a word each to say which
 * notifications they want.  Places are packed.h's.
 *
 * A chain cannot loop: it has no links, its descriptors follow each other.  What can be wrong is
 * that it ends nowhere, which is the whole ring at most, or runs into what is not available. */
#include <errno.h>

#include "chain.h"
#include "inflight.h"
#include "packed.h"

_Static_assert(sizeof(struct vring_packed_desc_event) == 4, "virtio 1.3, 2.8.14");
_Static_assert(offsetof(struct vring_packed_desc, id) == 12, "virtio 1.3, 2.8.13");
_Static_assert(offsetof(struct vring_packed_desc, flags) == 14, "virtio 1.3, 2.8.13");
_Static_assert(offsetof(struct vring_packed_desc_event, flags) == 2, "virtio 1.3, 2.8.14");

enum { MODE = 3 /* of an event suppression: VRING_PACKED_EVENT_FLAG_* */ };

/* ---- buffer ids ---------------------------------------------------------------------- */

static uint64_t *id_word(const struct vhb_queue *q, uint32_t id)
{
    return &q->ids[id / 64];
}

static uint64_t id_bit(uint32_t id)
{
    return 1ull << id % 64;
}

/* ---- a chain ------------------------------------------------------------------------- */

/* Spec: virtio 1.3, 2.8.7: the length decides how many there are, and no flag but WRITE counts. */
static int walk_table(struct vhb_walk *walk, const struct vring_packed_desc *from, uint32_t slot)
{
    struct vhb_table table;
    int r = table_open(walk, &table, from->addr, from->len, slot);
    if (r < 0)
        return r;
    for (uint32_t i = 0; i < table.n && r == 0; i++) {
        struct vring_packed_desc d;
        r = table_load(walk, &table, i, &d);
        if (r == 0)
            r = walk_add(walk, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
    }
    table_close(walk, &table);
    return r;
}

/* Whether a descriptor of the ring may be taken behind *n* of its chain; 0 or -EPROTO. */
static int check_room(struct vhb_queue *q, uint32_t n, uint32_t place)
{
    if (n == q->size)
        return vhb_break(q, VHB_LOOP, slot_of(q, q->next_avail), n);
    if (n == q->size - between(q, q->next_used, q->next_avail)) /* it was not given back yet */
        return vhb_break(q, VHB_AVAIL_INDEX, slot_of(q, q->next_avail), slot_of(q, place));
    return 0;
}

static int check_id(struct vhb_queue *q, uint16_t id, uint32_t slot)
{
    if (id >= q->size)
        return vhb_break(q, VHB_ID, slot, id);
    if (*id_word(q, id) & id_bit(id))
        return vhb_break(q, VHB_ID_IN_FLIGHT, slot, id);
    return 0;
}

/* Descriptor *n* of the chain that begins at next_avail, whose first *flags* were read; 0 or
 * -EPROTO. */
static int load_new(struct vhb_queue *q, uint32_t n, uint16_t flags, struct vring_packed_desc *d)
{
    uint32_t place = behind(q, q->next_avail, n);
    int r = check_room(q, n, place);
    if (r < 0)
        return r;
    load_desc(desc_at(q, place), d);
    if (n == 0)
        d->flags = flags; /* read before the rest */
    else if (!is_avail(q, place, d->flags))
        return vhb_break(q, VHB_PARTIAL, slot_of(q, place), d->flags);
    if (is_tracked(q))
        vhb_packed_note(q, n, d);
    return 0;
}

/* Add the chain that is next: one that a predecessor took, or the one at next_avail, whose first
 * *flags* were read; how many descriptors it has in the ring and its id, or as vhb_ring_ops.pop.
 * Spec: virtio 1.3, 2.8.6. */
static int walk_chain(struct vhb_walk *walk, uint16_t flags, uint16_t *id)
{
    struct vhb_queue *q = walk->q;
    bool again = must_replay(q);
    for (uint32_t n = 0;; n++) {
        struct vring_packed_desc d;
        uint32_t slot = again ? walk->req->head : slot_of(q, behind(q, q->next_avail, n));
        int r = again ? vhb_packed_load(q, n, &d) : load_new(q, n, flags, &d);
        if (r < 0)
            return r;
        bool more = d.flags & VRING_DESC_F_NEXT;
        if (!(d.flags & VRING_DESC_F_INDIRECT))
            r = walk_add(walk, d.addr, d.len, d.flags & VRING_DESC_F_WRITE);
        else if (n || more) /* a list has one type of descriptors only */
            return vhb_break(q, VHB_INDIRECT, slot, d.len);
        else
            r = walk_table(walk, &d, slot);
        if (r == 0 && !more)
            r = check_id(q, d.id, slot);
        *id = d.id;
        if (r < 0 || !more)
            return r < 0 ? r : (int)n + 1;
    }
}

/* ---- pop ----------------------------------------------------------------------------- */

/* Take the chain that is next; *at* names it. */
static int take_chain(struct vhb_queue *q, struct vhb_req *req, uint16_t flags, uint16_t at)
{
    uint16_t id = 0;
    struct vhb_walk walk;
    walk_begin(&walk, q, req, at);
    int n = walk_chain(&walk, flags, &id);
    int r = vhb_walk_end(&walk, n < 0 ? n : 0);
    if (r < 0) {
        q->space.miss.index = at;
        return r;
    }
    q->space.n_denied = 0;
    req->head = id;
    req->n_slots = (uint16_t)n;
    *id_word(q, id) |= id_bit(id);
    return 1;
}

/* Take a chain again that a predecessor took: it is behind next_avail, and noted. */
static int packed_replay(struct vhb_queue *q, struct vhb_req *req)
{
    const struct vhb_replay *replay = &q->inflight.replay[q->inflight.replayed];
    int r = take_chain(q, req, 0, replay->entry);
    if (r < 0)
        return r;
    req->entry = replay->entry;
    req->last_entry = replay->last;
    q->inflight.replayed++;
    return 1;
}

static int packed_pop(struct vhb_queue *q, struct vhb_req *req)
{
    if (must_replay(q))
        return packed_replay(q, req);
    /* The rest of it, and of its chain, was stored before these flags.  pair: avail-flags (driver)
     */
    uint16_t flags = load_acquire(&desc_at(q, q->next_avail)->flags);
    if (!is_avail(q, q->next_avail, flags))
        return 0;
    int r = take_chain(q, req, flags, (uint16_t)slot_of(q, q->next_avail));
    if (r < 0)
        return r;
    if (is_tracked(q))
        vhb_packed_mark(q, req);
    q->next_avail = behind(q, q->next_avail, req->n_slots);
    return 1;
}

/* ---- push, calls, kicks -------------------------------------------------------------- */

/* A descriptor was written. */
static void log_desc(struct vhb_queue *q, uint32_t place)
{
    vhb_log_part(q, VHB_PART_DESC, (size_t)slot_of(q, place) * DESC_SIZE, DESC_SIZE);
}

/* Write a used element but for its flags, which are returned.  Spec: virtio 1.3, 2.8.1. */
static uint16_t write_used(struct vhb_queue *q, uint32_t place, const struct vhb_req *req)
{
    struct vring_packed_desc *d = desc_at(q, place);
    uint32_t len = used_len(req);
    store_relaxed(&d->id, req->head);
    store_relaxed(&d->len, len);
    uint32_t flags = wrap_of(q, place) ? FLAG_AVAIL | FLAG_USED : 0;
    return (uint16_t)(flags | (len ? VRING_DESC_F_WRITE : 0));
}

/* Write an element for each that needs one, in the place of the first it speaks for; but not the
 * flags of the first element, which are returned.  *end*: the place behind them all. */
static uint16_t write_elements(struct vhb_queue *q, const struct vhb_req *batch, uint16_t *end)
{
    uint16_t first = q->next_used, first_flags = 0, at = first, place = first;
    for (const struct vhb_req *req = batch; req; req = req->next) {
        place = behind(q, place, req->n_slots);
        if (q->in_order && may_skip(req))
            continue;
        uint16_t flags = write_used(q, at, req);
        if (at == first)
            first_flags = flags;
        else
            store_relaxed(&desc_at(q, at)->flags, flags);
        VHB_CRASH(packed_push_element);
        if (at != first && q->log)
            log_desc(q, at);
        at = place;
    }
    *end = place;
    return first_flags;
}

static void packed_push(struct vhb_queue *q)
{
    const struct vhb_req *batch = q->done;
    uint16_t first = q->next_used;
    if (is_tracked(q))
        vhb_packed_prepare(q, batch);
    uint16_t flags = write_elements(q, batch, &q->next_used);
    /* The driver looks at the first only until that is used: published last, it publishes all of
     * the batch.  pair: used-flags (driver) */
    store_release(&desc_at(q, first)->flags, flags);
    VHB_CRASH(packed_push_first);
    if (q->log)
        log_desc(q, first);
    if (is_tracked(q))
        vhb_packed_commit(q, batch);
    for (const struct vhb_req *req = batch; req; req = req->next)
        *id_word(q, req->head) &= ~id_bit(req->head);
}

/* Spec: virtio 1.3, 2.8.10. */
static bool packed_should_call(struct vhb_queue *q)
{
    uint32_t old = q->signalled_used, new = q->next_used;
    if (old == new)
        return false;
    q->signalled_used = (uint16_t)new;
    struct vring_packed_desc_event *event = part_at(&q->part[VHB_PART_AVAIL], 0);
    /* The elements must be visible before we look whether the driver sleeps: it says so and then
     * looks at the next one.  pair: driver-event (driver) */
    full_fence();
    uint16_t mode = load_acquire(&event->flags) & MODE; /* off_wrap was stored before it */
    if (mode != VRING_PACKED_EVENT_FLAG_DESC || !q->event_idx)
        return mode != VRING_PACKED_EVENT_FLAG_DISABLE;
    uint16_t wanted = load_relaxed(&event->off_wrap);
    return (wanted & (WRAP - 1)) >= q->size ||
           between(q, old, from_wire(q, wanted)) < between(q, old, new);
}

static void packed_look_back(struct vhb_queue *q)
{
    q->signalled_used = behind(q, q->next_used, q->size);
}

static void ask_for_kicks(struct vhb_queue *q, uint16_t off_wrap, uint16_t mode)
{
    struct vring_packed_desc_event event = {.off_wrap = off_wrap, .flags = mode};
    uint32_t word;
    memcpy(&word, &event, sizeof(word));
    store_relaxed((uint32_t *)part_at(&q->part[VHB_PART_USED], 0), word); /* both at once */
    if (q->log)
        vhb_log_part(q, VHB_PART_USED, 0, sizeof(word));
}

static bool packed_arm(struct vhb_queue *q)
{
    if (q->event_idx)
        ask_for_kicks(q, as_wire(q, q->next_avail), VRING_PACKED_EVENT_FLAG_DESC);
    else if (q->quiet)
        ask_for_kicks(q, 0, VRING_PACKED_EVENT_FLAG_ENABLE);
    q->quiet = false;
    /* Ask first, then look: the driver stores the flags and then looks whether to kick.
     * pair: device-event (driver) */
    full_fence();
    return is_avail(q, q->next_avail, load_relaxed(&desc_at(q, q->next_avail)->flags));
}

static void packed_quiet(struct vhb_queue *q)
{
    if (!q->quiet)
        ask_for_kicks(q, 0, VRING_PACKED_EVENT_FLAG_DISABLE);
    q->quiet = true;
}

/* ---- the saved state ----------------------------------------------------------------- */

/* Spec: vhost-user, "Vring descriptor indices for packed virtqueues".  Front-ends older than that
 * (DPDK's virtio-user) give the lower half only: nothing is in flight then. */
static void places_of(const struct vhb_queue *q, uint32_t *avail, uint32_t *used)
{
    uint16_t low = (uint16_t)q->base, high = (uint16_t)(q->base >> 16);
    *avail = from_wire(q, low);
    *used = from_wire(q, high == 0 && (low & WRAP) ? low : high);
}

static void packed_load(struct vhb_queue *q)
{
    uint32_t avail, used;
    places_of(q, &avail, &used);
    q->next_avail = (uint16_t)avail;
    q->next_used = (uint16_t)used;
    memset(q->ids, 0, ids_size(q));
    /* The ring may come from a device that died while it wanted no kicks: take that back. */
    q->quiet = true;
    if (q->inflight.host)
        vhb_packed_recover(q);
    if (q->inflight.host && q->log) /* a predecessor may have died before he had */
        vhb_log_part(q, VHB_PART_DESC, 0, DESC_SIZE * (size_t)q->size);
    q->signalled_used = q->next_used;
}

static uint32_t packed_save(const struct vhb_queue *q)
{
    return as_wire(q, q->next_avail) | (uint32_t)as_wire(q, q->next_used) << 16;
}

/* Whether there are such places: a base comes from the front-end, and a ring that stands somewhere
 * may have got another size.  One that is broken is not touched. */
static bool places_fit(const struct vhb_queue *q)
{
    uint32_t avail = q->next_avail, used = q->next_used;
    if (q->broken)
        return true;
    if (!q->loaded) {
        if ((q->base & (WRAP - 1)) >= q->size || (q->base >> 16 & (WRAP - 1)) >= q->size)
            return false;
        places_of(q, &avail, &used);
    }
    return avail < 2 * q->size && used < 2 * q->size && between(q, used, avail) <= q->size;
}

static bool packed_is_set(const struct vhb_queue *q)
{
    const struct vhb_part *part = q->part;
    return q->size && part[VHB_PART_DESC].len >= DESC_SIZE * (size_t)q->size &&
           part[VHB_PART_AVAIL].len >= 4 && (uintptr_t)part_at(&part[VHB_PART_AVAIL], 0) % 4 == 0 &&
           part[VHB_PART_USED].len >= 4 && places_fit(q) &&
           vhb_inflight_fits(q, sizeof(struct packed_region), sizeof(struct packed_state));
}

const struct vhb_ring_ops vhb_packed_ops = {
    .pop = packed_pop,
    .push = packed_push,
    .should_call = packed_should_call,
    .look_back = packed_look_back,
    .arm = packed_arm,
    .quiet = packed_quiet,
    .load = packed_load,
    .save = packed_save,
    .is_set = packed_is_set,
};
