/* test_hostile.c - every dishonest ring of the architecture page, "What a bad guest gets". */
#include <poll.h>

#include "rig.h"

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static void settle(struct rig *rig)
{
    for (int i = 0; i < 4; i++)
        rig_pass(rig);
}

/* The queue breaks once, for this reason; err is signalled, nothing is executed or given back,
 * and the ring serves again after a new base. */
static void check_breaks(struct rig *rig, enum vhb_reason reason, uint64_t value)
{
    rig_kick(rig);
    struct vhb_fault fault = rig_broken(rig);
    CHECK_EQ(fault.reason, reason);
    CHECK_EQ(fault.value, value);
    CHECK(readable(rig->err));
    settle(rig);
    CHECK(!take_used(rig));
    CHECK_EQ(RIG_COUNT(rig, in_flight), 0);
    CHECK_EQ(vhb_queue_take_events(rig->queue), 0);

    rig_drain(rig);
    rig_begin(rig);
    rig_run(rig);
    CHECK_EQ(do_request(rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(rig);
}

static struct rig bad_rig(uint64_t features)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 16, .features = features});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 512);
    return rig;
}

/* Spec: virtio 1.3, 2.7.6: the driver never makes more available than the ring is long. */
static void test_avail_index_too_far_breaks(void)
{
    struct rig rig = bad_rig(0);
    put_avail_idx(&rig, (uint16_t)(1 + 17));
    check_breaks(&rig, VHB_AVAIL_INDEX, 18);
    rig = bad_rig(0);
    put_avail_idx(&rig, 0); /* backwards */
    check_breaks(&rig, VHB_AVAIL_INDEX, 0);
}

/* A head that is no descriptor. */
static void test_head_out_of_range_breaks(void)
{
    struct rig rig = bad_rig(0);
    put_avail(&rig, 16);
    check_breaks(&rig, VHB_HEAD, 16);
    rig = bad_rig(0);
    put_avail(&rig, 0xffff);
    check_breaks(&rig, VHB_HEAD, 0xffff);
}

/* A next field that is no descriptor, in the ring and in a table. */
static void test_next_out_of_range_breaks(void)
{
    struct rig rig = bad_rig(0);
    put_desc(&rig, RIG_DESC, 1, rig_at(RIG_DATA), 512, DESC_NEXT, 16);
    put_avail(&rig, 0);
    check_breaks(&rig, VHB_NEXT, 16);

    rig = bad_rig(RIG_INDIRECT);
    put_desc(&rig, RIG_DATA, 0, rig_at(header_at(0)), 16, DESC_NEXT, 2);
    put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 32, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    check_breaks(&rig, VHB_NEXT, 2);
}

/* Spec: virtio 1.3, 2.7.5.2: a chain that never ends. */
static void test_loop_breaks(void)
{
    struct rig rig = bad_rig(0);
    put_desc(&rig, RIG_DESC, 2, rig_at(status_at(0)), 1, DESC_WRITE | DESC_NEXT, 0);
    put_avail(&rig, 0);
    check_breaks(&rig, VHB_LOOP, 16);

    rig = bad_rig(0);
    put_desc(&rig, RIG_DESC, 5, rig_at(RIG_DATA), 1, DESC_NEXT, 5);
    put_avail(&rig, 5);
    check_breaks(&rig, VHB_LOOP, 16);

    rig = bad_rig(RIG_INDIRECT);
    put_desc(&rig, RIG_DATA, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, RIG_DATA, 1, rig_at(header_at(0)), 16, DESC_NEXT, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 32, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    check_breaks(&rig, VHB_LOOP, 2);
}

/* Spec: virtio 1.3, 2.7.5.3.1: tables that were not negotiated, of odd or no length, nested,
 * or with a next descriptor behind them. */
static void test_malformed_tables_break(void)
{
    static const struct {
        uint64_t features;
        uint32_t len;
        uint16_t flags;
    } bad[] = {{0, 32, DESC_INDIRECT},
               {RIG_INDIRECT, 0, DESC_INDIRECT},
               {RIG_INDIRECT, 33, DESC_INDIRECT},
               {RIG_INDIRECT, 15, DESC_INDIRECT},
               {RIG_INDIRECT, 16 * 32769, DESC_INDIRECT},
               {RIG_INDIRECT, 32, DESC_INDIRECT | DESC_NEXT}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct rig rig = bad_rig(bad[i].features);
        put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), bad[i].len, bad[i].flags, 1);
        put_avail(&rig, 0);
        check_breaks(&rig, VHB_INDIRECT, bad[i].len);
    }
    struct rig rig = bad_rig(RIG_INDIRECT);
    put_desc(&rig, RIG_DATA, 0, rig_at(RIG_DATA), 16, DESC_INDIRECT, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 16, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    check_breaks(&rig, VHB_INDIRECT, 16);
}

/* A table where no memory is, at the end of the address space, or half outside. */
static void test_table_outside_memory_breaks(void)
{
    static const uint64_t addresses[] = {0, UINT64_MAX - 7, UINT64_MAX,
                                         RIG_RAM_AT + (uint64_t)RIG_RAM - 8};
    for (size_t i = 0; i < 4; i++) {
        struct rig rig = bad_rig(RIG_INDIRECT);
        put_desc(&rig, RIG_DESC, 0, addresses[i], 32, DESC_INDIRECT, 0);
        put_avail(&rig, 0);
        check_breaks(&rig, VHB_TABLE_ADDRESS, addresses[i]);
    }
}

