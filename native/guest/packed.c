/* packed.c - the driver's side of a packed ring.  Spec: virtio 1.3, 2.8. */
#include "fences.h"
#include "ring.h"

enum {
    AVAIL = 1 << VRING_PACKED_DESC_F_AVAIL,
    USED = 1 << VRING_PACKED_DESC_F_USED,
    WRAP = 1 << VRING_PACKED_EVENT_F_WRAP_CTR
};

static void start(struct drv_ring *r)
{
    r->avail_wrap = r->used_wrap = true;
}

/* Every chain takes the same number of descriptors, the device the same way round. */
static void step(const struct drv_ring *r, uint16_t *at, bool *wrap, uint32_t n)
{
    uint32_t next = *at + n;
    if (next >= r->size) {
        next -= r->size;
        *wrap = !*wrap;
    }
    *at = (uint16_t)next;
}

/* One descriptor into the ring, all but its flags; the flags that it must get. */
static uint16_t put(struct drv_ring *r, const struct vring_packed_desc *d)
{
    struct vring_packed_desc *to = &r->packed.desc[r->next_avail];
    uint16_t flags = (uint16_t)(d->flags | (r->avail_wrap ? AVAIL : USED));
    to->addr = d->addr;
    to->len = d->len;
    to->id = d->id;
    r->added++;
    step(r, &r->next_avail, &r->avail_wrap, 1);
    return flags;
}

/* Entries of a table follow each other: no NEXT, no id. */
static void put_table(const struct drv_chain *chain, bool in)
{
    struct vring_packed_desc *to = (struct vring_packed_desc *)chain->memory;
    for (uint32_t i = 0; i < chain->parts; i++) {
        struct drv_part part = drv_part(chain, i, in);
        to[i] = (struct vring_packed_desc){
            .addr = part.address,
            .len = part.length,
            .flags = part.writable ? VRING_DESC_F_WRITE : 0,
        };
    }
}

/* The chain as it is in the ring: descriptor number *i*. */
static struct vring_packed_desc descriptor(const struct drv_ring *r, const struct drv_chain *chain,
                                           uint32_t i, bool in)
{
    if (r->indirect)
        return (struct vring_packed_desc){
            .addr = chain->table,
            .len = chain->parts * (uint32_t)sizeof(struct vring_packed_desc),
            .flags = VRING_DESC_F_INDIRECT,
        };
    struct drv_part part = drv_part(chain, i, in);
    return (struct vring_packed_desc){
        .addr = part.address,
        .len = part.length,
        .flags = (uint16_t)((part.writable ? VRING_DESC_F_WRITE : 0) |
                            (i + 1 < chain->parts ? VRING_DESC_F_NEXT : 0)),
    };
}

static void add(struct drv_ring *r, uint32_t slot, const struct drv_chain *chain, bool in)
{
    struct vring_packed_desc *first = &r->packed.desc[r->next_avail];
    uint16_t first_flags = 0;
    if (r->indirect)
        put_table(chain, in);
    for (uint32_t i = 0; i < r->length; i++) {
        struct vring_packed_desc *to = &r->packed.desc[r->next_avail];
        struct vring_packed_desc d = descriptor(r, chain, i, in);
        d.id = (uint16_t)slot;
        uint16_t flags = put(r, &d);
        if (i)
            store_relaxed(&to->flags, flags);
        else
            first_flags = flags;
    }
    /* All the rest of the chain first: a device that sees these goes on to it.
     * pair: avail-flags (device) */
    store_release(&first->flags, first_flags);
}

static bool wants_kick(struct drv_ring *r)
{
    uint16_t added = (uint16_t)r->added;
    r->added = 0;
    full_fence(); /* as for a split ring.  pair: device-event (device) */
    uint16_t flags = load_relaxed(&r->packed.device->flags);
    if (flags != VRING_PACKED_EVENT_FLAG_DESC || !r->event_idx)
        return flags != VRING_PACKED_EVENT_FLAG_DISABLE;
    uint16_t asked = load_relaxed(&r->packed.device->off_wrap);
    uint16_t event = asked & (uint16_t)~WRAP;
    /* Counted from the start of our lap: one of the lap before is less than 0. */
    if (!(asked & WRAP) == r->avail_wrap)
        event = (uint16_t)(event - r->size);
    return vring_need_event(event, r->next_avail, (uint16_t)(r->next_avail - added));
}

static bool is_used(const struct drv_ring *r, uint16_t flags)
{
    return !(flags & AVAIL) == !r->used_wrap && !(flags & USED) == !r->used_wrap;
}

static bool has_used(const struct drv_ring *r)
{
    /* Id and length were stored first.  pair: used-flags (device) */
    return r->in_flight && is_used(r, load_acquire(&r->packed.desc[r->next_used].flags));
}

static int pop(struct drv_ring *r, struct drv_used *out)
{
    const struct vring_packed_desc *d = &r->packed.desc[r->next_used];
    uint16_t flags = r->in_flight ? load_acquire(&d->flags) : 0; /* pair: used-flags (device) */
    if (!r->in_flight || !is_used(r, flags))
        return 0;
    uint16_t id = load_relaxed(&d->id);
    out->slot = id;
    /* Without WRITE nothing was written, and the length is reserved. */
    out->length = flags & VRING_DESC_F_WRITE ? load_relaxed(&d->len) : 0;
    int wrong = drv_ring_check(r, r->next_used, id, out);
    step(r, &r->next_used, &r->used_wrap, r->length);
    return wrong ? wrong : 1;
}

static void quiet(struct drv_ring *r)
{
    store_relaxed(&r->packed.driver->flags, VRING_PACKED_EVENT_FLAG_DISABLE);
}

static void arm(struct drv_ring *r)
{
    uint16_t flags = VRING_PACKED_EVENT_FLAG_ENABLE;
    if (r->event_idx) {
        uint16_t wrap = r->used_wrap ? WRAP : 0;
        store_relaxed(&r->packed.driver->off_wrap, (uint16_t)(r->next_used | wrap));
        flags = VRING_PACKED_EVENT_FLAG_DESC;
    }
    /* The flags say how the word before them is read. */
    store_release(&r->packed.driver->flags, flags);
    full_fence(); /* as for a split ring.  pair: driver-event (device) */
}

const struct drv_ring_ops drv_packed = {
    .start = start,
    .add = add,
    .wants_kick = wants_kick,
    .pop = pop,
    .has_used = has_used,
    .quiet = quiet,
    .arm = arm,
};
