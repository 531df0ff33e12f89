/* sample.c - what a driver writes in its descriptors, recorded for the control plane.
 *
 * The worker stores, the control plane takes, neither waits for the other; but the first chains are
 * not popped before there is room (samples_have_room). */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vq.h"

uint32_t vhb_samples_store(struct vhb_queue *q, uint32_t n, struct vhb_sample sample)
{
    struct vhb_samples *s = &q->samples;
    if (samples_waiting(s) + n >= VHB_SAMPLES)
        return n;
    sample.chain = s->chain;
    s->ring[(s->stored + n) % VHB_SAMPLE_RING] = sample;
    return n + 1;
}

/* The chain that is over was one of the first, or the one in so many; whether it was the last of
 * the first. */
static bool next_turn(struct vhb_samples *s)
{
    if (s->first)
        return --s->first == 0;
    if (s->wait == 0)
        s->wait = s->every;
    return false;
}

void vhb_samples_publish(struct vhb_queue *q, uint32_t n, bool outside)
{
    struct vhb_samples *s = &q->samples;
    bool complete = next_turn(s);
    /* Published last: the samples are stored.  pair: samples-stored */
    store_release(&s->stored, s->stored + n);
    if (s->told) {
        /* Either we see that all of it was taken, or who takes it sees these: it looks again until
         * there are none.  pair: samples-told */
        full_fence();
        s->told = (int32_t)(s->told_until - load_acquire(&s->taken)) > 0;
    }
    bool half = samples_waiting(s) >= VHB_SAMPLES / 2;
    if (!complete && (s->told || !(outside || half)))
        return;
    s->told = true;
    s->told_until = s->stored;
    vhb_queue_post(q, VHB_SAMPLED);
}

/* Before *n* samples count as taken: give the pages back of which they are the last, so that a
 * queue that is idle holds one.  The worker stores nowhere in those until then: it is VHB_SAMPLES
 * ahead at most, and the ring is longer by more than a page. */
static void give_back(const struct vhb_samples *s, uint32_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint32_t each = (uint32_t)(page / sizeof(*s->ring)), end = s->taken + n;
    for (uint32_t at = s->taken / each * each; end - at >= each; at += each)
        madvise(s->ring + at % VHB_SAMPLE_RING, page, MADV_DONTNEED);
}

int vhb_queue_take_samples(struct vhb_queue *q, struct vhb_sample *out, uint32_t n)
{
    struct vhb_samples *s = &q->samples;
    uint32_t waiting = load_acquire(&s->stored) - s->taken; /* pair: samples-stored */
    if (n > waiting)
        n = waiting;
    if (n == 0)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        out[i] = s->ring[(s->taken + i) % VHB_SAMPLE_RING];
    give_back(s, n);
    /* Only now may the worker store there again.  pair: samples-taken */
    store_release(&s->taken, s->taken + n);
    vhb_worker_wake(q->worker); /* it may wait for room; has a fence.  pair: samples-told */
    return (int)n;
}

int vhb_queue_set_sampling(struct vhb_queue *q, uint32_t first, uint32_t every)
{
    if (!is_ours(q))
        return -EBUSY;
    struct vhb_samples *s = &q->samples;
    *s = (struct vhb_samples){.ring = s->ring,
                              .stored = s->stored,
                              .taken = s->stored,
                              .first = first,
                              .every = every,
                              .wait = every};
    return 0;
}
