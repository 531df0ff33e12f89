/* test_polling.c - when a worker looks on and when it sleeps, by a clock that the test moves. */
#include <errno.h>

#include "check.h"
#include "polling.h"

enum { US = 1000, CAP_US = 50, SPIN_STEP = 100 };

static uint64_t now;

static struct vhb_poll made(uint32_t mode, uint32_t us)
{
    struct vhb_poll p;
    now = 1000 * US;
    CHECK_EQ(vhb_poll_init(&p, mode, us), 0);
    vhb_poll_restart(&p, now);
    return p;
}

/* The worker is left alone until a request comes, *gap* ns behind the last; how long it looked on.
 * A sleep takes *wake* ns longer. */
static uint64_t request_after(struct vhb_poll *p, uint64_t gap, uint64_t wake)
{
    uint64_t before = p->counters.polled_ns, at = now + gap;
    bool awake = true;
    for (; now < at && awake; now += SPIN_STEP)
        awake = vhb_poll_goes_on(p, now);
    if (awake) {
        now = at;
        vhb_poll_hit(p, now, now);
    } else {
        now = at + wake;
        vhb_poll_woken(p, now, now);
    }
    return p->counters.polled_ns - before;
}

static void test_fixed_is_fixed(void)
{
    struct vhb_poll p = made(VHB_POLL_FIXED, CAP_US);
    for (int i = 0; i < 10; i++) {
        CHECK_EQ(request_after(&p, 49 * US, 0), 49 * US);
        CHECK_EQ(request_after(&p, 1000 * US, 0), 50 * US);
    }
    CHECK_EQ(p.counters.window_us, CAP_US);
    CHECK_EQ(p.counters.polls_hit, 10);
    CHECK_EQ(p.counters.polls_missed, 10);
    CHECK_EQ(p.counters.polled_ns, 10 * (49 + 50) * US);
}

static void test_none_never_looks(void)
{
    struct vhb_poll p = made(VHB_POLL_FIXED, 0);
    CHECK(!vhb_poll_goes_on(&p, now));
    CHECK_EQ(request_after(&p, SPIN_STEP, 0), 0);
    CHECK_EQ(p.counters.polls_missed, 0);
}

static void test_always_never_sleeps(void)
{
    struct vhb_poll p = made(VHB_POLL_ALWAYS, 0);
    CHECK(vhb_poll_goes_on(&p, now + (1ull << 50)));
    CHECK_EQ(p.counters.window_us, UINT64_MAX);
    CHECK_EQ(p.counters.polls_missed, 0);
}

static void test_a_mode_that_is_none(void)
{
    struct vhb_poll p;
    CHECK_EQ(vhb_poll_init(&p, VHB_POLL_ALWAYS + 1, 0), -EINVAL);
}

/* Back to back: what follows at once is no hit, as nobody looked on. */
static void test_work_without_a_gap_is_no_hit(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    for (int i = 0; i < 100; i++, now += US)
        vhb_poll_hit(&p, now, now);
    CHECK_EQ(p.counters.polls_hit, 0);
    CHECK_EQ(p.counters.polled_ns, 0);
}

/* A driver that sleeps for its answer and asks again in time is met each time. */
static void test_auto_stays_while_it_pays(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    for (int i = 0; i < 1000; i++)
        CHECK_EQ(request_after(&p, 20 * US, 0), 20 * US);
    CHECK_EQ(p.counters.polls_hit, 1000);
    CHECK_EQ(p.counters.window_us, CAP_US);
}

/* Bursts, far apart: each end costs less looking on than the one before, down to what the gaps in
 * a burst need. */
static void test_auto_shrinks_to_what_bursts_need(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    uint64_t hits = 0;
    for (int burst = 0; burst < 20; burst++, hits = p.counters.polls_hit) {
        for (int i = 0; i < 8; i++)
            request_after(&p, 8 * US, 0);
        CHECK_EQ(p.counters.polls_hit - hits, 8);
        request_after(&p, 5000 * US, 0);
    }
    CHECK(p.counters.window_us >= 6 && p.counters.window_us < 16);
}

