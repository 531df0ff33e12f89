/* disk.h - what a disk is inside the core, and the request it is given.
 *
 * All of a disk's operations but free are called by workers; a disk that serves queues of several
 * workers is called by them at the same time. */
#ifndef VHB_DISK_H
#define VHB_DISK_H

#include <stdatomic.h>
#include <sys/uio.h>

#include "vhostblk.h"

struct vhb_io;
struct vhb_layer;
struct vhb_queue;
struct vhb_req;

enum { VHB_PENDING = 1 };

/* Results beyond the errnos: the queue breaks, for a dead request's too.
 * KEPT_VIEW: the disk goes on using the guest's memory; the request is not given back.
 * LOST_MEMORY: fault.c has put a page of its own in the guest's place; the request is IOERR. */
enum { VHB_RESULT_KEPT_VIEW = -4096, VHB_RESULT_LOST_MEMORY = -4097 };

/* Pieces a slot holds itself: 64 KiB in pages, header and status.  For 126 data segments and these
 * two it has a wide array elsewhere, which costs no memory until then; longer chains borrow. */
enum { VHB_SLOT_IOV = 21, VHB_WIDE_IOV = 130, VHB_MAX_IOV = 2048 };

/* Layers that may stand in front of a disk of the core, or of a mailbox. */
enum { VHB_MAX_LAYERS = 8 };

enum vhb_req_state {
    VHB_REQ_FREE,
    VHB_REQ_LIVE, /* with the disk, or held back for a dead one */
    VHB_REQ_DEAD, /* cancelled: its head is given back, its result will be dropped */
    VHB_REQ_DONE  /* waits to be pushed */
};

struct vhb_range {
    uint64_t offset; /* bytes */
    uint64_t len;    /* bytes */
    uint32_t flags;  /* VHB_REQ_* */
};

/* What few requests need of a slot. */
struct vhb_wide {
    struct vhb_range ranges[VHB_MAX_RANGES];
    struct iovec vec[VHB_WIDE_IOV];
};

/* A layer that is to be told how a request has ended below it: layer.h. */
struct vhb_frame {
    struct vhb_layer *layer;
    uint64_t note;  /* the layer's own */
    uint64_t shift; /* as the layer handed the request on */
};

/* A request that waits for a time: a node of hold.c's heap. */
struct vhb_hold {
    uint64_t due;  /* ns */
    uint64_t turn; /* of several that are due at once, the lowest is first */
    struct vhb_req *req;
    struct vhb_hold *child, *next, *back;
};

/* What layers need of a slot. */
struct vhb_layered {
    struct vhb_frame frames[VHB_MAX_LAYERS + 1]; /* the first of them may be a caller's */
    struct vhb_hold hold;
};

/* What the disk is asked to do.  op to niov are set by blk.c and are as they were when
 * vhb_req_done() is called, the pieces behind *iov* too: the graveyard compares them, the dirty log
 * is marked by them, and a request that fails may be submitted again. */
struct vhb_req {
    _Alignas(64) enum vhb_op op;
    uint32_t flags;  /* VHB_REQ_* */
    uint64_t offset; /* bytes */
    uint64_t len;    /* bytes; the iovecs add up to it (READ, WRITE) */
    struct iovec *iov;
    uint32_t niov;
    uint32_t tag; /* index of the slot in its queue */

    /* The disk's own, while the request is with it. */
    uint32_t step;
    uint32_t at;   /* piece of the cursor */
    size_t skip;   /* bytes cut off its front meanwhile */
    uint64_t done; /* bytes */
    void *bounce;
    struct iovec one; /* where the pieces are not the guest's */
    void (*resume)(struct vhb_req *req, int result, struct vhb_io *io);
    struct vhb_disk *disk;
    uint64_t shift; /* bytes that layers have added to *offset*: vhb_req_at() */

    /* The queue's. */
    struct vhb_req *next; /* in one list at a time: done, held, bounce wait */
    struct vhb_queue *queue;
    enum vhb_req_state state;
    uint32_t written; /* bytes of data written to the guest, without the status */
    uint64_t popped; /* ns; when the pass began that took it */
    uint16_t head;    /* split: of the chain; packed: the buffer id */
    uint16_t n_slots; /* packed: descriptors in the ring */
    uint16_t entry, last_entry; /* packed: where the inflight region has it */
    bool held; /* in the queue's held list, the disk has not seen it */
    bool awaited; /* the control plane waits for its memory: use.c */
    bool fills;   /* iov is the guest's to be written: for the dirty log */
    bool timed;   /* it waits for a time: hold.c */
    uint8_t depth; /* frames in use: layer.h */
    uint8_t *status;
    uint32_t n_readable, n_writable; /* pieces */
    uint64_t writable; /* bytes of its descriptors, whatever is wrong with them */
    bool bad;     /* completes with IOERR, whatever it asks */
    uint8_t result; /* VIRTIO_BLK_S_* */
    uint64_t bounce_slots; /* VHB_BOUNCE_SLOTs of its descriptors and table */
    uint32_t n_ranges, range;    /* those are in its wide part */
    struct vhb_req *buried_next; /* in the graveyard */
    struct vhb_req *order_prev, *order_next; /* in order.c's list */
    struct iovec *vec; /* own, wide or borrowed */
    struct iovec own[VHB_SLOT_IOV];
};

/* Where on this disk the request is, in bytes. */
static inline uint64_t vhb_req_at(const struct vhb_req *req)
{
    return req->offset + req->shift;
}

struct vhb_disk_ops {
    /* 0 or -errno: it is over.  VHB_PENDING: vhb_req_done() follows, on this worker. */
    int (*submit)(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io);
    /* Try to stop a request; vhb_req_done() follows all the same, with any result.  NULL where
     * nothing is ever pending. */
    void (*cancel)(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io);
    /* A visit is over: what was submitted in it is to begin.  NULL where submit begins. */
    void (*flush)(struct vhb_disk *disk);
    /* Readable when reap has work after an armed reap; NULL where completions come by io. */
    int (*poll_fd)(struct vhb_disk *disk);
    /* Call vhb_req_done() for what is over; how many.  arm: the worker is about to sleep. */
    int (*reap)(struct vhb_disk *disk, bool arm);
    /* How many requests that are over inside submit may wait for each other; 0: none ever is.
     * waits: submit may wait for a device, so that the clock is looked at behind each. */
    uint32_t at_once;
    bool waits;
    void (*free)(struct vhb_disk *disk); /* the control plane's */
};

struct vhb_disk {
    const struct vhb_disk_ops *ops;
    atomic_int users; /* queues, layers, a caller */
};

/* A request is over: 0, -errno or VHB_RESULT_*.  On the worker of its queue. */
void vhb_req_done(struct vhb_req *req, int result);

/* ---- graveyard.c ---- */

/* Any worker.  A dead request stays known until it leaves. */
void vhb_grave_bury(struct vhb_graveyard *graveyard, struct vhb_req *req);
void vhb_grave_leave(struct vhb_graveyard *graveyard, struct vhb_req *req);
/* Whether *req* would change bytes that a dead request may still change. */
bool vhb_grave_blocks(struct vhb_graveyard *graveyard, const struct vhb_req *req);

/* ---- fault.c ---- */

/* The same by all threads. */
uint32_t vhb_fault_total(void);
/* Whether a watched mapping that holds part of [host, host + len) has lost a page. */
bool vhb_fault_lost(const void *host, uint64_t len);

#endif
