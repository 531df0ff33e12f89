/* test_packed_base.c - where a packed ring begins and goes on: bases, and what fits none. */
#include "slow.h"

/* Place the driver, too, and run a few requests from there.  What is before its place was used with
 * its counter, the rest with the other; between *used* and it, on one lap, all is available. */
static void run_from(struct rig *rig, uint32_t base, struct place avail, struct place used)
{
    for (uint32_t i = 0; i < rig->config.size; i++) {
        bool wrap = i < avail.slot ? avail.wrap : !avail.wrap;
        uint16_t flags = wrap ? PACKED_AVAIL | PACKED_USED : 0;
        if (i >= used.slot && i < avail.slot)
            flags = packed_avail_flags(&avail);
        put16(rig, RIG_DESC + 16 * i + 14, flags);
    }
    rig->packed.avail = rig->packed.kicked = avail;
    rig->packed.used = used;
    CHECK_EQ(vhb_queue_set_base(rig->queue, base), 0);
    CHECK_EQ(rig_base(rig), base); /* as it was set, until the ring is run */
    rig_run(rig);
    for (int i = 0; i < 9; i++)
        CHECK_EQ(do_request(rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_drain(rig);
}

/* A ring goes on where its base says, with either counter; the places of what was taken and of what
 * was used may differ.  Spec: vhost-user, "Vring descriptor indices for packed virtqueues". */
static void test_ring_goes_on_at_its_base(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 9, .features = RIG_PACKED, .stopped = true});
    for (uint32_t slot = 0; slot < 9; slot++)
        for (uint32_t wrap = 0; wrap < 2; wrap++) {
            struct place at = {slot, wrap};
            run_from(&rig, packed_base(&at), at, at);
            struct place end = at;
            packed_step(&rig, &end, 9);
            packed_step(&rig, &end, 9);
            CHECK_EQ(rig_base(&rig), packed_base(&end));
        }
    /* Three descriptors were taken and never given back: used follows behind. */
    run_from(&rig, 0x80018004, (struct place){4, true}, (struct place){1, true});
    rig_close(&rig);
}

/* A front-end of an older vhost-user gives the lower half only: nothing is in flight. */
static void test_half_a_base(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 9, .features = RIG_PACKED, .stopped = true});
    run_from(&rig, 0x8000, (struct place){0, true}, (struct place){0, true});
    run_from(&rig, 0x8005, (struct place){5, true}, (struct place){5, true});
    CHECK_EQ(rig_base(&rig), 0x80058005); /* after two laps, with both halves */
    rig_close(&rig);
}

/* Places outside the ring, or further apart than it is long, are no base; nor are event
 * suppressions too short, or at an odd address, a ring. */
static void test_ring_must_fit(void)
{
    static const uint32_t bad[] = {0x80098009, 0x80008009, 0x80098000, 0x00000009,
                                   0x80058004, 0x00008009, 0x00018002, 0x00038004};
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 9, .features = RIG_PACKED, .stopped = true});
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CHECK_EQ(vhb_queue_set_base(rig.queue, bad[i]), 0);
        CHECK_EQ(vhb_queue_run(rig.queue), -EINVAL);
    }
    rig_begin(&rig);
    static const struct {
        int part;
        uint32_t at;
        size_t len;
    } parts[] = {{VHB_PART_DESC, RIG_DESC, 16 * 9 - 1},
                 {VHB_PART_AVAIL, RIG_AVAIL, 3},
                 {VHB_PART_AVAIL, RIG_AVAIL + 2, 4},
                 {VHB_PART_USED, RIG_USED, 3}};
    for (size_t i = 0; i < 4; i++) {
        struct vhb_piece piece = {rig.ram + parts[i].at, parts[i].len};
        CHECK_EQ(vhb_queue_set_part(rig.queue, parts[i].part, &piece, 1), 0);
        CHECK_EQ(vhb_queue_run(rig.queue), -EINVAL);
        rig_parts(&rig);
    }
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* Firmware may use one format and the system behind it the other: a drained queue changes. */
static void test_format_changes_between_starts(void)
{
    struct slow s;
    struct rig *rig = &s.rig;
    open_slow(&s, &(struct rig_config){.size = 16, .features = RIG_PACKED});
    for (int i = 0; i < 4; i++) {
        struct vhb_job job = start(&s, 0, BLK_IN, 0);
        rig_park(rig);
        CHECK_EQ(vhb_queue_set_features(rig->queue, rig->config.features), 0);
        CHECK_EQ(vhb_queue_set_features(rig->queue, rig->config.features ^ RIG_PACKED), -EBUSY);
        rig_run(rig);
        finish(&s, &job);
        wait_used(rig);
        rig_drain(rig);
        rig->config.features ^= RIG_PACKED;
        CHECK_EQ(vhb_queue_set_features(rig->queue, rig->config.features), 0);
        rig_parts(rig);
        rig_begin(rig);
        rig_run(rig);
    }
    close_slow(&s);
}

/* A ring that stands somewhere cannot become so short that it stands nowhere. */
static void test_ring_does_not_shrink_under_its_places(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){.size = 9, .features = RIG_PACKED});
    struct vhb_job job = start(&s, 0, BLK_IN, 0); /* three descriptors */
    rig_park(&s.rig);
    static const struct {
        uint32_t size;
        int runs;
    } sizes[] = {{1, -EINVAL}, {2, -EINVAL}, {9, 0}};
    for (size_t i = 0; i < 3; i++) {
        CHECK_EQ(vhb_queue_set_size(s.rig.queue, sizes[i].size), 0);
        CHECK_EQ(vhb_queue_run(s.rig.queue), sizes[i].runs);
    }
    finish(&s, &job);
    wait_used(&s.rig);
    rig_drain(&s.rig);
    CHECK_EQ(vhb_queue_set_size(s.rig.queue, 1), 0); /* it stands at 3 */
    CHECK_EQ(vhb_queue_run(s.rig.queue), -EINVAL);
    close_slow(&s);
}

CHECK_MAIN(TEST(ring_goes_on_at_its_base), TEST(half_a_base), TEST(ring_must_fit),
           TEST(format_changes_between_starts), TEST(ring_does_not_shrink_under_its_places))
