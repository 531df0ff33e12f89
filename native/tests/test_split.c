/* test_split.c - the split ring seen by its driver: honest chains in every framing, calls and
 * kicks.  test_hostile.c has the dishonest ones. */
#include <errno.h>
#include <sys/eventfd.h>

#include "rig.h"

static void settle(struct rig *rig)
{
    for (int i = 0; i < 4; i++)
        rig_pass(rig);
}

/* ---- honest chains -------------------------------------------------------------------- */

/* Heads come back in the used ring with the bytes that were written, across many wraps. */
static void test_requests_wrap_around_the_ring(void)
{
    static const uint32_t sizes[] = {4, 8, 256, 1024};
    for (size_t s = 0; s < 4; s++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.size = sizes[s]});
        for (uint32_t i = 0; i < 3 * sizes[s] + 5; i++) {
            bool read = i % 2;
            memset(rig.ram + RIG_DATA, 0x77, 512);
            uint8_t status = do_request(&rig, read ? BLK_IN : BLK_OUT, i % 8, RIG_DATA, 512);
            CHECK_EQ(status, BLK_OK);
            CHECK_EQ(rig.last_len, read ? 513 : 1);
            CHECK_EQ(rig.ram[RIG_DATA + 511], read ? 0 : 0x77);
        }
        rig_drain(&rig);
        CHECK_EQ(rig_base(&rig), (3 * sizes[s] + 5) & 0xffff);
        rig_close(&rig);
    }
}

/* A ring of one descriptor works: a whole request fits only into an indirect table. */
static void test_ring_of_one(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 1, .features = RIG_INDIRECT});
    for (int i = 0; i < 5; i++) {
        put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
        put_desc(&rig, RIG_DATA, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
        put_desc(&rig, RIG_DATA, 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
        put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 32, DESC_INDIRECT, 0);
        CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    }
    rig_close(&rig);
}

/* The indices are 16 bits wide and the ring does not notice when they wrap. */
static void test_indices_wrap_at_65536(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 8, .stopped = true});
    put_avail_idx(&rig, 65534);
    put16(&rig, RIG_USED + 2, 65533); /* the used index is the ring's, not the base's */
    rig.used_seen = 65533;
    CHECK_EQ(vhb_queue_set_base(rig.queue, 65534), 0);
    rig_run(&rig);
    for (int i = 0; i < 6; i++)
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(get16(&rig, RIG_USED + 2), 3);
    rig_drain(&rig);
    CHECK_EQ(rig_base(&rig), 4);
    rig_close(&rig);
}

/* Several requests published by one index are all served. */
static void test_batch_is_served_whole(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 256});
    for (uint16_t i = 0; i < 80; i++) {
        put_request(&rig, 3u * i, BLK_FLUSH, 0, 0, 0);
        put16(&rig, RIG_AVAIL + 4 + 2u * i, (uint16_t)(3 * i));
    }
    put_avail_idx(&rig, 80);
    rig_kick(&rig);
    bool seen[240] = {false};
    for (uint32_t i = 0; i < 80; i++) {
        wait_used(&rig);
        CHECK(rig.last_id < 240 && rig.last_id % 3 == 0 && !seen[rig.last_id]);
        seen[rig.last_id] = true;
        CHECK_EQ(status_of(&rig, rig.last_id), BLK_OK);
    }
    settle(&rig);
    CHECK(!take_used(&rig));
    rig_close(&rig);
}

/* An indirect table may follow direct descriptors, may be unaligned and may be larger than the
 * ring; its entries may stand in any order. */
