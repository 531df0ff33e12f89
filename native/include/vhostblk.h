/* vhostblk.h - the contract of the C core: virtqueues in, block requests out.
 *
 * Knows no socket and no Python, makes no thread, writes no log, never exits.
 *
 * Who may call what.  Two contexts exist: the *control plane* (one thread) and the *worker*
 * (the one thread inside vhb_worker_run, or whoever calls vhb_worker_step).  Every function is
 * the control plane's unless it says otherwise.  A queue's ring and settings belong to one of
 * them at a time; setters on a queue that its worker owns return -EBUSY.  Request slots and
 * completions always stay with the worker.
 *
 * Returns.  int: 0 (or a count) or -errno.  Pointers come out through the last argument.
 * Lengths are bytes unless the name says sectors; a sector is 512 bytes. */
#ifndef VHOSTBLK_H
#define VHOSTBLK_H

#include "vhostblk_stages.h"
#include "vhostblk_values.h"

/* cdef: begin */

/* ---- disks -------------------------------------------------------------------------- */

struct vhb_disk;

enum {
    VHB_FILE_DIRECT = 1, /* fd is O_DIRECT: misaligned requests are bounced */
    VHB_FILE_BLOCK_DEVICE = 2, /* discard is BLKDISCARD */
    VHB_FILE_RING = 4, /* every request goes through io_uring, where there is one */
    VHB_FILE_INLINE = 8 /* reads and writes are plain calls in the worker: it waits for them */
};

/* A regular file or block device.  The fd stays the caller's and must outlive the disk.
 * mem_align, offset_align: what O_DIRECT asks of buffers and offsets, powers of two, else 1. */
int vhb_disk_file_new(int fd, uint32_t flags, uint32_t mem_align, uint32_t offset_align,
                      struct vhb_disk **out);

/* The ways that its reads and writes take now; at any time.  -EINVAL: not a file; a layer in front
 * of one is none. */
int vhb_disk_file_ways(struct vhb_disk *disk, struct vhb_file_ways *out);

/* *size* bytes of anonymous private memory at *host*, the caller's.  Discard gives pages back. */
int vhb_disk_memory_new(void *host, uint64_t size, struct vhb_disk **out);

/* Reads give zeroes (or, without *zero*, leave the buffer alone); writes go nowhere. */
int vhb_disk_null_new(bool zero, struct vhb_disk **out);

/* -EBUSY while a queue or a layer uses it. */
int vhb_disk_free(struct vhb_disk *disk);

/* A mailbox is a disk served by somebody else: one queue posts, one other thread takes and
 * completes.  Its memory is fixed at *slots* requests under way, live or dead; twice the queue's
 * max_size is always enough, what finds none free fails. */
struct vhb_mailbox;

struct vhb_job {
    uint64_t tag; /* names the job towards vhb_mailbox_complete(), once */
    uint64_t offset; /* bytes */
    uint64_t len; /* bytes; the pieces add up to it (READ, WRITE) */
    uint32_t op; /* enum vhb_op */
    uint32_t flags; /* VHB_REQ_* */
    uint32_t n_pieces;
    uint32_t reserved;
    const struct vhb_piece *pieces; /* valid until the job is completed */
    struct vhb_piece first; /* pieces[0] once more, for who reads jobs as an array of words */
};

/* How a job ended. */
struct vhb_ended {
    uint64_t tag;
    uint64_t error; /* 0, or an errno of Linux; anything else is EIO */
};

int vhb_mailbox_new(uint32_t slots, struct vhb_mailbox **out);
struct vhb_disk *vhb_mailbox_disk(struct vhb_mailbox *box); /* freed with the box */
int vhb_mailbox_fd(struct vhb_mailbox *box); /* readable while jobs wait; the box's own */

/* The serving thread: up to *n* jobs into *jobs*; the count, 0 when none wait.  Less than *n* are
 * all that waited.  Only behind a 0 does the next job make the fd readable again: who stops before
 * comes back by himself. */
