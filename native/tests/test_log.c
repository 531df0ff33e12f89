/* test_log.c - the dirty log: exactly what the device wrote is marked, where the front-end says it
 * is, and nothing is published before. */
#include <sys/mman.h>
#include <unistd.h>

#include "slow.h"

/* Guest physical addresses are neither ours nor the driver's: beyond 2^32, not on a page. */
#define LOW_GPA (0x500000000ull + 0x800)
#define HIGH_GPA 0x2000000ull
#define USED_GPA (0x300000000ull + 4096 - 4 - 8 * 2) /* elements from the third on: next page */

enum {
    LOG_BYTES = 3 << 18, /* up to 24 GiB */
    BORDER = 0x30000 /* offset in ram where the first region ends: in the data */
};

struct logged {
    struct rig *rig;
    uint8_t *bits, *want;
};

static void set_log(struct logged *l, uint64_t used_gpa)
{
    struct vhb_log_region regions[] = {
        {.host = l->rig->ram, .len = BORDER, .gpa = LOW_GPA},
        {.host = l->rig->ram + BORDER, .len = RIG_RAM - BORDER, .gpa = HIGH_GPA}};
    CHECK_EQ(vhb_queue_set_log(l->rig->queue, l->bits, LOG_BYTES, regions, 2, used_gpa), 0);
}

/* Switch the log on while the queue is parked, and go on. */
static void begin(struct logged *l, struct rig *rig, uint64_t used_gpa)
{
    *l = (struct logged){.rig = rig, .bits = calloc(2, LOG_BYTES)};
    l->want = l->bits + LOG_BYTES;
    rig_park(rig);
    set_log(l, used_gpa);
    rig_run(rig);
}

static void want(struct logged *l, uint64_t gpa, uint64_t len)
{
    for (uint64_t page = gpa / 4096; page <= (gpa + len - 1) / 4096; page++)
        l->want[page / 8] |= (uint8_t)(1u << page % 8);
}

static void want_ram(struct logged *l, uint32_t offset, uint32_t len)
{
    for (uint32_t i = 0; i < len; i++)
        want(l, offset + i < BORDER ? LOW_GPA + offset + i : HIGH_GPA + offset + i - BORDER, 1);
}

/* Used element *i* and the index. */
static void want_used(struct logged *l, uint32_t i)
{
    want(l, USED_GPA + 2, 2);
    want(l, USED_GPA + 4 + 8 * i, 8);
}

/* Compare, and begin anew. */
static void check(struct logged *l)
{
    CHECK(memcmp(l->bits, l->want, LOG_BYTES) == 0);
    memset(l->bits, 0, 2 * LOG_BYTES);
}

static void check_nothing(struct logged *l)
{
    memset(l->want, 0, LOG_BYTES);
    check(l);
}

static void end(struct logged *l)
{
    rig_park(l->rig);
    CHECK_EQ(vhb_queue_set_log(l->rig->queue, NULL, 0, NULL, 0, 0), 0);
    free(l->bits);
}

/* ---- what is marked ------------------------------------------------------------------- */

/* Data and status of a read, status alone of a write, both across the border of two regions; and
 * the used elements, from one page of the ring into the next. */
static void test_marks_what_was_written(void)
{
    struct rig rig;
    struct logged l;
    rig_open(&rig, &(struct rig_config){.features = RIG_EVENT_IDX});
    begin(&l, &rig, USED_GPA);
    uint32_t data = BORDER - 512, used = 0;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(do_request(&rig, BLK_IN, 0, data, 8192), BLK_OK);
        want_ram(&l, data, 8192);
        want_ram(&l, status_at(0), 1);
        want_used(&l, used++);
        want(&l, USED_GPA + 4 + 8 * rig.config.size, 2); /* avail_event */
        check(&l);
        CHECK_EQ(do_request(&rig, BLK_OUT, 0, data, 8192), BLK_OK);
        want_ram(&l, status_at(0), 1);
        want_used(&l, used++);
        want(&l, USED_GPA + 4 + 8 * rig.config.size, 2);
        check(&l);
    }
    CHECK_EQ(do_request(&rig, BLK_GET_ID, 0, data, 20), BLK_OK);
    want_ram(&l, data, 20);
    want_ram(&l, status_at(0), 1);
    want_used(&l, used++);
    want(&l, USED_GPA + 4 + 8 * rig.config.size, 2);
    check(&l);
    end(&l);
    rig_close(&rig);
}

/* The word that says whether kicks are wanted is the device's, too: without EVENT_IDX the flags,
 * when a ring is taken over. */
