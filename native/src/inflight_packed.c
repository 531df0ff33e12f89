/* inflight_packed.c - which descriptors of a packed ring were taken and not yet given back.
 *
 * The driver may write over a descriptor of a packed ring that was taken, as soon as another one is
 * given back there: so the region has copies.  Its entries are a list of free ones, and chains that
 * were cut off its front; a chain that goes back is put in front.  Which entry follows which is
 * known here, too: nothing that is read of the region while we live decides anything.
 *
 * Two steps cannot be torn.  A chain is cut off by one store of old_free_head; until then its
 * entries are free.  A batch goes back when the driver sees its first element: all that is needed
 * to finish it is in the region before, all that is needed to forget it until behind. */
#include <assert.h>
#include <errno.h>

#include "inflight.h"
#include "packed.h"

_Static_assert(sizeof(struct packed_state) == 32, "vhost-user, DescStatePacked");
_Static_assert(offsetof(struct packed_state, inflight) == 0, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, next) == 2, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, last) == 4, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, num) == 6, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, counter) == 8, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, id) == 16, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, flags) == 18, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, len) == 20, "DescStatePacked");
_Static_assert(offsetof(struct packed_state, addr) == 24, "DescStatePacked");
_Static_assert(offsetof(struct packed_region, features) == 0, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, version) == 8, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, desc_num) == 10, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, free_head) == 12, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, old_free_head) == 14, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, used) == 16, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_used, used_idx) == 0, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_used, old_used_idx) == 2, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_used, used_wrap) == 4, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_used, old_used_wrap) == 5, "QueueRegionPacked");
_Static_assert(sizeof(struct packed_used) == 8, "QueueRegionPacked");
_Static_assert(offsetof(struct packed_region, desc) == 32, "QueueRegionPacked");
_Static_assert(sizeof(struct packed_region) == 32, "QueueRegionPacked");

static struct packed_region *region_of(struct vhb_queue *q)
{
    return q->inflight.host;
}

/* Both indexes and both wrap counters, at once. */
static void store_used(struct vhb_queue *q, uint32_t used, uint32_t old)
{
    struct packed_used value = {.used_idx = (uint16_t)slot_of(q, used),
                                .old_used_idx = (uint16_t)slot_of(q, old),
                                .used_wrap = wrap_of(q, used),
                                .old_used_wrap = wrap_of(q, old)};
    uint64_t word;
    memcpy(&word, &value, sizeof(word));
    store_relaxed((uint64_t *)(void *)&region_of(q)->used, word);
}

static struct packed_used load_used(struct vhb_queue *q)
{
    struct packed_used value;
    uint64_t word = load_relaxed((uint64_t *)(void *)&region_of(q)->used);
    memcpy(&value, &word, sizeof(value));
    return value;
}

/* ---- while we live ------------------------------------------------------------------- */

void vhb_packed_note(struct vhb_queue *q, uint32_t n, const struct vring_packed_desc *d)
{
    struct vhb_inflight *in = &q->inflight;
    in->last = n ? in->next[in->last] : in->free_head;
    assert(in->last < in->desc_num); /* as many as the ring has, and the ring has one */
    struct packed_state *state = &region_of(q)->desc[in->last];
    store_relaxed(&state->id, d->id);
    store_relaxed(&state->flags, d->flags);
    store_relaxed(&state->len, d->len);
    store_relaxed(&state->addr, d->addr);
    VHB_CRASH(packed_note);
}

void vhb_packed_mark(struct vhb_queue *q, struct vhb_req *req)
{
    struct vhb_inflight *in = &q->inflight;
    struct packed_region *region = region_of(q);
    struct packed_state *head = &region->desc[in->free_head];
    req->entry = in->free_head;
    req->last_entry = in->last;
    in->free_head = in->next[in->last];
    VHB_CRASH(packed_mark);
    store_relaxed(&head->counter, in->counter++);
    VHB_CRASH(packed_mark_counter);
    store_relaxed(&head->num, req->n_slots);
    store_relaxed(&head->last, req->last_entry);
    VHB_CRASH(packed_mark_last);
    program_order();
    store_relaxed(&head->inflight, (uint8_t)1);
    VHB_CRASH(packed_mark_inflight);
    store_relaxed(&region->free_head, in->free_head);
    VHB_CRASH(packed_mark_free_head);
    program_order();
    store_relaxed(&region->old_free_head, in->free_head);
    VHB_CRASH(packed_mark_old_free_head);
}

