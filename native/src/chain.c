/* chain.c - from a head to the pieces of a request: its descriptors, what they name, what is noted
 * of them.
 *
 * virtio 1.3, 2.7.5.  The driver may change a descriptor while we look: it is copied once, and only
 * the copy is checked and used. */
#include <errno.h>

#include "vq.h"

enum { MAX_TABLE = 32768 }; /* descriptors of an indirect table; virtio 1.3, 2.6 */

_Static_assert(sizeof(struct vring_desc) == 16, "virtio 1.3, 2.7.5");

/* A walk along one chain, into the pieces of one request. */
struct walk {
    struct vhb_queue *q;
    struct vhb_req *req;
    uint32_t n;         /* pieces stored */
    uint32_t room;      /* pieces that fit */
    uint64_t status_at; /* guest address of the last writable byte */
    bool writable;      /* a writable descriptor was seen */
    bool sampled;
    bool noted;   /* this descriptor, or the table, is outside */
    bool outside; /* one of the chain is */
    uint32_t n_samples;
    uint32_t n_descriptors, longest;
    uint64_t bounce_slots;
};

/* Rare: not inlined, so that the walk stays short. */
__attribute__((noinline, cold)) static void walk_store(struct walk *walk, uint64_t iova,
                                                       uint32_t len, uint32_t role)
{
    uint32_t flag = walk->noted ? VHB_ROLE_OUTSIDE : 0;
    struct vhb_sample sample = {.iova = iova, .len = len, .role = (uint16_t)(role | flag)};
    walk->outside |= walk->noted;
    walk->n_samples = vhb_samples_store(walk->q, walk->n_samples, sample);
}

static inline void walk_sample(struct walk *walk, uint64_t iova, uint32_t len, uint32_t role)
{
    if (walk->sampled | walk->noted)
        walk_store(walk, iova, len, role);
}

static uint64_t bounce_slots(uint32_t len)
{
    return ((uint64_t)len + VHB_BOUNCE_SLOT - 1) / VHB_BOUNCE_SLOT;
}

/* What was looked up is not for us: -ENODATA if it is asked for, -EPROTO if going there is fatal,
 * 0 if it is denied. */
static int walk_denied(struct walk *walk, uint64_t at, uint64_t len, uint32_t access)
{
    struct vhb_queue *q = walk->q;
    if (vhb_space_missing(&q->space, at, len, access))
        return -ENODATA;
    walk->noted = true;
    if (q->space.last->access & VHB_ACCESS_FATAL)
        return vhb_break(q, VHB_OUTSIDE, walk->req->head, at);
    return 0;
}

/* Move a long chain to a borrowed array.  -EAGAIN: all are lent. */
static int walk_grow(struct walk *walk)
{
    struct vhb_queue *q = walk->q;
    if (walk->room == VHB_MAX_IOV) { /* nobody's chain: it fails, its status is still found */
        walk->req->bad = true;
        return 0;
    }
    if (!q->borrow_free)
        return -EAGAIN;
    uint32_t i = (uint32_t)__builtin_ctz(q->borrow_free);
    q->borrow_free &= ~(1u << i);
    struct iovec *array = q->borrow + (size_t)i * VHB_MAX_IOV;
    memcpy(array, walk->req->vec, walk->n * sizeof(*array));
    walk->req->vec = array;
    walk->room = VHB_MAX_IOV;
    return 0;
}

static int walk_add_piece(struct walk *walk, void *host, size_t len, bool writable)
{
    if (walk->n == walk->room) {
        int r = walk_grow(walk);
        if (r < 0 || walk->req->bad)
            return r;
    }
    walk->req->vec[walk->n++] = (struct iovec){.iov_base = host, .iov_len = len};
    if (writable)
        walk->req->n_writable++;
    else
        walk->req->n_readable++;
    return 0;
}

