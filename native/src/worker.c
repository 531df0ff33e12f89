/* worker.c - one thread that serves any number of queues on one io_uring.
 *
 * A pass: adopt new queues, turn the io (submit, reap), visit every queue.  After a pass without
 * work it spins for a while, then asks for kicks, looks once more, and sleeps in the io.
 *
 * Sleeping without losing a wake-up: the worker sets *sleeping*, then looks at everything again;
 * the others store what they want seen, then look at *sleeping*.  pair: sleeping */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io.h"
#include "vq.h"

enum {
    POLLED_US = 100, /* how often a ring whose kicks we cannot see is looked at */
    HELD_US = 5000,  /* how often a request behind a dead one tries again */
};

/* What a watch token names, in bits 3-7; the rest is a queue's position and generation. */
enum watch { WATCH_WAKE = 1 << 3, WATCH_KICK = 2 << 3, WATCH_DISK = 3 << 3 };
enum { WATCH_KIND = 0xf8 };

struct vhb_worker {
    struct vhb_io io;
    uint32_t spin_us;
    int wake_fd, event_fd;
    uint32_t sleeping; /* pair: sleeping */
    uint32_t stop, running;
    uint32_t attached;       /* queues, counted by the control plane and the worker */
    struct vhb_queue *inbox; /* a stack of queues to adopt */
    bool started;            /* the io is enabled and watches wake_fd */
    bool stale;              /* nobody has looked at the clock since the last pass began */
    uint32_t generation;     /* of watches: a late event is told by it */

    struct vhb_queue **queues;
    uint32_t n_queues, room;
};

/* ---- making and freeing --------------------------------------------------------------- */

int vhb_worker_new(const struct vhb_worker_config *config, struct vhb_worker **out)
{
    struct vhb_worker *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    w->spin_us = config->spin_us;
    w->stale = true;
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = w->wake_fd < 0 || w->event_fd < 0 ? -errno : 0;
    if (r == 0)
        r = vhb_io_init(&w->io, !(config->flags & VHB_WORKER_NO_URING));
    if (r < 0) {
        close(w->wake_fd);
        close(w->event_fd);
        free(w);
        return r;
    }
    *out = w;
    return 0;
}

int vhb_worker_free(struct vhb_worker *w)
{
    if (load_acquire(&w->attached) || load_acquire(&w->running))
        return -EBUSY;
    vhb_io_free(&w->io);
    close(w->wake_fd);
    close(w->event_fd);
    free(w->queues);
    free(w);
    return 0;
}

int vhb_worker_uring(struct vhb_worker *w)
{
    return w->io.uring ? 1 : w->io.why_not;
}

int vhb_worker_event_fd(struct vhb_worker *w)
{
    return w->event_fd;
}

struct vhb_io *vhb_worker_io(struct vhb_worker *w)
{
    return &w->io;
}

/* ---- between threads ------------------------------------------------------------------ */

void vhb_worker_wake(struct vhb_worker *w)
{
    full_fence(); /* what we want seen is stored before this look.  pair: sleeping */
    if (load_relaxed(&w->sleeping))
        eventfd_write(w->wake_fd, 1);
}

void vhb_worker_notify(struct vhb_worker *w)
{
    eventfd_write(w->event_fd, 1);
}

void vhb_worker_adopt(struct vhb_worker *w, struct vhb_queue *q)
{
    __atomic_fetch_add(&w->attached, 1, __ATOMIC_ACQ_REL);
    struct vhb_queue *head = load_relaxed(&w->inbox);
    do
        q->inbox_next = head;
    while (!__atomic_compare_exchange_n(&w->inbox, &head, q, true, __ATOMIC_RELEASE,
                                        __ATOMIC_RELAXED)); /* pair: inbox */
    vhb_worker_wake(w);
}

int vhb_worker_stop(struct vhb_worker *w)
{
    store_release(&w->stop, 1u); /* pair: stop */
    vhb_worker_wake(w);
    return 0;
}

/* ---- watches -------------------------------------------------------------------------- */

static uint64_t token(const struct vhb_queue *q, enum watch kind, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)q->position << 8 | (uint64_t)kind;
}

/* Take the count off a kick fd; whether it is one.  Never waits: who shares the descriptor may have
 * made it blocking, and take the count away before us. */
static bool take_kicks(int fd)
{
    uint64_t n;
    struct iovec one = {.iov_base = &n, .iov_len = sizeof(n)};
    ssize_t r = preadv2(fd, &one, 1, -1, RWF_NOWAIT);
    return r == sizeof(n) || (r < 0 && errno == EAGAIN);
}

