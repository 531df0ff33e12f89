/* inflight.h - the region where it is noted which requests were taken and not yet given back, so
 * that whoever comes after us finds them.
 *
 * vhost-user, "Inflight I/O tracking".  The region is shared with the front-end and outlives us; it
 * may have been written by somebody else: what is read of it is loaded once and checked.
 *
 * A process that is killed has done everything up to some instruction and nothing behind it, and
 * its successor maps the same pages.  So what has an order here needs it of the compiler only. */
#ifndef VHB_INFLIGHT_H
#define VHB_INFLIGHT_H

#include "crash.h"
#include "vq.h"

enum { INFLIGHT_VERSION = 1 };

/* The index of a fault that is in no entry. */
enum { INFLIGHT_HEADER = 0xffff };

struct split_state {
    uint8_t inflight; /* of a head: taken and not given back */
    uint8_t padding[5];
    uint16_t next;    /* the head before this one in the last batch */
    uint64_t counter; /* of a head: the order in which they were taken */
};

struct split_region {
    uint64_t features; /* 0 */
    uint16_t version;  /* 0: nobody has written here */
    uint16_t desc_num;
    uint16_t last_batch_head; /* the last of the last batch */
    uint16_t used_idx;        /* the ring's, behind the last batch that is noted as given back */
    struct split_state desc[];
};

/* Whether what is popped is noted. */
static inline bool is_tracked(const struct vhb_queue *q)
{
    return q->inflight.live;
}

/* Whether a predecessor's requests are still to be popped. */
static inline bool must_replay(const struct vhb_queue *q)
{
    return q->inflight.replayed < q->inflight.n_replay;
}

/* Nothing that stands behind is done before what stands in front. */
#define program_order() __atomic_signal_fence(__ATOMIC_SEQ_CST)

/* ---- inflight.c: what the formats share ---- */

/* Whether the region is long enough for a ring of this size, or there is none. */
bool vhb_inflight_fits(const struct vhb_queue *q, size_t header, size_t entry);
/* Whether a region that somebody has written is one; broken if not. */
bool vhb_inflight_header(struct vhb_queue *q, uint64_t features, uint16_t version,
                         uint16_t desc_num);
void vhb_replay_add(struct vhb_queue *q, uint64_t counter, uint16_t entry);
/* They are all known: in the order they were taken from now on. */
void vhb_replay_begin(struct vhb_queue *q);

/* ---- inflight_split.c ---- */

void vhb_split_mark(struct vhb_queue *q, uint16_t head);
/* Around the publication of the requests from *batch* on. */
void vhb_split_prepare(struct vhb_queue *q, const struct vhb_req *batch);
void vhb_split_commit(struct vhb_queue *q, const struct vhb_req *batch);
/* Part of loading a ring: next_used is known. */
void vhb_split_recover(struct vhb_queue *q);

#endif