/* What is wrong with the request is remembered, not returned.  Inlined: 5 ns of a request. */
static inline __attribute__((always_inline)) int walk_map(struct walk *walk,
                                                          const struct vring_desc *d, bool writable)
{
    uint64_t addr = d->addr, left = d->len, end;
    if (writable && left) {
        walk->writable = true;
        walk->status_at = addr + left - 1;
    }
    if (left == 0 || __builtin_add_overflow(addr, left, &end) || (!writable && walk->writable))
        walk->req->bad = true;
    while (left && !walk->req->bad) {
        uint64_t run;
        uint32_t access = writable ? VHB_ACCESS_WRITE : VHB_ACCESS_READ;
        void *host = vhb_space_find(&walk->q->space, addr, left, access, &run);
        if (!host) {
            walk->req->bad = true;
            return walk_denied(walk, addr, left, access);
        }
        walk->noted |= (walk->q->space.last->access & VHB_ACCESS_NOTED) != 0;
        int r = walk_add_piece(walk, host, run, writable);
        if (r < 0)
            return r;
        addr += run;
        left -= run;
    }
    return 0;
}

static inline __attribute__((always_inline)) int walk_add(struct walk *walk,
                                                          const struct vring_desc *d)
{
    bool writable = d->flags & VRING_DESC_F_WRITE;
    walk->n_descriptors++;
    walk->bounce_slots += bounce_slots(d->len);
    if (d->len > walk->longest)
        walk->longest = d->len;
    walk->noted = false;
    int r = walk_map(walk, d, writable);
    walk_sample(walk, d->addr, d->len, writable ? VHB_ROLE_WRITABLE : VHB_ROLE_READABLE);
    return r;
}

/* A packed view: an indirect table may stand at any address. */
struct loose_u64 {
    uint64_t v;
} __attribute__((packed));

static void load_desc(const void *from, struct vring_desc *d)
{
    const volatile struct loose_u64 *p = from;
    uint64_t addr = p[0].v, rest = p[1].v;
    memcpy(d, &addr, 8);
    memcpy((uint8_t *)d + 8, &rest, 8);
}

/* Descriptor *i* of an indirect table that lies across segments; *noted*, too, where it is outside.
 * -ENODATA: it is asked for. */
static int load_indirect(struct walk *walk, const struct vring_desc *table, uint32_t i,
                         struct vring_desc *d, bool *noted)
{
    struct vhb_queue *q = walk->q;
    uint64_t run, at = table->addr + (uint64_t)i * sizeof(*d), end = table->addr + table->len;
    for (size_t got = 0; got < sizeof(*d); got += run, at += run) {
        void *host = vhb_space_find(&q->space, at, sizeof(*d) - got, VHB_ACCESS_READ, &run);
        if (!host) {
            walk->noted = false;
            int r = walk_denied(walk, at, end - at, VHB_ACCESS_READ);
            *noted |= walk->noted;
            return r < 0 ? r : vhb_break(q, VHB_TABLE_ADDRESS, i, table->addr);
        }
        *noted |= (q->space.last->access & VHB_ACCESS_NOTED) != 0;
        copy_in((uint8_t *)d + got, host, run);
    }
    return 0;
}

/* Follow the chain in a table of *n*; *noted*: what was read of it is outside. */
static int walk_entries(struct walk *walk, const struct vring_desc *table, uint32_t n,
                        uint32_t index, bool *noted)
{
    struct vhb_queue *q = walk->q;
    uint64_t run = 0;
    uint8_t *host = vhb_space_find(&q->space, table->addr, table->len, VHB_ACCESS_READ, &run);
    bool flat = run == table->len; /* one lookup for all of it */
    *noted = flat && (q->space.last->access & VHB_ACCESS_NOTED);
    uint32_t i = 0;
    for (uint32_t walked = 0; walked < n; walked++) {
        struct vring_desc d;
        int r = 0;
        if (flat)
            load_desc(host + (size_t)i * sizeof(d), &d);
        else
            r = load_indirect(walk, table, i, &d, noted);
        if (r < 0)
            return r;
        if (d.flags & VRING_DESC_F_INDIRECT)
            return vhb_break(q, VHB_INDIRECT, i, d.len);
        r = walk_add(walk, &d);
        if (r < 0)
            return r;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return 0;
        if (d.next >= n)
            return vhb_break(q, VHB_NEXT, i, d.next);
        i = d.next;
    }
    return vhb_break(q, VHB_LOOP, index, n);
}

