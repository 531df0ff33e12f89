/* test_layer.c - layers in front of disks: where requests go, and how they come back. */
#include "layer_rig.h"

/* ---- partition ------------------------------------------------------------------------ */

enum { BYTES = 1 << 20, SECTOR = 512 };

/* A part begins and ends where it says, and only what is in it changes. */
static void test_partition_shifts_and_bounds(void)
{
    static uint8_t memory[BYTES];
    struct vhb_disk *disk, *part;
    struct vhb_stage *stage;
    CHECK_EQ(vhb_disk_memory_new(memory, BYTES, &disk), 0);
    struct vhb_partition p = {.offset = 8 * SECTOR, .size = 16 * SECTOR};
    CHECK_EQ(vhb_stage_partition_new(&p, &stage), 0);
    CHECK_EQ(vhb_layer_new(disk, stage, &part), 0);
    CHECK_EQ(vhb_disk_free(disk), -EBUSY);
    CHECK_EQ(vhb_stage_free(stage), -EBUSY);

    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = part});
    rig_fill(&rig, RIG_DATA, 1024, 1);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, 1024), BLK_OK);
    CHECK(memcmp(memory + 8 * SECTOR, rig.ram + RIG_DATA, 1024) == 0);
    CHECK_EQ(do_request(&rig, BLK_OUT, 14, RIG_DATA, 1024), BLK_OK);
    CHECK(memcmp(memory + 22 * SECTOR, rig.ram + RIG_DATA, 1024) == 0);
    CHECK_EQ(do_request(&rig, BLK_OUT, 15, RIG_DATA, 1024), BLK_IOERR); /* half of it behind */
    CHECK_EQ(do_request(&rig, BLK_OUT, 16, RIG_DATA, 512), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_IN, 16, RIG_DATA, 512), BLK_IOERR);
    for (int i = 0; i < BYTES; i++)
        if (i < 8 * SECTOR || i >= 24 * SECTOR)
            CHECK_EQ(memory[i], 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, RIG_DATA, 0), BLK_OK);
    put_request(&rig, 0, BLK_DISCARD, 0, RIG_DATA + 8192, 32);
    put_range(&rig, RIG_DATA + 8192, 0, 0, 1, 0);
    put_range(&rig, RIG_DATA + 8192, 1, 14, 2, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    CHECK_EQ(memory[8 * SECTOR] | memory[22 * SECTOR], 0);
    CHECK(memcmp(memory + 9 * SECTOR, rig.ram + RIG_DATA + 512, 512) == 0);

    p.size = 17 * SECTOR; /* from the next request on */
    CHECK_EQ(vhb_stage_partition_set(stage, &p), 0);
    CHECK_EQ(do_request(&rig, BLK_IN, 16, RIG_DATA, 512), BLK_OK);
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(part), 0);
    CHECK_EQ(vhb_disk_free(disk), 0);
    CHECK_EQ(vhb_stage_free(stage), 0);
}

static void test_partition_refuses_what_wraps(void)
{
    struct vhb_stage *stage;
    struct vhb_partition p = {.offset = UINT64_MAX, .size = 1};
    CHECK_EQ(vhb_stage_partition_new(&p, &stage), -EINVAL);
    p.offset = INT64_MAX;
    CHECK_EQ(vhb_stage_partition_new(&p, &stage), -EINVAL);
    p.offset = 0;
    CHECK_EQ(vhb_stage_partition_new(&p, &stage), 0);
    CHECK_EQ(vhb_stage_free(stage), 0);
}

/* ---- frames ---------------------------------------------------------------------------- */

/* Each layer is told of the end in turn, the innermost first, with its own note and its own place
 * below it, whether the disk ends a request at once or later. */
static void test_layers_are_told_on_the_way_back(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, 0);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    CHECK_EQ(job.offset, (8 + 3) * SECTOR); /* each has shifted by a sector */
    CHECK_EQ(stack.told, 0);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    CHECK_EQ(stack.told, 3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(stack.tale[i].layer, 2 - i);
        CHECK_EQ(stack.tale[i].at, (8 + 3 - i) * SECTOR);
        CHECK_EQ(stack.tale[i].result, 0);
    }
    close_stack(&s, &stack);
}

/* What a layer makes of a result is what those in front of it see. */
static void test_layers_change_results(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, 0);
    stack.layers[1].answer = -EROFS;
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(stack.tale[1].result, 0);
    CHECK_EQ(stack.tale[2].result, -EROFS);
    close_stack(&s, &stack);
}

/* A layer cannot hide that guest memory is still used. */
static void test_layers_cannot_change_a_kept_view(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, 0);
    stack.layers[1].answer = -EIO;
    struct vhb_job job = start(&s, 0, BLK_IN, 8);
    CHECK_EQ(vhb_mailbox_break(s.box, job.tag), 0);
    CHECK_EQ(rig_broken(&s.rig).reason, VHB_DISK_KEPT_VIEW);
    CHECK_EQ(stack.told, 2);
    close_stack(&s, &stack);
}

/* The ranges of one request go down and come back one after the other. */
static void test_ranges_travel_one_by_one(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 2, 0);
    put_request(&s.rig, 0, BLK_WRITE_ZEROES, 0, RIG_DATA, 32);
    put_range(&s.rig, RIG_DATA, 0, 100, 8, 0);
    put_range(&s.rig, RIG_DATA, 1, 200, 8, 0);
    put_avail(&s.rig, 0);
    rig_kick(&s.rig);
    struct vhb_job job = next(&s);
    CHECK_EQ(job.offset, 102 * SECTOR);
    finish(&s, &job);
    job = next(&s);
    CHECK_EQ(job.offset, 202 * SECTOR);
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    CHECK_EQ(stack.told, 4);
    close_stack(&s, &stack);
}

/* ---- holding ---------------------------------------------------------------------------- */

/* A request that a layer holds goes on by itself, before the disk or behind it. */
static void test_held_requests_go_on(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, 3, 0);
    stack.layers[0].hold_ns = stack.layers[2].hold_ns = 2000000;
    stack.layers[1].hold_back_ns = 2000000;
    int64_t from = rig_now_ms();
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    CHECK(rig_now_ms() - from >= 3);
    finish(&s, &job);
    from = rig_now_ms();
    ends_with(&s, 0, BLK_OK);
    CHECK(rig_now_ms() - from >= 1);
    CHECK_EQ(stack.told, 3);
    close_stack(&s, &stack);
}

/* There is room for so many, each with a frame, and for no more. */
static void test_as_many_as_can_be(void)
{
    struct slow s;
    struct stack stack;
    open_stack(&s, &stack, VHB_MAX_LAYERS, 0);
    struct vhb_disk *none;
    CHECK_EQ(vhb_layer_new(stack.disks[0], &stack.layers[0].stage, &none), -E2BIG);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    CHECK_EQ(job.offset, (8 + VHB_MAX_LAYERS) * SECTOR);
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    CHECK_EQ(stack.told, VHB_MAX_LAYERS);
    close_stack(&s, &stack);
}

CHECK_MAIN(TEST(as_many_as_can_be), TEST(partition_shifts_and_bounds),
           TEST(partition_refuses_what_wraps), TEST(layers_are_told_on_the_way_back),
           TEST(layers_change_results), TEST(layers_cannot_change_a_kept_view),
           TEST(ranges_travel_one_by_one), TEST(held_requests_go_on))
