/* test_packed.c - the packed ring seen by its driver: honest chains, wrap counters, event
 * suppression.  test_packed_hostile.c has the dishonest ones, test_packed_base.c where a ring goes
 * on; the other tests, too, are run on packed rings (VHB_TEST_PACKED). */
#include <sys/eventfd.h>

#include "disk.h"
#include "slow.h"

/* ---- chains --------------------------------------------------------------------------- */

/* Any number of descriptors makes a ring; ids come back with the bytes that were written, across
 * many wraps, and a chain may lie across the end.  Spec: virtio 1.3, 2.8, 2.8.10.1. */
static void test_requests_wrap_at_any_size(void)
{
    static const uint32_t sizes[] = {3, 4, 5, 7, 8, 63, 100, 1024};
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.size = sizes[s], .features = RIG_PACKED});
        for (uint32_t i = 0; i < 2 * sizes[s] + 5; i++) {
            uint32_t type = i % 3 == 0 ? BLK_IN : i % 3 == 1 ? BLK_OUT : BLK_FLUSH;
            memset(rig.ram + RIG_DATA, 0x77, 512);
            uint32_t len = type == BLK_FLUSH ? 0 : 512;
            CHECK_EQ(do_request(&rig, type, i % 8, RIG_DATA, len), BLK_OK);
            CHECK_EQ(rig.last_len, type == BLK_IN ? 513 : 1);
            CHECK_EQ(rig.ram[RIG_DATA + 511], type == BLK_IN ? 0 : 0x77);
        }
        rig_drain(&rig);
        CHECK_EQ(rig_base(&rig), packed_base(&rig.packed.avail));
        rig_close(&rig);
    }
}

/* Rings of one and two descriptors work: a whole request fits into an indirect table. */
static void test_tiny_rings(void)
{
    for (uint32_t size = 1; size < 3; size++)
        for (int event_idx = 0; event_idx < 2; event_idx++) {
            struct rig rig;
            uint64_t features = RIG_PACKED | RIG_INDIRECT | (event_idx ? RIG_EVENT_IDX : 0);
            rig_open(&rig, &(struct rig_config){.size = size, .features = features});
            for (uint16_t i = 0; i < 7; i++) {
                put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
                put_desc(&rig, RIG_DATA, 0, rig_at(header_at(0)), 16, 0, 0);
                put_desc(&rig, RIG_DATA, 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
                put_desc(&rig, RIG_DESC, 0, rig_at(RIG_DATA), 32, DESC_INDIRECT, 0);
                put_avail(&rig, 0);
                CHECK(rig_wants_kick(&rig, 0));
                rig_kick(&rig);
                wait_used(&rig);
                CHECK_EQ(status_of(&rig, 0), BLK_OK);
                settle(&rig);
            }
            rig_close(&rig);
        }
}

/* What ends first comes back first, in the first free descriptor; each used element skips as many
 * as its chain had.  Spec: virtio 1.3, 2.8.6. */
static void test_used_in_the_order_of_completion(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){.size = 10, .features = RIG_PACKED});
    for (int round = 0; round < 9; round++) {
        struct vhb_job a = start(&s, 0, BLK_IN, 0), b = start(&s, 3, BLK_FLUSH, 0),
                       c = start(&s, 6, BLK_OUT, 8); /* 3 + 2 + 3 descriptors */
        const struct vhb_job *order[] = {&c, &a, &b};
        static const uint32_t ids[] = {6, 0, 3}, lens[] = {1, 513, 1};
        struct place used = s.rig.packed.used;
        for (int i = 0; i < 3; i++) {
            finish(&s, order[i]);
            wait_used(&s.rig);
            CHECK_EQ(s.rig.last_id, ids[i]);
            CHECK_EQ(s.rig.last_len, lens[i]);
            CHECK_EQ(status_of(&s.rig, ids[i]), BLK_OK);
        }
        packed_step(&s.rig, &used, 8);
        CHECK_EQ(used.slot, s.rig.packed.used.slot);
        CHECK(!take_used(&s.rig));
    }
    close_slow(&s);
}

