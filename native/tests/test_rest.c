/* test_rest.c - a worker of many queues visits those that have something to do, and misses nothing
 * of the others. */
#include "rig.h"

enum { MANY = 24, FEW = 8, ROUNDS = 60 };

static struct rig rigs[MANY];

static void open_all(uint32_t n)
{
    struct rig_config config = {.size = 64, .threaded = true};
    for (uint32_t i = 0; i < n; i++) {
        config.features = i % 2 ? RIG_EVENT_IDX : 0;
        rig_open(&rigs[i], &config);
        config.worker = rigs[0].worker; /* of all that follow */
    }
}

static void close_all(uint32_t n)
{
    while (n--)
        rig_close(&rigs[n]);
}

/* A request as a driver makes one, which kicks where it is told to. */
static void ask(struct rig *rig)
{
    uint16_t old = rig->avail_idx;
    put_request(rig, 0, BLK_FLUSH, 0, 0, 0);
    put_avail(rig, 0);
    if (rig_wants_kick(rig, old))
        rig_kick(rig);
    wait_used(rig);
    CHECK_EQ(status_of(rig, 0), BLK_OK);
}

/* Visits in a hundred passes while the first driver works and no other does. */
static uint64_t visits(uint32_t rounds)
{
    struct vhb_worker_counters before, after;
    CHECK_EQ(vhb_worker_counters(rigs[0].worker, &before), 0);
    for (uint32_t i = 0; i < rounds; i++)
        ask(&rigs[0]);
    CHECK_EQ(vhb_worker_counters(rigs[0].worker, &after), 0);
    return 100 * (after.visits - before.visits) / (after.passes - before.passes + 1);
}

static void wait_for_rest(void)
{
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    while (visits(ROUNDS) > 150) /* in a hundred passes: one each, and some more */
        CHECK(rig_now_ms() < end);
}

/* The busy one is visited, soon no other is; each that rests is there at its first kick. */
static void test_idle_queues_are_left_alone(void)
{
    open_all(MANY);
    for (uint32_t round = 0; round < 2; round++) {
        wait_for_rest();
        for (uint32_t i = 1; i < MANY; i++)
            ask(&rigs[i]);
    }
    for (uint32_t i = 1; i < MANY; i++)
        CHECK_EQ(RIG_COUNT(&rigs[i], flushes), 2);
    close_all(MANY);
}

/* What the control plane asks of a queue that rests is answered, and one that was changed serves.
 */
static void test_asked_while_resting(void)
{
    open_all(MANY);
    for (uint32_t i = 1; i < MANY; i += 5) {
        wait_for_rest();
        struct rig *rig = &rigs[i];
        uint64_t calls = RIG_COUNT(rig, calls);
        rig_park(rig);
        CHECK_EQ(vhb_queue_set_call(rig->queue, rig->call), 0); /* is told once: a visit */
        rig_run(rig);
        while (RIG_COUNT(rig, calls) == calls)
            rig_pass(rig);
        rig_drain(rig);
        wait_for_rest();
        rig_run(rig);
        ask(rig);
    }
    close_all(MANY);
}

/* Few queues are all visited: a kick would cost more. */
static void test_few_are_all_visited(void)
{
    open_all(FEW);
    for (int i = 0; i < 20; i++)
        CHECK(visits(ROUNDS) > 100 * (FEW - 1));
    close_all(FEW);
}

CHECK_MAIN(TEST(idle_queues_are_left_alone), TEST(asked_while_resting), TEST(few_are_all_visited))
