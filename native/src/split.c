/* split.c - the split virtqueue: pop, push, should_call, arm, quiet.
 *
 * virtio 1.3, 2.7.  Everything in the ring may change while we look: each field is loaded once
 * into a local, and only the local is checked and used. */
#include <errno.h>

#include "vq.h"

enum { MAX_TABLE = 32768 }; /* descriptors of an indirect table; virtio 1.3, 2.6 */

_Static_assert(sizeof(struct vring_desc) == 16, "virtio 1.3, 2.7.5");
_Static_assert(sizeof(struct vring_used_elem) == 8, "virtio 1.3, 2.7.8");

/* ---- fields of the ring -------------------------------------------------------------- */

static uint16_t *avail_flags(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_AVAIL], 0);
}

static uint16_t *avail_idx(struct vhb_queue *q)
{
    return (uint16_t *)part_at(&q->part[VHB_PART_AVAIL], 0) + 1;
}

static uint16_t *avail_ring(struct vhb_queue *q, uint32_t i)
{
    return part_at(&q->part[VHB_PART_AVAIL], 4 + 2 * (size_t)i);
}

static uint16_t *used_event(struct vhb_queue *q)
{
    return avail_ring(q, q->size);
}

static uint16_t *used_flags(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_USED], 0);
}

static uint16_t *used_idx(struct vhb_queue *q)
{
    return (uint16_t *)part_at(&q->part[VHB_PART_USED], 0) + 1;
}

static struct vring_used_elem *used_elem(struct vhb_queue *q, uint32_t i)
{
    return part_at(&q->part[VHB_PART_USED], 4 + 8 * (size_t)i);
}

static uint16_t *avail_event(struct vhb_queue *q)
{
    return part_at(&q->part[VHB_PART_USED], 4 + 8 * (size_t)q->size);
}

/* ---- pop ----------------------------------------------------------------------------- */

/* A walk along one chain, into the pieces of one request. */
struct walk {
    struct vhb_queue *q;
    struct vhb_req *req;
    uint32_t n;         /* pieces stored */
    uint32_t room;      /* pieces that fit */
    uint64_t status_at; /* guest address of the last writable byte */
    bool writable;      /* a writable descriptor was seen */
};

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

/* One descriptor: what is wrong with the request is remembered, not returned. */
static int walk_add(struct walk *walk, const struct vring_desc *d)
{
    bool writable = d->flags & VRING_DESC_F_WRITE;
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
            if (vhb_space_missing(&walk->q->space, addr, left, access))
                return -ENODATA;
            walk->req->bad = true;
            break;
        }
        int r = walk_add_piece(walk, host, run, writable);
        if (r < 0)
            return r;
        addr += run;
        left -= run;
    }
    return 0;
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

/* Descriptor *i* of an indirect table, which may lie across segments.  -ENODATA: it is asked for.
 */
static int load_indirect(struct vhb_queue *q, const struct vring_desc *table, uint32_t i,
                         struct vring_desc *d)
{
    uint64_t run, skip = (uint64_t)i * sizeof(*d);
    void *host = vhb_space_find(&q->space, table->addr + skip, sizeof(*d), VHB_ACCESS_READ, &run);
    if (host && run == sizeof(*d)) {
        load_desc(host, d);
        return 0;
    }
    for (size_t byte = 0; byte < sizeof(*d); byte++) {
        uint64_t at = table->addr + skip + byte;
        host = vhb_space_find(&q->space, at, 1, VHB_ACCESS_READ, &run);
        if (!host && vhb_space_missing(&q->space, at, table->len - skip - byte, VHB_ACCESS_READ))
            return -ENODATA;
        if (!host)
            return vhb_break(q, VHB_TABLE_ADDRESS, i, table->addr);
        copy_in((uint8_t *)d + byte, host, 1);
    }
    return 0;
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

