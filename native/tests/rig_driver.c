/* rig_driver.c - the driver of rig.h: rings of both formats, and requests.
 *
 * A packed ring has no table to lay chains in before they are made available.  So descriptors of
 * RIG_DESC are kept aside then, and put_avail copies a chain of them into the ring, with its head
 * for a buffer id: tests need not know. */
#include <sys/eventfd.h>

#include "rig.h"

static bool is_packed(const struct rig *rig)
{
    return rig->config.features & RIG_PACKED;
}

static uint16_t *at16(struct rig *rig, uint32_t offset)
{
    return (uint16_t *)(void *)(rig->ram + offset);
}

/* ---- the packed ring ------------------------------------------------------------------ */

/* virtio 1.3, 2.8.13: le64 addr, le32 len, le16 id, le16 flags. */
void put_packed(struct rig *rig, uint32_t table, uint32_t index, uint64_t addr, uint32_t len,
                uint16_t id, uint16_t flags)
{
    uint32_t at = table + 16 * index;
    put64(rig, at, addr);
    put32(rig, at + 8, len);
    put16(rig, at + 12, id);
    __atomic_store_n(at16(rig, at + 14), flags, __ATOMIC_RELEASE); /* pair: avail-flags */
}

/* virtio 1.3, 2.8.1: available is AVAIL like the counter, USED not; used is both like it. */
uint16_t packed_avail_flags(const struct place *at)
{
    return at->wrap ? PACKED_AVAIL : PACKED_USED;
}

uint32_t packed_base(const struct place *at)
{
    uint32_t half = at->slot | (at->wrap ? 0x8000 : 0);
    return half << 16 | half;
}

void packed_step(const struct rig *rig, struct place *at, uint32_t n)
{
    at->slot += n;
    if (at->slot >= rig->config.size) {
        at->slot -= rig->config.size;
        at->wrap = !at->wrap;
    }
}

static struct aside read_desc(struct rig *rig, uint32_t table, uint32_t i)
{
    uint32_t at = table + 16 * i, flags = is_packed(rig) ? 14 : 12;
    if (is_packed(rig) && table == RIG_DESC)
        return rig->packed.aside[i];
    return (struct aside){get32(rig, at), get32(rig, at + 8), get16(rig, at + flags),
                          get16(rig, at + 14)};
}

/* Of a chain in the ring, or of all *n* descriptors of a table. */
static uint32_t writable_bytes(struct rig *rig, uint32_t table, uint32_t i, uint32_t n)
{
    uint32_t sum = 0;
    for (bool more = true; more && n; n--) {
        struct aside d = read_desc(rig, table, i);
        if (d.flags & DESC_INDIRECT)
            sum += writable_bytes(rig, (uint32_t)(d.addr - RIG_RAM_AT), 0, d.len / 16);
        else if (d.flags & DESC_WRITE)
            sum += d.len;
        more = table != RIG_DESC || d.flags & DESC_NEXT;
        i = table != RIG_DESC ? i + 1 : d.next;
    }
    return sum;
}

/* Remember what only a driver of a ring in order needs. */
static void note_avail(struct rig *rig, uint16_t head)
{
    if (!(rig->config.features & RIG_IN_ORDER) || head >= rig->config.size)
        return;
    rig->in_order.heads[rig->avail_idx % RIG_CHAINS] = head;
    rig->whole[head] = writable_bytes(rig, RIG_DESC, head, rig->config.size);
}

/* The chain at *head* of those kept aside, its first descriptor last. */
static void put_avail_packed(struct rig *rig, uint16_t head)
{
    struct packed_driver *d = &rig->packed;
    struct place at = d->avail;
    uint32_t n = 0, i = head;
    uint16_t first_flags = 0;
    for (bool more = true; more; n++) {
        const struct aside *from = &d->aside[i];
        more = from->flags & DESC_NEXT;
        uint16_t flags = (uint16_t)(from->flags | packed_avail_flags(&at));
        if (n == 0)
            first_flags = flags;
        put_packed(rig, RIG_DESC, at.slot, from->addr, from->len, more ? 0xdead : head,
                   n ? flags : get16(rig, RIG_DESC + 16 * at.slot + 14));
        packed_step(rig, &at, 1);
        i = from->next;
    }
    d->slots[head] = n;
    note_avail(rig, head);
    __atomic_store_n(at16(rig, RIG_DESC + 16 * d->avail.slot + 14), first_flags, __ATOMIC_SEQ_CST);
    d->avail = at;
    d->behind[++rig->avail_idx % RIG_CHAINS] = at;
}

/* virtio 1.3, 2.8.10: {le16 off_wrap, le16 flags}; 2 asks for the descriptor at off_wrap. */
static bool wants_kick_packed(struct rig *rig)
{
    struct packed_driver *d = &rig->packed;
    uint32_t size = rig->config.size, event = get32(rig, RIG_USED);
    struct place from = d->kicked;
    d->kicked = d->avail;
    if (event >> 16 != 2)
        return event >> 16 != 1;
    CHECK((event & 0x7fff) < size);
    for (; from.slot != d->avail.slot || from.wrap != d->avail.wrap; packed_step(rig, &from, 1))
        if (from.slot == (event & 0x7fff) && from.wrap == (event >> 15 & 1))
            return true;
    return false;
}