int vhb_mailbox_take(struct vhb_mailbox *box, struct vhb_job *jobs, uint32_t n);

/* The serving thread: a job is over.  result: 0 or -errno.  -EINVAL: no such job.  Where this
 * thread lost guest memory since it took the job, it fails and the queue breaks. */
int vhb_mailbox_complete(struct vhb_mailbox *box, uint64_t tag, int result);

/* The serving thread: the same for *n* jobs at once, which the worker sees together and is woken
 * for once.  -EINVAL: some tag names no job; the others have ended all the same. */
int vhb_mailbox_complete_many(struct vhb_mailbox *box, const struct vhb_ended *ended, uint32_t n);

/* The serving thread: the job is over, but the disk keeps a view of the job's pieces: a late
 * write could corrupt the guest, so the queue breaks with VHB_DISK_KEPT_VIEW. */
int vhb_mailbox_break(struct vhb_mailbox *box, uint64_t tag);

int vhb_mailbox_free(struct vhb_mailbox *box); /* any thread; -EBUSY while a queue uses it */

/* A caller is the other way round: one thread that is no worker asks a disk, layers and all, and is
 * told what has become of it.  All of its functions are that thread's, which makes it, too.  Its
 * memory is fixed at *slots* requests under way. */
struct vhb_caller;

/* An error of vhb_ended that no errno is: whoever serves the disk goes on using the pieces. */
enum { VHB_KEPT_VIEW = 4096 };

enum { VHB_COPIED_PIECES = 21 };

/* The disk stays the caller's and must outlive it; a mailbox, or a layer in front of one, has no
 * other user.  flags: VHB_WORKER_NO_URING. */
int vhb_caller_new(struct vhb_disk *disk, uint32_t slots, uint32_t flags, struct vhb_caller **out);
int vhb_caller_fd(struct vhb_caller *caller); /* readable when a turn is needed; its own */

/* Begin what *job* says (its tag and *first* are not looked at).  0 or -errno: it is over, as it is
 * with -VHB_KEPT_VIEW; 1: it is under way, as *tag*, and a turn is needed.  What the pieces name
 * stays until it is over; so do they, where they are more than VHB_COPIED_PIECES, and are as they
 * were then.  -ENOBUFS: no slot is free. */
int vhb_caller_submit(struct vhb_caller *caller, const struct vhb_job *job, uint64_t *tag);

/* Try to stop one: it ends all the same, with any result, and a turn is needed.  -EINVAL: no such
 * request, or it is over. */
int vhb_caller_cancel(struct vhb_caller *caller, uint64_t tag);

/* Have all that was begun go on, and take up to *n* of those that are over; how many.  If it is *n*
 * there may be more. */
int vhb_caller_turn(struct vhb_caller *caller, struct vhb_ended *ended, uint32_t n);

int vhb_caller_free(struct vhb_caller *caller); /* -EBUSY while something is under way */

/* ---- workers ------------------------------------------------------------------------ */

struct vhb_worker;
struct vhb_queue;

enum { VHB_WORKER_NO_URING = 1 };

struct vhb_worker_config {
    uint32_t flags; /* VHB_WORKER_* */
    uint32_t poll; /* VHB_POLL_* */
    uint32_t poll_us;
};

/* -EINVAL: no such way to poll.  Falls back to preadv/pwritev and epoll where io_uring is refused:
 * vhb_worker_uring(). */
int vhb_worker_new(const struct vhb_worker_config *config, struct vhb_worker **out);
int vhb_worker_uring(struct vhb_worker *worker); /* 1: io_uring; 0 or -errno: why not */

/* Readable when a queue of this worker has events; the reader resets it by reading 8 bytes. */
int vhb_worker_event_fd(struct vhb_worker *worker);

/* The worker's thread: serve until vhb_worker_stop().  One caller at a time, always the same
 * thread. */
int vhb_worker_run(struct vhb_worker *worker);

/* One pass that never blocks, for tests: how many requests were popped or completed. */
int vhb_worker_step(struct vhb_worker *worker);