enum { BATCH = 4 };

/* A disk whose requests end in one moment, four by four. */
struct together {
    struct vhb_disk disk;
    struct vhb_req *held[BATCH];
    uint32_t n;
};

static int hold_together(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)io;
    struct together *t = (struct together *)disk;
    if (t->n < BATCH - 1) {
        t->held[t->n++] = req;
        return VHB_PENDING;
    }
    while (t->n)
        vhb_req_done(t->held[--t->n], 0);
    return 0;
}

/* A batch is published by its first element, the last that is stored: who sees that sees all, with
 * their ids.  Spec: virtio 1.3, 2.8.12 (the driver polls one location only). */
static void test_batch_seen_is_seen_whole(void)
{
    static const struct vhb_disk_ops ops = {.submit = hold_together};
    struct together disk = {.disk.ops = &ops};
    struct rig rig;
    rig_open(&rig, &(struct rig_config){
                       .size = 13, .threaded = true, .features = RIG_PACKED, .disk = &disk.disk});
    for (uint32_t round = 0; round < 2000; round++) {
        rig_park(&rig);
        for (uint16_t i = 0; i < BATCH; i++) {
            put_request(&rig, 2u * i, BLK_FLUSH, 0, 0, 0);
            put_avail(&rig, (uint16_t)(2 * i));
        }
        rig_run(&rig);
        uint64_t seen = 0;
        wait_used(&rig);
        for (int i = 0; i < BATCH; i++) {
            CHECK_EQ(status_of(&rig, rig.last_id), BLK_OK);
            seen |= 1ull << rig.last_id;
            CHECK_EQ(take_used(&rig), i + 1 < BATCH); /* without waiting */
        }
        CHECK_EQ(seen, 0x55);
    }
    rig_close(&rig);
}

/* In a table the length says how many there are; NEXT, INDIRECT and the bits of availability mean
 * nothing there, nor has a descriptor an id.  It may stand at any address and across segments, and
 * WRITE where it is named means nothing.  Spec: virtio 1.3, 2.8.7. */
static void test_table_flags_are_ignored(void)
{
    static const uint16_t noise[] = {0, DESC_NEXT, DESC_INDIRECT, PACKED_AVAIL, 0xffff & ~2};
    static const uint32_t places[] = {RIG_DATA + 0x10000, RIG_DATA + 0x10007};
    for (size_t k = 0; k < 10; k++) {
        struct rig rig;
        uint32_t table = places[k % 2], border = RIG_DATA + 0x10020;
        uint16_t extra = noise[k / 2];
        rig_open(&rig, &(struct rig_config){.size = 3, .features = RIG_PACKED | RIG_INDIRECT});
        rig_park(&rig);
        struct vhb_segment seg[2] = {
            {.iova = RIG_RAM_AT, .len = border, .host = rig.ram, .access = 3},
            {.iova = rig_at(border),
             .len = RIG_RAM - border,
             .host = rig.ram + border,
             .access = 3}};
        CHECK_EQ(vhb_queue_set_space(rig.queue, seg, 2), 0);
        rig_run(&rig);
        put_request(&rig, 0, BLK_IN, 0, 0, 0);
        memset(rig.ram + RIG_DATA, 0x77, 1024);
        uint8_t *raw = rig.ram + table;
        for (uint32_t i = 0; i < 4; i++) {
            uint64_t addr[] = {rig_at(header_at(0)), rig_at(RIG_DATA), rig_at(RIG_DATA + 512),
                               rig_at(status_at(0))};
            uint32_t len[] = {16, 512, 512, 1};
            uint16_t id = 0xffff, flags = (uint16_t)(extra | (i ? DESC_WRITE : 0));
            memcpy(raw + 16 * i, &addr[i], 8);
            memcpy(raw + 16 * i + 8, &len[i], 4);
            memcpy(raw + 16 * i + 12, &id, 2);
            memcpy(raw + 16 * i + 14, &flags, 2);
        }
        put_desc(&rig, RIG_DESC, 0, rig_at(table), 64, DESC_INDIRECT | (k % 3 ? DESC_WRITE : 0), 0);
        CHECK_EQ(do_chain(&rig, 0), BLK_OK);
        CHECK_EQ(rig.last_len, 1025);
        CHECK_EQ(rig.ram[RIG_DATA + 1023], 0);
        rig_close(&rig);
    }
}