static bool see_used_packed(struct rig *rig)
{
    struct packed_driver *d = &rig->packed;
    uint32_t at = RIG_DESC + 16 * d->used.slot;
    uint16_t flags = get16(rig, at + 14); /* pair: used-flags */
    if (!(flags & PACKED_AVAIL) != !d->used.wrap || !(flags & PACKED_USED) != !d->used.wrap)
        return false;
    rig->last_id = get16(rig, at + 12);
    rig->last_len = get32(rig, at + 8);
    CHECK_EQ(!(flags & DESC_WRITE), rig->last_len == 0);
    CHECK(rig->last_id < rig->config.size && d->slots[rig->last_id]);
    return true;
}

static void step_used(struct rig *rig)
{
    rig->used_seen++;
    if (!is_packed(rig))
        return;
    packed_step(rig, &rig->packed.used, rig->packed.slots[rig->last_id]);
    rig->packed.slots[rig->last_id] = 0;
}

/* ---- either ring ---------------------------------------------------------------------- */

/* virtio 1.3, 2.7.5: le64 addr, le32 len, le16 flags, le16 next. */
void put_desc(struct rig *rig, uint32_t table, uint32_t index, uint64_t addr, uint32_t len,
              uint16_t flags, uint16_t next)
{
    uint32_t at = table + 16 * index;
    if (is_packed(rig) && table == RIG_DESC) {
        CHECK(index < RIG_CHAINS);
        rig->packed.aside[index] = (struct aside){addr, len, flags, next};
        return;
    }
    if (is_packed(rig)) { /* no flag but WRITE means anything there, nor has it an id */
        put_packed(rig, table, index, addr, len, next, flags);
        return;
    }
    put64(rig, at, addr);
    put32(rig, at + 8, len);
    put16(rig, at + 12, flags);
    put16(rig, at + 14, next);
}

void put_end(struct rig *rig, uint32_t index)
{
    uint32_t at = RIG_DESC + 16 * index + 12;
    if (is_packed(rig))
        rig->packed.aside[index].flags &= (uint16_t)~DESC_NEXT;
    else
        put16(rig, at, get16(rig, at) & (uint16_t)~DESC_NEXT);
}

/* virtio 1.3, 2.7.6: le16 flags, le16 idx, le16 ring[size], le16 used_event. */
void put_avail_idx(struct rig *rig, uint16_t idx)
{
    rig->avail_idx = idx;
    __atomic_store_n((uint16_t *)(void *)(rig->ram + RIG_AVAIL + 2), idx, __ATOMIC_SEQ_CST);
}

void put_avail(struct rig *rig, uint16_t head)
{
    if (is_packed(rig)) {
        put_avail_packed(rig, head);
        return;
    }
    note_avail(rig, head);
    put16(rig, RIG_AVAIL + 4 + 2 * (rig->avail_idx % rig->config.size), head);
    put_avail_idx(rig, (uint16_t)(rig->avail_idx + 1));
}

void rig_kick(struct rig *rig)
{
    eventfd_write(rig->kick, 1);
}

/* virtio 1.3, 2.7.10: without EVENT_IDX the used flags say, with it avail_event (the last field
 * of the used ring). */
bool rig_wants_kick(struct rig *rig, uint16_t old_idx)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (is_packed(rig))
        return wants_kick_packed(rig);
    if (!(rig->config.features & RIG_EVENT_IDX))
        return !(get16(rig, RIG_USED) & 1);
    uint16_t event = get16(rig, RIG_USED + 4 + 8 * rig->config.size);
    return (uint16_t)(rig->avail_idx - event - 1) < (uint16_t)(rig->avail_idx - old_idx);
}

/* virtio 1.3, 2.7.8: le16 flags, le16 idx, {le32 id, le32 len}[size], le16 avail_event. */
static bool see_used(struct rig *rig)
{
    if (is_packed(rig))
        return see_used_packed(rig);
    if (get16(rig, RIG_USED + 2) == rig->used_seen)
        return false;
    uint32_t at = RIG_USED + 4 + 8 * (rig->used_seen % rig->config.size);
    rig->last_id = get32(rig, at);
    rig->last_len = get32(rig, at + 4);
    return true;
}

/* virtio 1.3, 2.7.9 and 2.8.9: an element speaks for all that were made available before the one it
 * names; of those it tells no length, they were used completely. */
static bool take_in_order(struct rig *rig)
{
    struct in_order_driver *d = &rig->in_order;
    if (!d->in_batch) {
        if (!see_used(rig))
            return false;
        d->batch = (uint16_t)rig->last_id;
        d->batch_len = rig->last_len;
        d->elements++;
    }
    CHECK(rig->used_seen != rig->avail_idx); /* it speaks for one that was made available */
    rig->last_id = d->heads[rig->used_seen % RIG_CHAINS];
    d->in_batch = rig->last_id != d->batch;
    rig->last_len = d->in_batch ? rig->whole[rig->last_id] : d->batch_len;
    step_used(rig);
    return true;
}

