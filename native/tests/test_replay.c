/* test_replay.c - what a predecessor had taken and not given back is taken again, first and in its
 * order, whatever happens meanwhile. */
#include "tracked.h"

/* These chains are taken, in this order, and each is given back. */
static void expect_in_turn(struct tracked *t, int n, const uint16_t *heads)
{
    for (int i = 0; i < n; i++) {
        struct vhb_job job = expect_job(t, heads[i]);
        finish_and_take(t, &job, heads[i]);
    }
}

/* All four are served, in their order. */
static void serve_all(struct tracked *t)
{
    expect_in_turn(t, 4, (const uint16_t[]){6, 0, 9, 3});
}

/* They are taken in the order of their counters, before whatever is new; the base counts them. */
static void test_predecessors_requests_are_taken_first(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    rig_run(&t.slow.rig);
    struct vhb_job jobs[4];
    static const uint16_t heads[] = {6, 0, 9, 3};
    for (int i = 0; i < 4; i++)
        jobs[i] = expect_job(&t, heads[i]);
    expect_no_job(&t);
    CHECK_EQ(counter_of(&t, 6), 70);
    CHECK_EQ(counter_of(&t, 3), 91);
    for (int i = 0; i < 4; i++)
        finish_and_take(&t, &jobs[i], heads[i]);
    rig_drain(&t.slow.rig);
    CHECK_EQ(rig_base(&t.slow.rig), 44);
    CHECK_EQ(region16(&t, USED_IDX), 44);
    for (uint32_t head = 0; head < SIZE; head++)
        CHECK(!is_in_flight(&t, head));
    close_tracked(&t);
}

/* Counters that are equal do not hide one another. */
static void test_equal_counters(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    leave(&t, 6, 7);
    leave(&t, 0, 7);
    leave(&t, 9, UINT64_MAX);
    rig_run(&t.slow.rig);
    expect_in_turn(&t, 4, (const uint16_t[]){0, 6, 9, 3});
    close_tracked(&t);
}

/* Died between the ring's index and the region's: the list says what the driver already has. */
static void test_last_batch_is_not_taken_again(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    region_put16(&t, USED_IDX, 38); /* 6 and 9 were given back as 38 and 39 */
    region_put16(&t, BATCH_HEAD, 9);
    region_put16(&t, state_at(9) + NEXT, 6);
    put_avail_idx(&t.slow.rig, 42);
    put16(&t.slow.rig, RIG_AVAIL + 4 + 2 * (40 % SIZE), 0);
    put16(&t.slow.rig, RIG_AVAIL + 4 + 2 * (41 % SIZE), 3);
    rig_run(&t.slow.rig);
    struct vhb_job job = expect_job(&t, 0);
    finish_and_take(&t, &job, 0);
    job = expect_job(&t, 3);
    finish_and_take(&t, &job, 3);
    expect_no_job(&t);
    rig_drain(&t.slow.rig);
    CHECK_EQ(rig_base(&t.slow.rig), 42);
    close_tracked(&t);
}

/* libvhost-user and DPDK note one head at a time and no list; where they made the region behind a
 * migration they did not set used_idx either, and all is in flight that says so (spdk#3766). */
static void test_region_whose_index_nobody_set(void)
{
    static const uint16_t used_idx[] = {0, 37}; /* further off than the ring is long; a loop */
    for (int i = 0; i < 2; i++) {
        struct tracked t;
        open_tracked(&t);
        leave_three(&t);
        region_put16(&t, USED_IDX, used_idx[i]);
        region_put16(&t, BATCH_HEAD, 0);
        rig_run(&t.slow.rig);
        serve_all(&t);
        CHECK_EQ(region16(&t, USED_IDX), 44);
        close_tracked(&t);
    }
}

/* A driver may take a smaller ring than the front-end made the region for. */
static void test_region_for_more_descriptors(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    leave(&t, SIZE, 1); /* of no head of this ring */
    region_put16(&t, DESC_NUM, 2 * SIZE);
    CHECK_EQ(vhb_queue_set_inflight(t.slow.rig.queue, t.region, 4096, 2 * SIZE), 0);
    rig_run(&t.slow.rig);
    serve_all(&t);
    close_tracked(&t);
}

/* ---- in the middle --------------------------------------------------------------------- */

