/* io.h - how one worker's thread waits and talks to the kernel: io_uring, or epoll and plain
 * calls where io_uring is refused. */
#ifndef VHB_IO_H
#define VHB_IO_H

#include <liburing.h>

#include "disk.h"

enum { VHB_BOUNCE_COUNT = 16, VHB_BOUNCE_SIZE = 256 * 1024 };

/* What became ready; token is what vhb_io_watch was given. */
typedef void (*vhb_io_ready)(void *context, uint64_t token, bool still_watched);

struct vhb_io {
    bool uring;
    int why_not; /* -errno of io_uring_queue_init */
    int epoll;   /* without uring */
    struct io_uring ring;
    uint64_t now;     /* ns; when the clock was looked at last: worker.c */
    uint64_t looked;  /* *enters*, when the clock was looked at behind one */
    uint64_t found;   /* ns; when the pass met the first request; 0: it has met none */
    uint64_t pass;    /* its number; read by anyone */
    uint64_t batched; /* number of the last pass that has given something back */
    uint64_t enters; /* calls of io_uring_enter or epoll_wait so far; read by anyone */
    uint32_t pending; /* requests that the kernel has, or gets at the next turn */

    /* Aligned memory for misaligned O_DIRECT requests; untouched until it is needed. */
    uint8_t *bounce;
    uint32_t bounce_free; /* one bit each */
    struct vhb_req *bounce_wait, **bounce_tail;
    bool bounce_giving; /* those that wait are given what is free */

    /* Requests that wait for a time: hold.c. */
    struct vhb_hold *held; /* the first that is due */
    uint64_t hold_turn;   /* of the next */
};

int vhb_io_init(struct vhb_io *io, bool allow_uring);
int vhb_io_enable(struct vhb_io *io); /* on the worker's thread, before its first pass */
void vhb_io_free(struct vhb_io *io);

/* Say *token* (low 3 bits 0, not 0) each time *fd* becomes readable. */
int vhb_io_watch(struct vhb_io *io, int fd, uint64_t token);
void vhb_io_unwatch(struct vhb_io *io, int fd, uint64_t token);

/* The next submission entry.  With a request as its data, completion calls req->resume.  Uring
 * only. */
struct io_uring_sqe *vhb_io_sqe(struct vhb_io *io);
void vhb_io_cancel(struct vhb_io *io, struct vhb_req *req);

/* Submit, reap, and wait up to timeout_us (0: do not wait; -1: for ever).  How many requests
 * completed. */
int vhb_io_turn(struct vhb_io *io, int64_t timeout_us, vhb_io_ready ready, void *context);

/* Have the kernel begin what is to be submitted, without a look at what is over. */
void vhb_io_push(struct vhb_io *io);

/* ---- hold.c ---- */

/* Keep a request until *due* (ns, as vhb_clock()): req->resume(req, 0, io) then.  One that is dead
 * goes on at the next pass. */
void vhb_io_hold(struct vhb_io *io, struct vhb_req *req, uint64_t due);
/* Whether it was kept; it is not any more, and resume was not called. */
bool vhb_io_let_go(struct vhb_io *io, struct vhb_req *req);
/* Let those go on that are due at io->now; how many. */
int vhb_io_expire(struct vhb_io *io);
/* Nanoseconds from io->now to the next; 0: it is due; UINT64_MAX: there is none. */
uint64_t vhb_io_next_due(const struct vhb_io *io);

/* ---- bounce.c ---- */

/* VHB_BOUNCE_SIZE bytes, or NULL: *req* then waits and its resume is called with req->bounce. */
void *vhb_bounce_get(struct vhb_io *io, struct vhb_req *req);
/* Give a request's buffer back, wiped: the next may be another device's. */
void vhb_bounce_put(struct vhb_io *io, struct vhb_req *req);
/* Bytes of the round at the request's cursor (at, skip, done). */
size_t vhb_bounce_len(const struct vhb_req *req);
/* Of a bounced write: guest to buffer, before its round.  False: the guest's memory is gone. */
bool vhb_bounce_fill(struct vhb_req *req);
/* Of a bounced read: *n* bytes of its round, buffer to guest.  False: likewise. */
bool vhb_bounce_drain(struct vhb_req *req, size_t n);

#endif