bool take_used(struct rig *rig)
{
    if (rig->config.features & RIG_IN_ORDER)
        return take_in_order(rig);
    if (!see_used(rig))
        return false;
    step_used(rig);
    return true;
}

void wait_used(struct rig *rig)
{
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    while (!take_used(rig)) {
        CHECK(rig_now_ms() < end);
        rig_pass(rig);
    }
}

void rig_go_on(struct rig *rig, const struct rig *before)
{
    rig->packed = before->packed;
    rig->in_order = before->in_order;
    memcpy(rig->whole, before->whole, sizeof(rig->whole));
    rig->avail_idx = before->avail_idx;
    rig->used_seen = before->used_seen;
}

void rig_first(struct rig *rig)
{
    struct packed_driver *d = &rig->packed;
    rig->avail_idx = rig->used_seen = 0;
    d->avail = d->used = d->kicked = d->behind[0] = (struct place){0, true};
    memset(d->slots, 0, sizeof(d->slots));
    rig->in_order.in_batch = false;
    CHECK_EQ(vhb_queue_set_base(rig->queue, is_packed(rig) ? 0x80008000 : 0), 0);
}

void rig_begin(struct rig *rig)
{
    rig_first(rig);
    if (is_packed(rig)) {
        memset(rig->ram + RIG_DESC, 0, 16 * (size_t)rig->config.size);
    } else {
        put_avail_idx(rig, 0);
        put16(rig, RIG_USED + 2, 0);
    }
}

uint32_t rig_index(struct rig *rig, uint16_t n)
{
    return is_packed(rig) ? rig->packed.behind[n % RIG_CHAINS].slot : n;
}

void rig_check_base(struct rig *rig, uint16_t taken)
{
    uint32_t base = rig_base(rig);
    const struct place *at = &rig->packed.behind[taken % RIG_CHAINS];
    if (is_packed(rig))
        CHECK_EQ(base & 0xffff, at->slot | (at->wrap ? 0x8000 : 0));
    else
        CHECK_EQ(base, taken);
}

enum vhb_reason put_bad_head(struct rig *rig)
{
    struct place *at = &rig->packed.avail;
    if (!is_packed(rig)) {
        put_avail(rig, 0xffff);
        return VHB_HEAD;
    }
    put_packed(rig, RIG_DESC, at->slot, RIG_RAM_AT, 16, 0xffff, packed_avail_flags(at));
    return VHB_ID;
}

/* ---- requests ------------------------------------------------------------------------- */

uint32_t header_at(uint32_t head)
{
    return RIG_HEADERS + 32 * head;
}

uint32_t status_at(uint32_t head)
{
    return header_at(head) + 16;
}

uint8_t status_of(struct rig *rig, uint32_t head)
{
    return __atomic_load_n(rig->ram + status_at(head), __ATOMIC_RELAXED);
}

static bool device_writes(uint32_t type)
{
    return type == BLK_IN || type == BLK_GET_ID;
}

void put_request(struct rig *rig, uint32_t head, uint32_t type, uint64_t sector, uint32_t data,
                 uint32_t len)
{
    put32(rig, header_at(head), type);
    put32(rig, header_at(head) + 4, 0);
    put64(rig, header_at(head) + 8, sector);
    __atomic_store_n(rig->ram + status_at(head), BLK_UNTOUCHED, __ATOMIC_RELAXED);

    uint32_t i = head;
    put_desc(rig, RIG_DESC, i, rig_at(header_at(head)), 16, DESC_NEXT, (uint16_t)(i + 1));
    i++;
    if (len) {
        uint16_t flags = DESC_NEXT | (device_writes(type) ? DESC_WRITE : 0);
        put_desc(rig, RIG_DESC, i, rig_at(data), len, flags, (uint16_t)(i + 1));
        i++;
    }
    put_desc(rig, RIG_DESC, i, rig_at(status_at(head)), 1, DESC_WRITE, 0);
}

void put_range(struct rig *rig, uint32_t data, uint32_t i, uint64_t sector, uint32_t sectors,
               uint32_t flags)
{
    put64(rig, data + 16 * i, sector);
    put32(rig, data + 16 * i + 8, sectors);
    put32(rig, data + 16 * i + 12, flags);
}

uint8_t do_chain(struct rig *rig, uint16_t head)
{
    put_avail(rig, head);
    rig_kick(rig);
    wait_used(rig);
    CHECK_EQ(rig->last_id, head);
    return status_of(rig, head);
}

uint8_t do_request(struct rig *rig, uint32_t type, uint64_t sector, uint32_t data, uint32_t len)
{
    put_request(rig, 0, type, sector, data, len);
    return do_chain(rig, 0);
}