/* A chain that misses waits, like any other, and those behind it with it. */
static void test_miss_in_the_middle(void)
{
    struct tracked t;
    open_tracked(&t);
    struct rig *rig = &t.slow.rig;
    leave_three(&t);
    CHECK_EQ(vhb_queue_set_ask(rig->queue, true), 0);
    struct vhb_segment seg = {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig->ram, .access = 3};
    CHECK_EQ(vhb_queue_set_space(rig->queue, &seg, 1), 0);
    rig_run(rig);
    rig_wait(rig, VHB_MISS);
    struct vhb_miss miss;
    CHECK_EQ(vhb_queue_miss(rig->queue, &miss), 1);
    CHECK_EQ(miss.iova, rig_at(RIG_DATA + 512 * 6));
    rig_park(rig);
    CHECK_EQ(rig_base(rig), 43);
    rig_space(rig);
    rig_run(rig);
    serve_all(&t);
    close_tracked(&t);
}

/* A drain behind a miss ends with what is left in the region, and the base says it was taken: who
 * begins anew finds it there. */
static void test_drain_behind_a_miss_leaves_the_rest(void)
{
    struct tracked t;
    open_tracked(&t);
    struct rig *rig = &t.slow.rig;
    leave_three(&t);
    CHECK_EQ(vhb_queue_set_ask(rig->queue, true), 0);
    struct vhb_segment seg = {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig->ram, .access = 3};
    CHECK_EQ(vhb_queue_set_space(rig->queue, &seg, 1), 0);
    rig_run(rig);
    rig_wait(rig, VHB_MISS);
    rig_drain(rig);
    CHECK_EQ(rig_base(rig), 43);
    CHECK(is_in_flight(&t, 6) && is_in_flight(&t, 0) && is_in_flight(&t, 9));
    rig_space(rig);
    CHECK_EQ(vhb_queue_set_base(rig->queue, 43), 0);
    rig_run(rig);
    serve_all(&t);
    close_tracked(&t);
}

/* A drain takes what is in flight and nothing new, also where the front-end has disabled the ring
 * before it asks for the base: a guest that migrates leaves its region behind. */
static void test_drain_takes_what_is_left(void)
{
    for (int enabled = 0; enabled < 2; enabled++) {
        struct tracked t;
        open_tracked(&t);
        struct rig *rig = &t.slow.rig;
        leave_three(&t);
        CHECK_EQ(vhb_queue_set_enabled(rig->queue, false), 0);
        rig_run(rig);
        expect_no_job(&t);
        rig_park(rig);
        CHECK_EQ(rig_base(rig), 43);
        CHECK_EQ(vhb_queue_set_enabled(rig->queue, enabled), 0);
        CHECK_EQ(vhb_queue_drain(rig->queue), 0);
        expect_in_turn(&t, 3, (const uint16_t[]){6, 0, 9});
        rig_wait(rig, VHB_DRAINED);
        expect_no_job(&t);
        CHECK_EQ(rig_base(rig), 43);
        close_tracked(&t);
    }
}

/* Where no request may be taken for a moment, as samples of the first wait to be read, a drain
 * waits as well: what it left in the region would be lost with it. */
static void test_drain_waits_for_room(void)
{
    enum { TABLE = 0x200000, ENTRIES = VHB_SAMPLES / 2 + 2 };
    struct tracked t;
    struct vhb_sample samples[512];
    open_tracked(&t);
    struct rig *rig = &t.slow.rig;
    CHECK_EQ(vhb_queue_set_features(rig->queue, RIG_INDIRECT), 0);
    CHECK_EQ(vhb_queue_set_sampling(rig->queue, 9, 0), 0);
    leave_three(&t);
    put_desc(rig, RIG_DESC, 6, rig_at(TABLE), 16 * ENTRIES, DESC_INDIRECT, 0);
    for (uint16_t i = 0; i < ENTRIES; i++) /* more pieces than a request may have: it fails */
        put_desc(rig, TABLE, i, rig_at(RIG_DATA), 512,
                 (uint16_t)(DESC_WRITE | (i + 1 < ENTRIES ? DESC_NEXT : 0)), (uint16_t)(i + 1));
    rig_run(rig);
    CHECK_EQ(vhb_queue_drain(rig->queue), 0);
    wait_used(rig);
    CHECK_EQ(rig->last_id, 6);
    expect_no_job(&t);
    CHECK(!(vhb_queue_take_events(rig->queue) & VHB_DRAINED));
    while (vhb_queue_take_samples(rig->queue, samples, 512))
        ;
    expect_in_turn(&t, 2, (const uint16_t[]){0, 9});
    rig_wait(rig, VHB_DRAINED);
    CHECK_EQ(rig_base(rig), 43);
    close_tracked(&t);
}

