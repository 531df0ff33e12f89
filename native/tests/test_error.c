/* test_error.c - a disk that fails: the driver is told, or the request is held and tried again. */
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "failing.h"

/* ---- report --------------------------------------------------------------------------- */

/* The default: IOERR, and the first error is told of; those until it is taken are counted. */
static void test_errors_are_reported(void)
{
    struct slow s;
    struct vhb_stall note;
    open_slow(&s, &(struct rig_config){0});
    CHECK_EQ(vhb_queue_failure(s.rig.queue, &note), 0);
    for (uint16_t head = 0; head < 9; head += 3) {
        struct vhb_job job = start(&s, head, BLK_OUT, 8 + head);
        fail(&s, &job, head ? EIO : ENOSPC);
        ends_with(&s, head, BLK_IOERR);
    }
    rig_wait(&s.rig, VHB_FAILED);
    CHECK_EQ(vhb_queue_failure(s.rig.queue, &note), 1);
    is_note(&note, VHB_WRITE, 8 * 512, 512, ENOSPC);
    CHECK_EQ(vhb_queue_failure(s.rig.queue, &note), 0);
    CHECK_EQ(RIG_COUNT(&s.rig, errors), 3);
    CHECK_EQ(RIG_COUNT(&s.rig, stalls), 0);
    struct vhb_job job = start(&s, 0, BLK_IN, 16);
    fail(&s, &job, EIO);
    rig_wait(&s.rig, VHB_FAILED);
    CHECK_EQ(vhb_queue_failure(s.rig.queue, &note), 1);
    is_note(&note, VHB_READ, 16 * 512, 512, EIO);
    close_slow(&s);
}

/* What the driver asks in vain is no error of the disk's. */
static void test_bad_requests_are_not_told_of(void)
{
    struct slow s;
    struct vhb_stall note;
    open_with(&s, VHB_ON_ERROR_STOP);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 1 << 20, RIG_DATA, 512), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, 77, 0, RIG_DATA, 512), BLK_UNSUPP);
    CHECK_EQ(vhb_queue_failure(s.rig.queue, &note), 0);
    CHECK(!stalled(&s));
    close_slow(&s);
}

static void test_policy_needs_the_ring(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    CHECK_EQ(vhb_queue_set_on_error(s.rig.queue, VHB_ON_ERROR_STOP), -EBUSY);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_on_error(s.rig.queue, 3), -EINVAL);
    CHECK_EQ(vhb_queue_set_on_error(s.rig.queue, VHB_ON_ERROR_ENOSPC), 0);
    close_slow(&s);
}

/* ---- stop ----------------------------------------------------------------------------- */

/* The one that failed is held, nothing new is taken, what is with the disk ends or is held as
 * well; a resume tries them in the order they failed, and goes on. */
static void test_stops_and_resumes(void)
{
    struct slow s;
    open_with(&s, VHB_ON_ERROR_STOP);
    struct vhb_job a = start(&s, 0, BLK_OUT, 8), b = start(&s, 3, BLK_IN, 16);
    struct vhb_job c = start(&s, 6, BLK_FLUSH, 0);
    fail(&s, &b, EIO);
    stall_is(&s, VHB_READ, 16 * 512, 512, EIO);
    put_request(&s.rig, 9, BLK_OUT, 24, RIG_DATA, 512);
    put_avail(&s.rig, 9);
    rig_kick(&s.rig);
    no_job(&s);
    finish(&s, &c);
    ends_with(&s, 6, BLK_OK);
    fail(&s, &a, ENOSPC);
    no_job(&s);
    CHECK(!take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_UNTOUCHED);
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 2);
    CHECK_EQ(RIG_COUNT(&s.rig, stalls), 1);
    CHECK_EQ(RIG_COUNT(&s.rig, errors), 0);

    resume(&s);
    struct vhb_job again[3] = {next(&s), next(&s), next(&s)};
    CHECK(!stalled(&s));
    CHECK(again[0].tag != b.tag && again[0].tag != a.tag && again[0].tag != c.tag);
    CHECK_EQ(again[0].op, VHB_READ);
    CHECK_EQ(again[0].pieces->host - (void *)s.rig.ram, RIG_DATA + 512 * 3);
    CHECK_EQ(again[1].op, VHB_WRITE);
    CHECK_EQ(again[1].offset, 8 * 512);
    CHECK_EQ(again[2].offset, 24 * 512);
    CHECK_EQ(vhb_mailbox_complete(s.box, b.tag, 0), -EINVAL); /* the old one is over */
    static const uint16_t heads[] = {3, 0, 9};
    for (int i = 0; i < 3; i++) {
        finish(&s, &again[i]);
        ends_with(&s, heads[i], BLK_OK);
    }
    close_slow(&s);
}

