/* test_miss.c - a queue that asks: what no segment gives is named, and nothing is lost meanwhile.
 */
#include "rig.h"

enum { PAGE = 4096, ALL = VHB_ACCESS_READ | VHB_ACCESS_WRITE };

/* Memory but for *hole* bytes at offset *at*, which have *access*, or are in no segment. */
static void space_with_hole(struct rig *rig, uint32_t at, uint32_t hole, int access)
{
    struct vhb_segment seg[3];
    uint32_t start[] = {0, at, at + hole, RIG_RAM};
    size_t n = 0;
    for (int i = 0; i < 3; i++) {
        if (start[i] == start[i + 1] || (i == 1 && access < 0))
            continue;
        seg[n++] = (struct vhb_segment){.iova = rig_at(start[i]),
                                        .len = start[i + 1] - start[i],
                                        .host = rig->ram + start[i],
                                        .access = i == 1 ? (uint32_t)access : (uint32_t)ALL};
    }
    CHECK_EQ(vhb_queue_set_space(rig->queue, seg, n), 0);
}

static struct rig asking_rig(uint32_t at, uint32_t hole, int access)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 16, .features = RIG_INDIRECT, .stopped = true});
    CHECK_EQ(vhb_queue_set_ask(rig.queue, true), 0);
    space_with_hole(&rig, at, hole, access);
    return rig;
}

static struct vhb_miss missed(struct rig *rig, uint32_t at, uint32_t access)
{
    struct vhb_miss miss;
    rig_wait(rig, VHB_MISS);
    CHECK_EQ(vhb_queue_miss(rig->queue, &miss), 1);
    CHECK_EQ(miss.iova, rig_at(at));
    CHECK_EQ(miss.access, access);
    return miss;
}

static void settle(struct rig *rig)
{
    for (int i = 0; i < 4; i++)
        rig_pass(rig);
}

/* The address, how much is needed, what for, and which chain; answered, the request is served. */
static void test_miss_names_the_range(void)
{
    struct rig rig = asking_rig(RIG_DATA + PAGE, PAGE, -1);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 2 * PAGE);
    put_avail(&rig, 0);
    rig_kick(&rig);
    struct vhb_miss miss = missed(&rig, RIG_DATA + PAGE, VHB_ACCESS_WRITE);
    CHECK_EQ(miss.len, PAGE);
    CHECK_EQ(miss.index, rig_index(&rig, 1));
    settle(&rig);
    CHECK(!take_used(&rig));

    rig_park(&rig);
    rig_check_base(&rig, 1);
    rig_space(&rig);
    rig_run(&rig);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    CHECK_EQ(rig.last_len, 2 * PAGE + 1);
    rig_close(&rig);
}

/* A new space that still lacks it: it is asked for again. */
static void test_miss_repeats(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, VHB_ACCESS_READ);
    put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 512);
    put_avail(&rig, 0);
    rig_run(&rig);
    for (int i = 0; i < 3; i++) {
        missed(&rig, RIG_DATA, VHB_ACCESS_WRITE); /* mapped, without the right */
        rig_park(&rig);
        space_with_hole(&rig, RIG_DATA, PAGE, -1);
        rig_run(&rig);
    }
    rig_close(&rig);
}

/* One that is parked with a write that misses its data. */
static struct rig missing_rig(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, -1);
    put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 512);
    put_avail(&rig, 0);
    rig_run(&rig);
    missed(&rig, RIG_DATA, VHB_ACCESS_READ);
    rig_park(&rig);
    return rig;
}

/* Parked and run for another reason, it waits on, and says nothing twice. */
static void test_miss_outlives_a_park(void)
{
    struct rig rig = missing_rig();
    rig_run(&rig);
    rig_kick(&rig);
    settle(&rig);
    CHECK_EQ(vhb_queue_take_events(rig.queue), 0);
    struct vhb_miss miss;
    CHECK_EQ(vhb_queue_miss(rig.queue, &miss), 1);
    rig_drain(&rig); /* legal from missing */
    rig_check_base(&rig, 0);
    rig_begin(&rig);
    CHECK_EQ(vhb_queue_miss(rig.queue, &miss), 0);
    rig_close(&rig);
}

