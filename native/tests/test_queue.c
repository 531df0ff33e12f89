/* test_queue.c - a queue between its two owners: settings, parking, draining, kick fds. */
#include <unistd.h>

#include "slow.h"

/* ---- owners --------------------------------------------------------------------------- */

/* Every setter is refused while the worker owns the ring, and so is the base. */
static void test_setters_need_the_ring(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    struct vhb_piece piece = {rig.ram, 4096};
    struct vhb_segment seg = {.iova = 0, .len = 4096, .host = rig.ram};
    uint32_t base;
    CHECK_EQ(vhb_queue_set_space(rig.queue, &seg, 1), -EBUSY);
    CHECK_EQ(vhb_queue_set_size(rig.queue, 4), -EBUSY);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_DESC, &piece, 1), -EBUSY);
    CHECK_EQ(vhb_queue_set_base(rig.queue, 0), -EBUSY);
    CHECK_EQ(vhb_queue_base(rig.queue, &base), -EBUSY);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_call(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_err(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_enabled(rig.queue, true), -EBUSY);
    CHECK_EQ(vhb_queue_set_features(rig.queue, 0), -EBUSY);
    CHECK_EQ(vhb_queue_set_blk(rig.queue, &rig.blk), -EBUSY);
    CHECK_EQ(vhb_queue_run(rig.queue), -EBUSY);
    CHECK_EQ(vhb_queue_detach(rig.queue), -EBUSY);
    CHECK_EQ(vhb_queue_free(rig.queue), -EBUSY);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_enabled(rig.queue, true), 0);
    CHECK_EQ(vhb_queue_free(rig.queue), -EBUSY);
    rig_close(&rig);
}

/* A ring that misses a part, or has one too short, is not run. */
static void test_run_needs_a_whole_ring(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 16, .stopped = true});
    bool packed = rig.config.features & RIG_PACKED;
    struct vhb_piece piece = {rig.ram + RIG_USED, (packed ? 4 : 6 + 8 * 16) - 1};
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 1), 0);
    CHECK_EQ(vhb_queue_run(rig.queue), -EINVAL);
    piece.len++;
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 1), 0);
    CHECK_EQ(vhb_queue_set_part(rig.queue, 3, &piece, 1), -EINVAL);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 0), -EINVAL);
    static const uint32_t sizes[] = {0, 17, 32};
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(vhb_queue_set_size(rig.queue, sizes[i]), -EINVAL);
    CHECK_EQ(vhb_queue_set_size(rig.queue, 12), 0);
    if (!packed) /* a split ring has a power of two */
        CHECK_EQ(vhb_queue_run(rig.queue), -EINVAL);
    CHECK_EQ(vhb_queue_set_size(rig.queue, 16), 0);
    CHECK_EQ(vhb_queue_run(rig.queue), 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* Nor is one whose driver's addresses mean nothing yet; with a table of no rows all are denied. */
static void test_run_needs_a_space(void)
{
    struct rig rig;
    struct vhb_queue *bare, *usual;
    rig_open(&rig, &(struct rig_config){.size = 16, .stopped = true});
    CHECK_EQ(vhb_queue_new(rig.worker, rig.null_disk, rig.graveyard, 16, &bare), 0);
    usual = rig.queue;
    rig.queue = bare;
    CHECK_EQ(vhb_queue_set_size(bare, 16), 0);
    CHECK_EQ(vhb_queue_set_blk(bare, &rig.blk), 0);
    CHECK_EQ(vhb_queue_set_features(bare, rig.config.features), 0);
    rig_parts(&rig);
    rig_begin(&rig);
    CHECK_EQ(vhb_queue_run(bare), -EINVAL);
    CHECK_EQ(vhb_queue_set_space(bare, NULL, 0), 0);
    CHECK_EQ(vhb_queue_set_enabled(bare, true), 0);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_avail(&rig, 0);
    rig_run(&rig);
    struct vhb_fault fault = rig_broken(&rig);
    CHECK(fault.reason == VHB_STATUS_ADDRESS && fault.value == rig_at(status_at(0)));
    rig_drain(&rig);
    CHECK_EQ(vhb_queue_detach(bare), 0);
    rig_wait(&rig, VHB_DETACHED);
    CHECK_EQ(vhb_queue_free(bare), 0);
    rig.queue = usual;
    rig_close(&rig);
}

/* Segments out of order, overlapping, empty or overflowing are no table. */
static void test_space_must_be_a_table(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.stopped = true});
    const struct vhb_segment bad[][2] = {
        {{.iova = 4096, .len = 4096}, {.iova = 0, .len = 4096}},
        {{.iova = 0, .len = 4097}, {.iova = 4096, .len = 4096}},
        {{.iova = 0, .len = 0}, {.iova = 4096, .len = 4096}},
        {{.iova = 0, .len = 1}, {.iova = UINT64_MAX, .len = 4096}}};
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(vhb_queue_set_space(rig.queue, bad[i], 2), -EINVAL);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK); /* the old table stands */
    rig_close(&rig);
}

