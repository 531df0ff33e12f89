/* test_inflight_hostile.c - inflight regions of packed rings that nobody honest left: the queue
 * breaks, and nothing beyond the region is touched. */
#include "tracked_packed.h"

static void test_malformed_regions_break_the_queue(void)
{
    static const struct {
        size_t at, bytes;
        uint64_t value;
        uint32_t index;
        uint64_t said;
    } cases[] = {
        {FEATURES, 8, 1ull << 40, IN_HEADER, 1ull << 40},
        {VERSION, 2, 2, IN_HEADER, 2},
        {DESC_NUM, 2, SIZE + 1, IN_HEADER, SIZE + 1},
        {USED_IDX, 2, SIZE, IN_HEADER, SIZE},
        {OLD_USED_IDX, 2, 0xffff, IN_HEADER, 0xffff},
        {OLD_FREE_HEAD, 2, SIZE + 1, IN_HEADER, SIZE + 1},
        {OLD_FREE_HEAD, 2, 3, 7, 0}, /* entry 7 is neither free nor taken */
        {STATES + STATE * 3 + NEXT, 2, SIZE + 1, 3, SIZE + 1},
        {STATES + STATE * 3 + NEXT, 2, 7, 3, 7}, /* it comes round */
        {STATES + STATE * 3 + NEXT, 2, 4, 6, 0}, /* a chain is free: nobody has entry 6 */
        {STATES + STATE * 4 + NUM, 2, 0, 4, 2},
        {STATES + STATE * 4 + NUM, 2, 4, 2, 0x0707}, /* beyond its last */
        {STATES + STATE * 4 + LAST, 2, 1, 4, 1},
        {STATES + STATE * 1 + NEXT, 2, 0xffff, 1, 0xffff},
        {STATES + STATE * 1 + NEXT, 2, 4, 1, 4}, /* a loop */
        {STATES + STATE * 1 + NEXT, 2, 3, 1, 3}, /* one that is free */
        {STATES + STATE * 1 + INFLIGHT, 1, 1, 1, 0},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tracked t;
        open_tracked(&t);
        leave_two(&t);
        if (cases[i].said == 0x0707)
            put(&t, state_at(2, NEXT), 2, 0x0707);
        put(&t, cases[i].at, cases[i].bytes, cases[i].value);
        rig_run(&t.slow.rig);
        struct vhb_fault fault = rig_broken(&t.slow.rig);
        CHECK_EQ(fault.reason, VHB_INFLIGHT);
        CHECK_EQ(fault.index, cases[i].index);
        CHECK_EQ(fault.value, cases[i].said);
        rig_park(&t.slow.rig); /* it goes on being broken, wherever it stands now */
        rig_run(&t.slow.rig);
        close_tracked(&t);
    }
}

/* More taken than the ring is long, in a region that is longer. */
static void test_more_taken_than_the_ring_has(void)
{
    struct tracked t;
    open_tracked(&t);
    leave_two(&t);
    CHECK_EQ(vhb_queue_set_size(t.slow.rig.queue, 5), 0);
    put(&t, USED_IDX, 2, 0);
    put(&t, OLD_USED_IDX, 2, 0);
    rig_run(&t.slow.rig);
    struct vhb_fault fault = rig_broken(&t.slow.rig);
    CHECK_EQ(fault.reason, VHB_INFLIGHT);
    CHECK_EQ(fault.index, 5);
    close_tracked(&t);
}

/* A copy that is changed while it waits: its length is what was read first. */
static void test_chain_that_changes(void)
{
    static const uint16_t entries[] = {4, 2}; /* it ends too early, or not */
    for (int i = 0; i < 2; i++) {
        struct tracked t;
        open_tracked(&t);
        leave_two(&t);
        CHECK_EQ(vhb_queue_set_enabled(t.slow.rig.queue, false), 0);
        rig_run(&t.slow.rig);
        rig_park(&t.slow.rig);
        CHECK_EQ(vhb_queue_set_enabled(t.slow.rig.queue, true), 0);
        put(&t, state_at(entries[i], FLAGS), 2, i ? DESC_NEXT : 0);
        rig_run(&t.slow.rig);
        struct vhb_fault fault = rig_broken(&t.slow.rig);
        CHECK_EQ(fault.reason, VHB_INFLIGHT);
        CHECK_EQ(fault.index, entries[i]);
        close_tracked(&t);
    }
}

/* Ids that no ring has, or that two have. */
static void test_ids_are_checked(void)
{
    static const struct {
        uint16_t id;
        enum vhb_reason reason;
    } cases[] = {{SIZE, VHB_ID}, {1, VHB_ID_IN_FLIGHT}};
    for (int i = 0; i < 2; i++) {
        struct tracked t;
        open_tracked(&t);
        leave_two(&t);
        put(&t, state_at(6, ID), 2, cases[i].id);
        rig_run(&t.slow.rig);
        CHECK_EQ(rig_broken(&t.slow.rig).reason, cases[i].reason);
        struct vhb_job job;
        CHECK_EQ(vhb_mailbox_take(t.slow.box, &job, 1), 1);
        finish(&t.slow, &job);
        close_tracked(&t);
    }
}

CHECK_MAIN(TEST(malformed_regions_break_the_queue), TEST(more_taken_than_the_ring_has),
           TEST(chain_that_changes), TEST(ids_are_checked))
