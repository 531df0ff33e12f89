/* test_inflight_packed.c - the inflight region of a packed ring: what is written there, and what
 * becomes of one that a predecessor left.
 *
 * Dying in the middle is test_crash.c's. */
#include "tracked_packed.h"

/* The next job at the disk is the request for *sector*; it is done, and *id* comes back. */
static void serve(struct tracked *t, uint64_t sector, uint32_t id)
{
    struct vhb_job job;
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    while (vhb_mailbox_take(t->slow.box, &job, 1) == 0) {
        CHECK(rig_now_ms() < end);
        rig_pass(&t->slow.rig);
    }
    CHECK_EQ(job.offset, 512 * sector);
    finish(&t->slow, &job);
    wait_used(&t->slow.rig);
    CHECK_EQ(t->slow.rig.last_id, id);
    CHECK_EQ(status_of(&t->slow.rig, id), BLK_OK);
}

static void check_all_free(struct tracked *t)
{
    uint64_t n = 0, i = get(t, FREE_HEAD, 2);
    CHECK_EQ(get(t, OLD_FREE_HEAD, 2), i);
    CHECK_EQ(get(t, OLD_USED_IDX, 2), get(t, USED_IDX, 2));
    CHECK_EQ(get(t, OLD_USED_WRAP, 1), get(t, USED_WRAP, 1));
    for (; i < SIZE; n++, i = get(t, state_at((uint32_t)i, NEXT), 2)) {
        CHECK(n < SIZE);
        CHECK_EQ(get(t, state_at((uint32_t)i, INFLIGHT), 1), 0);
    }
    CHECK_EQ(n, SIZE);
}

/* ---- what is written ------------------------------------------------------------------- */

/* A region that nobody has written to is a list of free entries, and begins where the base is. */
static void test_new_region_begins_at_the_base(void)
{
    struct tracked t;
    open_tracked(&t);
    memset(t.region + STATES, 0xa5, REGION - STATES);
    CHECK_EQ(vhb_queue_set_base(t.slow.rig.queue, 0x00030003), 0); /* on the second lap */
    rig_run(&t.slow.rig);
    settle(&t.slow.rig);
    CHECK_EQ(get(&t, VERSION, 2), 1);
    CHECK_EQ(get(&t, DESC_NUM, 2), SIZE);
    CHECK_EQ(get(&t, USED_IDX, 2), 3);
    CHECK_EQ(get(&t, USED_WRAP, 1), 0);
    for (uint32_t i = 0; i < SIZE; i++)
        CHECK_EQ(get(&t, state_at(i, NEXT), 2), i + 1);
    check_all_free(&t);
    close_tracked(&t);
}

/* What is taken is copied, chain behind chain; what goes back is in front of the free ones. */
static void test_chains_are_copied_until_given_back(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    struct vhb_job first = start(&t.slow, 3, BLK_IN, 8), second = start(&t.slow, 0, BLK_OUT, 16);
    static const uint32_t lens[] = {16, 512, 1}, flags[] = {1, 3, 2};
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(get(&t, state_at(i, LEN), 4), lens[i]);
        CHECK_EQ(get(&t, state_at(i, FLAGS), 2), flags[i] | PACKED_AVAIL);
    }
    CHECK_EQ(get(&t, state_at(1, ADDR), 8), rig_at(RIG_DATA + 512 * 3));
    CHECK_EQ(get(&t, state_at(2, ID), 2), 3);
    CHECK_EQ(get(&t, state_at(0, INFLIGHT), 1), 1);
    CHECK_EQ(get(&t, state_at(0, NUM), 2), 3);
    CHECK_EQ(get(&t, state_at(0, LAST), 2), 2);
    CHECK_EQ(get(&t, state_at(3, INFLIGHT), 1), 1);
    CHECK_EQ(get(&t, state_at(3, COUNTER), 8), get(&t, state_at(0, COUNTER), 8) + 1);
    CHECK_EQ(get(&t, OLD_FREE_HEAD, 2), 6);
    CHECK_EQ(get(&t, USED_IDX, 2), 0);
    finish(&t.slow, &second);
    wait_used(&t.slow.rig);
    CHECK_EQ(get(&t, state_at(3, INFLIGHT), 1), 0);
    CHECK_EQ(get(&t, OLD_FREE_HEAD, 2), 3);
    CHECK_EQ(get(&t, state_at(5, NEXT), 2), 6);
    CHECK_EQ(get(&t, OLD_USED_IDX, 2), 3);
    finish(&t.slow, &first);
    wait_used(&t.slow.rig);
    check_all_free(&t);
    CHECK_EQ(get(&t, USED_IDX, 2), 6);
    CHECK_EQ(get(&t, USED_WRAP, 1), 1);
    close_tracked(&t);
}