/* A table longer than the ring, as Windows makes them (515), and a chain as long as the ring. */
static void test_long_chains(void)
{
    struct rig rig;
    uint32_t table = 1 << 20, n = 513; /* of data */
    rig_open(&rig, &(struct rig_config){
                       .size = 16, .features = RIG_PACKED | RIG_INDIRECT, .sectors = 1 << 20});
    put_request(&rig, 0, BLK_IN, 0, 0, 0);
    put_desc(&rig, table, 0, rig_at(header_at(0)), 16, 0, 0);
    for (uint32_t i = 1; i <= n; i++)
        put_desc(&rig, table, i, rig_at(RIG_DATA + 512 * i), 512, DESC_WRITE, 0);
    put_desc(&rig, table, n + 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(table), 16 * (n + 2), DESC_INDIRECT, 0);
    memset(rig.ram + RIG_DATA, 0x77, 512 * 514);
    CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    CHECK_EQ(rig.last_len, 512 * n + 1);
    CHECK_EQ(rig.ram[RIG_DATA + 511], 0x77);
    CHECK_EQ(rig.ram[RIG_DATA + 512 * 514 - 1], 0);

    for (uint32_t i = 1; i < 15; i++)
        put_desc(&rig, RIG_DESC, i, rig_at(RIG_DATA), 512, DESC_NEXT | DESC_WRITE,
                 (uint16_t)(i + 1));
    put_desc(&rig, RIG_DESC, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, RIG_DESC, 15, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    CHECK_EQ(rig.last_len, 14 * 512 + 1);
    rig_close(&rig);
}

/* A ring in several pieces, cut between descriptors, is the same ring. */
static void test_ring_in_pieces(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 7, .features = RIG_PACKED, .stopped = true});
    struct vhb_piece desc[3] = {
        {rig.ram + RIG_DESC, 16}, {rig.ram + RIG_DESC + 16, 48}, {rig.ram + RIG_DESC + 64, 48}};
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_DESC, desc, 3), 0);
    rig_run(&rig);
    for (uint32_t i = 0; i < 20; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    rig_close(&rig);
}

/* A chain without a writable byte comes back with length 0 and without WRITE, and is counted. */
static void test_chain_without_status_comes_back(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.features = RIG_PACKED});
    for (uint32_t i = 0; i < 100; i++) {
        put_desc(&rig, RIG_DESC, 5, rig_at(header_at(0)), 16, 0, 0);
        put_avail(&rig, 5);
        rig_kick(&rig);
        wait_used(&rig); /* checks the flag */
        CHECK_EQ(rig.last_id, 5);
        CHECK_EQ(rig.last_len, 0);
    }
    CHECK_EQ(RIG_COUNT(&rig, malformed), 100);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* ---- calls and kicks ------------------------------------------------------------------ */

static int calls(struct rig *rig)
{
    eventfd_t n = 0;
    return eventfd_read(rig->call, &n) < 0 ? 0 : (int)n;
}

/* Enabled, disabled, or reserved, which is as good as enabled; "for a descriptor" is so, too, where
 * EVENT_IDX was not negotiated.  Spec: virtio 1.3, 2.8.10. */
static void test_calls_follow_the_mode(void)
{
    static const struct {
        uint64_t features;
        uint16_t mode;
        int calls;
    } cases[] = {{0, 0, 1},
                 {0, 1, 0},
                 {0, 2, 1},
                 {0, 3, 1},
                 {RIG_EVENT_IDX, 0, 1},
                 {RIG_EVENT_IDX, 1, 0},
                 {RIG_EVENT_IDX, 3, 1},
                 {0, 0x8001, 0} /* reserved bits do not count */};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.features = RIG_PACKED | cases[i].features});
        settle(&rig);
        CHECK_EQ(calls(&rig), 1); /* a new call fd is signalled once */
        put16(&rig, RIG_AVAIL, 0x7fff);
        put16(&rig, RIG_AVAIL + 2, cases[i].mode);
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK_EQ(calls(&rig), cases[i].calls);
        rig_close(&rig);
    }
}

