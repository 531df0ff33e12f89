/* chain.h - from descriptors to the pieces of a request, whatever the format.
 *
 * How a chain goes on is the format's (split.c, packed.c): it begins a walk, adds one descriptor
 * after the other, looks into a table if one is named, and ends the walk.  What every request does
 * is inlined here; the rest is in chain.c. */
#ifndef VHB_CHAIN_H
#define VHB_CHAIN_H

#include "vq.h"

/* Descriptors of either format are as long.  virtio 1.3, 2.7.5 and 2.8.13. */
enum { DESC_SIZE = 16, MAX_TABLE = 32768 /* in an indirect table: as a queue, 2.6 */ };

_Static_assert(sizeof(struct vring_desc) == DESC_SIZE, "virtio 1.3, 2.7.5");
_Static_assert(sizeof(struct vring_packed_desc) == DESC_SIZE, "virtio 1.3, 2.8.13");

/* A walk along one chain, into the pieces of one request. */
struct vhb_walk {
    struct vhb_queue *q;
    struct vhb_req *req;
    uint32_t n;         /* pieces stored */
    uint32_t room;      /* pieces that fit */
    uint64_t status_at; /* guest address of the last writable byte */
    uint64_t writable;  /* bytes of writable descriptors seen */
    bool sampled;
    bool noted;   /* this descriptor, or the table, is outside */
    bool outside; /* one of the chain is */
    uint32_t n_samples;
    uint32_t n_descriptors, longest;
    uint64_t bounce_slots;
};

/* An indirect table. */
struct vhb_table {
    uint64_t addr;
    uint32_t len;  /* bytes */
    uint32_t n;    /* descriptors */
    uint8_t *flat; /* where all of it is, or NULL: it lies across segments */
    bool noted;    /* what was read of it is outside */
};

/* ---- chain.c ---- */

/* What adding all descriptors gave; if that is 0 find the status, and count.  0, or as
 * vhb_ring_ops.pop: what was borrowed is given back then. */
int vhb_walk_end(struct vhb_walk *walk, int added);
void vhb_walk_sample(struct vhb_walk *walk, uint64_t iova, uint32_t len, uint32_t role);
int vhb_walk_denied(struct vhb_walk *walk, uint64_t at, uint64_t len, uint32_t access);
int vhb_walk_grow(struct vhb_walk *walk);
/* Of a table that lies across segments; *noted*, too, where it is outside.  -ENODATA: it is asked
 * for. */
int vhb_table_load_slow(struct vhb_walk *walk, struct vhb_table *table, uint32_t i, void *desc);

/* ---- a walk ---- */

/* *at* names the chain in a fault, until its head is known. */
static inline void walk_begin(struct vhb_walk *walk, struct vhb_queue *q, struct vhb_req *req,
                              uint16_t at)
{
    req->head = at;
    req->vec = req->own;
    req->n_readable = req->n_writable = 0;
    req->bad = false;
    req->status = NULL;
    *walk = (struct vhb_walk){.q = q, .req = req, .room = VHB_SLOT_IOV};
    walk->sampled = q->samples.first || q->samples.wait == 1;
}

static inline uint64_t bounce_slots(uint32_t len)
{
    return ((uint64_t)len + VHB_BOUNCE_SLOT - 1) / VHB_BOUNCE_SLOT;
}

static inline void walk_sample(struct vhb_walk *walk, uint64_t iova, uint32_t len, uint32_t role)
{
    if (walk->sampled | walk->noted)
        vhb_walk_sample(walk, iova, len, role);
}

static inline int walk_add_piece(struct vhb_walk *walk, void *host, size_t len, bool writable)
{
    if (walk->n == walk->room) {
        int r = vhb_walk_grow(walk);
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
static inline __attribute__((always_inline)) int walk_map(struct vhb_walk *walk, uint64_t addr,
                                                          uint64_t left, bool writable)
{
    uint64_t end;
    if (writable && left) {
        walk->writable += left;
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
            return vhb_walk_denied(walk, addr, left, access);
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

/* A descriptor of the chain: 0 or as vhb_ring_ops.pop. */
static inline __attribute__((always_inline)) int walk_add(struct vhb_walk *walk, uint64_t addr,
                                                          uint32_t len, bool writable)
{
    walk->n_descriptors++;
    walk->bounce_slots += bounce_slots(len);
    if (len > walk->longest)
        walk->longest = len;
    walk->noted = false;
    int r = walk_map(walk, addr, len, writable);
    walk_sample(walk, addr, len, writable ? VHB_ROLE_WRITABLE : VHB_ROLE_READABLE);
    return r;
}

/* ---- descriptors and tables ---- */

/* A packed view: an indirect table may stand at any address. */
struct loose_u64 {
    uint64_t v;
} __attribute__((packed));

/* Copy a descriptor of either format, each half of it once. */
static inline void load_desc(const void *from, void *desc)
{
    const volatile struct loose_u64 *p = from;
    uint64_t addr = p[0].v, rest = p[1].v;
    memcpy(desc, &addr, 8);
    memcpy((uint8_t *)desc + 8, &rest, 8);
}

/* The descriptor at *index* names a table: 0, or -EPROTO.  Spec: virtio 1.3, 2.7.5.3; 2.8.7. */
static inline int table_open(struct vhb_walk *walk, struct vhb_table *table, uint64_t addr,
                             uint32_t len, uint32_t index)
{
    struct vhb_queue *q = walk->q;
    uint64_t run = 0, end;
    if (!q->indirect || len == 0 || len % DESC_SIZE || len / DESC_SIZE > MAX_TABLE)
        return vhb_break(q, VHB_INDIRECT, index, len);
    if (__builtin_add_overflow(addr, (uint64_t)len, &end))
        return vhb_break(q, VHB_TABLE_ADDRESS, index, addr);
    walk->bounce_slots += bounce_slots(len);
    uint8_t *host = vhb_space_find(&q->space, addr, len, VHB_ACCESS_READ, &run);
    bool flat = host && run == len; /* one lookup for all of it */
    bool noted = flat && (q->space.last->access & VHB_ACCESS_NOTED);
    *table = (struct vhb_table){addr, len, len / DESC_SIZE, flat ? host : NULL, noted};
    return 0;
}

/* Descriptor *i* of it: 0 or as vhb_ring_ops.pop. */
static inline int table_load(struct vhb_walk *walk, struct vhb_table *table, uint32_t i, void *desc)
{
    if (!table->flat)
        return vhb_table_load_slow(walk, table, i, desc);
    load_desc(table->flat + (size_t)i * DESC_SIZE, desc);
    return 0;
}

static inline void table_close(struct vhb_walk *walk, const struct vhb_table *table)
{
    walk->noted = table->noted;
    walk_sample(walk, table->addr, table->len, VHB_ROLE_TABLE);
}

#endif