static void test_indirect_tables(void)
{
    struct rig rig;
    uint32_t table = RIG_DATA + 0x10001 - 1 + 6; /* 16-byte entries at an odd place */
    rig_open(&rig, &(struct rig_config){.size = 4, .features = RIG_INDIRECT});
    put_request(&rig, 0, BLK_IN, 3, 0, 0);
    memset(rig.ram + RIG_DATA, 0x77, 8 * 512);
    uint32_t n = 10;
    uint8_t *raw = rig.ram + table;
    for (uint32_t i = 0; i < n; i++) {
        bool last = i == n - 1;
        uint64_t addr = last ? rig_at(status_at(0)) : rig_at(RIG_DATA + 512 * (i % 8));
        uint32_t len = last ? 1 : 512;
        uint16_t flags = (uint16_t)(DESC_WRITE | (last ? 0 : DESC_NEXT)), next = (uint16_t)(i + 1);
        memcpy(raw + 16 * i, &addr, 8);
        memcpy(raw + 16 * i + 8, &len, 4);
        memcpy(raw + 16 * i + 12, &flags, 2);
        memcpy(raw + 16 * i + 14, &next, 2);
    }
    put_desc(&rig, RIG_DESC, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, RIG_DESC, 1, rig_at(table), 16 * n, DESC_INDIRECT, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    CHECK_EQ(rig.last_len, 9 * 512 + 1);
    CHECK_EQ(rig.ram[RIG_DATA], 0);
    rig_close(&rig);
}

/* A chain of more pieces than a slot holds, and one of more than anybody holds. */
static void test_long_chains(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 16, .features = RIG_INDIRECT, .sectors = 1 << 20});
    uint32_t table = 1 << 20;
    static const uint32_t lengths[] = {127, 128, 129, 130, 131, 500, 2046, 2047, 3000, 32766};
    for (size_t k = 0; k < sizeof(lengths) / sizeof(lengths[0]); k++) {
        uint32_t n = lengths[k];
        put_request(&rig, 0, BLK_OUT, 0, 0, 0);
        put_desc(&rig, table, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
        for (uint32_t i = 1; i <= n; i++)
            put_desc(&rig, table, i, rig_at(RIG_DATA), 512, DESC_NEXT, (uint16_t)(i + 1));
        put_desc(&rig, table, n + 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
        put_desc(&rig, RIG_DESC, 0, rig_at(table), 16 * (n + 2), DESC_INDIRECT, 0);
        CHECK_EQ(do_chain(&rig, 0), n <= 2046 ? BLK_OK : BLK_IOERR);
    }
    CHECK_EQ(RIG_COUNT(&rig, writes), 7);
    rig_close(&rig);
}

/* Two regions that meet in guest addresses but not here: data, status and an indirect table
 * across the border all work. */
static void test_chains_cross_segments(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.features = RIG_INDIRECT, .stopped = true});
    /* Guest pages 0x900000.. are one run of addresses over pages in the opposite order. */
    uint64_t at = 0x900000;
    struct vhb_segment seg[3] = {
        {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig.ram, .access = 3},
        {.iova = at, .len = 4096, .host = rig.ram + RIG_DATA + 4096, .access = 3},
        {.iova = at + 4096, .len = 4096, .host = rig.ram + RIG_DATA, .access = 3}};
    CHECK_EQ(vhb_queue_set_space(rig.queue, seg, 3), 0);
    rig_run(&rig);
    memset(rig.ram + RIG_DATA, 0x77, 8192);
    put_request(&rig, 0, BLK_IN, 0, 0, 0);
    /* The table's second entry has its border in the middle; data and status in one buffer.  The
     * table lies below it and inside the first page. */
    uint32_t table = RIG_DATA + 8192 - 500;
    put_desc(&rig, table, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, table, 1, at + 4096 - 100, 512 + 1, DESC_WRITE, 0);
    put_desc(&rig, RIG_DESC, 0, at + 4096 - 500, 32, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    rig_kick(&rig);
    wait_used(&rig);
    CHECK_EQ(rig.last_len, 513);
    CHECK_EQ(rig.ram[RIG_DATA + 8192 - 100], 0); /* first page's last 100 bytes */
    CHECK_EQ(rig.ram[RIG_DATA + 411], 0); /* … and 412 of the second */
    CHECK_EQ(rig.ram[RIG_DATA + 412], BLK_OK); /* the status */
    CHECK_EQ(rig.ram[RIG_DATA + 413], 0x77);

    /* Now the table itself: 8 bytes in one page, 24 in the other. */
    put_desc(&rig, table, 1, rig_at(RIG_HEADERS + 0x1000), 512 + 1, DESC_WRITE, 0);
    memcpy(rig.ram + RIG_DATA + 8192 - 8, rig.ram + table, 8);
    memcpy(rig.ram + RIG_DATA, rig.ram + table + 8, 24);
    rig.ram[RIG_DATA + 412] = BLK_UNTOUCHED;
    put_desc(&rig, RIG_DESC, 0, at + 4096 - 8, 32, DESC_INDIRECT, 0);
    put_avail(&rig, 0);
    rig_kick(&rig);
    wait_used(&rig);
    CHECK_EQ(rig.last_len, 513);
    CHECK_EQ(rig.ram[RIG_HEADERS + 0x1000 + 512], BLK_OK);
    rig_close(&rig);
}