/* Spec: virtio 1.3, 2.7.5.3. */
static int walk_table(struct walk *walk, const struct vring_desc *table, uint32_t index)
{
    struct vhb_queue *q = walk->q;
    uint64_t end;
    if (!q->indirect || (table->flags & VRING_DESC_F_NEXT) || table->len == 0 ||
        table->len % sizeof(struct vring_desc) || table->len / sizeof(*table) > MAX_TABLE)
        return vhb_break(q, VHB_INDIRECT, index, table->len);
    if (__builtin_add_overflow(table->addr, (uint64_t)table->len, &end))
        return vhb_break(q, VHB_TABLE_ADDRESS, index, table->addr);

    walk->bounce_slots += bounce_slots(table->len);
    bool noted;
    int r = walk_entries(walk, table, table->len / (uint32_t)sizeof(*table), index, &noted);
    walk->noted = noted;
    walk_sample(walk, table->addr, table->len, VHB_ROLE_TABLE);
    return r;
}

static int walk_chain(struct walk *walk, uint32_t head)
{
    struct vhb_queue *q = walk->q;
    uint32_t i = head;
    for (uint32_t walked = 0; walked < q->size; walked++) {
        struct vring_desc d;
        load_desc(part_at(&q->part[VHB_PART_DESC], (size_t)i * sizeof(d)), &d);
        if (d.flags & VRING_DESC_F_INDIRECT)
            return walk_table(walk, &d, i);
        int r = walk_add(walk, &d);
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

static void give_back_array(struct vhb_queue *q, struct vhb_req *req)
{
    if (req->vec == req->own)
        return;
    q->borrow_free |= 1u << ((size_t)(req->vec - q->borrow) / VHB_MAX_IOV);
    req->vec = req->own;
}

static int find_status(struct walk *walk)
{
    struct vhb_queue *q = walk->q;
    struct vhb_req *req = walk->req;
    uint64_t run, at = walk->status_at;
    int r = 0;
    req->status = vhb_space_find(&q->space, at, 1, VHB_ACCESS_WRITE, &run);
    walk->noted = req->status && (q->space.last->access & VHB_ACCESS_NOTED);
    if (!req->status) {
        r = walk_denied(walk, at, 1, VHB_ACCESS_WRITE);
        if (r == 0)
            r = vhb_break(q, VHB_STATUS_ADDRESS, req->head, at);
    }
    if (walk->noted && !walk->outside) /* of a bad chain: its descriptor was not looked at */
        walk_sample(walk, at, 1, VHB_ROLE_WRITABLE);
    return r;
}

/* The chain is popped, or the queue broke on it.  For one that is neither sampled nor outside this
 * is all that sampling costs. */
static void count_chain(struct walk *walk)
{
    struct vhb_samples *s = &walk->q->samples;
    bool due = s->first || (s->wait && --s->wait == 0);
    if (walk->outside)
        count(&walk->q->counters.outside, 1);
    if (due || walk->outside)
        vhb_samples_publish(walk->q, walk->n_samples, walk->outside);
    s->chain++;
}

static void count_request(struct walk *walk)
{
    struct vhb_queue *q = walk->q;
    count(&q->counters.descriptors, walk->n_descriptors);
    if (walk->longest > q->counters.segment_max)
        store_relaxed(&q->counters.segment_max, walk->longest);
    walk->req->bounce_slots = walk->bounce_slots;
    q->bounce_slots += walk->bounce_slots;
    store_relaxed(&q->counters.slots, q->bounce_slots);
    if (q->bounce_slots > q->counters.slots_high)
        store_relaxed(&q->counters.slots_high, q->bounce_slots);
}

int vhb_chain_walk(struct vhb_queue *q, struct vhb_req *req, uint16_t head)
{
    req->head = head;
    req->vec = req->own;
    req->n_readable = req->n_writable = 0;
    req->bad = false;
    req->status = NULL;
    struct walk walk = {.q = q, .req = req, .room = VHB_SLOT_IOV};
    walk.sampled = q->samples.first || q->samples.wait == 1;
    int r = walk_chain(&walk, head);
    if (r == 0 && walk.writable)
        r = find_status(&walk);
    if (r == 0 && lost_memory(q))
        r = vhb_break(q, VHB_MEMORY_GONE, head, 0);
    if (r == 0 || r == -EPROTO)
        count_chain(&walk);
    if (r == 0)
        count_request(&walk);
    else
        give_back_array(q, req);
    return r;
}
