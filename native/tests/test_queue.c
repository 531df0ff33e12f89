/* test_queue.c - a queue between its two owners: parking, draining, cancelling, breaking, leaving;
 * and what becomes of requests meanwhile.  The disk is a mailbox: it ends what the test says. */
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

enum { SLOTS = 128 };

struct slow {
    struct vhb_mailbox *box;
    struct rig rig;
};

static void open_slow(struct slow *s, const struct rig_config *config)
{
    struct rig_config c = *config;
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s->box), 0);
    c.disk = vhb_mailbox_disk(s->box);
    rig_open(&s->rig, &c);
}

static void settle(struct rig *rig)
{
    for (int i = 0; i < 6; i++)
        rig_pass(rig);
}

/* Send a request and see it arrive at the disk. */
static struct vhb_job start(struct slow *s, uint16_t head, uint32_t type, uint64_t sector)
{
    struct vhb_job job;
    uint32_t len = type == BLK_FLUSH ? 0 : 512;
    put_request(&s->rig, head, type, sector, RIG_DATA + 512u * head, len);
    put_avail(&s->rig, head);
    rig_kick(&s->rig);
    for (int i = 0; vhb_mailbox_take(s->box, &job, 1) == 0; i++) {
        CHECK(i < 1000);
        rig_pass(&s->rig);
    }
    return job;
}

static void finish(struct slow *s, const struct vhb_job *job)
{
    CHECK_EQ(vhb_mailbox_complete(s->box, job->tag, 0), 0);
}

/* The disk hears of a cancel, and returns the request after all. */
static void take_cancel(struct slow *s, const struct vhb_job *job)
{
    struct vhb_job cancel;
    CHECK_EQ(vhb_mailbox_take(s->box, &cancel, 1), 1);
    CHECK_EQ(cancel.op, VHB_CANCEL);
    CHECK_EQ(cancel.tag, job->tag);
}

static void close_slow(struct slow *s)
{
    rig_close(&s->rig);
    CHECK_EQ(vhb_mailbox_free(s->box), 0);
}

/* ---- owners --------------------------------------------------------------------------- */

/* Every setter is refused while the worker owns the ring, and so is the base. */
static void test_setters_need_the_ring(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    struct vhb_piece piece = {rig.ram, 4096};
    struct vhb_segment seg = {.iova = 0, .len = 4096, .host = rig.ram};
    CHECK_EQ(vhb_queue_set_space(rig.queue, &seg, 1), -EBUSY);
    CHECK_EQ(vhb_queue_set_size(rig.queue, 4), -EBUSY);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_DESC, &piece, 1), -EBUSY);
    CHECK_EQ(vhb_queue_set_base(rig.queue, 0), -EBUSY);
    CHECK_EQ(vhb_queue_base(rig.queue), -EBUSY);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_call(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_err(rig.queue, -1), -EBUSY);
    CHECK_EQ(vhb_queue_set_enabled(rig.queue, true), -EBUSY);
    CHECK_EQ(vhb_queue_set_features(rig.queue, 0), -EBUSY);
    CHECK_EQ(vhb_queue_set_blk(rig.queue, &rig.blk), -EBUSY);
    CHECK_EQ(vhb_queue_run(rig.queue), -EBUSY);
    CHECK_EQ(vhb_queue_detach(rig.queue), -EBUSY);
    CHECK_EQ(vhb_queue_free(rig.queue), -EBUSY);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_enabled(rig.queue, true), 0);
    CHECK_EQ(vhb_queue_free(rig.queue), -EBUSY);
    rig_close(&rig);
}

/* A ring that misses a part, or has one too short, is not run. */
static void test_run_needs_a_whole_ring(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = 16, .stopped = true});
    struct vhb_piece piece = {rig.ram + RIG_USED, 6 + 8 * 16 - 1};
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 1), 0);
    CHECK_EQ(vhb_queue_run(rig.queue), -EINVAL);
    piece.len++;
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 1), 0);
    CHECK_EQ(vhb_queue_set_part(rig.queue, 3, &piece, 1), -EINVAL);
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, &piece, 0), -EINVAL);
    static const uint32_t sizes[] = {0, 3, 17, 32};
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(vhb_queue_set_size(rig.queue, sizes[i]), -EINVAL);
    CHECK_EQ(vhb_queue_run(rig.queue), 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* Segments out of order, overlapping, empty or overflowing are no table. */
static void test_space_must_be_a_table(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.stopped = true});
    const struct vhb_segment bad[][2] = {
        {{.iova = 4096, .len = 4096}, {.iova = 0, .len = 4096}},
        {{.iova = 0, .len = 4097}, {.iova = 4096, .len = 4096}},
        {{.iova = 0, .len = 0}, {.iova = 4096, .len = 4096}},
        {{.iova = 0, .len = 1}, {.iova = UINT64_MAX, .len = 4096}}};
    for (size_t i = 0; i < 4; i++)
        CHECK_EQ(vhb_queue_set_space(rig.queue, bad[i], 2), -EINVAL);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK); /* the old table stands */
    rig_close(&rig);
}

