/* test_cancel.c - a queue when things go wrong behind it: cancelled requests, a broken ring, a disk
 * that breaks its word, memory that vanishes. */
#include <sys/mman.h>
#include <unistd.h>

#include "slow.h"

/* ---- cancelling ----------------------------------------------------------------------- */

/* Cancelled requests end with IOERR at once; their late results change nothing. */
static void test_cancel_ends_what_the_disk_keeps(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job read = start(&s, 0, BLK_IN, 0), write = start(&s, 3, BLK_OUT, 8);
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig) && take_used(&s.rig) && !take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(status_of(&s.rig, 3), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 2);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    CHECK_EQ(vhb_graveyard_free(s.rig.graveyard), -EBUSY);
    take_cancel(&s, &read);
    take_cancel(&s, &write);

    put32(&s.rig, status_at(0), 0x55555555);
    finish(&s, &read);
    CHECK_EQ(vhb_mailbox_complete(s.box, write.tag, -EIO), 0);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    CHECK_EQ(get32(&s.rig, status_at(0)), 0x55555555);
    CHECK(!take_used(&s.rig));
    CHECK_EQ(RIG_COUNT(&s.rig, reads), 0);
    rig_run(&s.rig);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    close_slow(&s);
}

/* A cancel after everything ended, or without a drain, does nothing. */
static void test_cancel_without_need(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    CHECK_EQ(vhb_queue_cancel(s.rig.queue), 0);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    rig_drain(&s.rig);
    CHECK_EQ(vhb_queue_cancel(s.rig.queue), 0);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    close_slow(&s);
}

/* While a dead write may still happen, one that overlaps it waits and others pass; the ranges of
 * one request wait one by one. */
static void test_new_writes_wait_for_dead_ones(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job dead = start(&s, 0, BLK_OUT, 8), job;
    rig_cancel(&s.rig);
    CHECK(take_used(&s.rig));
    take_cancel(&s, &dead);
    rig_run(&s.rig);

    put_request(&s.rig, 3, BLK_OUT, 8, RIG_DATA, 512); /* the same block: held */
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    struct vhb_job read = start(&s, 6, BLK_IN, 8); /* reads pass */
    CHECK_EQ(read.op, VHB_READ);
    struct vhb_job write = start(&s, 9, BLK_OUT, 9); /* neighbours pass */
    CHECK_EQ(write.offset, 9 * 512);
    put_request(&s.rig, 12, BLK_WRITE_ZEROES, 0, RIG_DATA + 8192, 32);
    put_range(&s.rig, RIG_DATA + 8192, 0, 100, 8, 0);
    put_range(&s.rig, RIG_DATA + 8192, 1, 0, 100, 0); /* overlaps */
    put_avail(&s.rig, 12);
    rig_kick(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
    CHECK_EQ(job.offset, 100 * 512);
    finish(&s, &job);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 0);

    finish(&s, &dead);
    struct vhb_job held[2];
    for (int n = 0; n < 2; n += vhb_mailbox_take(s.box, held + n, (uint32_t)(2 - n)))
        rig_pass(&s.rig);
    CHECK_EQ(held[0].offset + held[1].offset, 8 * 512);
    finish(&s, &held[0]);
    finish(&s, &held[1]);
    finish(&s, &read);
    finish(&s, &write);
    for (int i = 0; i < 4; i++) {
        wait_used(&s.rig);
        CHECK_EQ(status_of(&s.rig, s.rig.last_id), BLK_OK);
    }
    close_slow(&s);
}

