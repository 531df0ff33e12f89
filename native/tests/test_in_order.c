/* test_in_order.c - rings that are used in order: whatever ends when, heads come back as they came,
 * one used element speaks for several, and nobody is skipped who was not used completely. */
#include "slow.h"

enum { HEADS = 5, SIZE = 16 };

static void open_in_order(struct slow *s, uint64_t features)
{
    open_slow(s, &(struct rig_config){.size = SIZE, .features = RIG_IN_ORDER | features});
}

/* Take what there is; it must be these *n* in this order, in so many used elements. */
static void check_used(struct rig *rig, const uint16_t *heads, uint32_t n, uint32_t elements)
{
    uint32_t before = rig->in_order.elements;
    for (uint32_t i = 0; i < n; i++) {
        CHECK(take_used(rig));
        CHECK_EQ(rig->last_id, heads[i]);
    }
    CHECK(!take_used(rig));
    CHECK_EQ(rig->in_order.elements - before, elements);
}

static void start_all(struct slow *s, struct vhb_job *jobs, uint32_t type)
{
    for (uint16_t i = 0; i < HEADS; i++)
        jobs[i] = start(s, 3u * i, type, 8 * i);
}

static const uint16_t all[HEADS] = {0, 3, 6, 9, 12};

/* End all of them, the last one first, the second one with *error*. */
static void finish_backwards(struct slow *s, const struct vhb_job *jobs, int error)
{
    for (int i = HEADS; i--;)
        CHECK_EQ(vhb_mailbox_complete(s->box, jobs[i].tag, i == 1 ? error : 0), 0);
    settle(&s->rig);
}

/* The queue is as good as new. */
static void serves_on(struct slow *s)
{
    struct vhb_job jobs[HEADS];
    start_all(s, jobs, BLK_IN);
    finish_backwards(s, jobs, 0);
    check_used(&s->rig, all, HEADS, 1);
}

/* The next that comes back is *head*, so long, with such a status. */
static void check_next(struct rig *rig, uint16_t head, uint32_t len, int status)
{
    CHECK(take_used(rig));
    CHECK(rig->last_id == head && rig->last_len == len);
    if (len)
        CHECK_EQ(status_of(rig, head), status);
}

/* Every order in which five requests can end, and a look after each end: what is done waits for
 * those before it, then goes at once and all together. */
static void test_every_order_of_completion(void)
{
    struct slow s;
    open_in_order(&s, 0);
    for (int code = 0; code < 120; code++) {
        struct vhb_job jobs[HEADS];
        bool over[HEADS] = {false};
        uint32_t given = 0;
        start_all(&s, jobs, BLK_IN);
        for (int left = HEADS, rest = code; left; rest /= left--) {
            uint32_t k = 0;
            for (int skip = rest % left; over[k] || skip; k++)
                skip -= !over[k];
            over[k] = true;
            finish(&s, &jobs[k]);
            settle(&s.rig);
            uint32_t now = given;
            while (now < HEADS && over[now])
                now++;
            check_used(&s.rig, all + given, now - given, now > given);
            given = now;
        }
        CHECK_EQ(given, HEADS);
        for (int i = 0; i < HEADS; i++)
            CHECK_EQ(status_of(&s.rig, all[i]), BLK_OK);
    }
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    rig_drain(&s.rig);
    rig_check_base(&s.rig, s.rig.avail_idx);
    close_slow(&s);
}

/* A read that failed was not used completely: it has an element of its own, which says so.
 * Spec: virtio 1.3, 2.7.9: "skipped buffers ... are assumed to have been used completely". */
static void test_nobody_is_skipped_who_was_not_used_completely(void)
{
    struct slow s;
    struct vhb_job jobs[HEADS];
    open_in_order(&s, 0);
    start_all(&s, jobs, BLK_IN);
    finish_backwards(&s, jobs, -EIO);
    for (int i = 0; i < HEADS; i++)
        check_next(&s.rig, all[i], i == 1 ? 1 : 513, i == 1 ? BLK_IOERR : BLK_OK);
    CHECK_EQ(s.rig.in_order.elements, 2); /* 0 and 1; 2, 3 and 4 */
    CHECK(!take_used(&s.rig));

    start_all(&s, jobs, BLK_OUT); /* of a write, failed or not, all that is writable is written */
    finish_backwards(&s, jobs, -EIO);
    check_used(&s.rig, all, HEADS, 1);
    CHECK_EQ(status_of(&s.rig, 3), BLK_IOERR);
    close_slow(&s);
}

/* Requests that end at once wait for those that do not: bad ones, and chains without a status,
 * which are given back with length 0. */
