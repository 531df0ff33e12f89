/* latency.c - how long requests take, and which of them take long.
 *
 * A request's time runs from the pass of the worker that took it to the batch that gave it back:
 * one look at the clock for each batch, none for a request.  What is counted is one thread's to
 * write; the control plane reads it at any time, and so it reads which slots are under way. */
#include <errno.h>
#include <time.h>

#include "io.h"
#include "vq.h"

/* Four buckets to a doubling, from 2^8 to 2^36 nanoseconds, and one on either side. */
enum { FIRST_BIT = 8, LAST_BIT = 36, PER_DOUBLING = 4 };

_Static_assert(VHB_LATENCY_BUCKETS == (LAST_BIT - FIRST_BIT) * PER_DOUBLING + 2, "as documented");

uint64_t vhb_clock(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint32_t vhb_latency_bucket(uint64_t ns)
{
    if (ns < 1ull << FIRST_BIT)
        return 0;
    uint32_t bit = 63 - (uint32_t)__builtin_clzll(ns);
    if (bit >= LAST_BIT)
        return VHB_LATENCY_BUCKETS - 1;
    return 1 + (bit - FIRST_BIT) * PER_DOUBLING + (uint32_t)(ns >> (bit - 2) & 3);
}

uint64_t vhb_latency_bound(uint32_t bucket)
{
    if (bucket == 0)
        return 0;
    if (bucket >= VHB_LATENCY_BUCKETS - 1)
        return 1ull << LAST_BIT;
    uint32_t bit = FIRST_BIT + (bucket - 1) / PER_DOUBLING;
    return (uint64_t)(PER_DOUBLING + (bucket - 1) % PER_DOUBLING) << (bit - 2);
}

/* ---- the worker ----------------------------------------------------------------------- */

static void add(struct vhb_latency *latency, uint64_t ns, uint64_t n)
{
    count(&latency->sum_ns, ns * n);
    count(&latency->buckets[vhb_latency_bucket(ns)], n);
    if (ns > latency->max_ns)
        store_relaxed(&latency->max_ns, ns);
}

void vhb_latency_done(struct vhb_queue *q, const struct vhb_io *io)
{
    for (const struct vhb_req *req = q->done; req;) {
        /* What came together and goes together took as long. */
        const struct vhb_req *first = req;
        uint64_t n = 0;
        for (; req && req->op == first->op && req->popped == first->popped; req = req->next)
            n++;
        if (first->op < VHB_CANCEL)
            add(&q->latency[first->op], io->now - first->popped, n);
    }
}

/* ---- the control plane ---------------------------------------------------------------- */

int vhb_queue_latency(struct vhb_queue *q, uint32_t op, struct vhb_latency *out)
{
    if (op >= VHB_CANCEL)
        return -EINVAL;
    const struct vhb_latency *latency = &q->latency[op];
    *out = (struct vhb_latency){.sum_ns = load_relaxed(&latency->sum_ns),
                                .max_ns = load_relaxed(&latency->max_ns)};
    for (uint32_t i = 0; i < VHB_LATENCY_BUCKETS; i++) {
        out->buckets[i] = load_relaxed(&latency->buckets[i]);
        out->count += out->buckets[i];
    }
    return 0;
}

int vhb_queue_slow(struct vhb_queue *q, uint64_t age_ns, struct vhb_slow *out, uint32_t n)
{
    uint64_t now = vhb_clock();
    uint32_t found = 0;
    for (uint32_t tag = 0; tag < load_relaxed(&q->touched); tag++) {
        struct vhb_req *req = &q->slots[tag];
        /* The worker may change any of them meanwhile: what comes out is for a log line. */
        struct vhb_slow slow = {.offset = load_relaxed(&req->offset),
                                .len = load_relaxed(&req->len),
                                .since_ns = load_relaxed(&req->popped),
                                .op = load_relaxed(&req->op),
                                .tag = tag};
        bool live = load_relaxed(&req->state) == VHB_REQ_LIVE && slow.op < VHB_CANCEL;
        if (!live || slow.since_ns > now || now - slow.since_ns < age_ns)
            continue;
        slow.age_ns = now - slow.since_ns;
        if (found < n)
            out[found] = slow;
        found++;
    }
    return (int)found;
}

int vhb_queue_watch_busy(struct vhb_queue *q, bool on)
{
    store_relaxed(&q->busy_asked, (uint32_t)on);
    return 0;
}
