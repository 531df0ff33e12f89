/* test_mailbox_wake.c - who is woken by what crosses a mailbox: in time, and once. */
#include <errno.h>
#include <pthread.h>

#include "mailbox_rig.h"

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

CHECK_MAIN(TEST(fd_is_readable_while_jobs_wait), TEST(worker_is_rung_only_when_it_may_sleep),
           TEST(a_batch_of_jobs_rings_once), TEST(a_batch_of_ends_rings_once),
           TEST(threads_lose_nothing))
