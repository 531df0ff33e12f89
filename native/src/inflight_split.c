/* inflight_split.c - which heads of a split ring were taken and not yet given back.
 *
 * A batch that is given back is a list before the ring's index is stored, and taken off the region
 * behind it.  Who comes after us compares the two indexes: where they differ, the list says what
 * the driver already has. */
#include "inflight.h"
#include "split.h"

_Static_assert(sizeof(struct split_state) == 16, "vhost-user, DescStateSplit");
_Static_assert(offsetof(struct split_state, inflight) == 0, "DescStateSplit");
_Static_assert(offsetof(struct split_state, next) == 6, "DescStateSplit");
_Static_assert(offsetof(struct split_state, counter) == 8, "DescStateSplit");
_Static_assert(offsetof(struct split_region, features) == 0, "QueueRegionSplit");
_Static_assert(offsetof(struct split_region, version) == 8, "QueueRegionSplit");
_Static_assert(offsetof(struct split_region, desc_num) == 10, "QueueRegionSplit");
_Static_assert(offsetof(struct split_region, last_batch_head) == 12, "QueueRegionSplit");
_Static_assert(offsetof(struct split_region, used_idx) == 14, "QueueRegionSplit");
_Static_assert(offsetof(struct split_region, desc) == 16, "QueueRegionSplit");
_Static_assert(sizeof(struct split_region) == 16, "QueueRegionSplit");

static struct split_region *region_of(struct vhb_queue *q)
{
    return q->inflight.host;
}

/* ---- while we live ------------------------------------------------------------------- */

void vhb_split_mark(struct vhb_queue *q, uint16_t head)
{
    struct split_state *state = &region_of(q)->desc[head];
    VHB_CRASH(split_mark);
    store_relaxed(&state->counter, q->inflight.counter++);
    VHB_CRASH(split_mark_counter);
    program_order();
    store_relaxed(&state->inflight, (uint8_t)1);
    VHB_CRASH(split_mark_inflight);
}

void vhb_split_prepare(struct vhb_queue *q, const struct vhb_req *batch)
{
    struct split_region *region = region_of(q);
    for (const struct vhb_req *req = batch; req; req = req->next) {
        store_relaxed(&region->desc[req->head].next, q->inflight.batch_head);
        VHB_CRASH(split_prepare_next);
        program_order();
        q->inflight.batch_head = req->head;
        store_relaxed(&region->last_batch_head, req->head);
        VHB_CRASH(split_prepare_head);
    }
    program_order();
}

void vhb_split_commit(struct vhb_queue *q, const struct vhb_req *batch)
{
    struct split_region *region = region_of(q);
    program_order();
    for (const struct vhb_req *req = batch; req; req = req->next) {
        store_relaxed(&region->desc[req->head].inflight, (uint8_t)0);
        VHB_CRASH(split_commit_inflight);
    }
    program_order();
    store_relaxed(&region->used_idx, q->next_used);
    VHB_CRASH(split_commit_used_idx);
}

/* ---- what a predecessor left ---------------------------------------------------------- */

static void initialise(struct vhb_queue *q)
{
    struct split_region *region = region_of(q);
    for (uint32_t i = 0; i < q->inflight.desc_num; i++)
        region->desc[i] = (struct split_state){0};
    VHB_CRASH(split_new_entries);
    region->features = 0;
    region->desc_num = (uint16_t)q->inflight.desc_num;
    region->last_batch_head = 0;
    /* The ring's own: a guest that came by migration brings one that is not 0 (spdk#3766). */
    region->used_idx = q->next_used;
    VHB_CRASH(split_new_header);
    program_order();
    store_relaxed(&region->version, (uint16_t)INFLIGHT_VERSION);
    VHB_CRASH(split_new_version);
}

/* Read the list of the *n* heads that were given back last into the room for replays; how many they
 * are.  None, if it comes round: it never was a list, nobody set used_idx before.  -EPROTO: broken.
 */
static int read_batch(struct vhb_queue *q, uint16_t n)
{
    const struct split_region *region = region_of(q);
    uint64_t seen[MAX_ENTRIES / 64] = {0};
    uint16_t at = INFLIGHT_HEADER, head = load_relaxed(&region->last_batch_head);
    for (uint16_t i = 0; i < n; i++) {
        if (head >= q->size)
            return vhb_break(q, VHB_INFLIGHT, at, head);
        if (seen[head / 64] >> (head % 64) & 1)
            return 0;
        seen[head / 64] |= (uint64_t)1 << (head % 64);
        q->inflight.replay[i].entry = head;
        at = head;
        head = load_relaxed(&region->desc[head].next);
    }
    return n;
}

/* Take off what the driver already has.  Whoever dies in here leaves the list as it is. */
static bool finish_batch(struct vhb_queue *q)
{
    struct split_region *region = region_of(q);
    uint16_t n = (uint16_t)(q->next_used - load_relaxed(&region->used_idx));
    int given = n <= q->size ? read_batch(q, n) : 0;
    for (int i = 0; i < given; i++) {
        store_relaxed(&region->desc[q->inflight.replay[i].entry].inflight, (uint8_t)0);
        VHB_CRASH(split_recover_inflight);
    }
    if (given < 0)
        return false;
    program_order();
    store_relaxed(&region->used_idx, q->next_used);
    VHB_CRASH(split_recover_used_idx);
    return true;
}

void vhb_split_recover(struct vhb_queue *q)
{
    struct split_region *region = region_of(q);
    vhb_replay_clear(q);
    q->inflight.batch_head = 0;
    uint16_t version = vhb_inflight_version(q);
    if (version == 0) {
        initialise(q);
    } else if (vhb_inflight_header(q, load_relaxed(&region->features), version,
                                   load_relaxed(&region->desc_num)) &&
               finish_batch(q)) {
        for (uint16_t i = 0; i < q->size; i++)
            if (load_relaxed(&region->desc[i].inflight) == 1)
                vhb_replay_add(
                    q, (struct vhb_replay){.counter = load_relaxed(&region->desc[i].counter),
                                           .entry = i});
        /* Each was made available, and taken, before whatever is taken next. */
        q->next_avail = (uint16_t)(q->next_used + q->inflight.n_replay);
        uint16_t available = (uint16_t)(load_acquire(avail_idx(q)) - q->next_used);
        if (q->inflight.n_replay > available)
            vhb_break(q, VHB_INFLIGHT, INFLIGHT_HEADER, q->inflight.n_replay);
    }
    vhb_replay_begin(q);
}
