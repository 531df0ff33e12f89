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

enum { INFLIGHT_VERSION = 1, MAX_ENTRIES = 32768 };

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

struct packed_state {
    uint8_t inflight; /* of the first of a chain: taken and not given back */
    uint8_t padding;
    uint16_t next;    /* the next free one, or the next of the chain; desc_num: none */
    uint16_t last;    /* of the first: the last of its chain */
    uint16_t num;     /* of the first: how many they are */
    uint64_t counter; /* of the first: the order in which they were taken */
    uint16_t id;
    uint16_t flags;
    uint32_t len;
    uint64_t addr;
};

/* One word, so that no successor finds a half of it. */
struct packed_used {
    uint16_t used_idx;     /* behind the batch that is given back now */
    uint16_t old_used_idx; /* behind the last that was noted as given back */
    uint8_t used_wrap;
    uint8_t old_used_wrap;
    uint8_t padding[2];
};

struct packed_region {
    uint64_t features; /* 0 */
    uint16_t version;  /* 0: nobody has written here */
    uint16_t desc_num;
    uint16_t free_head; /* the first that is free, if the batch is given back */
    uint16_t old_free_head;
    struct packed_used used;
    uint8_t padding[8];
    struct packed_state desc[];
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

void vhb_inflight_dispose(struct vhb_inflight *in);

/* Whether the region is long enough for a ring of this size, or there is none. */
bool vhb_inflight_fits(const struct vhb_queue *q, size_t header, size_t entry);
/* Whether a region that somebody has written is one; broken if not. */
bool vhb_inflight_header(struct vhb_queue *q, uint64_t features, uint16_t version,
                         uint16_t desc_num);
/* A drained queue gets a base: where everything in its region was given back, as behind
 * GET_VRING_BASE, the region says nothing of the ring that begins there. */
void vhb_inflight_forget(struct vhb_queue *q);
/* Part of loading a ring; 0: the region is to be initialised. */
uint16_t vhb_inflight_version(struct vhb_queue *q);
void vhb_replay_clear(struct vhb_queue *q);
void vhb_replay_add(struct vhb_queue *q, struct vhb_replay replay);
/* They are all known: in the order they were taken from now on. */
void vhb_replay_begin(struct vhb_queue *q);

/* ---- inflight_split.c ---- */

void vhb_split_mark(struct vhb_queue *q, uint16_t head);
/* Around the publication of the requests from *batch* on. */
void vhb_split_prepare(struct vhb_queue *q, const struct vhb_req *batch);
void vhb_split_commit(struct vhb_queue *q, const struct vhb_req *batch);
/* Part of loading a ring: next_used is known. */
void vhb_split_recover(struct vhb_queue *q);

/* ---- inflight_packed.c ---- */

/* Copy descriptor *n* of the chain that is about to be taken. */
void vhb_packed_note(struct vhb_queue *q, uint32_t n, const struct vring_packed_desc *d);
/* It is taken: n_slots of them. */
void vhb_packed_mark(struct vhb_queue *q, struct vhb_req *req);
/* Around the publication of the requests from *batch* on. */
void vhb_packed_prepare(struct vhb_queue *q, const struct vhb_req *batch);
void vhb_packed_commit(struct vhb_queue *q, const struct vhb_req *batch);
/* Descriptor *n* of the chain that is taken again; 0 or -EPROTO. */
int vhb_packed_load(struct vhb_queue *q, uint32_t n, struct vring_packed_desc *d);
/* Part of loading a ring: its places are those of the base. */
void vhb_packed_recover(struct vhb_queue *q);

#endif