/* ---- parking and draining ------------------------------------------------------------- */

/* Parked, the ring is not touched: neither new entries nor completions until it runs again. */
static void test_parked_queue_leaves_the_ring_alone(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_IN, 0), none;
    rig_park(&s.rig);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 1);
    CHECK_EQ(vhb_queue_base(s.rig.queue), 1);
    finish(&s, &job);
    put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    settle(&s.rig);
    CHECK(!take_used(&s.rig));
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);

    rig_run(&s.rig); /* both are seen to without another kick */
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 0);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 3);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_park(s.rig.queue), 0); /* parked twice is parked */
    rig_wait(&s.rig, VHB_PARKED);
    close_slow(&s);
}

/* Drained means nothing in flight and all pushed; it takes as long as the disk does, and the
 * base is the entry behind the last one taken. */
static void test_drain_waits_for_the_disk(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job a = start(&s, 0, BLK_IN, 0), b = start(&s, 3, BLK_OUT, 8), none;
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    put_request(&s.rig, 6, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 6); /* too late for this run */
    settle(&s.rig);
    finish(&s, &b);
    settle(&s.rig);
    CHECK_EQ(vhb_queue_take_events(s.rig.queue), 0);
    CHECK_EQ(vhb_queue_base(s.rig.queue), -EBUSY);
    finish(&s, &a);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(take_used(&s.rig) && take_used(&s.rig) && !take_used(&s.rig));
    CHECK_EQ(vhb_queue_base(s.rig.queue), 2);
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);
    rig_drain(&s.rig); /* drained twice is drained */
    CHECK_EQ(vhb_queue_base(s.rig.queue), 2);
    rig_run(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &a, 1), 1);
    finish(&s, &a);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 6);
    close_slow(&s);
}

/* A drain may follow a park, asked before it was answered or after. */
static void test_drain_may_follow_a_park(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    for (int answered = 0; answered < 2; answered++) {
        struct vhb_job job = start(&s, 0, BLK_IN, 0);
        CHECK_EQ(vhb_queue_park(s.rig.queue), 0);
        if (answered)
            rig_wait(&s.rig, VHB_PARKED);
        CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
        settle(&s.rig);
        CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
        finish(&s, &job);
        rig_wait(&s.rig, VHB_DRAINED);
        CHECK(take_used(&s.rig));
        rig_run(&s.rig);
    }
    close_slow(&s);
}

/* A disabled queue completes what it has and takes nothing; enabled, it looks without a kick. */
static void test_disabled_queue_only_completes(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_IN, 0), none;
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, false), 0);
    rig_run(&s.rig);
    put_request(&s.rig, 3, BLK_FLUSH, 0, 0, 0);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    finish(&s, &job);
    wait_used(&s.rig);
    CHECK_EQ(s.rig.last_id, 0);
    CHECK_EQ(vhb_mailbox_take(s.box, &none, 1), 0);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, true), 0);
    rig_run(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
    finish(&s, &job);
    wait_used(&s.rig);
    close_slow(&s);
}

/* A ring without a kick fd is looked at all the same; a new kick fd replaces the old one. */
static void test_kick_fd_may_change(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, -1), 0);
    rig_run(&rig);
    put_avail(&rig, 0);
    wait_used(&rig);
    rig_park(&rig);
    int old = rig.kick;
    rig.kick = dup(rig.err); /* any eventfd */
    CHECK_EQ(vhb_queue_set_kick(rig.queue, rig.kick), 0);
    rig_run(&rig);
    settle(&rig);
    rig_park(&rig);
    close(old);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    settle(&rig);
    CHECK(RIG_COUNT(&rig, kicks) >= 2);
    rig_close(&rig);
}

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
        put_avail_idx(&s.rig, (uint16_t)vhb_queue_base(s.rig.queue));
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
    put_avail(&s.rig, 0xffff);
    rig_kick(&s.rig);
    CHECK_EQ(rig_broken(&s.rig).reason, VHB_HEAD);
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
            CHECK_EQ(vhb_queue_set_base(rig.queue, 0), 0);
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

CHECK_MAIN(TEST(setters_need_the_ring), TEST(run_needs_a_whole_ring), TEST(space_must_be_a_table),
           TEST(parked_queue_leaves_the_ring_alone), TEST(drain_waits_for_the_disk),
           TEST(drain_may_follow_a_park), TEST(disabled_queue_only_completes),
           TEST(kick_fd_may_change), TEST(cancel_ends_what_the_disk_keeps),
           TEST(cancel_without_need), TEST(new_writes_wait_for_dead_ones),
           TEST(graveyard_is_the_devices), TEST(whole_ring_is_cancelled),
           TEST(detach_waits_for_the_dead), TEST(kept_view_breaks_the_queue),
           TEST(broken_queue_drains), TEST(lost_data_fails_the_request),
           TEST(lost_ring_breaks_the_queue), TEST(lost_status_breaks_the_queue))