int vhb_worker_counters(struct vhb_worker *worker, struct vhb_worker_counters *out);

int vhb_worker_stop(struct vhb_worker *worker); /* any thread; run returns after its pass */
int vhb_worker_free(struct vhb_worker *worker); /* -EBUSY while queues are attached or it runs */

/* ---- queues ------------------------------------------------------------------------- */

/* Shared by the queues of one device: requests that were cancelled but are still with the
 * disk.  No new write that overlaps one of them is started until it has returned. */
struct vhb_graveyard;
int vhb_graveyard_new(struct vhb_graveyard **out);
int vhb_graveyard_free(struct vhb_graveyard *graveyard); /* -EBUSY while it is not empty */

/* A queue parked at base 0, with no ring, for at most *max_size* descriptors.  Attached to
 * *worker* at once.  The disk and the graveyard stay the caller's and must outlive it. */
int vhb_queue_new(struct vhb_worker *worker, struct vhb_disk *disk, struct vhb_graveyard *graveyard,
                  uint32_t max_size, struct vhb_queue **out);

/* Which of its device's it is, for who looks at its requests; at any time. */
int vhb_queue_set_number(struct vhb_queue *queue, uint16_t number);

/* Copies the table; the mappings stay the caller's and must outlive the next DRAINED with no
 * request dead.  -EINVAL if the segments overlap or are not sorted by iova. */
int vhb_queue_set_space(struct vhb_queue *queue, const struct vhb_segment *segments, size_t n);

/* Whether what no segment gives is asked for (VHB_MISS) or denied; a segment with access 0 is
 * denied always.  A queue that has missed pushes what completes and pops nothing until it has a
 * new space (or a denial, or a base) and is run. */
int vhb_queue_set_ask(struct vhb_queue *queue, bool ask);

/* The chain that misses gets no answer for this range, or a bad one: it is denied there, that chain
 * only.  Two ranges are remembered, enough for any chain: behind the first that holds data only
 * tables and the status are looked up, and without those the queue breaks. */
int vhb_queue_deny(struct vhb_queue *queue, uint64_t iova, uint64_t len);

/* What a queue waits for: 1, or 0 for nothing.  Behind VHB_MISS, until the next run. */
int vhb_queue_miss(struct vhb_queue *queue, struct vhb_miss *out);

/* Ask to be told when memory may go: VHB_UNUSED follows when no request that is in flight or dead
 * now uses a byte of *pieces* (data or status), which are sorted and disjoint.  What is popped
 * later is not waited for, so the ring may run meanwhile.  Takes the place of what was asked
 * before.  -EINVAL if the pieces overlap or are not sorted. */
int vhb_queue_watch_use(struct vhb_queue *queue, const struct vhb_piece *pieces, size_t n);
int vhb_queue_in_use(struct vhb_queue *queue); /* 1 until then, else 0; at any time */

/* Descriptors, up to max_size; of a split ring a power of two. */
int vhb_queue_set_size(struct vhb_queue *queue, uint32_t size);

/* Where a part of the ring (VHB_PART_*) lives.  -EINVAL if a border splits an element. */
int vhb_queue_set_part(struct vhb_queue *queue, int part, const struct vhb_piece *pieces, size_t n);

/* Where the ring goes on, as on the wire.  Split: the next avail entry to take; the used index is
 * read from the ring at the next run.  Packed: bits 0-14 the next descriptor to take, 15 its wrap
 * counter, 16-31 the same of the next one to use (all zero behind a wrap counter of 1: as 0-15). */
int vhb_queue_set_base(struct vhb_queue *queue, uint32_t base);
int vhb_queue_base(struct vhb_queue *queue, uint32_t *out); /* -EBUSY while its worker owns it */