static void stop_watching_kick(struct vhb_worker *w, struct vhb_queue *q)
{
    if (q->watching)
        vhb_io_unwatch(&w->io, q->watched, token(q, WATCH_KICK, q->kick_generation));
    q->watching = false;
    q->kick_generation = ++w->generation;
}

static void kicked(struct vhb_worker *w, struct vhb_queue *q, bool still_watched)
{
    q->watching = still_watched;
    bool taken = take_kicks(q->watched);
    if (taken)
        count(&q->counters.kicks, 1);
    if (taken && still_watched)
        return;
    /* It cannot be watched, is no eventfd, or the ring of completions was full for a moment: to
     * watch it again at once could be a busy loop. */
    stop_watching_kick(w, q);
    q->deaf = true;
}

static void ready(void *context, uint64_t tok, bool still_watched)
{
    struct vhb_worker *w = context;
    uint64_t kind = tok & WATCH_KIND;
    uint32_t position = tok >> 8 & 0xffffff, generation = (uint32_t)(tok >> 32);
    if (kind == WATCH_WAKE) {
        eventfd_t ignored;
        eventfd_read(w->wake_fd, &ignored);
        if (!still_watched)
            vhb_io_watch(&w->io, w->wake_fd, WATCH_WAKE);
        return;
    }
    struct vhb_queue *q = position < w->n_queues ? w->queues[position] : NULL;
    if (!q)
        return;
    if (kind == WATCH_DISK && generation == q->disk_generation)
        q->watching_disk = still_watched;
    else if (kind == WATCH_KICK && generation == q->kick_generation)
        kicked(w, q, still_watched); /* else: an event of a watch that has ended */
}

static void watch_disk(struct vhb_worker *w, struct vhb_queue *q)
{
    if (q->watching_disk || !q->disk->ops->poll_fd)
        return;
    int fd = q->disk->ops->poll_fd(q->disk);
    q->watching_disk = vhb_io_watch(&w->io, fd, token(q, WATCH_DISK, q->disk_generation)) == 0;
}

/* Watch the kick fd while the ring is ours to take from.  Else not: once the ring is given back the
 * control plane may close it, and its number may soon name something else. */
static void watch_kick(struct vhb_worker *w, struct vhb_queue *q, uint32_t state)
{
    int want = state == VHB_ASK_RUN ? q->kick : -1;
    if (q->watched != want) {
        stop_watching_kick(w, q);
        q->watched = want;
        q->deaf = false;
    }
    if (want < 0 || q->watching || q->deaf)
        return;
    q->watching = vhb_io_watch(&w->io, want, token(q, WATCH_KICK, q->kick_generation)) == 0;
    q->deaf = !q->watching;
}

/* ---- coming and going of queues ------------------------------------------------------- */

static int table_place(struct vhb_worker *w, struct vhb_queue *q)
{
    uint32_t i = 0;
    while (i < w->n_queues && w->queues[i])
        i++;
    if (i == w->room) {
        uint32_t room = w->room ? 2 * w->room : 8;
        struct vhb_queue **table = realloc(w->queues, room * sizeof(*table));
        if (!table)
            return -ENOMEM; /* stays in the inbox; tried again at the next pass */
        w->queues = table;
        w->room = room;
    }
    if (i == w->n_queues)
        w->n_queues++;
    w->queues[i] = q;
    q->position = i;
    q->disk_generation = ++w->generation;
    q->kick_generation = ++w->generation;
    return 0;
}

static void adopt(struct vhb_worker *w)
{
    if (!load_relaxed(&w->inbox))
        return;
    struct vhb_queue *q = __atomic_exchange_n(&w->inbox, NULL, __ATOMIC_ACQUIRE); /* pair: inbox */
    while (q) {
        struct vhb_queue *next = q->inbox_next;
        if (table_place(w, q) < 0) {
            vhb_worker_adopt(w, q);
            __atomic_fetch_sub(&w->attached, 1, __ATOMIC_ACQ_REL);
        }
        q = next;
    }
}

/* The last the worker does for a queue.  Requests that are dead keep it. */
static void forget(struct vhb_worker *w, struct vhb_queue *q)
{
    if (load_acquire(&q->state) != VHB_ASK_DETACH || q->dead) /* pair: state */
        return;
    stop_watching_kick(w, q);
    if (q->watching_disk)
        vhb_io_unwatch(&w->io, q->disk->ops->poll_fd(q->disk),
                       token(q, WATCH_DISK, q->disk_generation));
    w->queues[q->position] = NULL;
    __atomic_fetch_sub(&w->attached, 1, __ATOMIC_ACQ_REL);
    vhb_queue_post(q, VHB_DETACHED);
}

