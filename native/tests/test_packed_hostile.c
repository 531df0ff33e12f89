/* test_packed_hostile.c - dishonest packed rings, "What a bad guest gets" of the architecture page;
 * and what a chain that must wait leaves behind. */
#include <poll.h>

#include "slow.h"

static struct rig bad_rig(uint64_t features)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 9, .features = RIG_PACKED | features});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK); /* 2 of 9 */
    put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 512);
    return rig;
}

/* Write a descriptor *n* behind the driver's place, available, the first last. */
static void put_raw(struct rig *rig, uint32_t n, uint64_t addr, uint32_t len, uint16_t id,
                    uint16_t flags)
{
    struct place at = rig->packed.avail;
    packed_step(rig, &at, n);
    put_packed(rig, RIG_DESC, at.slot, addr, len, id, (uint16_t)(flags | packed_avail_flags(&at)));
}

/* The queue breaks once, for this reason; err is signalled, nothing is executed or given back, no
 * descriptor was written, and the ring serves again after a new base. */
static void check_breaks(struct rig *rig, enum vhb_reason reason, uint32_t index, uint64_t value)
{
    uint8_t before[16 * 9];
    memcpy(before, rig->ram + RIG_DESC, sizeof(before));
    rig_kick(rig);
    struct vhb_fault fault = rig_broken(rig);
    CHECK_EQ(fault.reason, reason);
    CHECK_EQ(fault.index, index);
    CHECK_EQ(fault.value, value);
    struct pollfd p = {.fd = rig->err, .events = POLLIN};
    CHECK_EQ(poll(&p, 1, 0), 1);
    settle(rig);
    CHECK_EQ(memcmp(before, rig->ram + RIG_DESC, sizeof(before)), 0);
    CHECK_EQ(RIG_COUNT(rig, in_flight), 0);
    CHECK_EQ(RIG_COUNT(rig, writes), 0);
    CHECK_EQ(vhb_queue_take_events(rig->queue), 0);

    rig_drain(rig);
    rig_begin(rig);
    rig_run(rig);
    for (int i = 0; i < 9; i++)
        CHECK_EQ(do_request(rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(rig);
}

/* Spec: virtio 1.3, 2.8.17: a list is no longer than the ring, so it cannot loop. */
static void test_endless_chain_breaks(void)
{
    struct rig rig = bad_rig(0);
    for (uint32_t n = 9; n--;)
        put_raw(&rig, n, rig_at(RIG_DATA), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_LOOP, 2, 9);
}

/* NEXT leads to a descriptor that was used before, or never written. */
static void test_chain_into_nothing_breaks(void)
{
    struct rig rig = bad_rig(0);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_PARTIAL, 3, 0);

    rig = bad_rig(0); /* available, but by the other wrap counter */
    put_packed(&rig, RIG_DESC, 3, rig_at(status_at(0)), 1, 0, DESC_WRITE | PACKED_USED);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_PARTIAL, 3, DESC_WRITE | PACKED_USED);

    rig = bad_rig(0); /* used */
    put_packed(&rig, RIG_DESC, 3, rig_at(status_at(0)), 1, 0, PACKED_AVAIL | PACKED_USED);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_PARTIAL, 3, PACKED_AVAIL | PACKED_USED);
}

/* The id of the last descriptor indexes what a device keeps of a request. */
static void test_id_out_of_range_breaks(void)
{
    static const uint16_t ids[] = {9, 10, 0x7fff, 0x8000, 0xffff};
    for (size_t i = 0; i < 5; i++) {
        struct rig rig = bad_rig(0);
        put_raw(&rig, 1, rig_at(status_at(0)), 1, ids[i], DESC_WRITE);
        put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
        check_breaks(&rig, VHB_ID, 3, ids[i]);
    }
    struct rig rig = bad_rig(0); /* in other descriptors it is not looked at */
    put_raw(&rig, 1, rig_at(status_at(0)), 1, 8, DESC_WRITE);
    put32(&rig, header_at(0), BLK_FLUSH);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0xffff, DESC_NEXT);
    rig.packed.slots[8] = 2;
    rig_kick(&rig);
    wait_used(&rig);
    CHECK_EQ(rig.last_id, 8);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    rig_close(&rig);
}

static void drain_broken(struct slow *s, const struct vhb_job *job)
{
    finish(s, job);
    rig_drain(&s->rig);
    CHECK_EQ(RIG_COUNT(&s->rig, in_flight), 0);
    rig_begin(&s->rig);
    rig_run(&s->rig);
    struct vhb_job next = start(s, 0, BLK_IN, 0); /* its id is free again */
    finish(s, &next);
    wait_used(&s->rig);
    CHECK_EQ(status_of(&s->rig, 0), BLK_OK);
    close_slow(s);
}

/* Two requests by one id: neither could be told from the other. */
static void test_id_in_flight_breaks(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){.size = 9, .features = RIG_PACKED});
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    put_avail(&s.rig, 0);
    rig_kick(&s.rig);
    struct vhb_fault fault = rig_broken(&s.rig);
    CHECK(fault.reason == VHB_ID_IN_FLIGHT && fault.index == 5 && fault.value == 0);
    drain_broken(&s, &job);
}

/* What is still in flight is made available again, by another id: alone, and by a chain that runs
 * into it.  The ring is full, whatever its flags say. */
