/* caller.c - a thread that is no worker asks a disk of the core: the mailbox in reverse.
 *
 * A layer in Python has a disk of the core below it, perhaps behind more layers.  Its thread has an
 * io of its own, whose requests are of no virtqueue.  Under each lies a frame of the caller's, so
 * that a request that is over comes here and goes no further.
 *
 * The thread sleeps in a loop of its own on one descriptor: an epoll of an eventfd that the
 * ring writes, of what the disk below is woken by, and of a timer for requests that are held.  The
 * ring's own descriptor would not do: completions that wait for us to enter the kernel do not make
 * it readable. */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "layer.h"
#include "vq.h"

enum { MAX_SLOTS = 65536, MAX_ERRNO = 4095 };

_Static_assert((int)VHB_COPIED_PIECES == (int)VHB_SLOT_IOV, "as documented");
_Static_assert(sizeof(struct vhb_piece) == sizeof(struct iovec), "vhostblk_values.h");

struct call {
    uint64_t tag;  /* its slot, and a generation; 0: not under way */
    uint32_t lost; /* vhb_fault_seen() when it began */
    int result;
};

struct vhb_caller {
    struct vhb_io io;
    struct vhb_queue queue; /* what a request must be of: its io, its layers' memory, counters */
    struct vhb_layer end;   /* owns the lowest frame */
    int epoll, timer, rings;
    uint64_t armed; /* ns; when the timer ends; 0: never */
    uint32_t slots_n, n_free;
    struct vhb_req *slots;
    struct call *calls;    /* by slot */
    uint32_t *free_slots;  /* a stack */
    uint32_t *over;        /* slots of what has ended, the oldest first: a ring */
    uint32_t first, n_over; /* of it */
    const struct vhb_req *starting; /* in submit */
    uint32_t generation;            /* of the last tag */
};

/* ---- the end ------------------------------------------------------------------------- */

static struct vhb_caller *caller_of(struct vhb_layer *end)
{
    return (struct vhb_caller *)((uint8_t *)end - offsetof(struct vhb_caller, end));
}

static int end_done(struct vhb_layer *end, struct vhb_req *req, int result, uint64_t note,
                    struct vhb_io *io)
{
    (void)note;
    (void)io;
    struct vhb_caller *c = caller_of(end);
    if (req == c->starting)
        return result;
    c->calls[req->tag].result = result;
    c->over[(c->first + c->n_over++) % c->slots_n] = req->tag;
    return VHB_PENDING; /* what a queue does with it, nobody does */
}

static const struct vhb_layer_ops end_kind = {.done = end_done};

/* 0 or an error; guest memory that this thread has lost meanwhile, by whichever access, is one. */
static int error_of(int result, uint32_t lost)
{
    if (result == VHB_RESULT_KEPT_VIEW)
        return VHB_KEPT_VIEW;
    if (result == VHB_RESULT_LOST_MEMORY || (result == 0 && vhb_fault_seen() != lost))
        return EFAULT;
    return result >= -MAX_ERRNO ? -result : EIO;
}

static void give_back(struct vhb_caller *c, uint32_t slot)
{
    c->calls[slot].tag = 0;
    c->slots[slot].state = VHB_REQ_FREE;
    c->free_slots[c->n_free++] = slot;
}

static uint32_t take_over(struct vhb_caller *c, struct vhb_ended *ended, uint32_t n)
{
    uint32_t got = 0;
    for (; got < n && c->n_over; got++, c->n_over--) {
        uint32_t slot = c->over[c->first];
        const struct call *call = &c->calls[slot];
        ended[got] = (struct vhb_ended){.tag = call->tag,
                                        .error = (uint64_t)error_of(call->result, call->lost)};
        c->first = (c->first + 1) % c->slots_n;
        give_back(c, slot);
    }
    return got;
}

/* ---- asking -------------------------------------------------------------------------- */

static struct vhb_req *request(struct vhb_caller *c, uint32_t slot, const struct vhb_job *job)
{
    struct vhb_req *req = &c->slots[slot];
    *req = (struct vhb_req){.op = (enum vhb_op)job->op,
                            .flags = job->flags,
                            .offset = job->offset,
                            .len = job->len,
                            .iov = (struct iovec *)(uintptr_t)job->pieces,
                            .niov = job->n_pieces,
                            .tag = slot,
                            .queue = &c->queue,
                            .state = VHB_REQ_LIVE};
    if (job->n_pieces && job->n_pieces <= VHB_SLOT_IOV) { /* they need not outlive the call */
        memcpy(req->own, job->pieces, job->n_pieces * sizeof(*req->own));
        req->iov = req->own;
    }
    return req;
}

int vhb_caller_submit(struct vhb_caller *c, const struct vhb_job *job, uint64_t *tag)
{
    if (job->op >= VHB_CANCEL)
        return -EINVAL;
    if (c->n_free == 0)
        return -ENOBUFS;
    uint32_t slot = c->free_slots[--c->n_free], lost = vhb_fault_seen();
    struct vhb_req *req = request(c, slot, job);
    c->io.now = vhb_clock();
    c->starting = req;
    int r = vhb_layer_hand_on_noted(&c->end, req, &c->io, 0);
    c->starting = NULL;
    if (r != VHB_PENDING) {
        give_back(c, slot);
        return -error_of(r, lost);
    }
    c->generation = c->generation == UINT32_MAX ? 1 : c->generation + 1; /* tag 0 is none */
    c->calls[slot] = (struct call){.tag = (uint64_t)c->generation << 32 | slot, .lost = lost};
    *tag = c->calls[slot].tag;
    return VHB_PENDING;
}