/* With EVENT_IDX a call comes when the descriptor that was named is used, on the lap that was
 * named, and only then: every place of two laps is named once, for every step up to a whole ring.
 */
static void test_calls_follow_the_named_descriptor(void)
{
    enum { SIZE = 6 };
    for (uint32_t named = 0; named < 2 * SIZE; named++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.size = SIZE, .features = RIG_PACKED | RIG_EVENT_IDX});
        settle(&rig);
        calls(&rig);
        put16(&rig, RIG_AVAIL, (uint16_t)(named % SIZE | (named < SIZE ? 0x8000 : 0)));
        put16(&rig, RIG_AVAIL + 2, 2);
        for (uint32_t at = 0, n = 1; at < 5 * SIZE; at += n, n = n % SIZE + 1) {
            for (uint32_t i = 0; i < n; i++) { /* a chain of n, without a status */
                uint16_t flags = i + 1 < n ? DESC_NEXT : 0;
                put_desc(&rig, RIG_DESC, i, rig_at(RIG_DATA), 16, flags, (uint16_t)(i + 1));
            }
            put_avail(&rig, 0);
            rig_kick(&rig);
            wait_used(&rig);
            int due = 0;
            for (uint32_t i = at; i < at + n; i++)
                due += i % (2 * SIZE) == named;
            CHECK_EQ(calls(&rig), due);
        }
        put16(&rig, RIG_AVAIL, SIZE); /* no descriptor: better one call too many */
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK_EQ(calls(&rig), 1);
        rig_close(&rig);
    }
}

/* Before it sleeps the device asks for the kick of the very next descriptor, in both ways; while it
 * is awake for none. */
static void test_idle_device_asks_for_kicks(void)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct rig rig;
        uint64_t features = RIG_PACKED | (event_idx ? RIG_EVENT_IDX : 0);
        rig_open(&rig, &(struct rig_config){.size = 7, .features = features});
        for (int i = 0; i < 9; i++) {
            CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
            settle(&rig);
            uint32_t at = rig.packed.avail.slot | (rig.packed.avail.wrap ? 0x8000 : 0);
            CHECK_EQ(get32(&rig, RIG_USED), event_idx ? 2u << 16 | at : 0);
            put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
            put_avail(&rig, 0);
            CHECK(rig_wants_kick(&rig, 0));
            rig_kick(&rig);
            wait_used(&rig);
        }
        rig_close(&rig);
    }
}

/* A ring whose device died while it wanted no kicks is served, and asks for kicks again. */
static void test_inherited_ring_asks_for_kicks(void)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct rig rig;
        rig_open(&rig,
                 &(struct rig_config){.features = RIG_PACKED | (event_idx ? RIG_EVENT_IDX : 0),
                                      .stopped = true});
        put32(&rig, RIG_USED, 1 << 16); /* RING_EVENT_FLAGS_DISABLE, left by somebody else */
        rig_run(&rig);
        settle(&rig);
        CHECK_EQ(get32(&rig, RIG_USED), event_idx ? 2 << 16 | 0x8000 : 0);
        rig_close(&rig);
    }
}

CHECK_MAIN(TEST(requests_wrap_at_any_size), TEST(tiny_rings), TEST(used_in_the_order_of_completion),
           TEST(batch_seen_is_seen_whole), TEST(table_flags_are_ignored), TEST(long_chains),
           TEST(ring_in_pieces), TEST(chain_without_status_comes_back), TEST(calls_follow_the_mode),
           TEST(calls_follow_the_named_descriptor), TEST(idle_device_asks_for_kicks),
           TEST(inherited_ring_asks_for_kicks))