/* *len* bytes of the inflight region of this queue, for *desc_num* descriptors; NULL: none.  The
 * mapping stays the caller's, is watched for vanished memory like the guest's, and must outlive the
 * next DRAINED or the next call of this.  What is there is looked at by the first run behind a
 * set_base: it is made, or the requests that a predecessor had taken and not given back are taken
 * again, in their order and before any other, and the base is what he would have said.  A drain
 * takes what is left of them, too, as long as none misses and it is not cancelled; what is left
 * then stays in the region.  -EINVAL: not aligned to 8; at run: shorter than the ring needs.
 * -EBUSY: the queue is parked, and may have requests in flight that are noted elsewhere; NULL is
 * legal then.  With a region a set_base needs a queue that is drained, for the same reason. */
int vhb_queue_set_inflight(struct vhb_queue *queue, void *host, uint64_t len, uint32_t desc_num);

/* Eventfds stay the caller's and are O_NONBLOCK; -1 for none (no kick fd: the ring is polled).  One
 * that is replaced may be closed at once. */
int vhb_queue_set_kick(struct vhb_queue *queue, int fd);
int vhb_queue_set_call(struct vhb_queue *queue, int fd);
int vhb_queue_set_err(struct vhb_queue *queue, int fd);
int vhb_queue_set_enabled(struct vhb_queue *queue, bool enabled);
/* Acked bits.  -EBUSY, too, for another ring format or order than what is in flight came by. */
int vhb_queue_set_features(struct vhb_queue *queue, uint64_t features);
int vhb_queue_set_blk(struct vhb_queue *queue, const struct vhb_blk *blk);

/* Say what becomes of errors (VHB_ON_ERROR_*); of what is held only when it fails again. */
int vhb_queue_set_on_error(struct vhb_queue *queue, uint32_t policy);

/* Why the queue is stalled, by the first error of this stall: 1, or 0 while it is not.  Nothing is
 * popped meanwhile; what is with the disk goes on, and is held too if it fails.  What is held is in
 * flight: a drain waits for it, a cancel or a broken ring ends it with IOERR.  What is lost with
 * the guest's memory is never held. */
int vhb_queue_stall(struct vhb_queue *queue, struct vhb_stall *out);

/* Try what is held again, in the order in which it failed, and pop again.  At any time; of a stall
 * that begins later nothing is known.  A request of ranges goes on at the one that failed. */
int vhb_queue_resume(struct vhb_queue *queue);

/* The first error that ended a request since the last call that returned 1; 0: none did.  At any
 * time.  VHB_FAILED says when; the counter *errors* says how many. */
int vhb_queue_failure(struct vhb_queue *queue, struct vhb_stall *out);

/* Requests of *op* (enum vhb_op) since the queue was made; at any time.  -EINVAL: no such op. */
int vhb_queue_latency(struct vhb_queue *queue, uint32_t op, struct vhb_latency *out);

/* The first nanosecond of a bucket. */
uint64_t vhb_latency_bound(uint32_t bucket);

/* Requests that have been under way for *age_ns* and longer, held ones among them: how many, and
 * the first *n* of them into *out*.  At any time; what ends meanwhile may be told of. */
int vhb_queue_slow(struct vhb_queue *queue, uint64_t age_ns, struct vhb_slow *out, uint32_t n);

/* Post VHB_BUSY when the next request is taken, once.  At any time; one that is taken just now may
 * be missed. */
int vhb_queue_watch_busy(struct vhb_queue *queue, bool on);

/* Guest memory as the dirty log knows it: host addresses [host, host + len) are guest physical
 * addresses [gpa, gpa + len).  Neither need begin on a page. */
struct vhb_log_region {
    void *host;
    uint64_t len;
    uint64_t gpa;
};

/* In place of a used_gpa: nothing of the ring is logged; or its used part is looked up in the
 * regions, as data is (a ring behind an IOMMU). */
#define VHB_LOG_USED_NOT 0xffffffffffffffff
#define VHB_LOG_USED_BY_HOST 0xfffffffffffffffe

/* Log what the device writes in guest memory from the next run on, what is in flight then among
 * it: bit page % 8 of byte page / 8 for each page of 4096 bytes.  Data and status are looked up in
 * *regions*, which are copied, sorted by host and disjoint; what is in none, or behind the *len*
 * bytes of the log, is dropped.  used_gpa: where the used part is logged (VRING_F_LOG).  The log
 * stays the caller's and must outlive the next set_log or detach.  NULL: nothing is logged.
 * -EINVAL: the log is empty, or the regions overlap or are not sorted. */