static void test_what_the_disk_never_sees_waits_too(void)
{
    struct slow s;
    open_in_order(&s, 0);
    struct vhb_job job = start(&s, 0, BLK_IN, 0), none;
    put_request(&s.rig, 3, BLK_IN, 99999999, RIG_DATA, 512); /* out of range */
    put_desc(&s.rig, RIG_DESC, 6, rig_at(header_at(6)), 16, 0, 0);
    put_request(&s.rig, 9, 77, 0, 0, 0); /* no such type */
    put_avail(&s.rig, 3);
    put_avail(&s.rig, 6);
    put_avail(&s.rig, 9);
    rig_kick(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 1);
    CHECK_EQ(RIG_COUNT(&s.rig, malformed), 1);
    CHECK(!take_used(&s.rig));
    finish(&s, &job);
    settle(&s.rig);
    check_next(&s.rig, 0, 513, BLK_OK);
    check_next(&s.rig, 3, 1, BLK_IOERR);
    check_next(&s.rig, 6, 0, 0);
    check_next(&s.rig, 9, 1, BLK_UNSUPP);
    close_slow(&s);
}

/* Cancelled requests end in order, too, among some that are done and waited. */
static void test_cancelled_in_order(void)
{
    struct slow s;
    struct vhb_job jobs[HEADS], cancel;
    open_in_order(&s, 0);
    for (int round = 0; round < 3; round++) {
        start_all(&s, jobs, BLK_IN);
        finish(&s, &jobs[1]);
        finish(&s, &jobs[3]);
        settle(&s.rig);
        CHECK(!take_used(&s.rig));
        rig_cancel(&s.rig);
        for (int i = 0; i < HEADS; i++)
            check_next(&s.rig, all[i], i % 2 ? 513 : 1, i % 2 ? BLK_OK : BLK_IOERR);
        CHECK(!take_used(&s.rig));
        CHECK_EQ(RIG_COUNT(&s.rig, dead), 3);
        rig_run(&s.rig);
        struct vhb_job next = start(&s, 0, BLK_FLUSH, 0), *late[] = {&jobs[4], &jobs[0], &jobs[2]};
        while (next.op == VHB_CANCEL) { /* the disk hears of these first */
            settle(&s.rig);
            CHECK_EQ(vhb_mailbox_take(s.box, &next, 1), 1);
        }
        for (int i = 0; i < 3; i++)
            finish(&s, late[i]);
        settle(&s.rig);
        CHECK(!take_used(&s.rig)); /* what the dead come back with has no place in the order */
        finish(&s, &next);
        settle(&s.rig);
        check_used(&s.rig, all, 1, 1);
        while (vhb_mailbox_take(s.box, &cancel, 1) == 1)
            CHECK_EQ(cancel.op, VHB_CANCEL);
        CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    }
    close_slow(&s);
}

/* A disk that keeps a view breaks the queue.  Nothing behind that request goes back before: its
 * used element would speak for it, and the guest would use that memory again. */
static void test_withheld_request_is_not_spoken_for(void)
{
    for (int parked = 0; parked < 2; parked++) {
        struct slow s;
        struct vhb_job jobs[HEADS];
        open_in_order(&s, 0);
        start_all(&s, jobs, BLK_IN);
        finish(&s, &jobs[2]);
        settle(&s.rig);
        if (parked)
            rig_park(&s.rig);
        CHECK_EQ(vhb_mailbox_break(s.box, jobs[0].tag), 0);
        finish(&s, &jobs[1]);
        settle(&s.rig);
        CHECK(!take_used(&s.rig));
        if (parked)
            rig_run(&s.rig);
        CHECK_EQ(rig_broken(&s.rig).reason, VHB_DISK_KEPT_VIEW);
        finish(&s, &jobs[4]);
        finish(&s, &jobs[3]);
        rig_drain(&s.rig);
        CHECK(!take_used(&s.rig));
        CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);

        rig_begin(&s.rig); /* no slot is lost, and none comes back in the next life */
        rig_run(&s.rig);
        for (int round = 0; round < 12; round++)
            serves_on(&s);
        close_slow(&s);
    }
}

/* The last request of a drain is kept: the queue is broken and drained at once, and serves its next
 * life as any other does. */
static void test_withheld_at_the_end_of_a_drain(void)
{
    struct slow s;
    open_in_order(&s, 0);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_break(s.box, job.tag), 0);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK_EQ(rig_broken(&s.rig).reason, VHB_DISK_KEPT_VIEW);
    CHECK(!take_used(&s.rig));

    rig_begin(&s.rig);
    rig_run(&s.rig);
    serves_on(&s);
    close_slow(&s);
}

/* A queue that breaks with requests done and waiting lets go of them when it is drained. */
static void test_broken_queue_drains(void)
{
    struct slow s;
    struct vhb_job jobs[HEADS];
    open_in_order(&s, 0);
    start_all(&s, jobs, BLK_IN);
    finish(&s, &jobs[1]);
    finish(&s, &jobs[4]);
    settle(&s.rig);
    put_bad_head(&s.rig);
    rig_kick(&s.rig);
    rig_broken(&s.rig);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
    finish(&s, &jobs[0]);
    finish(&s, &jobs[3]);
    finish(&s, &jobs[2]);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(!take_used(&s.rig));
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    close_slow(&s);
}

