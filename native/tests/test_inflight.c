/* test_inflight.c - the inflight region of a split ring: what is written there, and regions that
 * nobody honest left.
 *
 * What is made of an honest one is test_replay.c's; dying in the middle test_crash.c's. */
#include <unistd.h>

#include "tracked.h"

/* ---- what is written ------------------------------------------------------------------- */

/* A region that nobody has written to begins at the ring's used index, whatever else is in it. */
static void test_new_region_begins_where_the_ring_is(void)
{
    struct tracked t;
    open_tracked(&t);
    struct rig *rig = &t.slow.rig;
    memset(t.region + STATES, 0xa5, REGION - STATES);
    put16(rig, RIG_USED + 2, 300);
    rig->used_seen = 300;
    put_avail_idx(rig, 300);
    CHECK_EQ(vhb_queue_set_base(rig->queue, 300), 0);
    rig_run(rig);
    settle(rig);
    CHECK_EQ(region16(&t, VERSION), 1);
    CHECK_EQ(region16(&t, DESC_NUM), SIZE);
    CHECK_EQ(region16(&t, USED_IDX), 300);
    for (uint32_t i = STATES; i < REGION; i++)
        CHECK_EQ(t.region[i], 0);
    offer(&t, 3);
    rig_kick(rig);
    struct vhb_job job = expect_job(&t, 3);
    finish_and_take(&t, &job, 3);
    CHECK_EQ(region16(&t, USED_IDX), 301);
    close_tracked(&t);
}

/* What is with the disk is in flight, numbered as it was taken; what is given back is not. */
static void test_requests_are_in_flight_until_given_back(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    struct vhb_job first = start(&t.slow, 6, BLK_IN, 6), second = start(&t.slow, 0, BLK_IN, 0);
    CHECK(is_in_flight(&t, 6) && is_in_flight(&t, 0) && !is_in_flight(&t, 3));
    CHECK_EQ(counter_of(&t, 0), counter_of(&t, 6) + 1);
    finish_and_take(&t, &second, 0);
    CHECK(is_in_flight(&t, 6) && !is_in_flight(&t, 0));
    CHECK_EQ(region16(&t, USED_IDX), 1);
    CHECK_EQ(region16(&t, BATCH_HEAD), 0);
    finish_and_take(&t, &first, 6);
    CHECK(!is_in_flight(&t, 6));
    CHECK_EQ(region16(&t, USED_IDX), 2);
    CHECK_EQ(region16(&t, BATCH_HEAD), 6);
    close_tracked(&t);
}

/* Those that are given back together are a list, the last one first. */
static void test_batch_is_a_list(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    struct vhb_job jobs[3];
    for (uint16_t i = 0; i < 3; i++)
        jobs[i] = start(&t.slow, (uint16_t)(3 * i), BLK_IN, 3 * i);
    for (int i = 2; i >= 0; i--)
        finish(&t.slow, &jobs[i]);
    settle(&t.slow.rig);
    CHECK(take_used(&t.slow.rig) && take_used(&t.slow.rig) && take_used(&t.slow.rig));
    CHECK_EQ(region16(&t, BATCH_HEAD), 0);
    CHECK_EQ(region16(&t, state_at(0) + NEXT), 3);
    CHECK_EQ(region16(&t, state_at(3) + NEXT), 6);
    CHECK_EQ(region16(&t, USED_IDX), 3);
    close_tracked(&t);
}

/* A request that is cancelled is given back as an error, and not in flight any more. */
static void test_cancelled_request_is_not_in_flight(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    struct vhb_job job = start(&t.slow, 3, BLK_IN, 3);
    rig_cancel(&t.slow.rig);
    CHECK(take_used(&t.slow.rig));
    CHECK_EQ(status_of(&t.slow.rig, 3), BLK_IOERR);
    CHECK(!is_in_flight(&t, 3));
    CHECK_EQ(region16(&t, USED_IDX), 1);
    take_cancel(&t.slow, &job);
    finish(&t.slow, &job);
    close_tracked(&t);
}

