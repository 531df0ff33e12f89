/* uring.c - a worker's one io_uring: disk I/O, kicks and waking, submitted, reaped and waited for
 * by one system call; and the epoll that stands in where io_uring is refused.
 *
 * Every completion says what it is in the low 3 bits of its user_data. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomics.h"
#include "io.h"

enum { TAG_REQUEST = 0, TAG_WATCH = 1, TAG_NOBODY = 2, TAG_MASK = 7 };
enum { SQ_ENTRIES = 256, CQ_ENTRIES = 4096, EPOLL_EVENTS = 64 };

/* ---- life ---------------------------------------------------------------------------- */

static int ring_init(struct io_uring *ring)
{
    struct io_uring_params params = {
        /* Disabled until the thread that runs it is known: SINGLE_ISSUER binds to it. */
        .flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_CQSIZE,
        .cq_entries = CQ_ENTRIES,
    };
    return io_uring_queue_init_params(SQ_ENTRIES, ring, &params);
}

int vhb_io_init(struct vhb_io *io, bool allow_uring)
{
    *io = (struct vhb_io){.epoll = -1, .why_not = -ENOSYS};
    io->bounce_tail = &io->bounce_wait;
    if (allow_uring)
        io->why_not = ring_init(&io->ring);
    io->uring = io->why_not == 0;
    if (!io->uring && (io->epoll = epoll_create1(EPOLL_CLOEXEC)) < 0)
        return -errno;
    io->bounce = mmap(NULL, (size_t)VHB_BOUNCE_COUNT * VHB_BOUNCE_SIZE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (io->bounce == MAP_FAILED) {
        io->bounce = NULL;
        vhb_io_free(io);
        return -ENOMEM;
    }
    /* It holds guest data: none for core dumps, none for children. */
    madvise(io->bounce, (size_t)VHB_BOUNCE_COUNT * VHB_BOUNCE_SIZE, MADV_DONTDUMP);
    madvise(io->bounce, (size_t)VHB_BOUNCE_COUNT * VHB_BOUNCE_SIZE, MADV_DONTFORK);
    io->bounce_free = (1u << VHB_BOUNCE_COUNT) - 1;
    return 0;
}

int vhb_io_enable(struct vhb_io *io)
{
    if (!io->uring)
        return 0;
    int r = io_uring_enable_rings(&io->ring);
    return r == -EBADFD ? 0 : r; /* enabled before: the same thread runs again */
}

void vhb_io_free(struct vhb_io *io)
{
    if (io->uring)
        io_uring_queue_exit(&io->ring);
    if (io->epoll >= 0)
        close(io->epoll);
    if (io->bounce)
        munmap(io->bounce, (size_t)VHB_BOUNCE_COUNT * VHB_BOUNCE_SIZE);
}

/* ---- submission ---------------------------------------------------------------------- */

static void submit(struct vhb_io *io)
{
    count(&io->enters, 1);
    io_uring_submit(&io->ring);
}

struct io_uring_sqe *vhb_io_sqe(struct vhb_io *io)
{
    struct io_uring_sqe *sqe;
    while (!(sqe = io_uring_get_sqe(&io->ring)))
        submit(io);
    return sqe;
}

void vhb_io_push(struct vhb_io *io)
{
    if (io->uring && io_uring_sq_ready(&io->ring))
        submit(io);
}

static bool cancel_waiting(struct vhb_io *io, struct vhb_req *req)
{
    for (struct vhb_req **at = &io->bounce_wait; *at; at = &(*at)->next) {
        if (*at != req)
            continue;
        *at = req->next;
        if (!*at)
            io->bounce_tail = at;
        req->resume(req, -ECANCELED, io);
        return true;
    }
    return false;
}

void vhb_io_cancel(struct vhb_io *io, struct vhb_req *req)
{
    if (cancel_waiting(io, req) || !io->uring)
        return;
    struct io_uring_sqe *sqe = vhb_io_sqe(io);
    io_uring_prep_cancel(sqe, req, 0);
    io_uring_sqe_set_data64(sqe, TAG_NOBODY);
}

int vhb_io_watch(struct vhb_io *io, int fd, uint64_t token)
{
    if (!io->uring) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = token};
        return epoll_ctl(io->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
    }
    struct io_uring_sqe *sqe = vhb_io_sqe(io);
    io_uring_prep_poll_multishot(sqe, fd, POLLIN);
    io_uring_sqe_set_data64(sqe, token | TAG_WATCH);
    return 0;
}