/* The dead of one queue hold back the writes of another queue of the device. */
static void test_graveyard_is_the_devices(void)
{
    struct vhb_graveyard *graveyard;
    CHECK_EQ(vhb_graveyard_new(&graveyard), 0);
    struct slow a, b;
    struct vhb_job job;
    open_slow(&a, &(struct rig_config){.graveyard = graveyard});
    open_slow(&b, &(struct rig_config){.graveyard = graveyard});
    struct vhb_job dead = start(&a, 0, BLK_OUT, 8);
    rig_cancel(&a.rig);
    put_request(&b.rig, 0, BLK_OUT, 8, RIG_DATA, 512);
    put_avail(&b.rig, 0);
    rig_kick(&b.rig);
    settle(&b.rig);
    CHECK_EQ(vhb_mailbox_take(b.box, &job, 1), 0);

    /* A held request is cancelled with nothing left behind. */
    rig_cancel(&b.rig);
    CHECK(take_used(&b.rig));
    CHECK_EQ(status_of(&b.rig, 0), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&b.rig, dead), 0);
    rig_run(&b.rig);
    put_avail(&b.rig, 0);
    rig_kick(&b.rig);
    settle(&b.rig);
    CHECK_EQ(vhb_mailbox_take(b.box, &job, 1), 0);
    finish(&a, &dead);
    settle(&a.rig);
    settle(&b.rig);
    CHECK_EQ(vhb_mailbox_take(b.box, &job, 1), 1);
    finish(&b, &job);
    close_slow(&a);
    close_slow(&b);
    CHECK_EQ(vhb_graveyard_free(graveyard), 0);
}

/* The whole ring may be cancelled at once, again and again, while the dead stay. */
static void test_whole_ring_is_cancelled(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){.size = 16});
    struct vhb_job jobs[64];
    uint32_t n = 0;
    for (int round = 0; round < 3; round++) {
        for (uint16_t head = 0; head + 2 < 16; head += 2) {
            put_request(&s.rig, head, BLK_FLUSH, 0, 0, 0);
            put_avail(&s.rig, head);
        }
        rig_kick(&s.rig);
        settle(&s.rig);
        n += (uint32_t)vhb_mailbox_take(s.box, jobs + n, 64 - n);
        rig_cancel(&s.rig);
        while (take_used(&s.rig))
            CHECK_EQ(status_of(&s.rig, s.rig.last_id), BLK_IOERR);
        rig_run(&s.rig);
        settle(&s.rig);
        rig_drain(&s.rig); /* heads that found no slot, if any, are still in the ring */
        rig_begin(&s.rig);
        rig_run(&s.rig);
    }
    for (uint32_t i = 0; i < n; i++)
        if (jobs[i].op != VHB_CANCEL)
            CHECK_EQ(vhb_mailbox_complete(s.box, jobs[i].tag, 0), 0);
    settle(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    close_slow(&s);
}

/* A queue does not leave while requests are dead. */
static void test_detach_waits_for_the_dead(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_OUT, 0);
    rig_cancel(&s.rig);
    CHECK_EQ(vhb_queue_detach(s.rig.queue), 0);
    settle(&s.rig);
    CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DETACHED));
    CHECK_EQ(vhb_queue_free(s.rig.queue), -EBUSY);
    CHECK_EQ(vhb_mailbox_free(s.box), -EBUSY);
    finish(&s, &job);
    settle(&s.rig);
    CHECK(vhb_queue_take_events(s.rig.queue) & VHB_DETACHED);

    /* what rig_close does from there on */
    CHECK_EQ(vhb_queue_free(s.rig.queue), 0);
    rig_layers_free(&s.rig.layers);
    CHECK_EQ(vhb_mailbox_free(s.box), 0);
    CHECK_EQ(vhb_worker_free(s.rig.worker), 0);
    CHECK_EQ(vhb_graveyard_free(s.rig.graveyard), 0);
    munmap(s.rig.ram, RIG_RAM);
    close(s.rig.memfd);
    close(s.rig.kick);
    close(s.rig.call);
    close(s.rig.err);
}

/* ---- breaking ------------------------------------------------------------------------- */

/* A disk that kept a view breaks the queue, live request or dead. */
static void test_kept_view_breaks_the_queue(void)
{
    for (int dead = 0; dead < 2; dead++) {
        struct slow s;
        open_slow(&s, &(struct rig_config){0});
        struct vhb_job job = start(&s, 0, BLK_IN, 8);
        if (dead) {
            rig_cancel(&s.rig);
            rig_run(&s.rig);
        }
        CHECK_EQ(vhb_mailbox_break(s.box, job.tag), 0);
        struct vhb_fault fault = rig_broken(&s.rig);
        CHECK_EQ(fault.reason, VHB_DISK_KEPT_VIEW);
        CHECK_EQ(fault.value, 8 * 512);
        CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
        close_slow(&s);
    }
}