/* Nothing more is written once it is taken away, whatever is under way. */
static void test_region_that_is_taken_away_is_left_alone(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    struct vhb_job job = start(&t.slow, 3, BLK_IN, 3);
    rig_park(&t.slow.rig);
    CHECK_EQ(vhb_queue_set_inflight(t.slow.rig.queue, NULL, 0, 0), 0);
    CHECK_EQ(mprotect(t.region, 4096, PROT_NONE), 0);
    rig_run(&t.slow.rig);
    finish_and_take(&t, &job, 3);
    job = start(&t.slow, 6, BLK_IN, 6);
    finish_and_take(&t, &job, 6);
    close_tracked(&t);
}

/* ---- what nobody honest left ----------------------------------------------------------- */

static struct vhb_fault broken_by(struct tracked *t)
{
    rig_run(&t->slow.rig);
    struct vhb_fault fault = rig_broken(&t->slow.rig);
    CHECK_EQ(fault.reason, VHB_INFLIGHT);
    expect_no_job(t);
    CHECK(!take_used(&t->slow.rig));
    return fault;
}

static void test_malformed_regions_break_the_queue(void)
{
    static const struct {
        size_t at;
        uint16_t value, index;
    } cases[] = {
        {FEATURES, 1, IN_HEADER},        {VERSION, 2, IN_HEADER},
        {DESC_NUM, SIZE + 1, IN_HEADER}, {DESC_NUM, 0, IN_HEADER},
        {BATCH_HEAD, SIZE, IN_HEADER},   {STATES + 9 * STATE + NEXT, 0xffff, 9},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tracked t;
        open_tracked(&t);
        leave_three(&t);
        region_put16(&t, USED_IDX, 38);
        region_put16(&t, BATCH_HEAD, 9);
        region_put16(&t, state_at(9) + NEXT, 6);
        region_put16(&t, cases[i].at, cases[i].value);
        struct vhb_fault fault = broken_by(&t);
        CHECK_EQ(fault.index, cases[i].index);
        CHECK_EQ(fault.value, cases[i].value);
        close_tracked(&t);
    }
}

/* More in flight than the driver has made available: nothing is taken of a ring that this region is
 * not about. */
static void test_more_in_flight_than_available(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_three(&t);
    put_avail_idx(&t.slow.rig, 42);
    struct vhb_fault fault = broken_by(&t);
    CHECK_EQ(fault.index, IN_HEADER);
    CHECK_EQ(fault.value, 3);
    close_tracked(&t);
}

static void test_impossible_regions_are_refused(void)
{
    struct tracked t;
    open_tracked(&t);
    struct vhb_queue *q = t.slow.rig.queue;
    CHECK_EQ(vhb_queue_set_inflight(q, t.region + 4, REGION, SIZE), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION, 0), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, UINT64_MAX, 1 << 16), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION - 1, SIZE), 0);
    CHECK_EQ(vhb_queue_run(q), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION, SIZE - 1), 0);
    CHECK_EQ(vhb_queue_run(q), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, 0, 0), -EINVAL);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION, SIZE), 0);
    CHECK_EQ(vhb_queue_run(q), 0);
    CHECK_EQ(vhb_queue_set_inflight(q, NULL, 0, 0), -EBUSY);
    close_tracked(&t);
}

/* With requests in flight neither the region can change nor the ring begin anew: they would be
 * noted nowhere, or taken for a predecessor's. */
static void test_what_is_in_flight_keeps_its_region(void)
{
    struct tracked t;
    open_tracked(&t);
    struct vhb_queue *q = t.slow.rig.queue;
    rig_run(&t.slow.rig);
    struct vhb_job job = start(&t.slow, 3, BLK_IN, 3);
    rig_park(&t.slow.rig);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION, SIZE), 0); /* the same */
    CHECK_EQ(vhb_queue_set_inflight(q, t.region + 1024, REGION, SIZE), -EBUSY);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region, REGION, SIZE - 1), -EBUSY);
    CHECK_EQ(vhb_queue_set_base(q, 0), -EBUSY);
    rig_run(&t.slow.rig);
    finish_and_take(&t, &job, 3);
    rig_drain(&t.slow.rig);
    CHECK_EQ(vhb_queue_set_inflight(q, t.region + 1024, REGION, SIZE), 0);
    CHECK_EQ(vhb_queue_set_base(q, 1), 0);
    rig_run(&t.slow.rig);
    settle(&t.slow.rig);
    CHECK_EQ(region16(&t, 1024 + USED_IDX), 1);
    close_tracked(&t);
}

