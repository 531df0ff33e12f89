/* vhostblk_stages.h - layers: disks in front of disks, and the stages that say what they do.
 *
 * A *stage* is what a layer is set to and what it has counted; a *layer* is a disk that does so in
 * front of one disk.  Layers of several disks, or of the mailboxes of several queues, may share a
 * stage.  Read vhostblk.h first: who may call what, and what is returned. */
#ifndef VHOSTBLK_STAGES_H
#define VHOSTBLK_STAGES_H

#include "vhostblk_values.h"

/* cdef: begin */

struct vhb_disk;
struct vhb_stage;

/* A layer in front of *below*, which stays the caller's and must outlive it, as must the stage; it
 * is freed by vhb_disk_free().  Requests meet the layer that was made last first.  -E2BIG: there
 * are 8 already. */
int vhb_layer_new(struct vhb_disk *below, struct vhb_stage *stage, struct vhb_disk **out);

/* The first *n* counters of a stage, in the order of its kind, over all its layers; how many there
 * are.  At any time. */
int vhb_stage_counters(struct vhb_stage *stage, uint64_t *out, uint32_t n);

int vhb_stage_free(struct vhb_stage *stage); /* -EBUSY while a layer uses it */

/* ---- kinds: each is made, and set otherwise at any time, from the next request on ------------ */

/* Bytes [offset, offset + size) of the disk below. */
struct vhb_partition {
    uint64_t offset;
    uint64_t size;
};

int vhb_stage_partition_new(const struct vhb_partition *partition, struct vhb_stage **out);
int vhb_stage_partition_set(struct vhb_stage *stage, const struct vhb_partition *partition);

/* Requests wait before the disk below gets them: *least_ns*, and of a time that is drawn for each
 * anew up to *more_ns* more, or *more_ns* more on average, as spans between chance events are. */
enum { VHB_DELAY_EVEN = 0, VHB_DELAY_EXPONENTIAL = 1 };
#define VHB_DELAY_MAX_NS 86400000000000

struct vhb_delay_time {
    uint64_t least_ns;
    uint64_t more_ns; /* 0: all wait as long */
    uint32_t spread; /* VHB_DELAY_* */
    uint32_t reserved;
};

/* Counts: requests that had to wait. */
struct vhb_delay {
    struct vhb_delay_time times[5]; /* by enum vhb_op */
    uint64_t seed;
};

int vhb_stage_delay_new(const struct vhb_delay *delay, struct vhb_stage **out);
int vhb_stage_delay_set(struct vhb_stage *stage, const struct vhb_delay *delay);

/* Requests fail in place of the disk below, which never sees them.  Counts: requests of the kind
 * while it was on; those that failed. */
#define VHB_ERROR_ALWAYS 4294967296

struct vhb_error {
    uint64_t offset, end; /* bytes: those that touch [offset, end), and every flush */
    uint64_t rate; /* how many of VHB_ERROR_ALWAYS */
    uint64_t seed; /* which */
    uint64_t after; /* so many of the kind pass first */
    uint64_t count; /* then so many fail, and no more; 0: without an end */
    uint32_t ops; /* 1 << enum vhb_op, or'ed */
    uint32_t error; /* errno */
    uint32_t on; /* 0 or 1 */
    /* It is on as well while a file of that name is there; empty: none.  Only for new. */
    char file[4096];
};

int vhb_stage_error_new(const struct vhb_error *error, struct vhb_stage **out);
/* Counts *after* and *count* anew. */
int vhb_stage_error_set(struct vhb_stage *stage, const struct vhb_error *error);

/* Requests go on no faster than so many, or so many bytes, a second, over all queues; flushes as
 * they come.  Counts: requests that had to wait; nanoseconds that they were to. */
enum {
    VHB_LIMIT_IOPS = 0,
    VHB_LIMIT_READ_IOPS = 1,
    VHB_LIMIT_WRITE_IOPS = 2, /* all but reads */
    VHB_LIMIT_BPS = 3,
    VHB_LIMIT_READ_BPS = 4,
    VHB_LIMIT_WRITE_BPS = 5,
    VHB_LIMITS = 6
};

/* 2^28 requests, 2^43 bytes a second */
#define VHB_LIMIT_MOST_IOPS 268435456
#define VHB_LIMIT_MOST_BPS 8796093022208

struct vhb_limit {
    uint64_t rates[6]; /* by VHB_LIMIT_*; 0: none */
    uint64_t burst_ns; /* what was not used for so long may be used at once */
};

int vhb_stage_limit_new(const struct vhb_limit *limit, struct vhb_stage **out);
/* What waits heeds it within 20 ms, and keeps its place. */
int vhb_stage_limit_set(struct vhb_stage *stage, const struct vhb_limit *limit);

/* What passes is counted: for each enum vhb_op, requests, bytes, errors, nanoseconds that they took
 * below, and how many took how long, as struct vhb_latency has it. */
enum { VHB_STATS_EACH = 118 };

struct vhb_stats {
    uint32_t reserved;
};

int vhb_stage_stats_new(const struct vhb_stats *stats, struct vhb_stage **out);
int vhb_stage_stats_set(struct vhb_stage *stage, const struct vhb_stats *stats);

/* Every request written down, in order over all queues: docs/reference/trace-format.md. */
enum { VHB_RECORD_NONE = 0, VHB_RECORD_DIGEST = 1, VHB_RECORD_FULL = 2 };
enum { VHB_RECORD_MIN_ROOM = 4096, VHB_RECORD_MAX_ROOM = 33554432 };

struct vhb_record {
    /* Blocks are appended there (O_APPEND; locked by flock(), shared); stays the caller's.  -1: see
     * vhb_stage_record_take(). */
    int fd;
    bool on;
    uint32_t payload; /* VHB_RECORD_*; NONE without a file */
    uint64_t room; /* bytes that may wait, a power of two */
    uint64_t segment; /* of its blocks */
};

struct vhb_record_state {
    uint64_t words; /* recorded so far */
    uint64_t taken; /* of these: written, lost, or taken */
    uint64_t bytes; /* of blocks in the file */
    uint64_t lost; /* words that the file did not take */
    uint64_t dropped; /* records that found no room, where there is no file */
    uint64_t error; /* errno of the last block; 0: it was written */
};

int vhb_stage_record_new(const struct vhb_record *record, struct vhb_stage **out);
/* Of what it is set to, *on* can be another; and the file with its segment, or none: what waits is
 * forgotten then, and counting begins anew.  Nothing uses a file that was taken away. */
int vhb_stage_record_set(struct vhb_stage *stage, const struct vhb_record *record);
int vhb_stage_record_state(struct vhb_stage *stage, struct vhb_record_state *out); /* any thread */

/* Readable when half of the room was filled since the next two looked; the stage's own. */
int vhb_stage_record_wake_fd(struct vhb_stage *stage);
/* Any one thread: write what waits.  Requests that find no room write it themselves. */
int vhb_stage_record_flush(struct vhb_stage *stage);
/* Any one thread, without a file: records that wait, *n* bytes at most; how many bytes.  Requests
 * that find no room are not recorded. */
int vhb_stage_record_take(struct vhb_stage *stage, void *out, size_t n);

/* cdef: end */

#endif