/* For want of space alone; other errors are reported, also while it is stalled. */
static void test_enospc_stops_alone(void)
{
    struct slow s;
    open_with(&s, VHB_ON_ERROR_ENOSPC);
    struct vhb_job a = start(&s, 0, BLK_OUT, 8), b = start(&s, 3, BLK_OUT, 16);
    struct vhb_job c = start(&s, 6, BLK_OUT, 24);
    fail(&s, &a, EIO);
    ends_with(&s, 0, BLK_IOERR);
    CHECK(!stalled(&s));
    fail(&s, &b, ENOSPC);
    stall_is(&s, VHB_WRITE, 16 * 512, 512, ENOSPC);
    fail(&s, &c, EIO);
    ends_with(&s, 6, BLK_IOERR);
    resume(&s);
    struct vhb_job again = next(&s);
    finish(&s, &again);
    ends_with(&s, 3, BLK_OK);
    close_slow(&s);
}

/* It may fail as often as it likes; a resume without a stall does nothing. */
static void test_stalls_again(void)
{
    struct slow s;
    open_with(&s, VHB_ON_ERROR_STOP);
    resume(&s);
    settle(&s.rig);
    struct vhb_job job = start(&s, 0, BLK_FLUSH, 0);
    for (int i = 1; i <= 3; i++) {
        fail(&s, &job, EIO + i);
        stall_is(&s, VHB_FLUSH, 0, 0, EIO + i);
        CHECK_EQ(RIG_COUNT(&s.rig, stalls), i);
        no_job(&s);
        resume(&s);
        job = next(&s);
    }
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    close_slow(&s);
}

/* A request of ranges goes on at the one that failed, and not before. */
static void test_ranges_go_on_where_they_failed(void)
{
    static const uint32_t types[] = {BLK_DISCARD, BLK_WRITE_ZEROES};
    for (int t = 0; t < 2; t++) {
        struct slow s;
        open_with(&s, VHB_ON_ERROR_STOP);
        put_request(&s.rig, 0, types[t], 0, RIG_DATA, 48);
        for (uint32_t i = 0; i < 3; i++)
            put_range(&s.rig, RIG_DATA, i, 100 * (uint64_t)i, 8 + i, 0);
        put_avail(&s.rig, 0);
        rig_kick(&s.rig);
        struct vhb_job job = next(&s);
        CHECK_EQ(job.offset, 0);
        finish(&s, &job);
        job = next(&s);
        fail(&s, &job, ENOSPC);
        stall_is(&s, t ? VHB_WRITE_ZEROES : VHB_DISCARD, 51200, 9 * 512, ENOSPC);
        /* What the driver does to its ranges meanwhile is of no interest. */
        put_range(&s.rig, RIG_DATA, 1, 0, 1, 0);
        resume(&s);
        for (uint64_t i = 1; i < 3; i++) {
            job = next(&s);
            CHECK_EQ(job.offset, i * 51200);
            CHECK_EQ(job.len, (8 + i) * 512);
            finish(&s, &job);
        }
        ends_with(&s, 0, BLK_OK);
        CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
        close_slow(&s);
    }
}

/* ---- files ---------------------------------------------------------------------------- */

/* A file that may not grow further takes the first part of a write; once it may, the whole write is
 * there, from its first byte. */