/* A status byte that cannot be written must not read as success in the guest. */
static void test_status_outside_memory_breaks(void)
{
    static const uint64_t addresses[] = {0, RIG_RAM_AT - 1, RIG_RAM_AT + (uint64_t)RIG_RAM,
                                         UINT64_MAX};
    for (size_t i = 0; i < 4; i++) {
        struct rig rig = bad_rig(0);
        put_desc(&rig, RIG_DESC, 2, addresses[i], 1, DESC_WRITE, 0);
        put_avail(&rig, 0);
        check_breaks(&rig, VHB_STATUS_ADDRESS, addresses[i]);
    }
}

/* Memory that may only be read holds no status, and gets no data; one that is denied neither. */
static void test_access_rights_are_respected(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.stopped = true});
    struct vhb_segment seg[3] = {
        {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig.ram, .access = 3},
        {.iova = rig_at(RIG_DATA),
         .len = 4096,
         .host = rig.ram + RIG_DATA,
         .access = VHB_ACCESS_READ},
        {.iova = rig_at(RIG_DATA + 4096), .len = 4096, .host = rig.ram + RIG_DATA + 4096}};
    CHECK_EQ(vhb_queue_set_space(rig.queue, seg, 3), 0);
    rig_run(&rig);
    memset(rig.ram + RIG_DATA, 0x77, 8192);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA + 4096, 512), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA + 4096 - 512, 1024), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA + 4096, 512), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA + 8192, 512), BLK_IOERR);
    for (uint32_t i = 0; i < 8192; i++)
        CHECK_EQ(rig.ram[RIG_DATA + i], 0x77);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 1, rig_at(RIG_DATA), 1, DESC_WRITE, 0);
    put_avail(&rig, 0);
    rig_kick(&rig);
    CHECK_EQ(rig_broken(&rig).reason, VHB_STATUS_ADDRESS);
    rig_close(&rig);
}

/* What is wrong with one request costs that request: empty, overflowing or misordered pieces. */
static void test_bad_pieces_fail_the_request(void)
{
    static const struct {
        uint64_t addr;
        uint32_t len;
        uint16_t flags;
    } bad[] = {{RIG_RAM_AT, 0, DESC_NEXT},
               {0, 512, DESC_NEXT},
               {UINT64_MAX - 100, 512, DESC_NEXT},
               {RIG_RAM_AT, UINT32_MAX, DESC_NEXT},
               {RIG_RAM_AT + (uint64_t)RIG_RAM - 256, 512, DESC_NEXT}};
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    for (size_t i = 0; i < 5; i++) {
        put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 512);
        put_desc(&rig, RIG_DESC, 1, bad[i].addr, bad[i].len, bad[i].flags, 2);
        CHECK_EQ(do_chain(&rig, 0), BLK_IOERR);
        CHECK_EQ(rig.last_len, 1);
    }
    /* readable behind writable: spec 2.7.4.2; the last writable byte is still the status */
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 1, rig_at(status_at(0)), 1, DESC_WRITE | DESC_NEXT, 2);
    put_desc(&rig, RIG_DESC, 2, rig_at(RIG_DATA), 16, 0, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* A chain without a writable byte goes back with length 0 and is counted; its head is not lost. */
static void test_chain_without_status_comes_back(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(header_at(0)), 16, 0, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_UNTOUCHED);
    CHECK_EQ(rig.last_len, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, RIG_DESC, 1, rig_at(status_at(0)), 0, DESC_WRITE, 0); /* no byte either */
    CHECK_EQ(do_chain(&rig, 0), BLK_UNTOUCHED);
    CHECK_EQ(rig.last_len, 0);
    CHECK_EQ(RIG_COUNT(&rig, malformed), 2);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* A broken queue is its own misfortune: another one of the same worker serves on. */
static void test_broken_queue_leaves_others_alone(void)
{
    struct vhb_worker *worker;
    CHECK_EQ(rig_worker(0, &worker), 0);
    struct rig good, bad;
    rig_open(&good, &(struct rig_config){.worker = worker});
    rig_open(&bad, &(struct rig_config){.worker = worker});
    for (uint16_t i = 0; i < 3; i++) {
        put_avail(&bad, 0xffff);
        rig_kick(&bad);
        CHECK_EQ(do_request(&good, BLK_FLUSH, 0, 0, 0), BLK_OK);
    }
    CHECK_EQ(rig_broken(&bad).reason, VHB_HEAD);
    CHECK_EQ(do_request(&good, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&bad);
    CHECK_EQ(do_request(&good, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(vhb_worker_free(worker), -EBUSY);
    rig_close(&good);
    CHECK_EQ(vhb_worker_free(worker), 0);
}

CHECK_MAIN(TEST(avail_index_too_far_breaks), TEST(head_out_of_range_breaks),
           TEST(next_out_of_range_breaks), TEST(loop_breaks), TEST(malformed_tables_break),
           TEST(table_outside_memory_breaks), TEST(status_outside_memory_breaks),
           TEST(access_rights_are_respected), TEST(bad_pieces_fail_the_request),
           TEST(chain_without_status_comes_back), TEST(broken_queue_leaves_others_alone))