void vhb_packed_prepare(struct vhb_queue *q, const struct vhb_req *batch)
{
    struct vhb_inflight *in = &q->inflight;
    struct packed_region *region = region_of(q);
    uint32_t used = q->next_used;
    for (const struct vhb_req *req = batch; req; req = req->next) {
        in->next[req->last_entry] = in->free_head;
        store_relaxed(&region->desc[req->last_entry].next, in->free_head);
        VHB_CRASH(packed_prepare_next);
        program_order();
        in->free_head = req->entry;
        store_relaxed(&region->free_head, in->free_head);
        VHB_CRASH(packed_prepare_free_head);
        used = behind(q, used, req->n_slots);
    }
    program_order();
    store_used(q, used, q->next_used);
    VHB_CRASH(packed_prepare_used);
    program_order();
}

void vhb_packed_commit(struct vhb_queue *q, const struct vhb_req *batch)
{
    struct packed_region *region = region_of(q);
    program_order();
    for (const struct vhb_req *req = batch; req; req = req->next) {
        store_relaxed(&region->desc[req->entry].inflight, (uint8_t)0);
        VHB_CRASH(packed_commit_inflight);
    }
    program_order();
    store_relaxed(&region->old_free_head, q->inflight.free_head);
    VHB_CRASH(packed_commit_old_free_head);
    program_order();
    store_used(q, q->next_used, q->next_used);
    VHB_CRASH(packed_commit_used);
}

int vhb_packed_load(struct vhb_queue *q, uint32_t n, struct vring_packed_desc *d)
{
    struct vhb_inflight *in = &q->inflight;
    const struct vhb_replay *replay = &in->replay[in->replayed];
    in->last = n ? in->next[in->last] : replay->entry;
    const struct packed_state *state = &region_of(q)->desc[in->last];
    *d = (struct vring_packed_desc){.addr = load_relaxed(&state->addr),
                                    .len = load_relaxed(&state->len),
                                    .id = load_relaxed(&state->id),
                                    .flags = load_relaxed(&state->flags)};
    bool more = d->flags & VRING_DESC_F_NEXT;
    return more == (n + 1u < replay->num) ? 0 : vhb_break(q, VHB_INFLIGHT, in->last, d->flags);
}

/* ---- what a predecessor left ---------------------------------------------------------- */

static void initialise(struct vhb_queue *q)
{
    struct packed_region *region = region_of(q);
    struct vhb_inflight *in = &q->inflight;
    for (uint32_t i = 0; i < in->desc_num; i++) {
        in->next[i] = (uint16_t)(i + 1);
        region->desc[i] = (struct packed_state){.next = in->next[i]};
    }
    VHB_CRASH(packed_new_entries);
    in->free_head = 0;
    region->features = 0;
    region->desc_num = (uint16_t)in->desc_num;
    region->free_head = region->old_free_head = 0;
    store_used(q, q->next_used, q->next_used);
    VHB_CRASH(packed_new_header);
    program_order();
    store_relaxed(&region->version, (uint16_t)INFLIGHT_VERSION);
    VHB_CRASH(packed_new_version);
}

/* The first descriptor of the last batch tells whether the driver has it: finish it, or forget it.
 * False: broken. */
static bool settle_batch(struct vhb_queue *q)
{
    struct packed_region *region = region_of(q);
    struct packed_used used = load_used(q);
    uint16_t free_head = load_relaxed(&region->free_head);
    uint16_t old_free_head = load_relaxed(&region->old_free_head);
    if (used.used_idx >= q->size || used.old_used_idx >= q->size) {
        vhb_break(q, VHB_INFLIGHT, INFLIGHT_HEADER,
                  used.used_idx >= q->size ? used.used_idx : used.old_used_idx);
        return false;
    }
    uint32_t now = used.used_idx + (used.used_wrap ? 0 : q->size);
    uint32_t old = used.old_used_idx + (used.old_used_wrap ? 0 : q->size);
    bool given = now != old && !is_avail(q, old, load_acquire(&desc_at(q, old)->flags));
    q->next_used = (uint16_t)(given ? now : old);
    q->inflight.free_head = given ? free_head : old_free_head;
    /* Each store leaves what is decided here as it is. */
    store_relaxed(&region->free_head, q->inflight.free_head);
    VHB_CRASH(packed_recover_free_head);
    store_relaxed(&region->old_free_head, q->inflight.free_head);
    VHB_CRASH(packed_recover_old_free_head);
    program_order();
    store_used(q, q->next_used, q->next_used);
    VHB_CRASH(packed_recover_used);
    return true;
}

