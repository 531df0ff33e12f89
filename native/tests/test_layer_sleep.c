/* test_layer_sleep.c - a worker that sleeps, polls, or has many queues that rest, while a layer
 * holds requests: each goes on in time, and nobody spins until then. */
#include "layer_rig.h"

enum { MANY = 24, SECTOR = 512 };
#define MS 1000000ull

static struct rig rigs[MANY];
static struct stack stack;
static struct vhb_disk *disk;

static void open_all(uint32_t n, struct vhb_worker *worker)
{
    CHECK_EQ(vhb_disk_null_new(false, &disk), 0);
    struct vhb_disk *top = make_stack(&stack, 1, disk);
    stack.mute = true;
    struct rig_config config = {.disk = top, .worker = worker, .threaded = true};
    for (uint32_t i = 0; i < n; i++) {
        rig_open(&rigs[i], &config);
        config.worker = rigs[0].worker;
    }
}

static void close_all(uint32_t n)
{
    while (n--)
        rig_close(&rigs[n]);
    free_stack(&stack);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

static uint64_t passes(void)
{
    struct vhb_worker_counters counters;
    CHECK_EQ(vhb_worker_counters(rigs[0].worker, &counters), 0);
    return counters.passes;
}

static int64_t ask(struct rig *rig)
{
    int64_t from = rig_now_ms();
    uint16_t old = rig->avail_idx;
    put_request(rig, 0, BLK_IN, 0, RIG_DATA, SECTOR);
    put_avail(rig, 0);
    if (rig_wants_kick(rig, old))
        rig_kick(rig);
    wait_used(rig);
    CHECK_EQ(status_of(rig, 0), BLK_OK);
    return rig_now_ms() - from;
}

/* Nothing else ends the sleep, and the sleep is one. */
static void test_a_sleep_ends_in_time(void)
{
    open_all(1, NULL);
    ask(&rigs[0]);
    store_relaxed(&stack.layers[0].hold_ns, 40 * MS);
    uint64_t before = passes();
    CHECK(ask(&rigs[0]) >= 39);
    CHECK(passes() - before < 200);
    for (uint32_t i = 1; i < 20; i++) {
        store_relaxed(&stack.layers[0].hold_ns, i * MS / 10);
        ask(&rigs[0]);
    }
    close_all(1);
}

/* A queue with a held request does not rest, whatever the others do; each has its time. */
static void test_among_queues_that_rest(void)
{
    open_all(MANY, NULL);
    store_relaxed(&stack.layers[0].hold_ns, 0ull);
    for (uint32_t i = 0; i < MANY; i++)
        ask(&rigs[i]);
    store_relaxed(&stack.layers[0].hold_ns, 3 * MS);
    for (uint32_t i = 0; i < MANY; i++)
        CHECK(ask(&rigs[i]) >= 2);
    for (uint32_t i = 0; i < MANY; i++) { /* all at once */
        put_request(&rigs[i], 0, BLK_IN, 0, RIG_DATA, SECTOR);
        put_avail(&rigs[i], 0);
        rig_kick(&rigs[i]);
    }
    for (uint32_t i = 0; i < MANY; i++)
        wait_used(&rigs[i]);
    close_all(MANY);
}

CHECK_MAIN(TEST(a_sleep_ends_in_time), TEST(among_queues_that_rest))