static void test_short_write_is_whole_in_the_end(void)
{
    struct vhb_disk *disk;
    struct rig rig;
    struct vhb_stall note;
    struct rlimit before, limit;
    uint8_t got[8192];
    signal(SIGXFSZ, SIG_IGN);
    int fd = rig_temporary(0, 0);
    CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
    CHECK_EQ(rig_file(fd, 0, 1, &disk), 0);
    rig_open(&rig, &(struct rig_config){.disk = disk, .stopped = true});
    CHECK_EQ(vhb_queue_set_on_error(rig.queue, VHB_ON_ERROR_STOP), 0);
    rig_run(&rig);
    limit = before;
    limit.rlim_cur = 5000;
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    rig_fill(&rig, RIG_DATA, 8192, 1);
    put_request(&rig, 0, BLK_OUT, 0, RIG_DATA, 4096);
    put_desc(&rig, RIG_DESC, 1, rig_at(RIG_DATA), 4096, DESC_NEXT, 3);
    put_desc(&rig, RIG_DESC, 3, rig_at(RIG_DATA + 4096), 4096, DESC_NEXT, 2);
    put_avail(&rig, 0);
    rig_kick(&rig);
    rig_wait(&rig, VHB_STALLED);
    CHECK_EQ(vhb_queue_stall(rig.queue, &note), 1);
    is_note(&note, VHB_WRITE, 0, 8192, EFBIG);
    CHECK_EQ(lseek(fd, 0, SEEK_END), 5000);
    CHECK_EQ(ftruncate(fd, 0), 0); /* not even what was written is there any more */
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
    CHECK_EQ(vhb_queue_resume(rig.queue), 0);
    wait_used(&rig);
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    CHECK_EQ(pread(fd, got, sizeof(got), 0), 8192);
    CHECK(memcmp(got, rig.ram + RIG_DATA, 8192) == 0);
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(disk), 0);
    close(fd);
}

/* A sync that failed has lost what nobody can name: though the file is sound by now, none succeeds,
 * neither that one when it is tried again nor the next.  Past the page cache there is nothing to
 * lose. */
static void test_failed_sync_never_succeeds(void)
{
    for (uint32_t direct = 0; direct <= VHB_FILE_DIRECT; direct++) {
        struct vhb_disk *disk;
        struct rig rig;
        int pipes[2], fd = memfd_create("disk", MFD_CLOEXEC);
        CHECK(fd >= 0 && pipe(pipes) == 0); /* which no sync knows */
        CHECK_EQ(rig_file(pipes[0], direct, 1, &disk), 0);
        rig_open(&rig, &(struct rig_config){.disk = disk, .stopped = true});
        CHECK_EQ(vhb_queue_set_on_error(rig.queue, VHB_ON_ERROR_STOP), 0);
        rig_run(&rig);
        put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
        put_avail(&rig, 0);
        rig_kick(&rig);
        rig_wait(&rig, VHB_STALLED);
        CHECK(dup2(fd, pipes[0]) == pipes[0]);
        rig_park(&rig);
        CHECK_EQ(vhb_queue_set_on_error(rig.queue, VHB_ON_ERROR_REPORT), 0);
        rig_run(&rig);
        CHECK_EQ(vhb_queue_resume(rig.queue), 0);
        wait_used(&rig);
        CHECK_EQ(status_of(&rig, 0), direct ? BLK_OK : BLK_IOERR);
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), direct ? BLK_OK : BLK_IOERR);
        rig_close(&rig);
        CHECK_EQ(vhb_disk_free(disk), 0);
        close(pipes[0]);
        close(pipes[1]);
        close(fd);
    }
}

CHECK_MAIN(TEST(errors_are_reported), TEST(bad_requests_are_not_told_of),
           TEST(policy_needs_the_ring), TEST(stops_and_resumes), TEST(enospc_stops_alone),
           TEST(stalls_again), TEST(ranges_go_on_where_they_failed),
           TEST(short_write_is_whole_in_the_end), TEST(failed_sync_never_succeeds))
