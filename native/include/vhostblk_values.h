/* vhostblk_values.h - the values that go through the contract, vhostblk.h: numbers, structs, units.
 *
 * Read vhostblk.h first: who may call what, and what is returned. */
#ifndef VHOSTBLK_VALUES_H
#define VHOSTBLK_VALUES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* cdef: begin */

enum {
    VHB_ACCESS_READ = 1, /* the device may read */
    VHB_ACCESS_WRITE = 2, /* the device may write */
    VHB_ACCESS_NOTED = 4, /* it may, but a request that goes there is counted and sampled */
    VHB_ACCESS_FATAL = 8 /* it may not, whatever else is set; going there breaks the queue */
};

/* One row of the flat table: guest addresses [iova, iova + len) live at host.
 * access 0: mapped but denied. */
struct vhb_segment {
    uint64_t iova;
    uint64_t len;
    void *host;
    uint32_t access;
    uint32_t reserved;
};

/* A run of bytes in this process; the same layout as struct iovec. */
struct vhb_piece {
    void *host;
    size_t len;
};

/* Parts of a split ring; of a packed one: descriptor ring, driver's and device's event
 * suppression. */
enum { VHB_PART_DESC = 0, VHB_PART_AVAIL = 1, VHB_PART_USED = 2 };

enum vhb_op {
    VHB_READ = 0,
    VHB_WRITE = 1,
    VHB_FLUSH = 2,
    VHB_DISCARD = 3,
    VHB_WRITE_ZEROES = 4,
    VHB_CANCEL = 5 /* mailbox only: the job of this tag is dead, stop working on it */
};

enum {
    VHB_REQ_FUA = 1, /* stable before it completes */
    VHB_REQ_UNMAP = 2 /* write zeroes may leave a hole */
};

/* How a file's reads or writes are made.  What cannot be done so goes through the ring. */
enum vhb_file_way {
    VHB_WAY_RING = 0, /* through io_uring */
    VHB_WAY_PLAIN = 1, /* by a plain call in the worker: the file is memory, or it was asked for */
    VHB_WAY_NOWAIT = 2, /* in the worker, where that needs no waiting (RWF_NOWAIT) */
    VHB_WAY_TIMED = 3 /* by a plain call in the worker, as long as such calls are prompt */
};

struct vhb_file_ways {
    uint32_t reads, writes; /* enum vhb_file_way */
    bool reads_open, writes_open; /* false: trying has not paid lately, all take the ring */
};

enum {
    VHB_BLK_READ_ONLY = 1,
    VHB_BLK_WRITETHROUGH = 2, /* every write is stable before its status */
    VHB_BLK_DISCARD = 4,
    VHB_BLK_WRITE_ZEROES = 8,
    VHB_BLK_UNMAP = 16 /* WRITE_ZEROES may carry UNMAP and it is passed on */
};

enum { VHB_SERIAL_SIZE = 20, VHB_MAX_RANGES = 16 };

/* What the device promises its driver; virtio 1.3, 5.2.4. */
struct vhb_blk {
    uint64_t capacity_sectors;
    uint32_t block_size;
    uint32_t flags;
    uint32_t max_discard_sectors;
    uint32_t max_discard_seg; /* 1 to VHB_MAX_RANGES */
    uint32_t max_write_zeroes_sectors;
    uint32_t max_write_zeroes_seg; /* 1 to VHB_MAX_RANGES */
    uint8_t serial[20]; /* padded with NUL */
};