void vhb_io_unwatch(struct vhb_io *io, int fd, uint64_t token)
{
    if (!io->uring) {
        epoll_ctl(io->epoll, EPOLL_CTL_DEL, fd, NULL);
        return;
    }
    struct io_uring_sqe *sqe = vhb_io_sqe(io);
    io_uring_prep_poll_remove(sqe, token | TAG_WATCH);
    io_uring_sqe_set_data64(sqe, TAG_NOBODY);
    /* Now: the caller is about to let the control plane close the descriptor. */
    submit(io);
}

/* ---- completion ---------------------------------------------------------------------- */

static int take_completion(struct vhb_io *io, const struct io_uring_cqe *cqe, vhb_io_ready ready,
                           void *context)
{
    switch (cqe->user_data & TAG_MASK) {
    case TAG_WATCH:
        if (cqe->res != -ECANCELED)
            ready(context, cqe->user_data & ~(uint64_t)TAG_MASK, cqe->flags & IORING_CQE_F_MORE);
        return 0;
    case TAG_NOBODY:
        return 0;
    default: {
        struct vhb_req *req = (struct vhb_req *)(uintptr_t)cqe->user_data;
        io->pending--;
        req->resume(req, cqe->res, io);
        return 1;
    }
    }
}

/* Whether there is a completion.  Some are made only when we enter the kernel, which says so: left
 * there they would end the next sleep at once. */
static bool is_ready(struct vhb_io *io)
{
    if (io_uring_cq_ready(&io->ring))
        return true;
    if (!(load_relaxed(io->ring.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)))
        return false;
    count(&io->enters, 1);
    io_uring_get_events(&io->ring);
    return io_uring_cq_ready(&io->ring);
}

static int reap(struct vhb_io *io, vhb_io_ready ready, void *context)
{
    int requests = 0;
    struct io_uring_cqe *cqe;
    /* Bounded: a driver that never stops kicking must not keep us here. */
    for (int i = 0; i < CQ_ENTRIES && is_ready(io) && io_uring_peek_cqe(&io->ring, &cqe) == 0;
         i++) {
        struct io_uring_cqe copy = *cqe; /* its place is free for the kernel before we act on it */
        io_uring_cqe_seen(&io->ring, cqe);
        requests += take_completion(io, &copy, ready, context);
    }
    return requests;
}

static int turn_uring(struct vhb_io *io, int64_t timeout_us, vhb_io_ready ready, void *context)
{
    if (timeout_us != 0) {
        struct __kernel_timespec ts = {.tv_sec = timeout_us / 1000000,
                                       .tv_nsec = timeout_us % 1000000 * 1000};
        struct io_uring_cqe *cqe;
        count(&io->enters, 1);
        io_uring_submit_and_wait_timeout(&io->ring, &cqe, 1, timeout_us < 0 ? NULL : &ts, NULL);
    } else if (io_uring_sq_ready(&io->ring)) {
        count(&io->enters, 1);
        io_uring_submit_and_get_events(&io->ring);
    }
    return reap(io, ready, context);
}

/* epoll_wait counts milliseconds: too coarse where a request is held for less. */
static void wait_for_held(const struct vhb_io *io, int64_t timeout_us)
{
    struct pollfd one = {.fd = io->epoll, .events = POLLIN};
    struct timespec ts = {.tv_sec = timeout_us / 1000000, .tv_nsec = timeout_us % 1000000 * 1000};
    ppoll(&one, 1, &ts, NULL);
}

static int turn_epoll(struct vhb_io *io, int64_t timeout_us, vhb_io_ready ready, void *context)
{
    struct epoll_event events[EPOLL_EVENTS];
    int timeout_ms = timeout_us <= 0 ? (int)timeout_us : (int)((timeout_us + 999) / 1000);
    count(&io->enters, 1);
    if (io->held && timeout_us > 0) {
        wait_for_held(io, timeout_us);
        timeout_ms = 0;
    }
    int n = epoll_wait(io->epoll, events, EPOLL_EVENTS, timeout_ms);
    for (int i = 0; i < n; i++)
        ready(context, events[i].data.u64, true);
    return 0;
}

int vhb_io_turn(struct vhb_io *io, int64_t timeout_us, vhb_io_ready ready, void *context)
{
    return io->uring ? turn_uring(io, timeout_us, ready, context)
                     : turn_epoll(io, timeout_us, ready, context);
}
