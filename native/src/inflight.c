/* inflight.c - the inflight region of a queue: given by the control plane, and what is to be taken
 * again of a predecessor.
 *
 * Read inflight.h first, then inflight_split.c for what is written there. */
#include <errno.h>
#include <stdlib.h>

#include "inflight.h"

_Static_assert(offsetof(struct split_region, version) == offsetof(struct packed_region, version),
               "in either format");

void vhb_inflight_dispose(struct vhb_inflight *in)
{
    free(in->replay);
    free(in->next);
}

static int take_region(struct vhb_queue *q, void *host, uint64_t len, uint32_t desc_num)
{
    struct vhb_inflight in = {.host = host, .len = len, .desc_num = desc_num};
    if ((uintptr_t)host % 8 || desc_num == 0 || desc_num > MAX_ENTRIES)
        return -EINVAL;
    in.replay = calloc(q->max_size, sizeof(*in.replay));
    in.next = calloc(desc_num, sizeof(*in.next));
    if (!in.replay || !in.next) {
        vhb_inflight_dispose(&in);
        return -ENOMEM;
    }
    vhb_inflight_dispose(&q->inflight);
    q->inflight = in;
    q->losses = 0;
    return 0;
}

int vhb_queue_set_inflight(struct vhb_queue *q, void *host, uint64_t len, uint32_t desc_num)
{
    struct vhb_inflight *in = &q->inflight;
    uint32_t state = load_acquire(&q->state); /* pair: state */
    if (!(state & VHB_OWNED_BY_CONTROL))
        return -EBUSY;
    if (host == in->host && (!host || (len == in->len && desc_num == in->desc_num)))
        return 0;
    if (host) /* what is in flight is noted in another one */
        return is_parked(state) ? -EBUSY : take_region(q, host, len, desc_num);
    vhb_inflight_dispose(in);
    *in = (struct vhb_inflight){0};
    return 0;
}

bool vhb_inflight_fits(const struct vhb_queue *q, size_t header, size_t entry)
{
    const struct vhb_inflight *in = &q->inflight;
    return !in->host || (in->desc_num >= q->size && in->len >= header + in->desc_num * entry);
}

bool vhb_inflight_header(struct vhb_queue *q, uint64_t features, uint16_t version,
                         uint16_t desc_num)
{
    if (features != 0)
        vhb_break(q, VHB_INFLIGHT, INFLIGHT_HEADER, features);
    else if (version != INFLIGHT_VERSION)
        vhb_break(q, VHB_INFLIGHT, INFLIGHT_HEADER, version);
    else if (desc_num != q->inflight.desc_num)
        vhb_break(q, VHB_INFLIGHT, INFLIGHT_HEADER, desc_num);
    return !q->broken;
}

void vhb_inflight_forget(struct vhb_queue *q)
{
    struct vhb_inflight *in = &q->inflight;
    if (!in->live)
        return;
    /* The base is the front-end's word for the ring, or for another one, if the driver has reset
     * the queue.  The region itself may be gone until the next run. */
    in->anew = !q->broken && !must_replay(q);
    in->live = false;
}

uint16_t vhb_inflight_version(struct vhb_queue *q)
{
    struct split_region *region = q->inflight.host; /* a packed one's is in the same place */
    if (q->inflight.anew)
        store_relaxed(&region->version, (uint16_t)0);
    q->inflight.anew = false;
    program_order();
    return load_relaxed(&region->version);
}

void vhb_replay_clear(struct vhb_queue *q)
{
    struct vhb_inflight *in = &q->inflight;
    in->n_replay = in->replayed = 0;
    in->counter = 0;
    in->live = false;
}

void vhb_replay_add(struct vhb_queue *q, struct vhb_replay replay)
{
    q->inflight.replay[q->inflight.n_replay++] = replay;
}

static int by_counter(const void *left, const void *right)
{
    const struct vhb_replay *a = left, *b = right;
    if (a->counter != b->counter)
        return a->counter < b->counter ? -1 : 1;
    return a->entry - b->entry;
}

void vhb_replay_begin(struct vhb_queue *q)
{
    struct vhb_inflight *in = &q->inflight;
    /* They keep their counters: who dies while they are taken again leaves their order as it is. */
    if (in->n_replay) {
        qsort(in->replay, in->n_replay, sizeof(*in->replay), by_counter);
        in->counter = in->replay[in->n_replay - 1].counter + 1;
    }
    in->live = true;
}
