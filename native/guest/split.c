/* split.c - the driver's side of a split ring.  Spec: virtio 1.3, 2.7. */
#include "fences.h"
#include "ring.h"

static uint16_t *used_event(const struct drv_ring *r)
{
    return &r->split.avail->ring[r->size];
}

static const uint16_t *avail_event(const struct drv_ring *r)
{
    return (const uint16_t *)&r->split.used->ring[r->size];
}

static uint16_t used_idx(const struct drv_ring *r)
{
    /* The elements before it were stored first.  pair: used-idx (device) */
    return load_acquire(&r->split.used->idx);
}

static void start(struct drv_ring *r)
{
    store_relaxed(&r->split.avail->flags, 0);
}

/* Chains are put behind each other into *to*, which the device finds at index *base*. */
static void put(struct vring_desc *to, uint32_t base, const struct drv_chain *chain, bool in)
{
    for (uint32_t i = 0; i < chain->parts; i++) {
        struct drv_part part = drv_part(chain, i, in);
        bool last = i + 1 == chain->parts;
        to[i] = (struct vring_desc){
            .addr = part.address,
            .len = part.length,
            .flags = (uint16_t)((part.writable ? VRING_DESC_F_WRITE : 0) |
                                (last ? 0 : VRING_DESC_F_NEXT)),
            .next = (uint16_t)(last ? 0 : base + i + 1),
        };
    }
}

static void add(struct drv_ring *r, uint32_t slot, const struct drv_chain *chain, bool in)
{
    uint32_t head = slot * r->length;
    if (r->indirect) {
        put(chain->memory, 0, chain, in);
        r->split.desc[head] = (struct vring_desc){
            .addr = chain->table,
            .len = chain->parts * (uint32_t)sizeof(struct vring_desc),
            .flags = VRING_DESC_F_INDIRECT,
        };
    } else {
        put(&r->split.desc[head], head, chain, in);
    }
    store_relaxed(&r->split.avail->ring[r->next_avail & (r->size - 1)], (uint16_t)head);
    r->next_avail++;
    r->added++;
    /* Chain and entry first.  pair: avail-idx (device) */
    store_release(&r->split.avail->idx, r->next_avail);
}

static bool wants_kick(struct drv_ring *r)
{
    uint16_t old = (uint16_t)(r->next_avail - r->added);
    r->added = 0;
    /* The device asks for kicks and then looks at the index; we the other way round, so one of us
     * sees the other.  pair: avail-event (device) */
    full_fence();
    if (r->event_idx)
        return vring_need_event(load_relaxed(avail_event(r)), r->next_avail, old);
    return !(load_relaxed(&r->split.used->flags) & VRING_USED_F_NO_NOTIFY);
}

static int look(struct drv_ring *r)
{
    r->device_idx = used_idx(r);
    uint16_t more = (uint16_t)(r->device_idx - r->next_used);
    if (more <= r->in_flight)
        return 0;
    *r->fault = (struct drv_fault){.at = r->next_used, .got = r->device_idx, .want = r->in_flight};
    return -DRV_BAD_INDEX;
}

static int pop(struct drv_ring *r, struct drv_used *out)
{
    if (r->device_idx == r->next_used) {
        int wrong = look(r);
        if (wrong || r->device_idx == r->next_used)
            return wrong;
    }
    const struct vring_used_elem *element = &r->split.used->ring[r->next_used & (r->size - 1)];
    uint32_t id = load_relaxed(&element->id);
    out->length = load_relaxed(&element->len);
    out->slot = id / r->length;
    if (id % r->length)
        out->slot = UINT32_MAX; /* the middle of a chain */
    int wrong = drv_ring_check(r, r->next_used, id, out);
    r->next_used++;
    return wrong ? wrong : 1;
}

static bool has_used(const struct drv_ring *r)
{
    return used_idx(r) != r->next_used;
}

static void quiet(struct drv_ring *r)
{
    /* With EVENT_IDX the flag means nothing: an index that was passed is what keeps it quiet, for
     * 65535 elements. */
    if (r->event_idx)
        store_relaxed(used_event(r), (uint16_t)(r->next_used - 1));
    store_relaxed(&r->split.avail->flags, VRING_AVAIL_F_NO_INTERRUPT);
}

static void arm(struct drv_ring *r)
{
    if (r->event_idx)
        store_relaxed(used_event(r), r->next_used);
    store_relaxed(&r->split.avail->flags, 0);
    /* Asked for, before the index is looked at once more.  pair: used-event (device) */
    full_fence();
}

const struct drv_ring_ops drv_split = {
    .start = start,
    .add = add,
    .wants_kick = wants_kick,
    .pop = pop,
    .has_used = has_used,
    .quiet = quiet,
    .arm = arm,
};