int vhb_queue_set_log(struct vhb_queue *queue, void *log, uint64_t len,
                      const struct vhb_log_region *regions, size_t n, uint64_t used_gpa);

/* Begin a new count of chains, and forget what was not taken.  All of the first *first* are
 * sampled, and while there is no room for one of half of VHB_SAMPLES the queue pops nothing: none
 * is lost but the rest of a longer one.  Then one chain in *every* (0: none), where there is room.
 * A descriptor that is outside is sampled in any chain, where there is room; in a chain that is
 * seen to be no request what follows is not looked at. */
int vhb_queue_set_sampling(struct vhb_queue *queue, uint32_t first, uint32_t every);

/* Up to *n* samples into *out*, the oldest first; how many.  Legal at any time.  VHB_SAMPLED says
 * when: the first chains are complete, the room is half used, or (once until then) one is outside.
 * It comes again only when what it told of is taken, so who is told takes until a take returns 0,
 * or it has 2 * VHB_SAMPLES: more is told of anew. */
int vhb_queue_take_samples(struct vhb_queue *queue, struct vhb_sample *out, uint32_t n);

/* Break a queue that the control plane owns, as the worker would.  VHB_BROKEN follows. */
int vhb_queue_condemn(struct vhb_queue *queue);

/* Hand the ring to the worker.  -EINVAL: size, parts or space are missing or do not fit.
 * The ring is looked at once without waiting for a kick, and a new call fd is signalled once. */
int vhb_queue_run(struct vhb_queue *queue);

/* Ask for the ring back; VHB_PARKED or VHB_DRAINED follows.  A drain may follow a park; a park
 * behind either adds nothing. */
int vhb_queue_park(struct vhb_queue *queue);
int vhb_queue_drain(struct vhb_queue *queue);

/* While a drain is pending: what is still with the disk is cancelled, completes with IOERR now
 * and is dead.  VHB_DRAINED follows. */
int vhb_queue_cancel(struct vhb_queue *queue);

/* Ask the worker to forget a drained queue; VHB_DETACHED follows when none is dead.  -EBUSY: not
 * drained.  Its dirty log is dropped, all else stays as it is. */
int vhb_queue_detach(struct vhb_queue *queue);

/* Have *worker*, perhaps another one, serve a detached queue: it is drained then, as it was before.
 * -EBUSY: VHB_DETACHED was not taken yet. */
int vhb_queue_attach(struct vhb_queue *queue, struct vhb_worker *worker);
int vhb_queue_free(struct vhb_queue *queue); /* -EBUSY unless detached with none dead */

uint32_t vhb_queue_take_events(struct vhb_queue *queue); /* VHB_* bits, once each */
/* The first of *n* queues, at *from* or behind, that has any: its index, and the bits into *out*;
 * *n* if none has. */
uint32_t vhb_queues_take_events(struct vhb_queue *const *queues, uint32_t n, uint32_t from,
                                uint32_t *out);
int vhb_queue_fault(struct vhb_queue *queue, struct vhb_fault *out);
int vhb_queue_counters(struct vhb_queue *queue, struct vhb_counters *out);

/* ---- vanished memory (fault.c, the only global) ------------------------------------- */

/* Install the SIGBUS handler once; other addresses go to the handler that was there. */
int vhb_fault_install(void);

/* Watch a guest mapping; page: its page size.  Returns a slot, or -ENOSPC. */
int vhb_fault_watch(void *host, uint64_t len, uint64_t page);
/* Pages that the calling thread has lost so far, in whatever mapping.  Any thread. */
uint32_t vhb_fault_seen(void);
int vhb_fault_count(int slot); /* pages of this mapping that were lost so far */
int vhb_fault_unwatch(int slot);

/* cdef: end */

#endif
