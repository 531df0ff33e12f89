/* vq.h - a virtqueue, and what a ring format implements: five verbs and a saved state.
 *
 * Contexts: fields under "shared" are atomics; those under "ring" and "settings" belong to the
 * owner; the rest is the worker's for ever. */
#ifndef VHB_VQ_H
#define VHB_VQ_H

#include <linux/virtio_ring.h>

#include "atomics.h"
#include "disk.h"
#include "space.h"

/* What the control plane asks of the worker, and whether the worker has given the ring back:
 * one word, so that a new wish and a late answer to an older one cannot pass each other. */
enum vhb_ask { VHB_ASK_RUN, VHB_ASK_PARK, VHB_ASK_DRAIN, VHB_ASK_CANCEL, VHB_ASK_DETACH };
enum { VHB_OWNED_BY_CONTROL = 1u << 8 };

enum { VHB_BORROW_COUNT = 4, VHB_NO_QUEUE = 0xffff };

/* VHB_SAMPLES wait at most; the rest of the ring may be given back while they do: sample.c. */
enum { VHB_SAMPLE_RING = 2 * VHB_SAMPLES };

/* Samples on their way from the worker to the control plane: one producer, one consumer.  The
 * indexes run on. */
struct vhb_samples {
    struct vhb_sample *ring; /* VHB_SAMPLE_RING */
    uint32_t stored;         /* the worker's; pair: samples-stored */
    uint32_t taken;          /* the control plane's; pair: samples-taken */

    /* The owner's of the ring. */
    uint32_t first; /* chains still to be sampled without a loss */
    uint32_t every;
    uint32_t wait; /* chains until the next that is sampled; 0: none ever */
    uint16_t chain;
    bool told; /* VHB_SAMPLED was posted, for what is stored before told_until */
    uint32_t told_until;
};

/* What the disk could not do. */
struct vhb_errors {
    /* shared */
    uint32_t policy;          /* VHB_ON_ERROR_* */
    uint32_t resume;          /* is asked for; pair: resume */
    uint32_t stalled, failed; /* stall, failure hold something; pair: stall, failure */
    struct vhb_stall stall, failure;

    /* the worker's */
    struct vhb_req *held, **tail; /* in the order they failed */
};

/* Memory that the control plane waits for; on its way to the worker. */
struct vhb_use {
    uint32_t number;
    size_t n;
    struct vhb_piece pieces[]; /* sorted, disjoint */
};

/* A request of a predecessor that is to be taken again. */
struct vhb_replay {
    uint64_t counter;
    uint16_t entry;     /* of the region; split: the head */
    uint16_t num, last; /* packed: entries of its chain, and the last of them */
};

/* The inflight region: inflight.h. */
struct vhb_inflight {
    void *host; /* NULL: none */
    uint64_t len;
    uint32_t desc_num;   /* entries, as the front-end says */
    bool live;           /* looked at: what is popped is noted there */
    bool anew;           /* all was given back: the next base is another ring's, perhaps */
    uint64_t counter;    /* of the next request */
    uint16_t batch_head; /* split: of the list of what was given back last */
    uint16_t free_head;  /* packed: first of the entries that are free */
    uint16_t last; /* packed: the one that was written last of the chain that is taken now */
    uint16_t *next; /* packed: desc_num; which entry follows which */
    struct vhb_replay *replay; /* max_size; those from *replayed* on are still to be popped */
    uint32_t n_replay, replayed;
};

struct vhb_queue {
    /* shared */
    uint32_t state; /* enum vhb_ask, VHB_OWNED_BY_CONTROL; pair: state */
    uint32_t events; /* VHB_PARKED…; pair: events */
    struct vhb_queue *inbox_next;
    struct vhb_use *use_asked; /* not yet seen by the worker; pair: use */
    uint32_t use_ended; /* number of the last that is over; pair: use-ended */
    struct vhb_errors errors;
    uint32_t busy_asked; /* VHB_BUSY is to be posted */

