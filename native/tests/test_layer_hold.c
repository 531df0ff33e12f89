/* test_layer_hold.c - requests that a layer holds when things happen to their queue, and layers
 * between a queue and a disk that fails or does not answer. */
#include "layer_rig.h"

enum { SECTOR = 512 };
#define HOUR 3600000000000ull
#define MS 1000000ull

static void ask(struct slow *s, uint16_t head, uint32_t type, uint64_t sector)
{
    put_request(&s->rig, head, type, sector, RIG_DATA + 512u * head, SECTOR);
    put_avail(&s->rig, head);
    rig_kick(&s->rig);
    settle(&s->rig);
}

/* ---- held ------------------------------------------------------------------------------ */

/* A cancel ends what is held, and nothing of it is left: the disk never had it. */
static void test_cancel_ends_what_is_held(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, 0);
    stack.layers[1].hold_ns = HOUR;
    ask(&s, 0, BLK_OUT, 8);
    ask(&s, 3, BLK_IN, 8);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 2);
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig) && take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(status_of(&s.rig, 3), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    CHECK_EQ(stack.told, 2); /* the layer in front, of each */
    CHECK_EQ(stack.tale[0].result, -ECANCELED);
    stack.layers[1].hold_ns = 0;
    rig_run(&s.rig);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    CHECK_EQ(job.offset, 11 * SECTOR);
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    close_stack(&s, &stack);
}

/* The same behind the disk: what that has said does not matter any more. */
static void test_cancel_ends_what_is_held_on_the_way_back(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, 0);
    stack.layers[1].hold_back_ns = HOUR;
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    finish(&s, &job);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 1);
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    CHECK_EQ(RIG_COUNT(&s.rig, writes), 0);
    close_stack(&s, &stack);
}

/* A drain waits for what is held, as for any request. */
static void test_drain_waits_for_what_is_held(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, 0);
    stack.layers[0].hold_ns = stack.layers[1].hold_back_ns = 10 * MS;
    ask(&s, 0, BLK_OUT, 8);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
    struct vhb_job job;
    while (vhb_mailbox_take(s.box, &job, 1) == 0)
        rig_pass(&s.rig);
    finish(&s, &job);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    close_stack(&s, &stack);
}

/* A park does not: what is held meanwhile goes on, and waits to be pushed. */
static void test_park_does_not_wait(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 1, 0);
    stack.layers[0].hold_ns = 5 * MS;
    ask(&s, 0, BLK_OUT, 8);
    rig_park(&s.rig);
    struct vhb_job job;
    while (vhb_mailbox_take(s.box, &job, 1) == 0)
        rig_pass(&s.rig);
    finish(&s, &job);
    settle(&s.rig);
    CHECK(!take_used(&s.rig));
    rig_run(&s.rig);
    ends_with(&s, 0, BLK_OK);
    close_stack(&s, &stack);
}

/* Requests that are held for different times end when each is due; in order where that is promised.
 */
static void test_many_are_held(void)
{
    enum { MANY = 12 };
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 1, 0);
    for (uint16_t i = 0; i < MANY; i++) {
        stack.layers[0].hold_ns = MS * (1u + 7u * i % MANY);
        ask(&s, 3u * i, BLK_IN, i);
    }
    uint64_t before = 0;
    for (uint32_t i = 0; i < MANY; i++) {
        struct vhb_job job;
        while (vhb_mailbox_take(s.box, &job, 1) == 0)
            rig_pass(&s.rig);
        uint64_t due = 1 + 7 * (job.offset / SECTOR - 1) % MANY;
        CHECK(due >= before); /* what was asked later was held later, by far less */
        before = due;
        finish(&s, &job);
    }
    for (uint32_t i = 0; i < MANY; i++)
        wait_used(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, reads), MANY);
    close_stack(&s, &stack);
}

/* ---- dead ------------------------------------------------------------------------------ */

/* What the disk keeps below layers is dead until it comes back; layers are told then, and cannot
 * hold it; a write that overlaps it waits. */