int vhb_caller_cancel(struct vhb_caller *c, uint64_t tag)
{
    uint32_t slot = (uint32_t)tag;
    if (tag == 0 || slot >= c->slots_n || c->calls[slot].tag != tag)
        return -EINVAL;
    struct vhb_req *req = &c->slots[slot];
    if (req->state == VHB_REQ_DEAD)
        return 0;
    req->state = VHB_REQ_DEAD;
    struct vhb_disk *disk = c->end.below;
    if (disk->ops->cancel)
        disk->ops->cancel(disk, req, &c->io);
    return 0;
}

/* ---- turns --------------------------------------------------------------------------- */

static void nothing_is_watched(void *context, uint64_t token, bool still_watched)
{
    (void)context;
    (void)token;
    (void)still_watched;
}

/* Have the timer end when the first request that is held is due.  One that has ended is readable
 * until it is set again. */
static void set_timer(struct vhb_caller *c)
{
    uint64_t due = c->io.held ? c->io.held->due : 0;
    if (c->io.held && due == 0)
        due = 1; /* at once */
    if (due == c->armed && !(due && due <= c->io.now))
        return;
    struct itimerspec at = {
        .it_value = {.tv_sec = (time_t)(due / 1000000000), .tv_nsec = (long)(due % 1000000000)}};
    timerfd_settime(c->timer, TFD_TIMER_ABSTIME, &at, NULL);
    c->armed = due;
}

int vhb_caller_turn(struct vhb_caller *c, struct vhb_ended *ended, uint32_t n)
{
    struct vhb_disk *disk = c->end.below;
    eventfd_t rung;
    (void)eventfd_read(c->rings, &rung); /* first: what comes from here on rings again */
    vhb_io_turn(&c->io, 0, nothing_is_watched, NULL);
    c->io.now = vhb_clock();
    vhb_io_expire(&c->io);
    if (disk->ops->reap)
        disk->ops->reap(disk, true);
    if (disk->ops->flush)
        disk->ops->flush(disk);
    vhb_io_push(&c->io);
    set_timer(c);
    return (int)take_over(c, ended, n);
}

int vhb_caller_fd(struct vhb_caller *c)
{
    return c->epoll;
}

/* ---- life ---------------------------------------------------------------------------- */

static size_t slots_size(const struct vhb_caller *c)
{
    return c->slots_n * sizeof(*c->slots);
}

static size_t layered_size(const struct vhb_caller *c)
{
    return c->slots_n * sizeof(*c->queue.layered);
}

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void dispose(struct vhb_caller *c)
{
    if (c->slots)
        munmap(c->slots, slots_size(c));
    if (c->queue.layered)
        munmap(c->queue.layered, layered_size(c));
    if (c->timer >= 0)
        close(c->timer);
    if (c->rings >= 0)
        close(c->rings);
    if (c->epoll >= 0)
        close(c->epoll);
    free(c->calls);
    free(c->free_slots);
    free(c->over);
    free(c);
}

static int make_room(struct vhb_caller *c)
{
    c->slots = reserve(slots_size(c));
    c->queue.layered = reserve(layered_size(c));
    c->calls = calloc(c->slots_n, sizeof(*c->calls));
    c->free_slots = calloc(c->slots_n, sizeof(*c->free_slots));
    c->over = calloc(c->slots_n, sizeof(*c->over));
    if (!c->slots || !c->queue.layered || !c->calls || !c->free_slots || !c->over)
        return -ENOMEM;
    for (; c->n_free < c->slots_n; c->n_free++)
        c->free_slots[c->n_free] = c->slots_n - 1 - c->n_free;
    return 0;
}

static int watch(struct vhb_caller *c, int fd)
{
    struct epoll_event event = {.events = EPOLLIN};
    return epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

static int watch_all(struct vhb_caller *c, struct vhb_disk *disk)
{
    c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    c->rings = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (c->timer < 0 || c->rings < 0 || c->epoll < 0)
        return -errno;
    int r = watch(c, c->timer);
    if (r == 0)
        r = watch(c, c->rings);
    if (r == 0 && c->io.uring)
        r = io_uring_register_eventfd(&c->io.ring, c->rings);
    if (r == 0 && disk->ops->poll_fd)
        r = watch(c, disk->ops->poll_fd(disk));
    return r;
}

int vhb_caller_new(struct vhb_disk *disk, uint32_t slots, uint32_t flags, struct vhb_caller **out)
{
    if (slots == 0 || slots > MAX_SLOTS)
        return -EINVAL;
    struct vhb_caller *c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->epoll = c->timer = c->rings = -1;
    c->slots_n = slots;
    c->queue.io = &c->io;
    c->queue.number = VHB_NO_QUEUE;
    c->end.kind = &end_kind;
    c->end.below = disk;
    int r = make_room(c);
    if (r == 0)
        r = vhb_io_init(&c->io, !(flags & VHB_WORKER_NO_URING));
    if (r < 0) {
        dispose(c);
        return r;
    }
    r = vhb_io_enable(&c->io);
    if (r == 0)
        r = watch_all(c, disk);
    if (r < 0) {
        vhb_io_free(&c->io);
        dispose(c);
        return r;
    }
    disk->users++;
    *out = c;
    return 0;
}

int vhb_caller_free(struct vhb_caller *c)
{
    if (!c)
        return 0;
    if (c->n_free != c->slots_n)
        return -EBUSY;
    c->end.below->users--;
    vhb_io_free(&c->io);
    dispose(c);
    return 0;
}