/* An entry that is met for the first time; its successor from now on.  False: broken. */
static bool meet(struct vhb_queue *q, uint64_t *met, uint16_t from, uint16_t entry)
{
    struct vhb_inflight *in = &q->inflight;
    if (entry >= in->desc_num || met[entry / 64] >> entry % 64 & 1) {
        vhb_break(q, VHB_INFLIGHT, from, entry);
        return false;
    }
    met[entry / 64] |= 1ull << entry % 64;
    in->next[entry] = load_relaxed(&region_of(q)->desc[entry].next);
    return true;
}

/* The free entries: whatever they say, nothing of them is in flight. */
static bool read_free(struct vhb_queue *q, uint64_t *met)
{
    struct vhb_inflight *in = &q->inflight;
    uint16_t from = INFLIGHT_HEADER;
    for (uint16_t i = in->free_head; i != in->desc_num; i = in->next[i]) {
        if (!meet(q, met, from, i))
            return false;
        store_relaxed(&region_of(q)->desc[i].inflight, (uint8_t)0);
        VHB_CRASH(packed_recover_inflight);
        from = i;
    }
    return true;
}

/* The entries of the chain that begins at *head*; its descriptors are added to *total*. */
static bool read_chain(struct vhb_queue *q, uint64_t *met, uint16_t head, uint32_t *total)
{
    struct vhb_inflight *in = &q->inflight;
    const struct packed_state *state = &region_of(q)->desc[head];
    uint16_t num = load_relaxed(&state->num), last = load_relaxed(&state->last), from = head;
    for (uint16_t n = 0; n < num; n++) {
        uint16_t entry = n ? in->next[from] : head;
        if (!meet(q, met, from, entry))
            return false;
        from = entry;
    }
    *total += num;
    if (num == 0 || from != last || *total > q->size) {
        vhb_break(q, VHB_INFLIGHT, head, from != last ? last : num);
        return false;
    }
    vhb_replay_add(
        q, (struct vhb_replay){
               .counter = load_relaxed(&state->counter), .entry = head, .num = num, .last = last});
    return true;
}

/* All entries are free or of a chain; how many descriptors were taken.  -EPROTO: broken. */
static int read_entries(struct vhb_queue *q)
{
    uint64_t met[MAX_ENTRIES / 64] = {0};
    uint32_t total = 0;
    if (!read_free(q, met))
        return -EPROTO;
    for (uint16_t i = 0; i < q->inflight.desc_num; i++)
        if (load_relaxed(&region_of(q)->desc[i].inflight) == 1 && !(met[i / 64] >> i % 64 & 1) &&
            !read_chain(q, met, i, &total))
            return -EPROTO;
    for (uint16_t i = 0; i < q->inflight.desc_num; i++)
        if (!(met[i / 64] >> i % 64 & 1))
            return vhb_break(q, VHB_INFLIGHT, i, 0);
    return (int)total;
}

/* Elements behind the first of a batch are written before it.  Where the batch was forgotten they
 * are no elements: the driver would find them when another one is given back in front of them. */
static void take_back(struct vhb_queue *q)
{
    for (uint32_t at = q->next_used; at != q->next_avail; at = behind(q, at, 1)) {
        uint16_t *flags = &desc_at(q, at)->flags, value = load_relaxed(flags);
        if (is_used(q, at, value))
            store_relaxed(flags, (uint16_t)(value ^ FLAG_USED));
        VHB_CRASH(packed_recover_flags);
    }
}

void vhb_packed_recover(struct vhb_queue *q)
{
    struct packed_region *region = region_of(q);
    uint16_t version = vhb_inflight_version(q);
    vhb_replay_clear(q);
    if (version == 0) {
        initialise(q);
    } else if (vhb_inflight_header(q, load_relaxed(&region->features), version,
                                   load_relaxed(&region->desc_num)) &&
               settle_batch(q)) {
        int taken = read_entries(q);
        if (taken < 0)
            return;
        q->next_avail = behind(q, q->next_used, (uint32_t)taken);
        take_back(q);
    }
    vhb_replay_begin(q);
}