/* Events of a queue, taken with vhb_queue_take_events(). */
enum {
    VHB_PARKED = 1, /* as asked: stands between two requests, I/O may be in flight */
    VHB_DRAINED = 2, /* as asked: nothing is in flight, all that completed is pushed */
    VHB_BROKEN = 4, /* the ring is not a ring; vhb_queue_fault() says why */
    VHB_DETACHED = 8, /* as asked: the worker has forgotten the queue, it may be freed */
    VHB_MISS = 16, /* a queue that asks needs an address that is in no segment: vhb_queue_miss() */
    VHB_SAMPLED = 32, /* samples should be taken: vhb_queue_take_samples() */
    VHB_UNUSED = 64, /* what vhb_queue_watch_use() named is not in use any more */
    VHB_STALLED = 128, /* an error has stopped the queue: vhb_queue_stall() */
    VHB_FAILED = 256, /* an error has ended a request: vhb_queue_failure() */
    VHB_BUSY = 512 /* a request was taken since vhb_queue_watch_busy() */
};

/* How long requests took that reached the disk, from the pass of the worker that took them to
 * their used elements; time that they were held is in it.  Bucket 0 is for less than 256 ns; four
 * buckets to each doubling follow, of the same width; the last is for 2^36 ns (69 s) and more. */
enum { VHB_LATENCY_BUCKETS = 114 };

struct vhb_latency {
    uint64_t count;
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t buckets[114];
};

/* A request under way; (tag, since_ns) names it. */
struct vhb_slow {
    uint64_t offset; /* bytes */
    uint64_t len; /* bytes */
    uint64_t age_ns;
    uint64_t since_ns; /* CLOCK_MONOTONIC */
    uint32_t op; /* enum vhb_op */
    uint32_t tag;
};

/* What becomes of a request that the disk fails. */
enum {
    VHB_ON_ERROR_REPORT = 0, /* the driver is told: IOERR */
    VHB_ON_ERROR_STOP = 1, /* it is held, and the queue stalls */
    VHB_ON_ERROR_ENOSPC = 2 /* as STOP for want of space, else as REPORT */
};

/* A request that the disk failed; of DISCARD and WRITE_ZEROES the range. */
struct vhb_stall {
    uint64_t offset; /* bytes */
    uint64_t len; /* bytes */
    uint32_t op; /* enum vhb_op */
    int32_t error; /* errno, more than 0 */
};

/* What a chain waits for.  Its head is not consumed; an indirect table is named before what it
 * names, and a miss may repeat. */
struct vhb_miss {
    uint64_t iova; /* the first address that is in no segment, or in one without *access* */
    uint64_t len; /* bytes that are needed from there on */
    uint32_t access; /* VHB_ACCESS_* */
    uint32_t index; /* avail index of the chain; packed: of its first descriptor */
};

/* Why a queue broke. */
enum vhb_reason {
    VHB_OK = 0,
    VHB_AVAIL_INDEX = 1, /* value: avail idx, further ahead than the ring is long; packed: index of
                          * a descriptor made available again before it was given back */
    VHB_HEAD = 2, /* value: a head out of range */
    VHB_NEXT = 3, /* value: a next field out of range */
    VHB_LOOP = 4, /* value: descriptors walked; a chain longer than its table or ring */
    VHB_INDIRECT = 5, /* value: length of a malformed, nested or unwanted indirect table; packed: or
                       * of one that is not all of its chain */
    VHB_TABLE_ADDRESS = 6, /* value: address of an indirect table that may not be read */
    VHB_STATUS_ADDRESS = 7, /* value: address of a status byte that may not be written */
    VHB_MEMORY_GONE = 8, /* the guest's memory vanished (SIGBUS) under the ring or a request */
    VHB_DISK_KEPT_VIEW = 9, /* value: byte offset of the request whose memory the disk kept */
    VHB_OUTSIDE = 10, /* value: an address in a segment that is VHB_ACCESS_FATAL; index: head */
    VHB_CONDEMNED = 11, /* by vhb_queue_condemn() */
    VHB_PARTIAL = 12, /* packed; value: flags of a descriptor that NEXT leads to, not available */
    VHB_ID_IN_FLIGHT = 13, /* packed; value: a buffer id that was not given back yet */
    VHB_LOG_GONE = 14, /* the dirty log vanished (SIGBUS): what was written cannot be told of */
    VHB_INFLIGHT = 15, /* value: what an inflight region cannot say; index: entry, 65535: header */
    VHB_ID = 16 /* packed; value: a buffer id out of range */
};