    /* ring */
    struct vhb_part part[3];
    uint32_t size;
    uint32_t base; /* as set, until the ring is loaded */
    uint16_t next_avail, next_used; /* split: indexes; packed: places on two laps of the ring */
    uint16_t signalled_used; /* next_used at the last call decision */
    uint64_t look_at;   /* when the ring is looked at again; 0: it was */
    bool given;         /* something was given back since that look */
    uint16_t armed; /* next_avail when kicks were asked for last */
    bool was_run; /* since the base was set */
    bool loaded; /* base has become the indexes */
    bool quiet; /* the driver was told not to kick */
    bool broken;
    bool missing; /* the next chain waits for an answer: space.miss */
    struct vhb_fault fault;
    struct vhb_samples samples;
    struct vhb_inflight inflight;
    uint64_t *ids; /* packed: a bit for each buffer id, set while it is in flight */

    /* settings */
    const struct vhb_ring_ops *ring; /* the format */
    struct vhb_space space;
    struct vhb_blk blk;
    int kick, call, err;
    struct vhb_log *log; /* NULL: nothing is logged */
    bool enabled, event_idx, indirect, in_order;
    bool greet; /* a new call fd, signal it once */

    /* the control plane's */
    bool attached; /* VHB_DETACHED was not taken yet */
    uint16_t number; /* as its device counts, or VHB_NO_QUEUE; read by layers */
    uint32_t use_number; /* of the last that was asked */

    /* worker's */
    struct vhb_worker *worker;
    struct vhb_io *io; /* that worker's */
    struct vhb_disk *disk;
    struct vhb_graveyard *graveyard;
    uint32_t max_size;
    struct vhb_req *slots;
    struct vhb_wide *wide; /* one of each slot, by its tag */
    struct vhb_layered *layered; /* likewise */
    uint16_t *free_slots; /* a stack: the slot used last is the warmest */
    uint32_t n_free;
    struct vhb_req *done, **done_tail;
    struct vhb_req *held, **held_tail; /* in the order they came */
    struct vhb_req *order_first, *order_last; /* what was popped, the oldest first */
    bool order_stuck; /* one is withheld: nothing behind it goes back, the queue breaks */
    struct iovec *borrow; /* VHB_BORROW_COUNT arrays of VHB_MAX_IOV for long chains */
    uint32_t borrow_free; /* one bit each */
    uint32_t in_flight, dead;
    uint32_t use_current, users; /* requests that are marked for the use of this number */
    uint64_t bounce_slots; /* of what is not given back */
    struct vhb_fault doom; /* found outside a visit */
    uint32_t lost; /* vhb_fault_seen() when the visit began */
    uint32_t losses; /* vhb_fault_total() when the mappings were looked at; 0: not yet */
    uint32_t pace; /* how many requests a visit takes: take.c */
    bool starved; /* a long chain waits for a borrowed array */
    bool cancelled; /* the pending VHB_ASK_CANCEL was carried out */
    bool watching; /* the kick fd is watched by the worker's io */
    bool watching_disk;
    bool deaf; /* the kick fd cannot be watched now: the ring is polled, as without one */
    int watched; /* the kick fd, while the ring is ours to take from, or -1 */
    uint32_t served; /* the state that the last visit met */
    uint32_t kick_generation, disk_generation; /* a late event of an older watch is told by it */
    uint32_t position; /* in the worker's table */
    uint64_t active; /* ns; when a visit did something last */
    struct vhb_counters counters;
    uint32_t touched; /* slots that were ever taken are in front of it; atomic */
    struct vhb_latency latency[VHB_CANCEL];
};

/* Whether the ring and its settings are the control plane's. */
static inline bool is_ours(const struct vhb_queue *queue)
{
    return load_acquire(&queue->state) & VHB_OWNED_BY_CONTROL; /* pair: state */
}

/* Whether a queue in this state was given back with requests in flight. */
static inline bool is_parked(uint32_t state)
{
    return state == (VHB_OWNED_BY_CONTROL | VHB_ASK_PARK);
}

/* Whether this visit has lost memory of the guest: what was read there is a page of zeroes. */
static inline bool lost_memory(const struct vhb_queue *queue)
{
    return vhb_fault_seen() != queue->lost;
}

/* Twice the descriptors: every request in flight can be cancelled, its head then goes back
 * through a second slot.  Untouched slots cost address space only. */
static inline uint32_t slot_count(const struct vhb_queue *queue)
{
    return 2 * queue->max_size;
}