/* What is in flight when the ring breaks ends quietly: the ring is not written any more. */
static void test_broken_queue_drains(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job a = start(&s, 0, BLK_IN, 0), b = start(&s, 3, BLK_OUT, 8);
    enum vhb_reason reason = put_bad_head(&s.rig);
    rig_kick(&s.rig);
    CHECK_EQ(rig_broken(&s.rig).reason, reason);
    finish(&s, &a);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
    finish(&s, &b);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(!take_used(&s.rig));
    close_slow(&s);
}

/* ---- vanished memory ------------------------------------------------------------------ */

static struct rig gone_rig(int *slot, struct vhb_disk *disk)
{
    struct rig rig;
    CHECK_EQ(vhb_fault_install(), 0);
    rig_open(&rig, &(struct rig_config){.disk = disk});
    *slot = vhb_fault_watch(rig.ram, RIG_RAM, 4096);
    CHECK(*slot >= 0);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    return rig;
}

/* Data that is gone: the request is IOERR and the queue breaks, for its memory is not what the
 * guest thinks. */
static void test_lost_data_fails_the_request(void)
{
    int slot;
    struct rig rig = gone_rig(&slot, NULL);
    put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 512);
    put_avail(&rig, 0);
    CHECK_EQ(ftruncate(rig.memfd, RIG_DATA), 0);
    rig_kick(&rig);
    CHECK_EQ(rig_broken(&rig).reason, VHB_MEMORY_GONE);
    CHECK(take_used(&rig));
    CHECK_EQ(status_of(&rig, 0), BLK_IOERR);
    CHECK(RIG_COUNT(&rig, faults) >= 1);
    CHECK(vhb_fault_count(slot) >= 1);
    rig_close(&rig);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
}

/* A ring that is gone breaks the queue, whoever of worker and control plane meets it first. */
static void test_lost_ring_breaks_the_queue(void)
{
    for (int parked = 0; parked < 2; parked++) {
        int slot;
        struct rig rig = gone_rig(&slot, NULL);
        if (parked) {
            rig_drain(&rig);
            rig_begin(&rig);
        }
        settle(&rig);
        CHECK_EQ(ftruncate(rig.memfd, 0), 0);
        if (parked)
            rig_run(&rig); /* reads the used index itself */
        rig_kick(&rig);
        CHECK_EQ(rig_broken(&rig).reason, VHB_MEMORY_GONE);
        rig_close(&rig);
        CHECK_EQ(vhb_fault_unwatch(slot), 0);
    }
}

/* Only the status byte is gone: the guest cannot be told, so the queue breaks. */
static void test_lost_status_breaks_the_queue(void)
{
    int slot;
    struct vhb_mailbox *box;
    struct rig rig;
    struct vhb_job job;
    CHECK_EQ(vhb_fault_install(), 0);
    CHECK_EQ(vhb_mailbox_new(SLOTS, &box), 0);
    rig_open(&rig, &(struct rig_config){.disk = vhb_mailbox_disk(box)});
    slot = vhb_fault_watch(rig.ram, RIG_RAM, 4096);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 1, rig_at(RIG_RAM - 1), 1, DESC_WRITE, 0);
    put_avail(&rig, 0);
    rig_kick(&rig);
    while (vhb_mailbox_take(box, &job, 1) == 0)
        rig_pass(&rig);
    CHECK_EQ(ftruncate(rig.memfd, RIG_DATA), 0);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    CHECK_EQ(rig_broken(&rig).reason, VHB_MEMORY_GONE);
    rig_close(&rig);
    CHECK_EQ(vhb_mailbox_free(box), 0);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
}

CHECK_MAIN(TEST(cancel_ends_what_the_disk_keeps), TEST(cancel_without_need),
           TEST(new_writes_wait_for_dead_ones), TEST(graveyard_is_the_devices),
           TEST(whole_ring_is_cancelled), TEST(detach_waits_for_the_dead),
           TEST(kept_view_breaks_the_queue), TEST(broken_queue_drains),
           TEST(lost_data_fails_the_request), TEST(lost_ring_breaks_the_queue),
           TEST(lost_status_breaks_the_queue))
