/* test_mailbox.c - jobs out, completions in, and nothing that a wrong tag could break.
 *
 * The queue's side is played here: vhb_req_done() is the test's own. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomics.h"
#include "check.h"
#include "disk.h"

enum { SLOTS = 4, MANY = 64 };

/* What came back, by request. */
static struct {
    int n, result;
} done[MANY];
static int done_in_all;

static struct vhb_disk *resubmit_to; /* while set, a request that is done is sent again */
static int resubmits;

void vhb_req_done(struct vhb_req *req, int result)
{
    done[req->tag].n++;
    done[req->tag].result = result;
    done_in_all++;
    if (resubmit_to && resubmits > 0) {
        resubmits--;
        CHECK_EQ(resubmit_to->ops->submit(resubmit_to, req, NULL), VHB_PENDING);
    }
}

static struct vhb_mailbox *mailbox(uint32_t slots)
{
    struct vhb_mailbox *box;
    CHECK_EQ(vhb_mailbox_new(slots, &box), 0);
    memset(done, 0, sizeof(done));
    done_in_all = 0;
    return box;
}

static struct vhb_req request(uint32_t tag)
{
    return (struct vhb_req){.op = VHB_FLUSH, .tag = tag};
}

static void flush(struct vhb_mailbox *box)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    disk->ops->flush(disk);
}

/* In a visit, which *flush* ends. */
static int post(struct vhb_mailbox *box, struct vhb_req *req)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->submit(disk, req, NULL);
}

static int submit(struct vhb_mailbox *box, struct vhb_req *req)
{
    int r = post(box, req);
    flush(box);
    return r;
}

static void cancel(struct vhb_mailbox *box, struct vhb_req *req)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    disk->ops->cancel(disk, req, NULL);
    flush(box);
}

static int reap(struct vhb_mailbox *box, bool arm)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->reap(disk, arm);
}

static bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* How often an eventfd was written; it is quiet then. */
static eventfd_t rings(int fd)
{
    eventfd_t n = 0;
    (void)eventfd_read(fd, &n);
    return n;
}

static int worker_fd(struct vhb_mailbox *box)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->poll_fd(disk);
}

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

/* The fd is readable while jobs wait, also for those that did not fit, and quiet afterwards. */
static void test_fd_is_readable_while_jobs_wait(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[3] = {request(0), request(1), request(2)};
    struct vhb_job jobs[3];
    CHECK(!readable(vhb_mailbox_fd(box)));
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(submit(box, &req[i]), VHB_PENDING);
    CHECK(readable(vhb_mailbox_fd(box)));
    CHECK_EQ(vhb_mailbox_take(box, jobs, 0), 0);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 2), 2);
    CHECK(readable(vhb_mailbox_fd(box)));
    CHECK_EQ(vhb_mailbox_take(box, jobs + 2, 2), 1);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 2), 0);
    CHECK(!readable(vhb_mailbox_fd(box)));
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), 0);
    CHECK_EQ(reap(box, false), 3);
    CHECK_EQ(submit(box, &req[0]), VHB_PENDING); /* asleep again: this one rings again */
    CHECK(readable(vhb_mailbox_fd(box)));
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* Completions ring for a worker that armed and not for one that is awake. */
static void test_worker_is_rung_only_when_it_may_sleep(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[2] = {request(0), request(1)};
    struct vhb_job jobs[2];
    CHECK_EQ(submit(box, &req[0]), VHB_PENDING);
    CHECK_EQ(submit(box, &req[1]), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, jobs, 2), 2);
    CHECK_EQ(reap(box, false), 0);
    CHECK_EQ(vhb_mailbox_complete(box, jobs[0].tag, 0), 0);
    CHECK(!readable(worker_fd(box)));
    CHECK_EQ(reap(box, true), 1);
    CHECK(!readable(worker_fd(box)));
    CHECK_EQ(vhb_mailbox_complete(box, jobs[1].tag, 0), 0);
    CHECK(readable(worker_fd(box)));
    CHECK_EQ(reap(box, true), 1);
    CHECK(!readable(worker_fd(box)));
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

