/* test_look.c - a driver whose own barriers are none: it says that it sleeps, and its look at the
 * used ring has come before.  Both formats, by the second look that a quiet ring gets. */
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"
#include "visit.h"

enum { NEVER_MINE = 50, REQUESTS = 3, LATER_US = 11000 };

static int calls(struct rig *rig)
{
    eventfd_t n = 0;
    return eventfd_read(rig->call, &n) < 0 ? 0 : (int)n;
}

/* A ring of either format, in each way to ask for calls. */
struct ring {
    bool packed, event_idx;
};

static const struct ring rings[] = {{false, false}, {false, true}, {true, false}, {true, true}};

/* The driver wants no call, or none before a place that is far away. */
static void say_awake(struct rig *rig, const struct ring *ring)
{
    if (ring->packed)
        put32(rig, RIG_AVAIL, 1u << 16);
    else if (ring->event_idx)
        put16(rig, RIG_AVAIL + 4 + 2 * 64, NEVER_MINE);
    else
        put16(rig, RIG_AVAIL, 1);
}

/* It wants one for what comes behind *seen* requests. */
static void say_asleep(struct rig *rig, const struct ring *ring, uint16_t seen)
{
    if (ring->packed)
        put32(rig, RIG_AVAIL, ring->event_idx ? 2u << 16 | 0x8000u | 3u * seen : 0);
    else if (ring->event_idx)
        put16(rig, RIG_AVAIL + 4 + 2 * 64, seen);
    else
        put16(rig, RIG_AVAIL, 0);
}

/* So much later that a quiet ring was looked at again. */
static void pass_later(struct rig *rig)
{
    usleep(LATER_US);
    rig_pass(rig); /* by the clock of the pass before, perhaps */
    rig_pass(rig);
}

static void open_ring(struct rig *rig, const struct ring *ring, bool threaded)
{
    uint64_t features = (ring->packed ? RIG_PACKED : 0) | (ring->event_idx ? RIG_EVENT_IDX : 0);
    rig_open(rig, &(struct rig_config){.features = features, .threaded = threaded});
    while (calls(rig) == 0) /* the greeting */
        rig_pass(rig);
}

static void do_some(struct rig *rig, const struct ring *ring)
{
    say_awake(rig, ring);
    for (int i = 0; i < REQUESTS; i++)
        CHECK_EQ(do_request(rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    CHECK_EQ(calls(rig), 0);
}

static void test_who_sleeps_unheard_is_called_once(void)
{
    for (size_t i = 0; i < 4; i++) {
        struct rig rig;
        open_ring(&rig, &rings[i], false);
        do_some(&rig, &rings[i]);
        say_asleep(&rig, &rings[i], REQUESTS - 1);
        pass_later(&rig);
        CHECK_EQ(calls(&rig), 1);
        CHECK_EQ(RIG_COUNT(&rig, late_calls), 1);
        pass_later(&rig);
        CHECK_EQ(calls(&rig), 0);
        rig_close(&rig);
    }
}

/* Who has seen everything is left alone, where the ring says what the driver has seen. */
static void test_who_is_up_to_date_is_not_called(void)
{
    for (size_t i = 0; i < 4; i++) {
        if (!rings[i].event_idx)
            continue;
        struct rig rig;
        open_ring(&rig, &rings[i], false);
        do_some(&rig, &rings[i]);
        say_asleep(&rig, &rings[i], REQUESTS);
        pass_later(&rig);
        CHECK_EQ(calls(&rig), 0);
        CHECK_EQ(RIG_COUNT(&rig, late_calls), 0);
        rig_close(&rig);
    }
}

/* A worker that sleeps wakes for it, without a kick. */
static void test_a_sleeping_worker_looks_again(void)
{
    for (size_t i = 0; i < 4; i++) {
        if (!rings[i].event_idx)
            continue;
        struct rig rig;
        open_ring(&rig, &rings[i], true);
        say_asleep(&rig, &rings[i], 0); /* no call is due but for the first; all are in the lap */
        for (int n = 0; n < REQUESTS; n++)
            CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
        int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
        while (RIG_COUNT(&rig, late_calls) == 0 && rig_now_ms() < end)
            usleep(500);
        CHECK(RIG_COUNT(&rig, late_calls) > 0);
        rig_close(&rig);
    }
}

/* Where the device says which kicks it wants. */
static uint32_t event_of(const struct ring *ring)
{
    return RIG_USED + (!ring->packed && ring->event_idx ? 4 + 8 * 64 : 0);
}

static uint64_t passes(struct rig *rig)
{
    struct vhb_worker_counters counters;
    CHECK_EQ(vhb_worker_counters(rig->worker, &counters), 0);
    return counters.passes;
}

/* Whoever stores a request while kicks are asked for anew may see the word as it was before, and
 * not be seen: the worker comes back, though nothing was given back and nobody has kicked. */
static void test_who_asks_for_kicks_looks_again(void)
{
    for (size_t i = 0; i < 4; i++) {
        const struct ring *ring = &rings[i];
        uint32_t at = event_of(ring), never = ring->packed ? 1u << 16 : ring->event_idx ? 9999 : 1;
        uint64_t features = (ring->packed ? RIG_PACKED : 0) | (ring->event_idx ? RIG_EVENT_IDX : 0);
        struct rig rig;
        rig_open(&rig,
                 &(struct rig_config){.features = features, .threaded = true, .stopped = true});
        put32(&rig, at, never);
        rig_run(&rig);
        int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
        while (get32(&rig, at) == never)
            CHECK(rig_now_ms() < end);
        for (uint64_t before = passes(&rig); passes(&rig) == before; usleep(500))
            CHECK(rig_now_ms() < end);
        rig_close(&rig);
    }
}

/* Behind a drain the memory may go: nothing that is asked for later looks there. */
static void test_a_drained_ring_is_not_looked_at(void)
{
    for (size_t i = 0; i < 4; i++) {
        struct rig rig;
        open_ring(&rig, &rings[i], false);
        do_some(&rig, &rings[i]);
        rig_drain(&rig);
        CHECK_EQ(mprotect(rig.ram, RIG_RAM, PROT_NONE), 0);
        usleep(LATER_US);
        rig_drain(&rig);
        rig_close(&rig);
    }
}

/* Whoever serves the ring next may not know that it wanted no kicks for a while. */
static void test_a_drained_ring_asks_for_kicks(void)
{
    for (size_t i = 0; i < 4; i++) {
        const struct ring *ring = &rings[i];
        struct rig rig;
        open_ring(&rig, ring, false);
        do_some(&rig, ring);
        rig_pass(&rig); /* it has looked for more */
        uint32_t asks = get32(&rig, event_of(ring));
        vhb_queue_quiet(rig.queue);
        CHECK((get32(&rig, event_of(ring)) == asks) == (ring->event_idx && !ring->packed));
        rig_drain(&rig);
        CHECK_EQ(get32(&rig, event_of(ring)), asks);
        rig_close(&rig);
    }
}

CHECK_MAIN(TEST(who_sleeps_unheard_is_called_once), TEST(who_is_up_to_date_is_not_called),
           TEST(a_sleeping_worker_looks_again), TEST(who_asks_for_kicks_looks_again),
           TEST(a_drained_ring_is_not_looked_at), TEST(a_drained_ring_asks_for_kicks))