/* A ring in several pieces, cut between elements, is the same ring. */
static void test_ring_in_pieces(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 8, .stopped = true});
    struct vhb_piece desc[2] = {{rig.ram + RIG_DESC, 48}, {rig.ram + RIG_DESC + 48, 80}};
    struct vhb_piece avail[3] = {
        {rig.ram + RIG_AVAIL, 4}, {rig.ram + RIG_AVAIL + 4, 6}, {rig.ram + RIG_AVAIL + 10, 12}};
    struct vhb_piece used[2] = {{rig.ram + RIG_USED, 4 + 8}, {rig.ram + RIG_USED + 12, 58}};
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_DESC, desc, 2), 0);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_AVAIL, avail, 3), 0);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, used, 2), 0);
    rig_run(&rig);
    for (uint32_t i = 0; i < 20; i++) {
        put_request(&rig, 2 + i % 3, BLK_IN, 0, RIG_DATA, 512);
        CHECK_EQ(do_chain(&rig, (uint16_t)(2 + i % 3)), BLK_OK);
    }
    rig_park(&rig);
    desc[0].len = 40, desc[1].len = 88; /* in the middle of a descriptor */
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_DESC, desc, 2), -EINVAL);
    rig_close(&rig);
}

/* ---- kicks and calls ------------------------------------------------------------------ */

static int calls(struct rig *rig)
{
    eventfd_t n = 0;
    return eventfd_read(rig->call, &n) < 0 ? 0 : (int)n;
}

/* A new call fd is signalled once; then a call per batch, none where the driver asks for none. */
static void test_calls_follow_the_flags(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    settle(&rig);
    CHECK_EQ(calls(&rig), 1);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(calls(&rig), 1);
    put16(&rig, RIG_AVAIL, 1); /* VRING_AVAIL_F_NO_INTERRUPT */
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(calls(&rig), 0);
    put16(&rig, RIG_AVAIL, 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(calls(&rig), 1);
    rig_close(&rig);
}

/* With EVENT_IDX a call comes when the used index passes used_event, and only then. */
static void test_calls_follow_used_event(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.features = RIG_EVENT_IDX});
    uint32_t used_event = RIG_AVAIL + 4 + 2 * 64;
    settle(&rig);
    CHECK_EQ(calls(&rig), 1);
    put16(&rig, used_event, 2);
    static const int want[] = {0, 0, 1, 0, 0};
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK_EQ(calls(&rig), want[i]);
    }
    put16(&rig, RIG_AVAIL, 1); /* the flag has no say then */
    put16(&rig, used_event, 5);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(calls(&rig), 1);
    rig_close(&rig);
}

/* Before it sleeps the device asks for the kick of the very next request, in both ways. */
static void test_idle_device_asks_for_kicks(void)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.features = event_idx ? RIG_EVENT_IDX : 0});
        for (int i = 0; i < 5; i++) {
            CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
            settle(&rig);
            uint16_t old = rig.avail_idx;
            put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
            put_avail(&rig, 0);
            CHECK(rig_wants_kick(&rig, old));
            rig_kick(&rig);
            wait_used(&rig);
        }
        rig_close(&rig);
    }
}

/* A ring whose device died while it wanted no kicks is served, and asks for kicks again. */
static void test_inherited_ring_asks_for_kicks(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.stopped = true});
    put16(&rig, RIG_USED, 1); /* VRING_USED_F_NO_NOTIFY, left by somebody else */
    rig_run(&rig);
    settle(&rig);
    CHECK_EQ(get16(&rig, RIG_USED), 0);
    rig_close(&rig);
}

CHECK_MAIN(TEST(requests_wrap_around_the_ring), TEST(ring_of_one), TEST(indices_wrap_at_65536),
           TEST(batch_is_served_whole), TEST(indirect_tables), TEST(long_chains),
           TEST(chains_cross_segments), TEST(ring_in_pieces), TEST(calls_follow_the_flags),
           TEST(calls_follow_used_event), TEST(idle_device_asks_for_kicks),
           TEST(inherited_ring_asks_for_kicks))
