/* driver.h - the contract of the load generator: a virtio-blk driver that keeps a virtqueue busy.
 *
 * For whoever has connected to a back-end, shares memory with it and has exchanged eventfds: a
 * drv_queue drives one ring from one thread, the caller's.  It shares no source with the core, so
 * neither proves the other's mistakes right.
 *
 * Nothing that the device writes is trusted: it is read once and checked, and what is wrong ends
 * the run with a reason and with what was found.  drv_queue_stop and drv_queue_counters may be
 * called from any thread, everything else by one at a time.
 *
 * Lengths are bytes, times nanoseconds of CLOCK_MONOTONIC.  What returns an int returns 0, a reason
 * of enum drv_reason, or -errno. */
#ifndef VHB_GUEST_DRIVER_H
#define VHB_GUEST_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

/* cdef: begin */
#define DRV_BUCKETS 1024

/* Why a run ended before its time; what *at*, *got* and *want* of the fault are. */
enum drv_reason {
    DRV_DONE,
    DRV_BAD_INDEX,  /* the used index (got) is further than requests in flight (want) from at */
    DRV_BAD_ID,     /* used element (packed: descriptor) number at: got is in flight nowhere */
    DRV_BAD_LENGTH, /* the same: got bytes were written, of want that may be */
    DRV_MISMATCH,   /* byte at of the disk: the sector there says number got, generation got_2,
                   * where want and want_2 were written last */
    DRV_SILENT,     /* got requests in flight, and no answer for stall_ns */
    DRV_WATCHED,    /* watch_fd has something to say */
    DRV_ABANDONED,  /* as drv_queue_stop was told */
};

/* How requests failed: the status byte, or that the device has not written it. */
enum drv_failure { DRV_IOERR, DRV_UNSUPP, DRV_OTHER, DRV_UNWRITTEN, DRV_FAILURES };

struct drv_fault {
    uint64_t at, got, want, got_2, want_2;
};

struct drv_config {
    /* The ring, as one that was never used: where its parts are in this process.  Of a packed one
     * avail and used are the event suppression of driver and device. */
    uint8_t *desc, *avail, *used;
    uint32_t size; /* descriptors */
    bool packed, event_idx, indirect;
    bool verify; /* stamp what is written, check what is read; see drv_queue_run */
    int kick_fd; /* stay the caller's */
    int call_fd; /* non-blocking */
    int watch_fd; /* readable: end the run; -1: none */
    uint8_t *arena; /* memory for requests, drv_arena_bytes of it, and where the device sees it */
    uint64_t arena_address;
    uint32_t depth; /* requests in flight */
    uint32_t bytes; /* of a request: a block, whole sectors */
    uint32_t piece; /* of its data in one descriptor at most */
    uint32_t tag; /* tells stamps from those of another run */
    uint64_t first; /* block of the disk */
    uint64_t blocks; /* from there on; with verify at least depth */
};

struct drv_job {
    uint32_t read_percent;
    bool sequential; /* else random */
    bool poll; /* look at the ring; else sleep on call_fd */
    uint64_t seed; /* of the order, not 0 */
    uint64_t requests; /* to begin; 0: no end */
    uint64_t warm_ns; /* thrown away */
    uint64_t run_ns; /* after that; 0: no end */
    uint64_t stall_ns; /* without any answer */
};

/* Index 0: reads, 1: writes.  Of what ended well after the warm-up, up to end_ns. */
struct drv_counters {
    uint64_t done[2];
    uint64_t sum_ns[2], max_ns[2];
    uint64_t latency[2][DRV_BUCKETS]; /* see drv_bucket */
    uint64_t kicks, sleeps; /* the same time */
    uint64_t begin_ns, end_ns; /* of that time; end_ns: 0 until it is over */
    uint64_t cpu_ns; /* the thread used in it; 0 until it is over */
    /* Of the whole run, warm-up included. */
    uint64_t failed[DRV_FAILURES];
    uint64_t missed_calls; /* something was used, and no call came for it */
    uint64_t ended; /* in whatever way */
    uint64_t checked; /* reads that were compared */
};

struct drv_queue;

/* The arena that a queue needs, which begins at a multiple of 4096. */
uint64_t drv_arena_bytes(const struct drv_config *config);
/* Descriptors of the ring that one request takes. */
uint32_t drv_chain_length(const struct drv_config *config);

/* Copies the configuration; ring, arena and descriptors must outlive the queue.  -EINVAL where
 * depth chains do not fit into the ring, or it cannot have that size. */
int drv_queue_new(const struct drv_config *config, struct drv_queue **out);
void drv_queue_free(struct drv_queue *q);

/* Drive the ring in the calling thread, until the job is done and nothing is in flight any more.
 * Counters begin anew.  With verify, a block that was written by an earlier job or this one is
 * checked when it is read, and no two requests in flight are for the same block.
 * After a reason the ring is in no defined state: the queue can be freed, no more. */
int drv_queue_run(struct drv_queue *q, const struct drv_job *job, struct drv_fault *fault);

/* Begin nothing more, now or ever, and end when nothing is in flight; *at_once*: whatever is. */
void drv_queue_stop(struct drv_queue *q, bool at_once);
void drv_queue_counters(struct drv_queue *q, struct drv_counters *out);

/* The bucket that a latency is counted in: 32 to each doubling. */
uint32_t drv_bucket(uint64_t ns);
/* cdef: end */

#endif