/* Whatever a visit posts is seen at its end, all of it, and wakes the server once. */
static void test_a_batch_of_jobs_rings_once(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[3] = {request(0), request(1), request(2)};
    struct vhb_job jobs[SLOTS];
    for (int round = 0; round < 2; round++) { /* at first it is armed by birth, then by a take */
        for (size_t i = 0; i < 3; i++)
            CHECK_EQ(post(box, &req[i]), VHB_PENDING);
        CHECK(!readable(vhb_mailbox_fd(box)));
        flush(box);
        flush(box); /* nothing is new */
        CHECK_EQ(rings(vhb_mailbox_fd(box)), 1);
        CHECK_EQ(vhb_mailbox_take(box, jobs, SLOTS), 3);
        for (size_t i = 0; i < 3; i++)
            CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), 0);
        CHECK_EQ(vhb_mailbox_take(box, jobs, SLOTS), 0);
        CHECK_EQ(reap(box, false), 3);
    }
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* Jobs that end together wake the worker once; a tag that names none spoils none of the others. */
static void test_a_batch_of_ends_rings_once(void)
{
    struct vhb_mailbox *box = mailbox(SLOTS);
    struct vhb_req req[3] = {request(0), request(1), request(2)};
    struct vhb_job jobs[SLOTS];
    for (size_t i = 0; i < 3; i++)
        CHECK_EQ(submit(box, &req[i]), VHB_PENDING);
    CHECK_EQ(vhb_mailbox_take(box, jobs, SLOTS), 3);
    CHECK_EQ(reap(box, true), 0);
    CHECK_EQ(rings(worker_fd(box)), 0);
    struct vhb_ended ended[4] = {{.tag = jobs[0].tag, .error = 0},
                                 {.tag = jobs[1].tag, .error = ENOSPC},
                                 {.tag = jobs[1].tag, .error = 0},
                                 {.tag = jobs[2].tag, .error = UINT64_MAX}};
    CHECK_EQ(vhb_mailbox_complete_many(box, ended, 4), -EINVAL);
    CHECK_EQ(rings(worker_fd(box)), 1);
    CHECK_EQ(vhb_mailbox_complete_many(box, ended, 4), -EINVAL);
    CHECK_EQ(vhb_mailbox_complete_many(box, ended, 0), 0);
    CHECK_EQ(rings(worker_fd(box)), 0);
    CHECK_EQ(reap(box, false), 3);
    CHECK_EQ(done[0].result, 0);
    CHECK_EQ(done[1].result, -ENOSPC);
    CHECK_EQ(done[2].result, -EIO);
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

/* ---- two threads ---------------------------------------------------------------------- */

static void *serve(void *arg)
{
    struct vhb_mailbox *box = arg;
    struct pollfd p = {.fd = vhb_mailbox_fd(box), .events = POLLIN};
    struct vhb_job jobs[3];
    for (;;) {
        CHECK_EQ(poll(&p, 1, 10000), 1); /* a lost ring is a time-out */
        int n = vhb_mailbox_take(box, jobs, 3);
        for (int i = 0; i < n; i++) {
            if (jobs[i].op == VHB_CANCEL)
                continue;
            bool last = jobs[i].op == VHB_DISCARD;
            CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), 0);
            CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), -EINVAL);
            if (last)
                return NULL;
        }
    }
}

/* Reap until *n* requests in all are done, sleeping as a worker does. */
static void reap_until(struct vhb_mailbox *box, int n)
{
    struct pollfd p = {.fd = worker_fd(box), .events = POLLIN};
    while (done_in_all < n)
        if (reap(box, false) == 0 && reap(box, true) == 0 && done_in_all < n)
            CHECK_EQ(poll(&p, 1, 10000), 1);
}

/* Bursts of every size, cancels among them, submits from inside done: none is lost or doubled. */
static void test_threads_lose_nothing(void)
{
    struct vhb_mailbox *box = mailbox(16);
    pthread_t server;
    int want = 0;
    CHECK_EQ(pthread_create(&server, NULL, serve, box), 0);
    resubmit_to = vhb_mailbox_disk(box);
    for (int round = 0; round < 2000; round++) {
        struct vhb_req req[16];
        int burst = 1 + round % 16;
        resubmits = round % 5;
        want += burst + resubmits;
        for (int i = 0; i < burst; i++) {
            req[i] = request((uint32_t)i);
            CHECK_EQ(submit(box, &req[i]), VHB_PENDING);
            if (i % 3 == 0)
                cancel(box, &req[i]);
        }
        reap_until(box, want);
    }
    resubmit_to = NULL;
    struct vhb_req end = {.op = VHB_DISCARD};
    CHECK_EQ(submit(box, &end), VHB_PENDING);
    reap_until(box, want + 1);
    CHECK_EQ(pthread_join(server, NULL), 0);
    CHECK_EQ(reap(box, true), 0);
    CHECK_EQ(done_in_all, want + 1);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

CHECK_MAIN(TEST(job_travels_there_and_back), TEST(wrong_tags_touch_nothing),
           TEST(strange_results_become_eio), TEST(break_reports_the_kept_view),
           TEST(lost_memory_is_told), TEST(fd_is_readable_while_jobs_wait),
           TEST(worker_is_rung_only_when_it_may_sleep), TEST(cancel_follows_its_job),
           TEST(cancelled_before_it_is_taken), TEST(late_cancel_is_dropped),
           TEST(a_batch_of_jobs_rings_once), TEST(a_batch_of_ends_rings_once),
           TEST(slots_are_the_limit), TEST(free_refuses_while_in_use), TEST(threads_lose_nothing))