static inline struct vhb_wide *wide_of(const struct vhb_req *req)
{
    return &req->queue->wide[req->tag];
}

static inline struct vhb_layered *layered_of(const struct vhb_req *req)
{
    return &req->queue->layered[req->tag];
}

/* Give a borrowed array back; whether it was one. */
static inline bool give_back_array(struct vhb_queue *queue, struct vhb_req *req)
{
    size_t at = (size_t)((uintptr_t)req->vec - (uintptr_t)queue->borrow) / sizeof(struct iovec);
    if (at >= (size_t)VHB_BORROW_COUNT * VHB_MAX_IOV) /* an address before it wraps to behind it */
        return false;
    queue->borrow_free |= 1u << at / VHB_MAX_IOV;
    req->vec = req->own;
    return true;
}

static inline size_t ids_size(const struct vhb_queue *queue)
{
    return (queue->max_size + 63) / 64 * sizeof(uint64_t);
}

/* What a used element says was written: data and status. */
static inline uint32_t used_len(const struct vhb_req *req)
{
    return req->status ? req->written + 1 : 0;
}

/* In order, the used element of a later request of the batch may speak for this one, too: who is
 * skipped is taken to be used completely.  Spec: virtio 1.3, 2.7.9; 2.8.9. */
static inline bool may_skip(const struct vhb_req *req)
{
    return req->next && used_len(req) == req->writable;
}

/* ---- ring formats: split.c, packed.c ---- */

struct vhb_ring_ops {
    /* Take the next chain into *req* (head, vec, n_readable, n_writable, status, bad).
     * 1: taken; 0: none; -EAGAIN: it needs more pieces than are free now; -ENODATA: it needs what
     * space.miss says; -EPROTO: broken now.  Nothing is consumed but where it returns 1. */
    int (*pop)(struct vhb_queue *queue, struct vhb_req *req);
    /* Give back every request of the done list, which is not empty, with one publication. */
    void (*push)(struct vhb_queue *queue);
    /* Whether the driver wants to be told of what was pushed since the last look. */
    bool (*should_call)(struct vhb_queue *queue);
    /* Make the last look one that was a lap of the ring ago. */
    void (*look_back)(struct vhb_queue *queue);
    /* Ask for kicks again; whether entries slipped in meanwhile. */
    bool (*arm)(struct vhb_queue *queue);
    void (*quiet)(struct vhb_queue *queue);

    /* Make the indexes of *base*, and of the ring; part of taking a ring over. */
    void (*load)(struct vhb_queue *queue);
    /* The indexes of a loaded ring, in the form of *base*.  The control plane's. */
    uint32_t (*save)(const struct vhb_queue *queue);
    /* Whether what was set makes a ring.  The control plane's. */
    bool (*is_set)(const struct vhb_queue *queue);
};

extern const struct vhb_ring_ops vhb_split_ops, vhb_packed_ops;

/* Where the next chain is met, as a fault says it: avail index, or index of a descriptor. */
static inline uint32_t next_at(const struct vhb_queue *queue)
{
    uint32_t lap = queue->ring == &vhb_packed_ops && queue->next_avail >= queue->size;
    return queue->next_avail - lap * queue->size;
}

/* ---- visit.c ---- */

/* The ring is not a ring (the owner's).  Always -EPROTO. */
int vhb_break(struct vhb_queue *queue, enum vhb_reason reason, uint32_t index, uint64_t value);
/* The same for a reason that stands even where memory was lost; either context. */
void vhb_break_as(struct vhb_queue *queue, enum vhb_reason reason, uint32_t index, uint64_t value);
/* The same outside a visit, when the ring may be the control plane's: breaks at the next visit.
 */
void vhb_doom(struct vhb_queue *queue, enum vhb_reason reason, uint32_t index, uint64_t value);
void vhb_queue_post(struct vhb_queue *queue, uint32_t event); /* worker: tell the control plane */

/* The slot the next request gets; q->n_free-- takes it. */
struct vhb_req *vhb_slot_peek(struct vhb_queue *queue);
void vhb_req_release(struct vhb_req *req); /* the slot is free again */

/* ---- blk.c ---- */

