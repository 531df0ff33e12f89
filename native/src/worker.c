/* worker.c - one thread that serves any number of queues on one io_uring.
 *
 * A pass: adopt new queues, turn the io (submit, reap), visit the queues that are awake (rest.c).
 * After a pass without work it looks again for a while (polling.c), then asks for kicks, looks once
 * more, and sleeps in the io.
 *
 * Sleeping without losing a wake-up: the worker sets *sleeping*, then looks at everything again;
 * the others store what they want seen, then look at *sleeping*.  pair: sleeping */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "worker.h"

enum {
    CLOCK_EVERY = 4,  /* passes that find nothing: each takes less than a look at the clock */
    NEAR_NS = 10000,  /* until a request that is held goes on: to sleep takes as long */
    POLLED_US = 100, /* how often a ring whose kicks we cannot see is looked at */
    HELD_US = 5000,  /* how often a request behind a dead one tries again */
};

/* ---- making and freeing --------------------------------------------------------------- */

int vhb_worker_new(const struct vhb_worker_config *config, struct vhb_worker **out)
{
    struct vhb_worker *w = calloc(1, sizeof(*w));
    if (!w)
        return -ENOMEM;
    w->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int r = w->wake_fd < 0 || w->event_fd < 0 ? -errno : 0;
    if (r == 0)
        r = vhb_poll_init(&w->poll, config->poll, config->poll_us);
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
    free(w->awake);
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

int vhb_worker_counters(struct vhb_worker *w, struct vhb_worker_counters *out)
{
    const uint64_t *from = (const uint64_t *)&w->poll.counters;
    for (size_t i = 0; i < sizeof(*out) / sizeof(uint64_t); i++)
        ((uint64_t *)out)[i] = load_relaxed(&from[i]);
    out->enters = load_relaxed(&w->io.enters);
    out->passes = load_relaxed(&w->io.pass);
    return 0;
}

struct vhb_io *vhb_worker_io(struct vhb_worker *w)
{
    return &w->io;
}

/* ---- between threads ------------------------------------------------------------------ */

void vhb_worker_wake(struct vhb_worker *w)
{
    store_release(&w->asked, 1u); /* behind what we want seen.  pair: asked */
    full_fence(); /* which is stored before this look.  pair: sleeping */
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

/* ---- coming and going of queues ------------------------------------------------------- */

/* Room for more queues: a multiple of 64, as the bits of those that are awake are. */
static int table_grow(struct vhb_worker *w)
{
    uint32_t room = w->room ? 2 * w->room : 64;
    struct vhb_queue **table = realloc(w->queues, room * sizeof(*table));
    if (!table)
        return -ENOMEM;
    w->queues = table;
    uint64_t *awake = realloc(w->awake, room / 64 * sizeof(*awake));
    if (!awake)
        return -ENOMEM;
    memset(awake + w->room / 64, 0, (room - w->room) / 64 * sizeof(*awake));
    w->awake = awake;
    w->room = room;
    return 0;
}

static int table_place(struct vhb_worker *w, struct vhb_queue *q)
{
    uint32_t i = 0;
    while (i < w->n_queues && w->queues[i])
        i++;
    if (i == w->room && table_grow(w) < 0)
        return -ENOMEM; /* stays in the inbox; tried again at the next pass */
    if (i == w->n_queues)
        w->n_queues++;
    w->queues[i] = q;
    q->position = i;
    q->active = 0;
    vhb_rest_end(w, q);
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
    vhb_watch_end(w, q);
    w->queues[q->position] = NULL;
    w->awake[q->position / 64] &= ~(1ull << q->position % 64);
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
    r = vhb_watch_wake(w);
    w->started = r == 0;
    return r;
}

/* One pass.  The clock costs as much as a request, so it is looked at where much time may have gone
 * since the last look: behind a system call and behind what was done, of that behind each batch. */
static int pass(struct vhb_worker *w, int64_t timeout_us)
{
    struct vhb_io *io = &w->io;
    uint64_t enters = io->enters;
    int n = vhb_io_turn(io, timeout_us, vhb_watch_ready, w);
    if (io->enters != enters) {
        io->now = vhb_clock();
        io->looked = io->enters;
    }
    n += vhb_io_expire(io);
    count(&io->pass, 1);
    io->found = 0;
    adopt(w);
    w->lent = false;
    vhb_rest_wake_asked(w);
    struct vhb_queue *q;
    uint32_t visits = 0;
    for (uint32_t i = 0; (q = vhb_next_awake(w, &i)); i++, visits++) {
        /* One look for both: a ring is not given back while its kick fd is still watched. */
        uint32_t state = load_acquire(&q->state); /* pair: state */
        vhb_watch_disk(w, q);
        vhb_watch_kick(w, q, state);
        int did = vhb_queue_serve(q, io, state);
        n += did;
        w->lent |= q->in_flight && q->disk->ops->poll_fd;
        vhb_rest_after(w, q, did);
        forget(w, q);
    }
    count(&w->poll.counters.visits, visits);
    if (n && io->batched != io->pass)
        io->now = vhb_clock();
    return n;
}

/* When the pass that is over has met a request, or what else it found to do. */
static uint64_t found(const struct vhb_worker *w)
{
    return w->io.found ? w->io.found : w->io.now;
}

static void quiet_kicks(struct vhb_worker *w)
{
    struct vhb_queue *q;
    for (uint32_t i = 0; (q = vhb_next_awake(w, &i)); i++)
        vhb_queue_quiet(q);
}

/* The state comes first: all else may be read by the owner only, and until it says RUN that is the
 * control plane. */
bool vhb_is_polled(const struct vhb_queue *q)
{
    return load_acquire(&q->state) == VHB_ASK_RUN && /* pair: state */
           !q->watching && q->enabled && !q->broken && !q->missing && !is_stalled(q);
}

/* The shorter of two sleeps; -1: for ever. */
static int64_t sooner(int64_t a, int64_t b)
{
    return b < 0 || (a >= 0 && a < b) ? a : b;
}

/* Until the first request that is held goes on; as of a sleep. */
static int64_t hold_patience(struct vhb_io *io)
{
    if (!io->held)
        return -1;
    io->now = vhb_clock();
    return (int64_t)((vhb_io_next_due(io) + 999) / 1000);
}

/* How long the sleep may last in microseconds; 0: there is work; -1: for ever. */
static int64_t sleep_limit(struct vhb_worker *w)
{
    int64_t limit = sooner(vhb_rest_patience(w), hold_patience(&w->io));
    if (load_acquire(&w->stop) || load_relaxed(&w->inbox)) /* pair: stop */
        return 0;
    if (load_relaxed(&w->asked)) /* pair: asked */
        return 0;
    struct vhb_queue *q;
    for (uint32_t i = 0; (q = vhb_next_awake(w, &i)); i++) {
        if (vhb_queue_wants_visit(q))
            return 0;
        limit = sooner(limit, vhb_queue_patience(q));
        if (q->held)
            limit = sooner(limit, HELD_US);
        if (vhb_is_polled(q)) {
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
    if (limit != 0)
        count(&w->poll.counters.sleeps, 1);
    int n = pass(w, limit);
    store_relaxed(&w->sleeping, 0u);
    return n;
}

/* Serve once: a pass, and where that finds nothing to do, perhaps a sleep. */
static void turn(struct vhb_worker *w)
{
    if (pass(w, 0)) {
        vhb_poll_hit(&w->poll, found(w), w->io.now);
        quiet_kicks(w);
        return;
    }
    if (++w->empty % CLOCK_EVERY == 0)
        w->io.now = vhb_clock();
    if (w->io.held && vhb_io_next_due(&w->io) <= NEAR_NS) {
        cpu_relax();
        return;
    }
    /* What the kernel has may want this very CPU for its own threads, and a completion ends the
     * sleep as soon as a kick does, or a time that a request is held for. */
    bool disk = (w->io.pending || w->io.held) && w->poll.mode != VHB_POLL_ALWAYS;
    if (!disk && vhb_poll_goes_on(&w->poll, w->io.now)) {
        if (w->lent)
            sched_yield(); /* to a thread that may want this very CPU */
        else
            cpu_relax();
        return;
    }
    if (!sleep_until_work(w))
        return;
    if (disk)
        vhb_poll_restart(&w->poll, w->io.now);
    else
        vhb_poll_woken(&w->poll, found(w), w->io.now);
    quiet_kicks(w);
}

int vhb_worker_run(struct vhb_worker *w)
{
    int r = start(w);
    if (r < 0)
        return r;
    store_release(&w->running, 1u);
    w->io.now = vhb_clock();
    vhb_poll_restart(&w->poll, w->io.now);
    while (!load_acquire(&w->stop)) /* pair: stop */
        turn(w);
    store_release(&w->running, 0u);
    return 0;
}

int vhb_worker_step(struct vhb_worker *w)
{
    int r = start(w);
    if (r < 0)
        return r;
    w->io.now = vhb_clock();
    int n = pass(w, 0);
    struct vhb_queue *q;
    for (uint32_t i = 0; (q = vhb_next_awake(w, &i)); i++)
        vhb_queue_wants_visit(q); /* kicks are asked for, as before a sleep */
    return n;
}