static void test_marks_the_flags(void)
{
    struct rig rig;
    struct logged l;
    uint64_t used = 0x300000ffe; /* flags in a page of their own */
    rig_open(&rig, &(struct rig_config){.stopped = true});
    l = (struct logged){.rig = &rig, .bits = calloc(2, LOG_BYTES)};
    l.want = l.bits + LOG_BYTES;
    set_log(&l, used);
    rig_run(&rig);
    settle(&rig);
    want(&l, used, 2);
    check(&l);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    want_ram(&l, status_at(0), 1);
    want(&l, used + 2, 10);
    check(&l);
    end(&l);
    rig_close(&rig);
}

/* Elements of one publication that run over the end of the ring. */
static void test_marks_both_ends_of_the_ring(void)
{
    struct slow s;
    struct logged l;
    open_slow(&s, &(struct rig_config){.size = 1024, .features = RIG_EVENT_IDX});
    for (int i = 0; i < 1023; i++)
        for (struct vhb_job job = start(&s, 0, BLK_FLUSH, 0); !take_used(&s.rig);) {
            if (job.tag)
                finish(&s, &job);
            job.tag = 0;
            rig_pass(&s.rig);
        }
    uint64_t used =
        0x300000000 - 4; /* index, elements from 0, from 512, avail_event: a page each */
    begin(&l, &s.rig, used);
    settle(&s.rig);
    memset(l.bits, 0, LOG_BYTES);
    struct vhb_job a = start(&s, 0, BLK_FLUSH, 0), b = start(&s, 3, BLK_FLUSH, 0);
    finish(&s, &a);
    finish(&s, &b);
    settle(&s.rig);
    CHECK(take_used(&s.rig) && take_used(&s.rig));
    want(&l, used + 2, 2);
    want(&l, used + 4, 8);
    want(&l, used + 4 + 8 * 1023, 8);
    want(&l, used + 4 + 8 * 1024, 2);
    want_ram(&l, status_at(0), 1);
    want_ram(&l, status_at(3), 1);
    check(&l);
    end(&l);
    close_slow(&s);
}

/* A read that the disk failed may have written; one that it never saw has not. */
static void test_marks_failed_reads(void)
{
    struct slow s;
    struct logged l;
    open_slow(&s, &(struct rig_config){.features = RIG_EVENT_IDX});
    begin(&l, &s.rig, VHB_LOG_USED_NOT);
    struct vhb_job job = start(&s, 0, BLK_IN, 0);
    CHECK_EQ(vhb_mailbox_complete(s.box, job.tag, -EIO), 0);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    want_ram(&l, RIG_DATA, 512);
    want_ram(&l, status_at(0), 1);
    check(&l);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 1 << 20, RIG_DATA, 512), BLK_IOERR);
    want_ram(&l, status_at(0), 1);
    check(&l);
    end(&l);
    close_slow(&s);
}

/* A read that came in parts and then failed is marked from its first byte on. */
static void test_marks_all_of_a_read_in_parts(void)
{
    struct vhb_disk *disk;
    struct rig rig;
    struct logged l;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 5000) == 0); /* shorter than the disk */
    CHECK_EQ(rig_file(fd, 0, 1, &disk), 0);
    rig_open(&rig, &(struct rig_config){.disk = disk, .features = RIG_EVENT_IDX});
    begin(&l, &rig, VHB_LOG_USED_NOT);
    put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 4096);
    put_desc(&rig, RIG_DESC, 1, rig_at(RIG_DATA), 4096, DESC_NEXT | DESC_WRITE, 3);
    put_desc(&rig, RIG_DESC, 3, rig_at(RIG_DATA + 40960), 4096, DESC_NEXT | DESC_WRITE, 2);
    CHECK_EQ(do_chain(&rig, 0), BLK_IOERR);
    want_ram(&l, RIG_DATA, 4096);
    want_ram(&l, RIG_DATA + 40960, 4096);
    want_ram(&l, status_at(0), 1);
    check(&l);
    end(&l);
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(disk), 0);
    close(fd);
}