/* What is done while the ring is the control plane's goes back in order once it is run; to be in
 * order or not is settled before something is in flight. */
static void test_done_while_parked(void)
{
    struct slow s;
    struct vhb_job jobs[HEADS];
    open_in_order(&s, 0);
    start_all(&s, jobs, BLK_IN);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_features(s.rig.queue, s.rig.config.features ^ RIG_IN_ORDER), -EBUSY);
    CHECK_EQ(vhb_queue_set_features(s.rig.queue, s.rig.config.features), 0);
    finish_backwards(&s, jobs, 0);
    CHECK(!take_used(&s.rig));
    rig_run(&s.rig);
    settle(&s.rig);
    check_used(&s.rig, all, HEADS, 1);
    rig_drain(&s.rig);
    CHECK_EQ(vhb_queue_set_features(s.rig.queue, s.rig.config.features ^ RIG_IN_ORDER), 0);
    CHECK_EQ(vhb_queue_set_features(s.rig.queue, s.rig.config.features), 0);
    close_slow(&s);
}

/* Many more are made available than are given back, by a driver that breaks its promise: the heads
 * it uses again, out of order, cost it nothing but its own ring. */
static void test_driver_out_of_order(void)
{
    struct slow s;
    struct vhb_job jobs[4 * SIZE];
    uint32_t n = 0;
    open_in_order(&s, 0);
    bool packed = s.rig.config.features & RIG_PACKED;
    struct vhb_job first = start(&s, 0, BLK_IN, 0);
    for (int i = 0; i < 3 * SIZE; i++) { /* in a packed ring this is an id in flight */
        put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0);
        put_avail(&s.rig, i % 3 ? 3 : 0);
        rig_kick(&s.rig);
        settle(&s.rig);
        uint32_t got = (uint32_t)vhb_mailbox_take(s.box, jobs + n, 4);
        for (uint32_t k = 0; k < got; k++)
            finish(&s, &jobs[n + k]);
        n += got;
    }
    settle(&s.rig);
    CHECK_EQ(s.rig.in_order.elements, 0);
    if (packed)
        CHECK_EQ(rig_broken(&s.rig).reason, VHB_ID_IN_FLIGHT);
    else
        CHECK_EQ(n, SIZE - 1); /* the ring is full of what waits for the first */
    finish(&s, &first);
    rig_drain(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    rig_begin(&s.rig);
    rig_run(&s.rig);
    struct vhb_job next = start(&s, 0, BLK_IN, 0);
    finish(&s, &next);
    settle(&s.rig);
    check_used(&s.rig, all, 1, 1);
    close_slow(&s);
}

/* The elements of a batch, and the index or the first element's flags, at the end of the ring. */
static void test_batches_wrap(void)
{
    struct slow s;
    struct vhb_job jobs[4];
    open_in_order(&s, RIG_INDIRECT);
    struct rig *rig = &s.rig;
    for (uint32_t round = 0; round < 60; round++) {
        uint16_t n = (uint16_t)(1 + round % 4);
        for (uint16_t i = 0; i < n; i++) {
            put_request(rig, 4u * i, BLK_IN, i, RIG_DATA, 512);
            if (i % 2) { /* one descriptor in place of three */
                uint32_t table = RIG_DATA + 0x1000 * (i + 1u);
                put_desc(rig, table, 0, rig_at(header_at(4u * i)), 16, DESC_NEXT, 1);
                put_desc(rig, table, 1, rig_at(RIG_DATA), 512, DESC_NEXT | DESC_WRITE, 2);
                put_desc(rig, table, 2, rig_at(status_at(4u * i)), 1, DESC_WRITE, 0);
                put_desc(rig, RIG_DESC, 4u * i, rig_at(table), 48, DESC_INDIRECT, 0);
            }
            put_avail(rig, (uint16_t)(4 * i));
        }
        rig_kick(rig);
        settle(rig);
        CHECK_EQ(vhb_mailbox_take(s.box, jobs, 4), n);
        for (uint16_t i = 0; i < n; i++)
            finish(&s, &jobs[i]);
        settle(rig);
        static const uint16_t heads[] = {0, 4, 8, 12};
        check_used(rig, heads, n, 1);
        CHECK_EQ(rig->last_len, 513);
    }
    close_slow(&s);
}

CHECK_MAIN(TEST(every_order_of_completion), TEST(nobody_is_skipped_who_was_not_used_completely),
           TEST(what_the_disk_never_sees_waits_too), TEST(cancelled_in_order),
           TEST(withheld_request_is_not_spoken_for), TEST(withheld_at_the_end_of_a_drain),
           TEST(broken_queue_drains), TEST(done_while_parked), TEST(driver_out_of_order),
           TEST(batches_wrap))