/* What was asked in vain fails that request alone. */
static void test_denied_request_fails(void)
{
    struct rig rig = missing_rig();
    CHECK_EQ(vhb_queue_deny(rig.queue, rig_at(RIG_DATA), PAGE), 0);
    rig_run(&rig);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_IOERR);

    put_request(&rig, 3, BLK_OUT, 0, RIG_DATA, 512); /* the next one may ask again */
    put_avail(&rig, 3);
    rig_kick(&rig);
    missed(&rig, RIG_DATA, VHB_ACCESS_READ);
    rig_park(&rig);
    rig_space(&rig);
    rig_run(&rig);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 3), BLK_OK);
    rig_close(&rig);
}

/* A status byte is asked for too; denied, the queue breaks: success could be read there. */
static void test_denied_status_breaks(void)
{
    uint32_t at = status_at(0);
    struct rig rig = asking_rig(at, 1, -1);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_avail(&rig, 0);
    rig_run(&rig);
    missed(&rig, at, VHB_ACCESS_WRITE);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_deny(rig.queue, rig_at(at), 1), 0);
    rig_run(&rig);
    CHECK_EQ(rig_broken(&rig).reason, VHB_STATUS_ADDRESS);
    rig_close(&rig);
}

/* Access 0 is an answer: nobody is asked. */
static void test_segment_without_access_is_denied(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, 0);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, 512), BLK_IOERR);
    rig_close(&rig);
}

/* A queue that does not ask denies, as ever. */
static void test_queue_that_does_not_ask_denies(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, -1);
    CHECK_EQ(vhb_queue_set_ask(rig.queue, false), 0);
    rig_run(&rig);
    CHECK_EQ(vhb_queue_set_ask(rig.queue, true), -EBUSY);
    CHECK_EQ(vhb_queue_deny(rig.queue, 0, 1), -EBUSY);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, 512), BLK_IOERR);
    rig_close(&rig);
}

/* An indirect table first, then what it names; both answered, the request is served. */
static void test_indirect_table_is_asked_for_first(void)
{
    uint32_t table = RIG_DATA + 2 * PAGE - 24; /* its second descriptor lies across the border */
    struct rig rig = asking_rig(RIG_DATA + 2 * PAGE, PAGE, -1);
    put32(&rig, header_at(0), BLK_OUT);
    put_desc(&rig, table, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, table, 1, rig_at(RIG_DATA + 2 * PAGE + 512), 512, DESC_NEXT, 2);
    put_desc(&rig, table, 2, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(table), 48, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    rig_run(&rig);
    struct vhb_miss miss = missed(&rig, RIG_DATA + 2 * PAGE, VHB_ACCESS_READ);
    CHECK_EQ(miss.len, 24);

    rig_park(&rig); /* the table's bytes only */
    space_with_hole(&rig, RIG_DATA + 2 * PAGE + 512, 512, -1);
    rig_run(&rig);
    missed(&rig, RIG_DATA + 2 * PAGE + 512, VHB_ACCESS_READ);
    rig_park(&rig);
    rig_space(&rig);
    rig_run(&rig);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    rig_close(&rig);
}

/* A table that is denied cannot be a chain. */
static void test_denied_table_breaks(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, -1);
    put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 48, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    rig_run(&rig);
    missed(&rig, RIG_DATA, VHB_ACCESS_READ);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_deny(rig.queue, rig_at(RIG_DATA), PAGE), 0);
    rig_run(&rig);
    CHECK_EQ(rig_broken(&rig).reason, VHB_TABLE_ADDRESS);
    rig_close(&rig);
}

/* A miss that was posted before the answer came is not told behind it. */
static void test_answer_takes_the_event_back(void)
{
    struct rig rig = asking_rig(RIG_DATA, PAGE, -1);
    put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 512);
    put_avail(&rig, 0);
    rig_run(&rig);
    settle(&rig);
    CHECK_EQ(vhb_queue_park(rig.queue), 0);
    settle(&rig);
    rig_space(&rig);
    CHECK_EQ(vhb_queue_take_events(rig.queue), VHB_PARKED);
    rig_run(&rig);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    rig_close(&rig);
}

CHECK_MAIN(TEST(miss_names_the_range), TEST(miss_repeats), TEST(miss_outlives_a_park),
           TEST(denied_request_fails), TEST(denied_status_breaks),
           TEST(segment_without_access_is_denied), TEST(queue_that_does_not_ask_denies),
           TEST(indirect_table_is_asked_for_first), TEST(denied_table_breaks),
           TEST(answer_takes_the_event_back))