/* A ring that was never looked at has nothing to take: it says the base it was given. */
static void test_drain_of_a_ring_that_never_ran(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    rig_drain(&t.slow.rig);
    CHECK_EQ(rig_base(&t.slow.rig), 40);
    expect_no_job(&t);
    close_tracked(&t);
}

/* A cancelled drain takes no more; what it has not taken is still in flight for who comes after. */
static void test_cancelled_drain_leaves_the_rest(void)
{
    struct tracked t;
    open_tracked(&t);
    struct rig *rig = &t.slow.rig;
    leave_region(&t, 0);
    for (uint16_t i = 0; i < SIZE / 3; i++) {
        offer(&t, (uint16_t)(3 * i));
        leave(&t, 3u * i, i);
    }
    /* The first ends at once, and so the visit. */
    put_request(rig, 0, BLK_GET_ID, 0, RIG_DATA, 20);
    CHECK_EQ(vhb_queue_set_base(rig->queue, 0), 0);
    rig_run(rig);
    rig_pass(rig);
    rig_cancel(rig);
    uint32_t given = 0, left = 0;
    while (take_used(rig))
        given++;
    for (uint32_t head = 0; head < SIZE; head++)
        left += is_in_flight(&t, head);
    CHECK_EQ(given, 1);
    CHECK_EQ(given + left, SIZE / 3);
    CHECK_EQ(rig_base(rig), SIZE / 3);
    struct vhb_job job;
    while (vhb_mailbox_take(t.slow.box, &job, 1))
        if (job.op != VHB_CANCEL)
            finish(&t.slow, &job);
    CHECK_EQ(vhb_queue_set_base(rig->queue, (uint16_t)(SIZE / 3)), 0);
    rig_run(rig);
    for (uint32_t i = 0; i < left; i++) {
        job = expect_job(&t, 3 * (given + i));
        finish_and_take(&t, &job, 3 * (given + i));
    }
    close_tracked(&t);
}

/* A chain without a status goes back with length 0, like any other. */
static void test_chain_without_a_status(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    put_desc(&t.slow.rig, RIG_DESC, 6, rig_at(RIG_HEADERS), 16, 0, 0);
    rig_run(&t.slow.rig);
    wait_used(&t.slow.rig);
    CHECK_EQ(t.slow.rig.last_id, 6);
    CHECK_EQ(t.slow.rig.last_len, 0);
    CHECK(!is_in_flight(&t, 6) && is_in_flight(&t, 0));
    expect_in_turn(&t, 3, (const uint16_t[]){0, 9, 3});
    close_tracked(&t);
}

/* One that leads nowhere breaks the queue, and is in flight for ever. */
static void test_chain_that_leads_nowhere(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    put_desc(&t.slow.rig, RIG_DESC, 6, rig_at(RIG_HEADERS), 16, DESC_NEXT, SIZE);
    rig_run(&t.slow.rig);
    struct vhb_fault fault = rig_broken(&t.slow.rig);
    CHECK_EQ(fault.reason, VHB_NEXT);
    CHECK_EQ(fault.value, SIZE);
    CHECK(is_in_flight(&t, 6));
    CHECK_EQ(region16(&t, USED_IDX), 40);
    rig_drain(&t.slow.rig);
    CHECK_EQ(rig_base(&t.slow.rig), 43);
    close_tracked(&t);
}

CHECK_MAIN(TEST(predecessors_requests_are_taken_first), TEST(equal_counters),
           TEST(last_batch_is_not_taken_again), TEST(region_whose_index_nobody_set),
           TEST(region_for_more_descriptors), TEST(miss_in_the_middle),
           TEST(drain_behind_a_miss_leaves_the_rest), TEST(drain_takes_what_is_left),
           TEST(drain_waits_for_room), TEST(drain_of_a_ring_that_never_ran),
           TEST(cancelled_drain_leaves_the_rest), TEST(chain_without_a_status),
           TEST(chain_that_leads_nowhere))