/* A ring behind an IOMMU: its used part, in two pieces, is looked up as data is. */
static void test_finds_the_ring_by_host(void)
{
    struct rig rig;
    struct logged l;
    rig_open(&rig, &(struct rig_config){.features = RIG_EVENT_IDX});
    rig_drain(&rig);
    size_t first = 4 + 8 * 2, all = 6 + 8 * (size_t)rig.config.size;
    struct vhb_piece used[] = {{rig.ram + RIG_USED, first},
                               {rig.ram + 0x40000 + first, all - first}};
    CHECK_EQ(vhb_queue_set_part(rig.queue, VHB_PART_USED, used, 2), 0);
    rig_run(&rig);
    begin(&l, &rig, VHB_LOG_USED_BY_HOST);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    for (uint32_t i = 0; i < 3; i++) {
        memset(l.bits, 0, LOG_BYTES);
        put_avail(&rig, 0);
        rig_kick(&rig);
        for (int pass = 0; pass < 4; pass++)
            rig_pass(&rig);
        want_ram(&l, status_at(0), 1);
        want_ram(&l, RIG_USED + 2, 2);
        want_ram(&l, (i < 2 ? (uint32_t)RIG_USED : 0x40000) + 4 + 8 * i, 8);
        want_ram(&l, 0x40000 + (uint32_t)all - 2, 2);
        check(&l);
    }
    end(&l);
    rig_close(&rig);
}

/* ---- when ----------------------------------------------------------------------------- */

/* What is in flight when the log comes is marked; what completes while the queue is parked, when it
 * is pushed; once it is off, nothing. */
static void test_comes_and_goes_with_requests_in_flight(void)
{
    struct slow s;
    struct logged l;
    open_slow(&s, &(struct rig_config){.features = RIG_EVENT_IDX});
    struct vhb_job a = start(&s, 0, BLK_IN, 0), b = start(&s, 3, BLK_IN, 0);
    begin(&l, &s.rig, VHB_LOG_USED_NOT);
    settle(&s.rig);
    check_nothing(&l);
    finish(&s, &a);
    wait_used(&s.rig);
    want_ram(&l, RIG_DATA, 512);
    want_ram(&l, status_at(0), 1);
    check(&l);
    rig_park(&s.rig);
    finish(&s, &b);
    settle(&s.rig);
    CHECK_EQ(status_of(&s.rig, 3), BLK_OK);
    check_nothing(&l);
    rig_run(&s.rig);
    wait_used(&s.rig);
    want_ram(&l, RIG_DATA + 512 * 3, 512);
    want_ram(&l, status_at(3), 1);
    check(&l);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_log(s.rig.queue, NULL, 0, NULL, 0, 0), 0);
    rig_run(&s.rig);
    struct vhb_job c = start(&s, 0, BLK_IN, 0);
    finish(&s, &c);
    wait_used(&s.rig);
    check_nothing(&l);
    end(&l);
    close_slow(&s);
}

/* A cancelled read: what the disk wrote until then, the status, and what it writes in the end; but
 * not while the ring is the control plane's, whose log may be gone. */
static void test_marks_cancelled_reads(void)
{
    for (int parked = 0; parked < 2; parked++) {
        struct slow s;
        struct logged l;
        open_slow(&s, &(struct rig_config){.features = RIG_EVENT_IDX});
        struct vhb_job job = start(&s, 0, BLK_IN, 0);
        begin(&l, &s.rig, VHB_LOG_USED_NOT);
        rig_cancel(&s.rig);
        CHECK(take_used(&s.rig));
        want_ram(&l, RIG_DATA, 512);
        want_ram(&l, status_at(0), 1);
        check(&l);
        if (!parked)
            rig_run(&s.rig);
        take_cancel(&s, &job);
        finish(&s, &job);
        settle(&s.rig);
        CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
        if (!parked)
            want_ram(&l, RIG_DATA, 512);
        check(&l);
        end(&l);
        close_slow(&s);
    }
}

/* A driver that sees its used element finds the pages marked, while the front-end takes the bits
 * away behind it. */
static void test_marks_before_it_publishes(void)
{
    struct rig rig;
    struct logged l;
    rig_open(&rig, &(struct rig_config){.threaded = true});
    begin(&l, &rig, USED_GPA);
    uint64_t data = (LOW_GPA + RIG_DATA) / 4096, status = (LOW_GPA + status_at(0)) / 4096;
    for (int i = 0; i < 500; i++) {
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
        uint8_t d = __atomic_exchange_n(&l.bits[data / 8], 0, __ATOMIC_SEQ_CST);
        uint8_t st = __atomic_exchange_n(&l.bits[status / 8], 0, __ATOMIC_SEQ_CST);
        CHECK(d >> data % 8 & 1);
        CHECK((data / 8 == status / 8 ? d : st) >> status % 8 & 1);
    }
    end(&l);
    rig_close(&rig);
}

CHECK_MAIN(TEST(marks_what_was_written), TEST(marks_the_flags), TEST(marks_both_ends_of_the_ring),
           TEST(marks_failed_reads), TEST(marks_all_of_a_read_in_parts),
           TEST(finds_the_ring_by_host), TEST(comes_and_goes_with_requests_in_flight),
           TEST(marks_cancelled_reads), TEST(marks_before_it_publishes))