    uint32_t n = table->len / (uint32_t)sizeof(*table);
    uint32_t i = 0;
    for (uint32_t walked = 0; walked < n; walked++) {
        struct vring_desc d;
        int r = load_indirect(q, table, i, &d);
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

static int find_status(struct vhb_queue *q, struct vhb_req *req, uint64_t at)
{
    uint64_t run;
    req->status = vhb_space_find(&q->space, at, 1, VHB_ACCESS_WRITE, &run);
    if (req->status)
        return 0;
    if (vhb_space_missing(&q->space, at, 1, VHB_ACCESS_WRITE))
        return -ENODATA;
    return vhb_break(q, VHB_STATUS_ADDRESS, req->head, at);
}

int vhb_split_pop(struct vhb_queue *q, struct vhb_req *req)
{
    /* The entry was stored before the index that covers it.  pair: avail-idx (driver) */
    uint16_t ahead = (uint16_t)(load_acquire(avail_idx(q)) - q->next_avail);
    if (ahead == 0)
        return 0;
    if (ahead > q->size)
        return vhb_break(q, VHB_AVAIL_INDEX, q->next_avail, (uint16_t)(q->next_avail + ahead));
    uint16_t head = load_relaxed(avail_ring(q, q->next_avail & (q->size - 1)));
    if (head >= q->size)
        return vhb_break(q, VHB_HEAD, q->next_avail, head);

    req->head = head;
    req->vec = req->own;
    req->n_readable = req->n_writable = 0;
    req->bad = false;
    req->status = NULL;
    struct walk walk = {.q = q, .req = req, .room = VHB_SLOT_IOV};
    int r = walk_chain(&walk, head);
    if (r == 0 && walk.writable)
        r = find_status(q, req, walk.status_at);
    if (r == 0 && lost_memory(q))
        r = vhb_break(q, VHB_MEMORY_GONE, head, 0);
    if (r < 0) {
        give_back_array(q, req);
        q->space.miss.index = q->next_avail;
        return r;
    }
    q->space.n_denied = 0;
    q->next_avail++;
    return 1;
}

/* ---- push, calls, kicks -------------------------------------------------------------- */

int vhb_split_push(struct vhb_queue *q)
{
    int n = 0;
    for (struct vhb_req *req = q->done, *next; req; req = next, n++) {
        next = req->next;
        struct vring_used_elem *elem = used_elem(q, q->next_used & (q->size - 1));
        store_relaxed(&elem->id, req->head);
        store_relaxed(&elem->len, req->status ? req->written + 1 : 0);
        q->next_used++;
        vhb_req_release(req);
    }
    q->done = NULL;
    q->done_tail = &q->done;
    if (n) /* Published last: the driver must not see the index before the elements.
            * pair: used-idx (driver) */
        store_release(used_idx(q), q->next_used);
    return n;
}

/* Spec: virtio 1.3, 2.7.10. */
bool vhb_split_should_call(struct vhb_queue *q)
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

bool vhb_split_arm(struct vhb_queue *q)
{
    if (q->event_idx)
        store_relaxed(avail_event(q), q->next_avail);
    else if (q->quiet)
        store_relaxed(used_flags(q), (uint16_t)0);
    q->quiet = false;
    /* Ask first, then look: the driver stores the index and then looks whether to kick.
     * pair: avail-event (driver) */
    full_fence();
    return load_relaxed(avail_idx(q)) != q->next_avail;
}

void vhb_split_quiet(struct vhb_queue *q)
{
    /* With EVENT_IDX an avail_event in the past is quiet enough. */
    if (!q->event_idx && !q->quiet)
        store_relaxed(used_flags(q), (uint16_t)VRING_USED_F_NO_NOTIFY);
    q->quiet = true;
}

void vhb_split_load(struct vhb_queue *q)
{
    q->next_used = load_relaxed(used_idx(q));
    q->signalled_used = q->next_used;
    /* The ring may come from a device that died while it wanted no kicks: take that back. */
    q->quiet = true;
}
