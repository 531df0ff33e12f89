/* test_mailbox.c - jobs out, completions in, and nothing that a wrong tag could break. */
#include <errno.h>
#include <sys/mman.h>

#include "atomics.h"
#include "mailbox_rig.h"

/* A job says all of the request that a disk needs, and its result comes back to it alone. */
static void test_job_travels_there_and_back(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    uint8_t a[512], b[512];
    struct iovec iov[] = {{a, 512}, {b, 512}};
    struct vhb_req req = {.op = VHB_WRITE,
                          .flags = VHB_REQ_FUA,
                          .offset = 4096,
                          .len = 1024,
                          .iov = iov,
                          .niov = 2,
                          .tag = 7};
    CHECK_EQ(submit(box, &req), VHB_PENDING);

    struct vhb_job job;
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    CHECK_EQ(job.op, VHB_WRITE);
    CHECK_EQ(job.flags, VHB_REQ_FUA);
    CHECK_EQ(job.offset, 4096);
    CHECK_EQ(job.len, 1024);
    CHECK_EQ(job.n_pieces, 2);
    CHECK(job.first.host == a && job.first.len == 512);
    CHECK(job.pieces[0].host == a && job.pieces[1].host == b && job.pieces[1].len == 512);

    CHECK_EQ(reap(box, false), 0);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[7].n, 1);
    CHECK_EQ(done[7].result, 0);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A tag names a job once: before take, after complete, or never given, it is unknown. */
static void test_wrong_tags_touch_nothing(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req = request(1);
    struct vhb_job job;
    static const uint64_t invented[] = {0, 1, 1ull << 32, (1ull << 32) | SLOTS, UINT64_MAX};
    for (size_t i = 0; i < 5; i++)
        CHECK_EQ(vhb_mailbox_complete(box, invented[i], 0), -EINVAL);
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_complete(box, 1ull << 32, 0), -EINVAL); /* right, but not taken */
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    uint64_t old = job.tag;
    CHECK_EQ(vhb_mailbox_complete(box, old, 0), 0);
    CHECK_EQ(vhb_mailbox_complete(box, old, 0), -EINVAL);
    CHECK_EQ(reap(box, false), 1);

    CHECK_EQ(submit(box, &req), VHB_PENDING); /* the same slot, another generation */
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    CHECK(job.tag != old && (uint32_t)job.tag == (uint32_t)old);
    CHECK_EQ(vhb_mailbox_complete(box, old, -EIO), -EINVAL);
    CHECK_EQ(vhb_mailbox_break(box, old), -EINVAL);
    CHECK_EQ(reap(box, false), 0);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[1].n, 2);
    CHECK_EQ(done[1].result, 0);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

static int result_of(struct vhb_mailbox *box, int result)
{
    struct vhb_req req = request(2);
    struct vhb_job job;
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, result), 0);
    CHECK_EQ(reap(box, false), 1);
    return done[2].result;
}

/* A result is 0 or an errno; anything else is an error, and none can pass for a kept view. */
static void test_strange_results_become_eio(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    CHECK_EQ(result_of(box, 0), 0);
    CHECK_EQ(result_of(box, -ENOSPC), -ENOSPC);
    CHECK_EQ(result_of(box, -4095), -4095);
    CHECK_EQ(result_of(box, 1), -EIO);
    CHECK_EQ(result_of(box, VHB_RESULT_KEPT_VIEW), -EIO);
    CHECK_EQ(result_of(box, -2147483647 - 1), -EIO);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A broken promise about views has a result of its own. */
static void test_break_reports_the_kept_view(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req = request(3);
    struct vhb_job job;
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    CHECK_EQ(vhb_mailbox_break(box, job.tag), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[3].result, VHB_RESULT_KEPT_VIEW);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A job during which the serving thread lost guest memory did not succeed, whatever it says. */
static void test_lost_memory_is_told(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    int fd = memfd_create("guest", MFD_CLOEXEC);
    volatile uint8_t *guest = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(fd >= 0 && guest != MAP_FAILED);
    CHECK_EQ(vhb_fault_install(), 0);
    int slot = vhb_fault_watch((void *)(uintptr_t)guest, 4096, 4096);
    struct vhb_req req = request(4);
    struct vhb_job job;
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, &job, 1), 1);
    CHECK_EQ(guest[0], 0); /* the file is empty */
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[4].result, VHB_RESULT_LOST_MEMORY);
    CHECK_EQ(result_of(box, 0), 0); /* the next one is innocent */
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    munmap((void *)(uintptr_t)guest, 4096);
    close(fd);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A cancel arrives once, under the tag of its job, which then is still to be completed. */
