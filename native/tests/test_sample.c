/* test_sample.c - what drivers write in descriptors is recorded: one thread stores, another takes.
 */
#include "rig.h"

enum { TABLE = 1 << 20, LONG = 600 };

static uint32_t take(struct rig *rig, struct vhb_sample *out, uint32_t n)
{
    int r = vhb_queue_take_samples(rig->queue, out, n);
    CHECK(r >= 0);
    return (uint32_t)r;
}

static void begin(struct rig *rig, uint32_t first, uint32_t every)
{
    rig_park(rig);
    CHECK_EQ(vhb_queue_set_sampling(rig->queue, first, every), 0);
    rig_run(rig);
}

/* A flush of LONG descriptors, header and many bytes for a status, in an indirect table: LONG + 1
 * samples. */
static void put_long(struct rig *rig, uint16_t head)
{
    put_request(rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(rig, TABLE, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    for (uint32_t i = 1; i < LONG; i++) {
        uint16_t more = i + 1 < LONG ? DESC_NEXT : 0;
        put_desc(rig, TABLE, i, rig_at(RIG_DATA), 1, more | DESC_WRITE, (uint16_t)(i + 1));
    }
    put_desc(rig, RIG_DESC, head, rig_at(TABLE), 16 * LONG, DESC_INDIRECT, 0);
}

/* Only who owns the ring sets and condemns; anybody takes. */
static void test_owner_sets(void)
{
    struct rig rig;
    struct vhb_sample one;
    rig_open(&rig, &(struct rig_config){0});
    CHECK_EQ(vhb_queue_set_sampling(rig.queue, 1, 1), -EBUSY);
    CHECK_EQ(vhb_queue_condemn(rig.queue), -EBUSY);
    CHECK_EQ(take(&rig, &one, 1), 0);
    rig_close(&rig);
}

/* Few at a time, in order, across the end of the ring; events only where one was promised. */
static void test_few_at_a_time(void)
{
    struct rig rig;
    struct vhb_sample out[2];
    rig_open(&rig, &(struct rig_config){0});
    begin(&rig, 0, 1);
    for (uint32_t n = 0; n < 3 * VHB_SAMPLES / 2; n++) { /* two samples each: around three times */
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK_EQ(take(&rig, out, 1), 1);
        CHECK(out[0].role == VHB_ROLE_READABLE && out[0].len == 16);
        CHECK_EQ(take(&rig, out, 2), 1);
        CHECK(out[0].role == VHB_ROLE_WRITABLE && out[0].len == 1);
        CHECK_EQ(out[0].iova, rig_at(status_at(0)));
        CHECK_EQ(out[0].chain, n & 0xffff);
    }
    CHECK_EQ((rig.events | vhb_queue_take_events(rig.queue)) & VHB_SAMPLED, 0);
    rig_close(&rig);
}

/* The first chains wait for room, asleep if need be; whoever takes wakes the worker. */
static void check_lossless(bool threaded)
{
    enum { CHAINS = 40 };
    struct rig rig;
    static struct vhb_sample out[100];
    rig_open(&rig, &(struct rig_config){.threaded = threaded, .features = RIG_INDIRECT});
    begin(&rig, CHAINS, 0);
    for (uint16_t i = 0; i < CHAINS; i++)
        put_long(&rig, 2 + i); /* the first two are laid anew each time */
    for (uint16_t i = 0; i < CHAINS; i++)
        put_avail(&rig, 2 + i);
    rig_kick(&rig);
    uint32_t got = 0, used = 0;
    while (got < CHAINS * (LONG + 1)) {
        rig_wait(&rig, VHB_SAMPLED);
        uint32_t n;
        while ((n = take(&rig, out, 100))) {
            for (uint32_t i = 0; i < n; i++)
                CHECK_EQ(out[i].chain, (got + i) / (LONG + 1));
            got += n;
        }
    }
    for (; used < CHAINS; used++)
        wait_used(&rig);
    CHECK_EQ(RIG_COUNT(&rig, descriptors), CHAINS * LONG);
    rig_close(&rig);
}

static void test_first_chains_wait_for_room(void)
{
    check_lossless(false);
    check_lossless(true);
}

/* Whenever one is outside and none was told of yet, it is told: a guest at full speed, and a
 * control plane that takes at the worst moments. */
static void test_no_sample_is_forgotten(void)
{
    enum { REQUESTS = 3000 };
    struct rig rig;
    struct vhb_sample out[16];
    rig_open(&rig, &(struct rig_config){.size = 256, .threaded = true, .stopped = true});
    struct vhb_segment rows[] = {
        {.iova = RIG_RAM_AT, .len = RIG_DATA, .host = rig.ram, .access = 3},
        {.iova = RIG_RAM_AT + RIG_DATA,
         .len = RIG_RAM - RIG_DATA,
         .host = rig.ram + RIG_DATA,
         .access = 3 | VHB_ACCESS_NOTED},
    };
    CHECK_EQ(vhb_queue_set_space(rig.queue, rows, 2), 0);
    rig_run(&rig);
    for (uint32_t i = 0; i < 64; i++)
        put_request(&rig, 3 * i, BLK_OUT, 0, RIG_DATA, 512);
    uint32_t got = 0, asked = 0, n;
    while (got < REQUESTS) {
        if (asked < REQUESTS) {
            put_avail(&rig, (uint16_t)(3 * (asked++ % 64)));
            rig_kick(&rig);
        }
        if (asked % 64 == 0 || asked == REQUESTS) /* else the ring fills up */
            while (rig.used_seen != (uint16_t)asked)
                wait_used(&rig);
        rig.events |= vhb_queue_take_events(rig.queue);
        if (asked == REQUESTS && got < REQUESTS)
            rig_wait(&rig, VHB_SAMPLED); /* times out where one is forgotten */
        else if (!(rig.events & VHB_SAMPLED))
            continue;
        rig.events &= ~(uint32_t)VHB_SAMPLED;
        while ((n = take(&rig, out, 16))) {
            for (uint32_t i = 0; i < n; i++)
                CHECK_EQ(out[i].role, VHB_ROLE_READABLE | VHB_ROLE_OUTSIDE);
            got += n;
        }
    }
    CHECK_EQ(RIG_COUNT(&rig, outside), REQUESTS);
    rig_close(&rig);
}

/* A table that lies in two segments, one of them noted, is noted; the request is served. */
static void test_noted_table_across_a_border(void)
{
    struct rig rig;
    struct vhb_sample out[8];
    rig_open(&rig, &(struct rig_config){.features = RIG_INDIRECT, .stopped = true});
    uint32_t border = TABLE + 24; /* in the second descriptor */
    struct vhb_segment rows[] = {
        {.iova = RIG_RAM_AT, .len = border, .host = rig.ram, .access = 3},
        {.iova = RIG_RAM_AT + border,
         .len = RIG_RAM - border,
         .host = rig.ram + border,
         .access = 3 | VHB_ACCESS_NOTED},
    };
    CHECK_EQ(vhb_queue_set_space(rig.queue, rows, 2), 0);
    rig_run(&rig);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, TABLE, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    put_desc(&rig, TABLE, 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(TABLE), 32, DESC_INDIRECT, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_OK);
    CHECK_EQ(take(&rig, out, 8), 1);
    CHECK_EQ(out[0].role, VHB_ROLE_TABLE | VHB_ROLE_OUTSIDE);
    CHECK_EQ(RIG_COUNT(&rig, outside), 1);
    rig_close(&rig);
}

/* By the control plane: nothing is popped any more, and the err eventfd is written. */
static void test_condemned(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_drain(&rig);
    CHECK_EQ(vhb_queue_condemn(rig.queue), 0);
    struct vhb_fault fault = rig_broken(&rig);
    CHECK(fault.reason == VHB_CONDEMNED && fault.index == rig_index(&rig, 1) && fault.value == 0);
    rig_run(&rig);
    put_avail(&rig, 0);
    rig_kick(&rig);
    for (int i = 0; i < 10; i++)
        rig_pass(&rig);
    CHECK(!take_used(&rig));
    rig_close(&rig);
}

CHECK_MAIN(TEST(owner_sets), TEST(few_at_a_time), TEST(first_chains_wait_for_room),
           TEST(no_sample_is_forgotten), TEST(noted_table_across_a_border), TEST(condemned))
