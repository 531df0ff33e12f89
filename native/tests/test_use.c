/* test_use.c - memory that is to go: who is in flight there when it is named, and until when. */
#include "slow.h"

enum { PAGE = 4096 };

static void watch(struct rig *rig, uint32_t at, size_t len)
{
    struct vhb_piece piece = {rig->ram + at, len};
    CHECK_EQ(vhb_queue_watch_use(rig->queue, &piece, 1), 0);
}

static bool told(struct rig *rig)
{
    settle(rig);
    return vhb_queue_take_events(rig->queue) & VHB_UNUSED;
}

static uint32_t data_at(uint16_t head)
{
    return RIG_DATA + 512u * head;
}

/* A request on other memory is not waited for; the one that is there is, to its end. */
static void test_waits_for_who_is_there(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job there = start(&s, 0, BLK_IN, 0), elsewhere = start(&s, 3, BLK_OUT, 8);
    rig_park(&s.rig);
    watch(&s.rig, data_at(6), 512);
    CHECK(told(&s.rig));
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 0);

    watch(&s.rig, data_at(1) - 1, 512); /* its last byte, and the gap behind it */
    CHECK(!told(&s.rig));
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 1);
    finish(&s, &elsewhere);
    CHECK(!told(&s.rig));
    finish(&s, &there);
    CHECK(told(&s.rig)); /* though the ring is parked */
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 0);
    CHECK(!take_used(&s.rig));
    rig_run(&s.rig);
    wait_used(&s.rig);
    wait_used(&s.rig);
    close_slow(&s);
}

/* One byte before the data, and one behind it: nobody is there. */
static void test_borders_are_exact(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 3, BLK_OUT, 0);
    rig_park(&s.rig);
    struct vhb_piece around[] = {{s.rig.ram + data_at(3) - 512, 512},
                                 {s.rig.ram + data_at(4), 512}};
    CHECK_EQ(vhb_queue_watch_use(s.rig.queue, around, 2), 0);
    CHECK(told(&s.rig));
    watch(&s.rig, data_at(3) - 512, 513);
    CHECK(!told(&s.rig));
    finish(&s, &job);
    CHECK(told(&s.rig));
    close_slow(&s);
}

/* The status byte is written at the end, whatever the request is. */
static void test_status_byte_counts(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_FLUSH, 0);
    rig_park(&s.rig);
    watch(&s.rig, status_at(0), 1);
    CHECK(!told(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_UNTOUCHED);
    finish(&s, &job);
    CHECK(told(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    close_slow(&s);
}

/* The ring runs meanwhile; what it takes is not waited for, wherever it goes. */
static void test_later_requests_do_not_count(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job before = start(&s, 0, BLK_IN, 0);
    rig_park(&s.rig);
    watch(&s.rig, 0, RIG_RAM);
    rig_run(&s.rig);
    struct vhb_job after = start(&s, 3, BLK_IN, 0);
    CHECK(!told(&s.rig));
    finish(&s, &before);
    CHECK(told(&s.rig));
    finish(&s, &after);
    CHECK(!told(&s.rig));
    close_slow(&s);
}

/* A dead request is told as failed, and its disk may still write: it counts until it is back. */
static void test_dead_requests_count(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job marked = start(&s, 0, BLK_IN, 0), unmarked = start(&s, 3, BLK_OUT, 8);
    rig_park(&s.rig);
    watch(&s.rig, data_at(0), 512);
    rig_cancel(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 2);
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 1);
    take_cancel(&s, &marked);
    take_cancel(&s, &unmarked);
    finish(&s, &marked);
    CHECK(told(&s.rig));

    watch(&s.rig, status_at(3), 1); /* written when it was cancelled */
    CHECK(told(&s.rig));
    watch(&s.rig, data_at(3), 1); /* dead when it is named */
    CHECK(!told(&s.rig));
    finish(&s, &unmarked);
    CHECK(told(&s.rig));
    close_slow(&s);
}

/* What is held back for a dead one is in flight: all of it, and cancelled it is over at once. */
static void test_held_requests_count(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job dead = start(&s, 0, BLK_OUT, 0);
    rig_cancel(&s.rig);
    take_cancel(&s, &dead);
    rig_run(&s.rig);
    put_request(&s.rig, 3, BLK_OUT, 0, data_at(3), 512);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    settle(&s.rig);
    rig_park(&s.rig);
    watch(&s.rig, data_at(3), 512);
    CHECK(!told(&s.rig));
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    CHECK_EQ(vhb_queue_cancel(s.rig.queue), 0);
    CHECK(told(&s.rig));
    finish(&s, &dead);
    close_slow(&s);
}

/* The last that was named counts, also where the one before it was never seen. */
static void test_new_wish_takes_the_place(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job first = start(&s, 0, BLK_IN, 0), second = start(&s, 3, BLK_IN, 8);
    rig_park(&s.rig);
    watch(&s.rig, data_at(0), 512);
    watch(&s.rig, data_at(3), 512);
    CHECK(!told(&s.rig));
    finish(&s, &first);
    CHECK(!told(&s.rig));
    watch(&s.rig, data_at(0), 512);
    CHECK(told(&s.rig));
    finish(&s, &second);
    CHECK(!told(&s.rig));
    close_slow(&s);
}

/* Nothing in flight, nothing named, and a request on which the disk keeps its hand. */
static void test_nothing_to_wait_for(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 0);
    watch(&s.rig, 0, RIG_RAM);
    CHECK(told(&s.rig));
    rig_run(&s.rig);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_watch_use(s.rig.queue, NULL, 0), 0);
    CHECK(told(&s.rig));
    watch(&s.rig, data_at(0), 1);
    CHECK_EQ(vhb_mailbox_break(s.box, job.tag), 0);
    CHECK(told(&s.rig)); /* the queue breaks for it */
    close_slow(&s);
}

/* Only the owner may ask, and only for sorted memory that does not overlap. */
static void test_refused(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    uint8_t *at = s.rig.ram;
    struct vhb_piece wrong[][2] = {{{at, 2}, {at + 1, 2}},
                                   {{at + 2, 1}, {at, 1}},
                                   {{at, 1}, {at + 1, 0}},
                                   {{at, 1}, {at + 1, SIZE_MAX}}};
    CHECK_EQ(vhb_queue_watch_use(s.rig.queue, wrong[0], 1), -EBUSY);
    rig_park(&s.rig);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        CHECK_EQ(vhb_queue_watch_use(s.rig.queue, wrong[i], 2), -EINVAL);
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 0);
    close_slow(&s);
}

/* Beside a worker that works: every wish is answered, and none before its request is over. */
static void test_beside_a_thread(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){.threaded = true});
    for (uint32_t i = 0; i < 200; i++) {
        struct vhb_job job = start(&s, 0, BLK_IN, i);
        rig_park(&s.rig);
        watch(&s.rig, data_at(0), 512);
        rig_run(&s.rig);
        CHECK_EQ(vhb_queue_in_use(s.rig.queue), 1);
        finish(&s, &job);
        rig_wait(&s.rig, VHB_UNUSED);
        CHECK_EQ(vhb_queue_in_use(s.rig.queue), 0);
        CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
        wait_used(&s.rig);
    }
    close_slow(&s);
}

CHECK_MAIN(TEST(waits_for_who_is_there), TEST(borders_are_exact), TEST(status_byte_counts),
           TEST(later_requests_do_not_count), TEST(dead_requests_count), TEST(held_requests_count),
           TEST(new_wish_takes_the_place), TEST(nothing_to_wait_for), TEST(refused),
           TEST(beside_a_thread))