/* ---- memory that vanishes -------------------------------------------------------------- */

/* A region that is gone can keep no promise: the queue stops, the process does not. */
static void test_region_that_vanishes(void)
{
    for (int running = 0; running < 2; running++) {
        struct tracked t;
        open_tracked(&t);
        struct rig *rig = &t.slow.rig;
        int fd = memfd_create("region", MFD_CLOEXEC);
        CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
        uint8_t *host = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(host != MAP_FAILED);
        CHECK_EQ(vhb_fault_install(), 0);
        int slot = vhb_fault_watch(host, 4096, 4096);
        CHECK(slot >= 0);
        CHECK_EQ(vhb_queue_set_inflight(rig->queue, host, 4096, SIZE), 0);
        if (running) {
            rig_run(rig);
            struct vhb_job job = start(&t.slow, 3, BLK_IN, 3);
            finish_and_take(&t, &job, 3);
        }
        CHECK_EQ(ftruncate(fd, 0), 0);
        offer(&t, 6);
        if (!running)
            rig_run(rig);
        rig_kick(rig);
        CHECK_EQ(rig_broken(rig).reason, VHB_MEMORY_GONE);
        CHECK_EQ(vhb_fault_count(slot), 1);
        struct vhb_job job;
        while (vhb_mailbox_take(t.slow.box, &job, 1))
            finish(&t.slow, &job);
        close_tracked(&t);
        CHECK_EQ(vhb_fault_unwatch(slot), 0);
        munmap(host, 4096);
        close(fd);
    }
}

/* The page holds the regions of two queues: the other one does not go on either. */
static void test_page_of_two_regions_that_vanishes(void)
{
    struct tracked t[2];
    int fd = memfd_create("region", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    uint8_t *host = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_fault_install(), 0);
    int slot = vhb_fault_watch(host, 4096, 4096);
    for (int i = 0; i < 2; i++) {
        open_tracked(&t[i]);
        CHECK_EQ(vhb_queue_set_inflight(t[i].slow.rig.queue, host + 1024 * i, 1024, SIZE), 0);
        rig_run(&t[i].slow.rig);
        settle(&t[i].slow.rig);
    }
    CHECK_EQ(ftruncate(fd, 0), 0);
    for (int i = 0; i < 2; i++) {
        offer(&t[i], 6);
        rig_kick(&t[i].slow.rig);
        CHECK_EQ(rig_broken(&t[i].slow.rig).reason, VHB_MEMORY_GONE);
    }
    CHECK(!take_used(&t[1].slow.rig)); /* it took nothing any more */
    for (int i = 0; i < 2; i++)
        close_tracked(&t[i]);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    munmap(host, 4096);
    close(fd);
}

/* A queue that was reset and has another size: nothing was in flight, its region begins anew. */
static void test_reset_queue_may_have_another_size(void)
{
    struct tracked t;
    struct rig *rig = &t.slow.rig;
    open_tracked(&t);
    rig_run(rig);
    struct vhb_job job = start(&t.slow, 3, BLK_IN, 3);
    finish_and_take(&t, &job, 3);
    rig_drain(rig);
    rig->config.size = SIZE / 2;
    rig_parts(rig);
    rig_begin(rig);
    CHECK_EQ(vhb_queue_set_inflight(rig->queue, t.region, REGION, SIZE), 0); /* as it was */
    rig_run(rig);
    job = start(&t.slow, 0, BLK_IN, 0);
    CHECK(is_in_flight(&t, 0));
    CHECK_EQ(region16(&t, USED_IDX), 0);
    finish_and_take(&t, &job, 0);
    CHECK_EQ(region16(&t, USED_IDX), 1);
    close_tracked(&t);
}

CHECK_MAIN(TEST(page_of_two_regions_that_vanishes), TEST(new_region_begins_where_the_ring_is),
           TEST(requests_are_in_flight_until_given_back), TEST(batch_is_a_list),
           TEST(cancelled_request_is_not_in_flight), TEST(region_that_is_taken_away_is_left_alone),
           TEST(malformed_regions_break_the_queue), TEST(more_in_flight_than_available),
           TEST(impossible_regions_are_refused), TEST(what_is_in_flight_keeps_its_region),
           TEST(region_that_vanishes), TEST(reset_queue_may_have_another_size))