static void test_available_twice_breaks(void)
{
    for (int chained = 0; chained < 2; chained++) {
        struct slow s;
        open_slow(&s, &(struct rig_config){.size = 4, .features = RIG_PACKED | RIG_INDIRECT});
        struct vhb_job job = start(&s, 0, BLK_IN, 0); /* 3 of 4 */
        put_packed(&s.rig, RIG_DESC, 0, rig_at(RIG_DATA), 16, 1, PACKED_USED);
        if (chained) {
            put_raw(&s.rig, 0, rig_at(RIG_DATA), 16, 1, DESC_NEXT);
        } else {
            put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0); /* it is served */
            put_packed(&s.rig, RIG_DATA, 0, rig_at(header_at(3)), 16, 0, 0);
            put_packed(&s.rig, RIG_DATA, 1, rig_at(status_at(3)), 1, 0, DESC_WRITE);
            put_raw(&s.rig, 0, rig_at(RIG_DATA), 32, 1, DESC_INDIRECT);
        }
        rig_kick(&s.rig);
        struct vhb_fault fault = rig_broken(&s.rig);
        CHECK_EQ(fault.reason, VHB_AVAIL_INDEX);
        CHECK_EQ(fault.index, chained ? 3 : 0);
        CHECK_EQ(fault.value, 0);
        struct vhb_job flush;
        if (!chained) {
            CHECK_EQ(vhb_mailbox_take(s.box, &flush, 1), 1);
            finish(&s, &flush);
        }
        drain_broken(&s, &job);
    }
}

/* Spec: virtio 1.3, 2.8.19: tables that were not negotiated, of odd or no length, or in a list. */
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
        put_raw(&rig, 0, rig_at(RIG_DATA), bad[i].len, 0, bad[i].flags);
        check_breaks(&rig, VHB_INDIRECT, 2, bad[i].len);
    }
    struct rig rig = bad_rig(RIG_INDIRECT); /* the last of a list */
    put_raw(&rig, 1, rig_at(RIG_DATA), 32, 0, DESC_INDIRECT);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_INDIRECT, 3, 32);
}

/* A table, or a status byte, where no memory is. */
static void test_addresses_outside_memory_break(void)
{
    static const uint64_t tables[] = {0, UINT64_MAX - 7, RIG_RAM_AT + (uint64_t)RIG_RAM - 8};
    for (size_t i = 0; i < 3; i++) {
        struct rig rig = bad_rig(RIG_INDIRECT);
        put_raw(&rig, 0, tables[i], 32, 0, DESC_INDIRECT);
        check_breaks(&rig, VHB_TABLE_ADDRESS, tables[i] == UINT64_MAX - 7 ? 2 : 0, tables[i]);
    }
    struct rig rig = bad_rig(0);
    put_raw(&rig, 1, 0x10, 1, 0, DESC_WRITE);
    put_raw(&rig, 0, rig_at(header_at(0)), 16, 0, DESC_NEXT);
    check_breaks(&rig, VHB_STATUS_ADDRESS, 2, 0x10);
}

/* A driver that breaks its ring with the flags of every descriptor at once: whatever is there ends
 * at a reason, and never beyond the ring. */
static void test_ring_of_noise_ends(void)
{
    uint64_t seed = 88172645463325252ull;
    for (int round = 0; round < 400; round++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.size = 9, .features = RIG_PACKED | RIG_INDIRECT});
        for (uint32_t i = 0; i < 16 * 9; i += 8) {
            seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17; /* xorshift */
            uint64_t word = i % 16 ? seed & ~0x0000fff0fffff000ull : rig_at(seed % RIG_RAM);
            put64(&rig, RIG_DESC + i, word);
        }
        rig_kick(&rig);
        settle(&rig);
        rig_drain(&rig);
        CHECK_EQ(RIG_COUNT(&rig, in_flight), 0);
        rig_close(&rig);
    }
}

/* ---- waiting -------------------------------------------------------------------------- */

/* A chain that waits for an address is not consumed: not its place, not its id; a base that was
 * saved meanwhile names it. */
static void test_miss_consumes_nothing(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 7, .features = RIG_PACKED, .stopped = true});
    CHECK_EQ(vhb_queue_set_ask(rig.queue, true), 0);
    rig_run(&rig);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    rig_park(&rig);
    struct vhb_segment half = {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig.ram, .access = 3};
    CHECK_EQ(vhb_queue_set_space(rig.queue, &half, 1), 0);
    rig_run(&rig);
    put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 512); /* 6, 0 and 1 of the ring */
    put_avail(&rig, 0);
    rig_kick(&rig);
    for (int i = 0; i < 3; i++) {
        struct vhb_miss miss;
        rig_wait(&rig, VHB_MISS);
        CHECK_EQ(vhb_queue_miss(rig.queue, &miss), 1);
        CHECK(miss.iova == rig_at(RIG_DATA) && miss.index == 6);
        rig_drain(&rig);
        CHECK_EQ(rig_base(&rig), 0x80068006);
        if (i == 1)
            CHECK_EQ(vhb_queue_set_base(rig.queue, 0x80068006), 0); /* as a start does */
        if (i == 2)
            rig_space(&rig);
        else
            CHECK_EQ(vhb_queue_set_space(rig.queue, &half, 1), 0);
        rig_run(&rig);
    }
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    rig_drain(&rig);
    CHECK_EQ(rig_base(&rig), 0x00020002);
    rig_close(&rig);
}

CHECK_MAIN(TEST(endless_chain_breaks), TEST(chain_into_nothing_breaks),
           TEST(id_out_of_range_breaks), TEST(id_in_flight_breaks), TEST(available_twice_breaks),
           TEST(malformed_tables_break), TEST(addresses_outside_memory_break),
           TEST(ring_of_noise_ends), TEST(miss_consumes_nothing))