/* Look at a popped request and start it; it may be done already when this returns. */
void vhb_blk_start(struct vhb_queue *queue, struct vhb_req *req, struct vhb_io *io);
/* Hand the current range of the request to the disk, unless a dead one is in its way. */
void vhb_blk_submit(struct vhb_req *req, struct vhb_io *io);

/* ---- done.c ---- */

void vhb_blk_finish(struct vhb_req *req, uint8_t result); /* VIRTIO_BLK_S_* */
void vhb_blk_next_range(struct vhb_req *req); /* make its current range what the disk is asked */
void vhb_blk_abandon(struct vhb_req *req); /* cancelled: IOERR now, its slot stays taken */

/* ---- order.c ---- */

void vhb_order_enter(struct vhb_req *req); /* popped by a queue that is in order */
void vhb_order_done(struct vhb_queue *queue); /* one is done: move those to the done list whose
                                               * turn it is */
void vhb_order_replace(struct vhb_req *req, struct vhb_req *by); /* a ghost takes its turn */
/* It will not be given back, nor what is behind it: a used element there would cover it. */
void vhb_order_withhold(struct vhb_req *req);
void vhb_order_give_up(struct vhb_queue *queue); /* broken: all that is done to the done list */

/* To the end of what is pushed next. */
static inline void done_append(struct vhb_queue *queue, struct vhb_req *req)
{
    req->next = NULL;
    *queue->done_tail = req;
    queue->done_tail = &req->next;
}

/* ---- error.c: the worker's ---- */

/* The disk has failed a live request: whether it is held; else the driver is to be told. */
bool vhb_error_holds(struct vhb_req *req, int error);
void vhb_errors_resume(struct vhb_queue *queue, struct vhb_io *io);
void vhb_errors_give_up(struct vhb_queue *queue); /* all that is held ends with IOERR */

static inline bool is_stalled(const struct vhb_queue *queue)
{
    return queue->errors.held;
}

/* ---- latency.c ---- */

uint64_t vhb_clock(void); /* ns, CLOCK_MONOTONIC */
uint32_t vhb_latency_bucket(uint64_t ns);
/* The done list was given back just now. */
void vhb_latency_done(struct vhb_queue *queue, const struct vhb_io *io);

/* ---- use.c ---- */

void vhb_use_begin(struct vhb_queue *queue); /* worker: mark what use_asked names */
void vhb_use_over(struct vhb_req *req); /* a marked request is over */

/* The memory of a request is not touched any more. */
static inline void let_go(struct vhb_req *req)
{
    if (req->awaited)
        vhb_use_over(req);
}

/* ---- log.c: while q->log is there, and by the owner of the ring ---- */

void vhb_log_data(struct vhb_queue *queue, const struct vhb_req *req); /* was written, perhaps */
void vhb_log_done(struct vhb_queue *queue); /* data and status of the done list */
/* *len* bytes at *offset* of a part of the ring were written. */
void vhb_log_part(struct vhb_queue *queue, int part, size_t offset, size_t len);
bool vhb_log_lost(const struct vhb_log *log); /* by whomever */

/* ---- sample.c ---- */

/* Store one sample behind the *n* that this chain has; how many it has now. */
uint32_t vhb_samples_store(struct vhb_queue *queue, uint32_t n, struct vhb_sample sample);
/* A chain is over that was sampled or is outside: its *n* samples may be taken. */
void vhb_samples_publish(struct vhb_queue *queue, uint32_t n, bool outside);

static inline uint32_t samples_waiting(const struct vhb_samples *samples)
{
    /* What was there is copied.  pair: samples-taken */
    return samples->stored - load_acquire(&samples->taken);
}

/* Whether a chain may be popped: the first are not to be lost. */
static inline bool samples_have_room(const struct vhb_samples *samples)
{
    return !samples->first || samples_waiting(samples) <= VHB_SAMPLES / 2;
}

/* ---- worker.c ---- */

void vhb_worker_wake(struct vhb_worker *worker); /* any thread */
void vhb_worker_notify(struct vhb_worker *worker); /* worker: events are waiting */
void vhb_worker_adopt(struct vhb_worker *worker, struct vhb_queue *queue); /* control */
struct vhb_io *vhb_worker_io(struct vhb_worker *worker);

/* ---- registers.c ---- */

void vhb_forget_registers(void);

#endif