/* The counter in the region follows that of the ring, lap after lap. */
static void test_used_index_wraps(void)
{
    struct tracked t;
    open_tracked(&t);
    rig_run(&t.slow.rig);
    for (uint32_t i = 1; i < 30; i++) {
        put_request(&t.slow.rig, 0, BLK_IN, i, RIG_DATA, 512);
        put_avail(&t.slow.rig, 0);
        rig_kick(&t.slow.rig);
        serve(&t, i, 0);
        CHECK_EQ(get(&t, OLD_USED_IDX, 2), 3 * i % SIZE);
        CHECK_EQ(get(&t, OLD_USED_WRAP, 1), 3 * i / SIZE % 2 == 0);
    }
    check_all_free(&t);
    close_tracked(&t);
}

/* ---- what a predecessor left ----------------------------------------------------------- */

static void check_served(struct tracked *t)
{
    serve(t, 1, 1);
    serve(t, 4, 4);
    put_request(&t->slow.rig, 0, BLK_IN, 9, RIG_DATA, 512); /* and then what is new */
    put_avail(&t->slow.rig, 0);
    rig_kick(&t->slow.rig);
    serve(t, 9, 0);
    rig_drain(&t->slow.rig);
    CHECK_EQ(rig_base(&t->slow.rig), 0x00070007);
    check_all_free(t);
}

/* They are taken from the region, not from the ring, in the order of their counters. */
static void test_predecessors_requests_are_taken_from_the_region(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_two(&t);
    put(&t, state_at(7, INFLIGHT), 1, 1); /* he died while he took another one */
    rig_run(&t.slow.rig);
    rig_park(&t.slow.rig);
    CHECK_EQ(rig_base(&t.slow.rig), 0x80060004);
    CHECK_EQ(get(&t, state_at(7, INFLIGHT), 1), 0);
    rig_run(&t.slow.rig);
    settle(&t.slow.rig);
    CHECK_EQ(get(&t, state_at(4, COUNTER), 8), 70);
    check_served(&t);
    close_tracked(&t);
}

/* Died with the batch {4, 1} on its way: it was given back if the driver sees its first element. */
static void test_last_batch_is_finished_or_forgotten(void)
{
    for (int given = 0; given < 2; given++) {
        struct tracked t;
        open_tracked(&t);
        struct rig *rig = &t.slow.rig;
        leave_two(&t);
        put(&t, state_at(6, NEXT), 2, 7);
        put(&t, state_at(2, NEXT), 2, 5);
        put(&t, FREE_HEAD, 2, 4);
        put(&t, USED_IDX, 2, 4);
        put(&t, USED_WRAP, 1, 0);
        /* The second of them is written before the first, and shows behind a shorter one. */
        put_packed(rig, RIG_DESC, 1, 0, 513, 1, DESC_WRITE);
        put_packed(rig, RIG_DESC, 7, 0, 513, 1, DESC_WRITE | PACKED_AVAIL | PACKED_USED);
        if (given)
            put_packed(rig, RIG_DESC, 6, 0, 513, 4, DESC_WRITE | PACKED_AVAIL | PACKED_USED);
        rig_run(rig);
        rig_park(rig);
        CHECK_EQ(rig_base(rig), given ? 0x00040004 : 0x80060004);
        CHECK_EQ(get16(rig, RIG_DESC + 16 * 1 + 14), given ? DESC_WRITE : DESC_WRITE | PACKED_USED);
        rig_run(rig);
        if (given) {
            CHECK(take_used(rig) && rig->last_id == 4);
            CHECK(take_used(rig) && rig->last_id == 1);
            settle(rig);
            rig_drain(rig);
            check_all_free(&t);
        } else {
            check_served(&t);
        }
        close_tracked(&t);
    }
}