/* ---- the loop ------------------------------------------------------------------------- */

static int start(struct vhb_worker *w)
{
    if (w->started)
        return 0;
    int r = vhb_io_enable(&w->io);
    if (r < 0)
        return r;
    r = vhb_io_watch(&w->io, w->wake_fd, WATCH_WAKE);
    w->started = r == 0;
    return r;
}

static int pass(struct vhb_worker *w, int64_t timeout_us)
{
    int n = vhb_io_turn(&w->io, timeout_us, ready, w);
    if (w->stale) /* else a batch of the last pass did, just now */
        w->io.now = vhb_clock();
    uint64_t began = w->io.now;
    adopt(w);
    for (uint32_t i = 0; i < w->n_queues; i++) {
        struct vhb_queue *q = w->queues[i];
        if (!q)
            continue;
        /* One look for both: a ring is not given back while its kick fd is still watched. */
        uint32_t state = load_acquire(&q->state); /* pair: state */
        watch_disk(w, q);
        watch_kick(w, q, state);
        n += vhb_queue_serve(q, &w->io, state);
        forget(w, q);
    }
    w->stale = w->io.now == began;
    return n;
}

static void quiet_kicks(struct vhb_worker *w)
{
    for (uint32_t i = 0; i < w->n_queues; i++) {
        if (w->queues[i])
            vhb_queue_quiet(w->queues[i]);
    }
}

/* The ring takes requests and nothing tells of its kicks.  The state comes first: all else may
 * be read by the owner only, and until it says RUN that is the control plane. */
static bool is_polled(const struct vhb_queue *q)
{
    return load_acquire(&q->state) == VHB_ASK_RUN && /* pair: state */
           !q->watching && q->enabled && !q->broken && !q->missing && !is_stalled(q);
}

/* The shorter of two sleeps; -1: for ever. */
static int64_t sooner(int64_t a, int64_t b)
{
    return b < 0 || (a >= 0 && a < b) ? a : b;
}

/* How long the sleep may last in microseconds; 0: there is work; -1: for ever. */
static int64_t sleep_limit(struct vhb_worker *w)
{
    int64_t limit = -1;
    if (load_acquire(&w->stop) || load_relaxed(&w->inbox)) /* pair: stop */
        return 0;
    for (uint32_t i = 0; i < w->n_queues; i++) {
        struct vhb_queue *q = w->queues[i];
        if (!q)
            continue;
        if (vhb_queue_wants_visit(q))
            return 0;
        limit = sooner(limit, vhb_queue_patience(q));
        if (q->held)
            limit = sooner(limit, HELD_US);
        if (is_polled(q)) {
            limit = sooner(limit, POLLED_US);
            q->deaf = false; /* tried again after this sleep */
        }
    }
    return limit;
}

static int sleep_until_work(struct vhb_worker *w)
{
    store_relaxed(&w->sleeping, 1u);
    full_fence(); /* then look.  pair: sleeping */
    int64_t limit = sleep_limit(w);
    vhb_forget_registers();
    int n = pass(w, limit);
    store_relaxed(&w->sleeping, 0u);
    return n;
}

int vhb_worker_run(struct vhb_worker *w)
{
    int r = start(w);
    if (r < 0)
        return r;
    store_release(&w->running, 1u);
    w->io.now = vhb_clock();
    uint64_t last = w->io.now, spin_ns = w->spin_us * 1000ull;
    while (!load_acquire(&w->stop)) { /* pair: stop */
        int n = pass(w, 0);
        /* Not while the kernel works on requests: its threads may want this very CPU, and a
         * completion ends the sleep as soon as a kick does. */
        if (n == 0 && w->io.pending == 0 && w->io.now - last < spin_ns) {
            cpu_relax();
            continue;
        }
        if (n == 0)
            n = sleep_until_work(w);
        if (n) {
            quiet_kicks(w);
            last = w->io.now;
        }
    }
    store_release(&w->running, 0u);
    return 0;
}

int vhb_worker_step(struct vhb_worker *w)
{
    int r = start(w);
    if (r < 0)
        return r;
    int n = pass(w, 0);
    for (uint32_t i = 0; i < w->n_queues; i++)
        if (w->queues[i])
            vhb_queue_wants_visit(w->queues[i]); /* kicks are asked for, as before a sleep */
    return n;
}
