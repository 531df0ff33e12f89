/* wait.c - how a driver learns that something was used: it sleeps until it is called, or looks. */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "fences.h"
#include "queue.h"

enum {
    RECHECK_MS = 250,   /* without a call, after which the ring is looked at all the same */
    SPINS = 256,        /* looks at the ring, for one at the clock */
    WATCH_NS = 2000000  /* polling, between two looks at watch_fd */
};

static int silence(struct drv_queue *q)
{
    if (load_relaxed(&q->stop) > 1)
        return DRV_ABANDONED;
    if (drv_clock() - q->heard < q->job.stall_ns)
        return 0;
    *q->fault = (struct drv_fault){.got = q->ring.in_flight};
    return DRV_SILENT;
}

/* Wait for a call, or for what is watched; 0, a reason, or -errno. */
static int wait_for_call(struct drv_queue *q, int timeout_ms, bool *in_time)
{
    struct pollfd fds[] = {
        {.fd = q->config.call_fd, .events = POLLIN},
        {.fd = q->config.watch_fd, .events = POLLIN},
    };
    int n = poll(fds, 2, timeout_ms);
    *in_time = n != 0;
    if (n < 0)
        return errno == EINTR ? 0 : -errno;
    if (fds[1].revents)
        return DRV_WATCHED;
    uint64_t calls;
    if (fds[0].revents && read(fds[0].fd, &calls, sizeof(calls)) < 0 && errno != EAGAIN)
        return -errno;
    return 0;
}

static int sleep_until_called(struct drv_queue *q)
{
    uint64_t stall_ms = q->job.stall_ns / 1000000;
    int timeout_ms = stall_ms < RECHECK_MS ? (int)stall_ms + 1 : RECHECK_MS;
    bool in_time;
    count(&q->counters.sleeps, 1);
    int wrong = wait_for_call(q, timeout_ms, &in_time);
    if (wrong || in_time || !q->ring.ops->has_used(&q->ring))
        return wrong;
    /* Used only now: the call for it may be on its way. */
    wrong = wait_for_call(q, RECHECK_MS, &in_time);
    if (!in_time)
        count(&q->counters.missed_calls, 1);
    return wrong;
}

static int sleep_until_used(struct drv_queue *q)
{
    const struct drv_ring_ops *ops = q->ring.ops;
    ops->arm(&q->ring);
    while (!ops->has_used(&q->ring)) {
        int wrong = sleep_until_called(q);
        if (!wrong && !ops->has_used(&q->ring))
            wrong = silence(q);
        /* What was used before the other side went is used. */
        if (wrong && !ops->has_used(&q->ring))
            return wrong;
    }
    ops->quiet(&q->ring);
    return 0;
}

static int watch(struct drv_queue *q)
{
    uint64_t now = drv_clock();
    if (now - q->watched < WATCH_NS)
        return 0;
    q->watched = now;
    struct pollfd fd = {.fd = q->config.watch_fd, .events = POLLIN};
    return poll(&fd, 1, 0) > 0 ? DRV_WATCHED : 0;
}

static int spin_until_used(struct drv_queue *q)
{
    for (;;) {
        for (uint32_t i = 0; i < SPINS; i++) {
            if (q->ring.ops->has_used(&q->ring))
                return 0;
            cpu_relax();
        }
        int wrong = silence(q);
        if (!wrong)
            wrong = watch(q);
        if (wrong && !q->ring.ops->has_used(&q->ring))
            return wrong;
    }
}

int drv_wait(struct drv_queue *q)
{
    return q->job.poll ? spin_until_used(q) : sleep_until_used(q);
}