/* A batch as long as the ring leaves the index where it was: the wrap counter tells. */
static void test_batch_of_the_whole_ring(void)
{
    for (int given = 0; given < 2; given++) {
        struct tracked t;
        open_tracked(&t);
        struct rig *rig = &t.slow.rig;
        leave_two(&t);
        put(&t, state_at(1, NEXT), 2, 2);
        put(&t, state_at(2, NEXT), 2, 3);
        put(&t, state_at(3, NEXT), 2, 7); /* request 1 has five descriptors */
        leave_desc(&t, 2, rig_at(RIG_DATA + 512 * 1), 512, DESC_NEXT | DESC_WRITE, 0xbad);
        leave_desc(&t, 3, rig_at(RIG_DATA + 512 * 1), 512, DESC_NEXT | DESC_WRITE, 0xbad);
        leave_desc(&t, 7, rig_at(status_at(1)), 1, DESC_WRITE, 1);
        put(&t, state_at(4, NUM), 2, 5);
        put(&t, state_at(4, LAST), 2, 7);
        put(&t, OLD_FREE_HEAD, 2, SIZE);
        put(&t, FREE_HEAD, 2, 5);
        put(&t, state_at(7, NEXT), 2, SIZE);
        put(&t, state_at(6, NEXT), 2, 4);
        put(&t, USED_WRAP, 1, 0);
        rig->packed.slots[1] = 5;
        rig->packed.avail = (struct place){6, false};
        uint16_t flags = given ? PACKED_AVAIL | PACKED_USED : PACKED_AVAIL;
        put_packed(rig, RIG_DESC, 6, 0, 1, 1, (uint16_t)(DESC_WRITE | flags));
        rig_run(rig);
        rig_park(rig);
        CHECK_EQ(rig_base(rig), given ? 0x00060006 : 0x80060006);
        rig_run(rig);
        if (!given) {
            serve(&t, 1, 1);
            serve(&t, 4, 4);
        }
        rig_drain(rig);
        check_all_free(&t);
        close_tracked(&t);
    }
}

/* A queue that has given everything back, and is told where another ring begins, begins there: its
 * driver has reset it, and made the ring smaller.  One that has not goes on with what is left. */
static void test_reset_queue_begins_at_its_base(void)
{
    struct tracked t;
    struct rig *rig = &t.slow.rig;
    open_tracked(&t);
    rig_run(rig);
    for (int i = 0; i < 5; i++) {
        struct vhb_job job = start(&t.slow, 0, BLK_IN, 0);
        finish(&t.slow, &job);
        wait_used(rig);
    }
    for (uint32_t size = SIZE; size > 4; size -= 2) {
        rig_drain(rig);
        check_all_free(&t);
        rig->config.size = size;
        rig_parts(rig);
        rig_begin(rig);
        rig_run(rig);
        struct vhb_job job = start(&t.slow, 0, BLK_IN, 0);
        CHECK_EQ(get(&t, VERSION, 2), 1);
        CHECK_EQ(get(&t, USED_IDX, 2), 0);
        CHECK_EQ(get(&t, state_at(0, INFLIGHT), 1), 1);
        finish(&t.slow, &job);
        wait_used(rig);
        CHECK_EQ(get(&t, USED_IDX, 2), 3);
    }
    struct vhb_job left = start(&t.slow, 0, BLK_IN, 0);
    rig_park(rig);
    CHECK_EQ(vhb_queue_condemn(rig->queue), 0);
    rig_run(rig);
    rig_broken(rig);
    finish(&t.slow, &left); /* too late: it is not given back, so it is for whoever comes next */
    rig_drain(rig);
    for (int i = 0; i < 2; i++) /* a start that failed, and another one */
        CHECK_EQ(vhb_queue_set_base(rig->queue, 0x80008000), 0);
    rig_run(rig);
    serve(&t, 0, 0);
    close_tracked(&t);
}

CHECK_MAIN(TEST(new_region_begins_at_the_base), TEST(chains_are_copied_until_given_back),
           TEST(used_index_wraps), TEST(predecessors_requests_are_taken_from_the_region),
           TEST(last_batch_is_finished_or_forgotten), TEST(batch_of_the_whole_ring),
           TEST(reset_queue_begins_at_its_base))