/* And grows again when gaps do. */
static void test_auto_grows_when_hits_come_late(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    for (int burst = 0; burst < 5; burst++) {
        request_after(&p, 3 * US, 0);
        request_after(&p, 5000 * US, 0);
    }
    CHECK(p.counters.window_us && p.counters.window_us < 10);
    for (uint64_t gap = 3; gap < 49; gap++)
        CHECK_EQ(request_after(&p, gap * US, 0), gap * US);
    CHECK_EQ(p.counters.window_us, CAP_US);
}

/* Requests each of which comes too late to be met cost next to nothing, however near they are. */
static void test_a_trickle_costs_nothing(void)
{
    static const uint64_t gaps_us[] = {60, 100, 199, 201, 1000, 100000};
    for (size_t i = 0; i < sizeof(gaps_us) / sizeof(gaps_us[0]); i++) {
        struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
        for (int n = 0; n < 300; n++) /* what it takes to learn */
            request_after(&p, gaps_us[i] * US, 0);
        uint64_t before = p.counters.polled_ns;
        for (int n = 0; n < 1300; n++)
            request_after(&p, gaps_us[i] * US, 0);
        CHECK(p.counters.polled_ns - before <= 1300 * US);
        CHECK_EQ(p.counters.polls_hit, 0);
    }
}

/* Both sides sleep for each other, 80 us for a round: one try is enough to end that. */
static void test_a_round_of_sleeps_is_ended(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    request_after(&p, 5000 * US, 40 * US);
    CHECK_EQ(p.counters.window_us, 0);
    for (int i = 0; i < 3; i++)
        request_after(&p, 40 * US, 40 * US); /* the first is met asleep, the others awake */
    CHECK_EQ(p.counters.polls_hit, 2);
    CHECK_EQ(p.counters.window_us, CAP_US);
}

/* So it is behind a long trickle, a little later. */
static void test_tries_go_on_behind_a_trickle(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    for (int n = 0; n < 1000; n++)
        request_after(&p, 150 * US, 40 * US);
    uint64_t hits = p.counters.polls_hit;
    for (int n = 0; n < 100; n++)
        request_after(&p, 40 * US, 40 * US);
    CHECK(p.counters.polls_hit - hits >= 30);
}

/* A sleep for the disk is neither a miss nor a hit. */
static void test_waiting_for_the_disk_says_nothing(void)
{
    struct vhb_poll p = made(VHB_POLL_AUTO, CAP_US);
    for (int i = 0; i < 100; i++) {
        vhb_poll_hit(&p, now, now);
        now += 100 * US;
        vhb_poll_restart(&p, now);
    }
    CHECK_EQ(p.counters.window_us, CAP_US);
    CHECK_EQ(p.counters.polls_missed, 0);
    CHECK_EQ(p.counters.polled_ns, 0);
}

/* What a pass takes to serve a request is no time in which it looked on. */
static void test_serving_is_no_looking(void)
{
    struct vhb_poll p = made(VHB_POLL_FIXED, CAP_US);
    CHECK(vhb_poll_goes_on(&p, now));
    vhb_poll_hit(&p, now + US, now + 1000 * US);
    CHECK_EQ(p.counters.polled_ns, US);
    CHECK(vhb_poll_goes_on(&p, now + 1049 * US));
    CHECK(!vhb_poll_goes_on(&p, now + 1050 * US));
}

CHECK_MAIN(TEST(fixed_is_fixed), TEST(none_never_looks), TEST(always_never_sleeps),
           TEST(a_mode_that_is_none), TEST(work_without_a_gap_is_no_hit),
           TEST(auto_stays_while_it_pays), TEST(auto_shrinks_to_what_bursts_need),
           TEST(auto_grows_when_hits_come_late), TEST(a_trickle_costs_nothing),
           TEST(a_round_of_sleeps_is_ended), TEST(tries_go_on_behind_a_trickle),
           TEST(waiting_for_the_disk_says_nothing), TEST(serving_is_no_looking))
