/* latency.c - how long requests took: 32 buckets to each doubling, so that the middle of one is
 * off by 1.6 percent at most.  Below 64 ns each has a bucket; from 2^36 (68 s) on all are in the
 * last one. */
#include <time.h>

#include "fences.h"
#include "queue.h"

enum { BITS = 5, PER_DOUBLING = 1 << BITS, LAST_BIT = 36 };

_Static_assert(DRV_BUCKETS == (LAST_BIT - BITS + 1) * PER_DOUBLING, "as above");

uint64_t drv_clock(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint32_t drv_bucket(uint64_t ns)
{
    if (ns < 2 * PER_DOUBLING)
        return (uint32_t)ns;
    if (ns >> LAST_BIT)
        return DRV_BUCKETS - 1;
    uint32_t shift = 63 - (uint32_t)__builtin_clzll(ns) - BITS;
    return shift * PER_DOUBLING + (uint32_t)(ns >> shift);
}

void drv_count_latency(struct drv_counters *counters, bool write, uint64_t ns)
{
    count(&counters->done[write], 1);
    count(&counters->sum_ns[write], ns);
    count(&counters->latency[write][drv_bucket(ns)], 1);
    if (ns > counters->max_ns[write])
        store_relaxed(&counters->max_ns[write], ns);
}
