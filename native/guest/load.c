/* load.c - a run: requests are begun, taken back, counted, and begun anew.
 *
 * A pass takes all that was used, begins as many again, and then asks once whether the device wants
 * a kick, as Linux does: it sees each request as soon as that is written.  The clock is read once
 * in a pass that found something. */
#include <errno.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "fences.h"
#include "queue.h"

enum { UNWRITTEN = 0xff };

/* ---- counting ------------------------------------------------------------------------- */

static uint64_t thread_cpu(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void clear(struct drv_queue *q, size_t from, size_t to)
{
    uint64_t *words = (uint64_t *)&q->counters;
    for (size_t i = from / sizeof(*words); i < to / sizeof(*words); i++)
        store_relaxed(&words[i], 0);
}

/* Forget what was counted so far, but for what is of the whole run. */
static void begin_counting(struct drv_queue *q)
{
    clear(q, 0, offsetof(struct drv_counters, failed));
    q->cpu_ns = thread_cpu();
    store_relaxed(&q->counters.begin_ns, q->now);
}

static void end_counting(struct drv_queue *q)
{
    q->over = true;
    store_relaxed(&q->counters.cpu_ns, thread_cpu() - q->cpu_ns);
    store_relaxed(&q->counters.end_ns, q->now);
}

static void look_at_clock(struct drv_queue *q)
{
    if (q->over)
        return;
    if (load_relaxed(&q->stop)) {
        end_counting(q);
    } else if (!q->warm && q->now - q->begun >= q->job.warm_ns) {
        q->warm = true;
        if (q->job.warm_ns)
            begin_counting(q);
    } else if (q->warm && q->job.run_ns && q->now - q->counters.begin_ns >= q->job.run_ns) {
        end_counting(q);
    }
}

static enum drv_failure failure(uint8_t status)
{
    switch (status) {
    case VIRTIO_BLK_S_IOERR:
        return DRV_IOERR;
    case VIRTIO_BLK_S_UNSUPP:
        return DRV_UNSUPP;
    case UNWRITTEN:
        return DRV_UNWRITTEN;
    default:
        return DRV_OTHER;
    }
}

/* ---- one request ---------------------------------------------------------------------- */

static void begin(struct drv_queue *q, uint32_t i)
{
    struct drv_slot *slot = &q->slots[i];
    drv_choose(q, slot);
    slot->small->header = (struct virtio_blk_outhdr){
        .type = slot->write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN,
        .sector = slot->block * (q->config.bytes / SECTOR),
    };
    store_relaxed(&slot->small->status, (uint8_t)UNWRITTEN);
    slot->started = q->now;
    q->ring.ops->add(&q->ring, i, &slot->chain, !slot->write);
    q->ring.writable[i] = slot->write ? 1 : q->config.bytes + 1;
    q->ring.in_flight++;
    q->issued++;
}

static int end(struct drv_queue *q, uint32_t i)
{
    struct drv_slot *slot = &q->slots[i];
    uint8_t status = load_relaxed(&slot->small->status);
    bool ok = status == VIRTIO_BLK_S_OK;
    count(&q->counters.ended, 1);
    if (!ok)
        count(&q->counters.failed[failure(status)], 1);
    else if (!q->over)
        drv_count_latency(&q->counters, slot->write, q->now - slot->started);
    q->free[q->n_free++] = i;
    return q->generations ? drv_verify(q, slot, ok) : 0;
}

/* ---- a pass --------------------------------------------------------------------------- */

/* Begin what may be begun, in every free slot. */
static int begin_all(struct drv_queue *q)
{
    uint32_t n = q->over ? 0 : q->n_free, kept = 0;
    if (q->job.requests && q->job.requests - q->issued < n)
        n = (uint32_t)(q->job.requests - q->issued);
    if (n == 0)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        begin(q, q->free[i]);
    for (uint32_t i = n; i < q->n_free; i++)
        q->free[kept++] = q->free[i];
    q->n_free = kept;
    if (!q->ring.ops->wants_kick(&q->ring))
        return 0;
    count(&q->counters.kicks, 1);
    uint64_t one = 1;
    bool full_or_kicked = write(q->config.kick_fd, &one, sizeof(one)) >= 0 || errno == EAGAIN;
    return full_or_kicked ? 0 : -errno;
}

/* Take all that was used: 0, a reason or -errno. */
static int end_all(struct drv_queue *q)
{
    struct drv_used used;
    int r = q->ring.ops->pop(&q->ring, &used);
    if (r == 0)
        return drv_wait(q);
    q->heard = q->now = drv_clock();
    for (; r > 0; r = q->ring.ops->pop(&q->ring, &used)) {
        int wrong = end(q, used.slot);
        if (wrong)
            return wrong;
    }
    if (r < 0)
        return -r;
    look_at_clock(q);
    return 0;
}

static void begin_run(struct drv_queue *q, const struct drv_job *job, struct drv_fault *fault)
{
    q->job = *job;
    q->fault = q->ring.fault = fault;
    q->random = job->seed;
    q->next = q->issued = 0;
    q->now = q->begun = q->heard = q->watched = drv_clock();
    q->warm = q->over = false;
    clear(q, offsetof(struct drv_counters, failed), sizeof(q->counters));
    begin_counting(q);
    if (job->poll)
        q->ring.ops->quiet(&q->ring);
    if (load_relaxed(&q->stop))
        end_counting(q);
}

int drv_queue_run(struct drv_queue *q, const struct drv_job *job, struct drv_fault *fault)
{
    begin_run(q, job, fault);
    int wrong = begin_all(q);
    while (!wrong && q->ring.in_flight) {
        wrong = end_all(q);
        if (!wrong)
            wrong = begin_all(q);
    }
    if (!q->over)
        end_counting(q);
    return wrong;
}