/* ---- parking and draining ------------------------------------------------------------- */

/* Parked, the ring is not touched: neither new entries nor completions until it runs again. */
static void test_parked_queue_leaves_the_ring_alone(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_IN, 0), none;
    rig_park(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 1);
    rig_check_base(&s.rig, 1);
    finish(&s, &job);
    put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    CHECK(!take_used(&s.rig));
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);

    rig_run(&s.rig); /* both are seen to without another kick */
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 0);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 3);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_park(s.rig.queue), 0); /* parked twice is parked */
    rig_wait(&s.rig, VHB_PARKED);
    close_slow(&s);
}

/* Drained means nothing in flight and all pushed; it takes as long as the disk does, and the
 * base is the entry behind the last one taken. */
static void test_drain_waits_for_the_disk(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job a = start(&s, 0, BLK_IN, 0), b = start(&s, 3, BLK_OUT, 8), none;
    uint32_t base;
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    put_request(&s.rig, 6, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 6); /* too late for this run */
    settle(&s.rig);
    finish(&s, &b);
    settle(&s.rig);
    CHECK_EQ(vhb_queue_take_events(s.rig.queue), 0);
    CHECK_EQ(vhb_queue_base(s.rig.queue, &base), -EBUSY);
    finish(&s, &a);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(take_used(&s.rig) && take_used(&s.rig) && !take_used(&s.rig));
    rig_check_base(&s.rig, 2);
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);
    rig_drain(&s.rig); /* drained twice is drained */
    rig_check_base(&s.rig, 2);
    rig_run(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &a, 1), 1);
    finish(&s, &a);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 6);
    close_slow(&s);
}

/* A drain may follow a park, asked before it was answered or after. */
static void test_drain_may_follow_a_park(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    for (int answered = 0; answered < 2; answered++) {
        struct vhb_job job = start(&s, 0, BLK_IN, 0);
        CHECK_EQ(vhb_queue_park(s.rig.queue), 0);
        if (answered)
            rig_wait(&s.rig, VHB_PARKED);
        CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
        settle(&s.rig);
        CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
        finish(&s, &job);
        rig_wait(&s.rig, VHB_DRAINED);
        CHECK(take_used(&s.rig));
        rig_run(&s.rig);
    }
    close_slow(&s);
}

/* Parked is not drained: a queue does not leave with requests under way. */
static void test_detach_needs_a_drain(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    CHECK_EQ(vhb_queue_detach(s.rig.queue), -EBUSY);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_detach(s.rig.queue), -EBUSY);
    finish(&s, &job);
    close_slow(&s);
}

/* A disabled queue completes what it has and takes nothing; enabled, it looks without a kick. */
static void test_disabled_queue_only_completes(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_IN, 0), none;
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, false), 0);
    rig_run(&s.rig);
    put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 0);
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, true), 0);
    rig_run(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
    finish(&s, &job);
    wait_used(&s.rig);
    close_slow(&s);
}

/* A ring without a kick fd is looked at all the same; a new kick fd replaces the old one. */
static void test_kick_fd_may_change(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, -1), 0);
    rig_run(&rig);
    put_avail(&rig, 0);
    wait_used(&rig);
    rig_park(&rig);
    int old = rig.kick;
    rig.kick = dup(rig.err); /* any eventfd */
    CHECK_EQ(vhb_queue_set_kick(rig.queue, rig.kick), 0);
    rig_run(&rig);
    settle(&rig);
    rig_park(&rig);
    close(old);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    settle(&rig);
    CHECK(RIG_COUNT(&rig, kicks) >= 2);
    rig_close(&rig);
}

CHECK_MAIN(TEST(setters_need_the_ring), TEST(run_needs_a_whole_ring), TEST(run_needs_a_space),
           TEST(space_must_be_a_table), TEST(parked_queue_leaves_the_ring_alone),
           TEST(drain_waits_for_the_disk), TEST(drain_may_follow_a_park),
           TEST(detach_needs_a_drain), TEST(disabled_queue_only_completes),
           TEST(kick_fd_may_change))