static void test_cancel_follows_its_job(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req = request(5);
    struct vhb_job jobs[4];
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 1), 1);
    cancel(box, &req);
    cancel(box, &req);
    CHECK_EQ(vhb_mailbox_take(box, jobs + 1, 3), 1);
    CHECK_EQ(jobs[0].op, VHB_FLUSH);
    CHECK_EQ(jobs[1].op, VHB_CANCEL);
    CHECK_EQ(jobs[0].tag, jobs[1].tag);
    CHECK_EQ(vhb_mailbox_complete(box, jobs[0].tag, -ECANCELED), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[5].result, -ECANCELED);
    cancel(box, &req); /* over: nothing to cancel */
    CHECK_EQ(vhb_mailbox_take(box, jobs, 4), 0);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* What was cancelled before it was taken is not shown: it ends by the take that would show it. */
static void test_cancelled_before_it_is_taken(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[2] = {request(5), request(6)};
    struct vhb_job jobs[4];
    CHECK_EQ(submit(box, &req[0]), VHB_PENDING);
    CHECK_EQ(submit(box, &req[1]), VHB_PENDING);
    cancel(box, &req[0]);
    CHECK_EQ(rings(worker_fd(box)), 0);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 4), 1);
    CHECK_EQ(rings(worker_fd(box)), 1);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[5].result, -ECANCELED);
    CHECK_EQ(vhb_mailbox_complete(box, jobs[0].tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[6].result, 0);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A cancel that crosses its job's completion is not shown, nor taken for the next job's. */
static void test_late_cancel_is_dropped(void)
{
    struct vhb_mailbox *box = mailbox(1);
    struct vhb_req req = request(6);
    struct vhb_job jobs[4];
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 4), 1);
    cancel(box, &req);
    CHECK_EQ(vhb_mailbox_complete(box, jobs[0].tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 4), 1); /* the old cancel went by */
    CHECK_EQ(jobs[0].op, VHB_FLUSH);
    cancel(box, &req);
    CHECK_EQ(vhb_mailbox_complete(box, jobs[0].tag, 0), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(submit(box, &req), VHB_PENDING);
    cancel(box, &req); /* three posts of one slot wait now: the bound of the ring */
    CHECK_EQ(vhb_mailbox_take(box, jobs, 4), 0);
    CHECK_EQ(reap(box, false), 1);
    CHECK_EQ(done[6].n, 3);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* One request more than slots fails and disturbs no other. */
static void test_slots_are_the_limit(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[SLOTS + 1];
    struct vhb_job jobs[SLOTS + 1];
    for (uint32_t i = 0; i <= SLOTS; i++) {
        req[i] = request(i);
        CHECK_EQ(submit(box, &req[i]), i < SLOTS ? VHB_PENDING : -EBUSY);
    }
    CHECK_EQ(vhb_mailbox_take(box, jobs, SLOTS + 1), SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), 0);
    CHECK_EQ(reap(box, true), SLOTS);
    for (uint32_t i = 0; i < SLOTS; i++)
        CHECK_EQ(done[i].n, 1);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A mailbox in use stays; its disk goes with it alone. */
static void test_free_refuses_while_in_use(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    CHECK_EQ(vhb_disk_free(disk), -EINVAL);
    disk->users++;
    CHECK_EQ(vhb_mailbox_free(box), -EBUSY);
    disk->users--;
    CHECK_EQ(vhb_mailbox_free(box), 0);
    CHECK_EQ(vhb_mailbox_free(NULL), 0);
    CHECK_EQ(vhb_mailbox_new(0, &box), -EINVAL);
    CHECK_EQ(vhb_mailbox_new(UINT32_MAX, &box), -EINVAL);
}

CHECK_MAIN(TEST(job_travels_there_and_back), TEST(wrong_tags_touch_nothing),
           TEST(strange_results_become_eio), TEST(break_reports_the_kept_view),
           TEST(lost_memory_is_told), TEST(cancel_follows_its_job),
           TEST(cancelled_before_it_is_taken), TEST(late_cancel_is_dropped),
           TEST(slots_are_the_limit), TEST(free_refuses_while_in_use))