struct vhb_fault {
    uint32_t reason; /* enum vhb_reason */
    uint32_t index; /* avail or descriptor index it was met at */
    uint64_t value;
};

enum {
    VHB_ROLE_READABLE = 0,
    VHB_ROLE_WRITABLE = 1,
    VHB_ROLE_TABLE = 2, /* an indirect table; behind the descriptors that are in it */
    VHB_ROLE_OUTSIDE = 0x8000 /* added where it was denied or is noted */
};

/* What the driver wrote in one descriptor of a chain: recorded, never judged. */
struct vhb_sample {
    uint64_t iova;
    uint32_t len;
    uint16_t role; /* VHB_ROLE_* */
    uint16_t chain; /* number of the chain since vhb_queue_set_sampling(), modulo 65536 */
};

/* A slot is what a bouncing guest allocates by (swiotlb). */
enum { VHB_SAMPLES = 8192, VHB_BOUNCE_SLOT = 2048 };

/* Counted by the worker, read at any time; each only grows but the last five. */
struct vhb_counters {
    uint64_t reads;
    uint64_t writes;
    uint64_t flushes;
    uint64_t discards;
    uint64_t write_zeroes;
    uint64_t get_ids;
    uint64_t bytes_read;
    uint64_t bytes_written;
    uint64_t errors; /* requests that ended with IOERR */
    uint64_t unsupported; /* requests that ended with UNSUPP */
    uint64_t malformed; /* chains without room for a status, given back with length 0 */
    uint64_t late_calls; /* the driver asked for only when the ring was quiet, or got in vain */
    uint64_t kicks;
    uint64_t calls;
    uint64_t faults; /* SIGBUS or EFAULT on guest memory */
    uint64_t descriptors; /* of requests, without those that name a table */
    uint64_t segment_max; /* bytes of the longest of them */
    uint64_t slots_high; /* the most that *slots* ever was */
    uint64_t outside; /* chains that named an address that is denied or noted */
    uint64_t stalls; /* errors that stopped the queue */
    uint64_t inline_hits; /* reads and writes of a file that its worker made itself */
    uint64_t inline_misses; /* that it tried in vain: what they need is not in memory */
    uint64_t slots; /* bounce slots that the descriptors and tables of what is not given
                     * back would fill, if the guest bounces */
    uint64_t in_flight;
    uint64_t held; /* of these, for an error: see VHB_ON_ERROR_STOP */
    uint64_t dead; /* cancelled, not yet returned by the disk */
    uint64_t next_avail; /* where the ring stands: indexes; packed: of descriptors, and *size* */
    uint64_t next_used; /* more while the wrap counter is 0 */
};

/* How long a worker looks on for the next request before it sleeps, behind the last one. */
enum {
    VHB_POLL_AUTO = 0, /* for a window that grows while it pays; poll_us at most */
    VHB_POLL_FIXED = 1, /* for poll_us; 0: not at all */
    VHB_POLL_ALWAYS = 2 /* for ever: it takes a whole CPU */
};

/* Counted by a worker, read at any time; each only grows but window_us. */
struct vhb_worker_counters {
    uint64_t polls_hit; /* it looked on, and found work */
    uint64_t polls_missed; /* it looked on, and slept all the same */
    uint64_t polled_ns; /* in which it looked on */
    uint64_t sleeps;
    uint64_t passes; /* over its queues */
    uint64_t visits; /* of queues, in these passes; one that is idle for long is left out */
    uint64_t enters; /* calls of io_uring_enter or epoll_wait */
    uint64_t window_us; /* how long it looks on now; for ever: UINT64_MAX */
};

/* cdef: end */

#endif