static void test_dead_requests_below_layers(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, 0);
    stack.layers[1].hold_back_ns = HOUR;
    struct vhb_job dead = start(&s, 0, BLK_OUT, 8);
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 1);
    CHECK_EQ(stack.told, 0);
    take_cancel(&s, &dead);
    rig_run(&s.rig);
    put_request(&s.rig, 3, BLK_OUT, 8, RIG_DATA, SECTOR);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    no_job(&s);
    finish(&s, &dead);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    CHECK_EQ(stack.told, 3);
    stack.layers[1].hold_back_ns = 0;
    struct vhb_job job = next(&s);
    CHECK_EQ(job.offset, 11 * SECTOR);
    finish(&s, &job);
    ends_with(&s, 3, BLK_OK);
    close_stack(&s, &stack);
}

/* ---- failing --------------------------------------------------------------------------- */

/* An error stops the queue, behind layers too; what is tried again goes the whole way again, from
 * the place where it began. */
static void test_stalled_requests_go_through_again(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, VHB_ON_ERROR_STOP);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    fail(&s, &job, ENOSPC);
    stall_is(&s, VHB_WRITE, 8 * SECTOR, SECTOR, ENOSPC); /* as the guest knows it */
    CHECK_EQ(stack.told, 3);
    resume(&s);
    job = next(&s);
    CHECK_EQ(job.offset, 11 * SECTOR);
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    CHECK_EQ(stack.told, 6);
    close_stack(&s, &stack);
}

/* A layer that fails requests stops the queue as a disk does, and a cancel ends the stall. */
static void test_layers_stall_queues(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, VHB_ON_ERROR_STOP);
    stack.layers[0].answer = -ENOSPC;
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    finish(&s, &job);
    stall_is(&s, VHB_WRITE, 8 * SECTOR, SECTOR, ENOSPC);
    stack.layers[0].answer = 0;
    stack.layers[1].hold_ns = HOUR;
    resume(&s);
    settle(&s.rig);
    CHECK(!stalled(&s));
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 1);
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    close_stack(&s, &stack);
}

/* A range that fails is the one that is tried again. */
static void test_ranges_go_on_where_they_failed(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, VHB_ON_ERROR_STOP);
    stack.layers[0].hold_ns = MS;
    put_request(&s.rig, 0, BLK_WRITE_ZEROES, 0, RIG_DATA, 32);
    put_range(&s.rig, RIG_DATA, 0, 100, 8, 0);
    put_range(&s.rig, RIG_DATA, 1, 200, 8, 0);
    put_avail(&s.rig, 0);
    rig_kick(&s.rig);
    static const uint64_t at[] = {102, 202, 202};
    struct vhb_job job;
    for (uint32_t i = 0; i < 3; i++) {
        while (vhb_mailbox_take(s.box, &job, 1) == 0)
            rig_pass(&s.rig);
        CHECK_EQ(job.offset, at[i] * SECTOR);
        if (i == 1) {
            fail(&s, &job, EIO);
            CHECK(stalled(&s));
            resume(&s);
        } else {
            finish(&s, &job);
        }
    }
    ends_with(&s, 0, BLK_OK);
    close_stack(&s, &stack);
}

/* A broken ring gets nothing back, but what is held goes on and leaves. */
static void test_held_requests_of_a_broken_ring(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 1, 0);
    stack.layers[0].hold_ns = 5 * MS;
    ask(&s, 0, BLK_OUT, 8);
    put_bad_head(&s.rig);
    rig_kick(&s.rig);
    rig_broken(&s.rig);
    struct vhb_job job;
    while (vhb_mailbox_take(s.box, &job, 1) == 0)
        rig_pass(&s.rig);
    finish(&s, &job);
    rig_drain(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    close_stack(&s, &stack);
}

CHECK_MAIN(TEST(cancel_ends_what_is_held), TEST(cancel_ends_what_is_held_on_the_way_back),
           TEST(drain_waits_for_what_is_held), TEST(park_does_not_wait), TEST(many_are_held),
           TEST(dead_requests_below_layers), TEST(stalled_requests_go_through_again),
           TEST(layers_stall_queues), TEST(ranges_go_on_where_they_failed),
           TEST(held_requests_of_a_broken_ring))
