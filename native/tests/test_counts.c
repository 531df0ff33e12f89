/* test_counts.c - system calls per request, counted where the linker wraps them.  Nothing is timed:
 * the worker is stepped, and a driver that polls does not kick.
 *
 * test_hotpath.c counts allocations. */
#include <liburing.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"

enum { SIZE = 128, DEPTH = 32, NO_CALLS = 1 /* VIRTQ_AVAIL_F_NO_INTERRUPT */ };

/* ---- what is counted -------------------------------------------------------------------- */

static struct {
    uint64_t enters, reads, writes, signals;
} calls; /* signals: eventfds written or read */

#define WRAP(counter, result, name, parameters, arguments)                                         \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters                                                                \
    {                                                                                              \
        __atomic_fetch_add(&calls.counter, 1, __ATOMIC_RELAXED);                                   \
        return __real_##name arguments;                                                            \
    }

WRAP(signals, int, eventfd_write, (int fd, eventfd_t value), (fd, value))
WRAP(signals, int, eventfd_read, (int fd, eventfd_t *value), (fd, value))
WRAP(reads, ssize_t, preadv64v2, (int fd, const struct iovec *iov, int n, off64_t at, int flags),
     (fd, iov, n, at, flags))
WRAP(writes, ssize_t, pwritev64v2, (int fd, const struct iovec *iov, int n, off64_t at, int flags),
     (fd, iov, n, at, flags))
WRAP(enters, int, epoll_wait, (int fd, struct epoll_event *events, int n, int timeout),
     (fd, events, n, timeout))
WRAP(enters, int, io_uring_submit, (struct io_uring * ring), (ring))
WRAP(enters, int, io_uring_get_events, (struct io_uring * ring), (ring))
WRAP(enters, int, io_uring_submit_and_get_events, (struct io_uring * ring), (ring))
WRAP(enters, int, io_uring_submit_and_wait_timeout,
     (struct io_uring * ring, struct io_uring_cqe **cqe, unsigned n, struct __kernel_timespec *ts,
      sigset_t *mask),
     (ring, cqe, n, ts, mask))

static uint64_t enters(struct rig *rig)
{
    struct vhb_worker_counters counters;
    CHECK_EQ(vhb_worker_counters(rig->worker, &counters), 0);
    return counters.enters;
}

/* ---- a driver that polls ---------------------------------------------------------------- */

static void open_polled(struct rig *rig, struct vhb_disk *disk, uint64_t features)
{
    rig_open(rig, &(struct rig_config){.size = SIZE, .disk = disk, .features = features});
    for (int i = 0; i < 4; i++) /* adopted, watched */
        rig_pass(rig);
    memset(&calls, 0, sizeof(calls));
}

static void offer(struct rig *rig, uint32_t n, uint32_t type)
{
    for (uint32_t i = 0; i < n; i++)
        put_request(rig, 3 * i, type, i, RIG_DATA + 4096 * i, 4096);
    for (uint32_t i = 0; i < n; i++)
        put_avail(rig, (uint16_t)(3 * i));
}

/* *rounds* times *depth* reads at a time. */
static void serve(struct rig *rig, uint32_t rounds, uint32_t depth)
{
    for (uint32_t round = 0; round < rounds; round++) {
        offer(rig, depth, BLK_IN);
        for (uint32_t i = 0; i < depth; i++)
            wait_used(rig);
        rig_pass(rig); /* finds none: the next burst begins anew */
    }
}

/* Of the calls that depend on io_uring: with epoll every pass is one. */
static void check_no_enters(struct rig *rig, uint64_t before)
{
    if (vhb_worker_uring(rig->worker) == 1) {
        CHECK_EQ(calls.enters, 0);
        CHECK_EQ(enters(rig) - before, 0);
    } else {
        CHECK(calls.enters > 0);
        CHECK_EQ(enters(rig) - before, calls.enters);
    }
}

/* ---- tests ------------------------------------------------------------------------------ */

/* Nothing but memory: a driver that looks for itself costs no system call, at any depth. */
static void test_polled_request_costs_no_call(void)
{
    static const uint32_t depths[] = {1, DEPTH};
    for (int i = 0; i < 2; i++) {
        struct rig rig;
        open_polled(&rig, NULL, 0);
        put16(&rig, RIG_AVAIL, NO_CALLS);
        uint64_t before = enters(&rig);
        serve(&rig, 100, depths[i]);
        CHECK_EQ(calls.signals + calls.reads + calls.writes, 0);
        check_no_enters(&rig, before);
        CHECK_EQ(RIG_COUNT(&rig, reads), 100 * depths[i]);
        rig_close(&rig);
    }
}

/* A driver that sleeps is called once for a request, and for 32 at most once a batch: 1, 2, 4, and
 * then 8 at a time. */
static void test_calls_of_a_sleeping_driver(void)
{
    struct rig rig;
    open_polled(&rig, NULL, 0);
    serve(&rig, 100, 1);
    CHECK_EQ(calls.signals, 100);
    memset(&calls, 0, sizeof(calls));
    serve(&rig, 10, DEPTH);
    CHECK_EQ(calls.signals, 10 * 7);
    CHECK_EQ(RIG_COUNT(&rig, calls), 100 + 1 + calls.signals); /* one: the call fd is new */
    rig_close(&rig);
}

/* With EVENT_IDX it says which one it wants to be called for, and is called for that. */
static void test_event_idx_calls_once(void)
{
    struct rig rig;
    open_polled(&rig, NULL, RIG_EVENT_IDX);
    for (int round = 0; round < 10; round++) {
        uint16_t wanted = (uint16_t)(rig.avail_idx + DEPTH - 1);
        put16(&rig, RIG_AVAIL + 4 + 2 * SIZE, wanted);
        memset(&calls, 0, sizeof(calls));
        serve(&rig, 1, DEPTH);
        CHECK_EQ(calls.signals, 1);
    }
    rig_close(&rig);
}

/* A file in memory: one read for a request, and nothing else. */
static void test_memory_file_costs_one_read(void)
{
    struct vhb_disk *disk;
    struct rig rig;
    int fd = memfd_create("disk", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 1 << 20) == 0);
    CHECK_EQ(vhb_disk_file_new(fd, 0, 1, 1, &disk), 0);
    open_polled(&rig, disk, 0);
    put16(&rig, RIG_AVAIL, NO_CALLS);
    uint64_t before = enters(&rig);
    serve(&rig, 20, 1);
    CHECK_EQ(calls.reads, 20);
    serve(&rig, 20, DEPTH);
    CHECK_EQ(calls.reads, 20 + 20 * DEPTH);
    CHECK_EQ(calls.signals + calls.writes, 0);
    check_no_enters(&rig, before);
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(disk), 0);
    close(fd);
}

/* A file that may wait: writes are taken in batches of 1, 2, 4 and so on, and each batch is handed
 * over by one system call.  Which of them is over by then is the kernel's business; so a second
 * call may have reaped some. */
static void test_file_is_entered_once_for_a_batch(void)
{
    struct vhb_disk *disk;
    struct rig rig;
    int fd = rig_temporary(0, 1 << 20);
    CHECK_EQ(vhb_disk_file_new(fd, VHB_FILE_RING, 1, 1, &disk), 0);
    open_polled(&rig, disk, 0);
    put16(&rig, RIG_AVAIL, NO_CALLS);
    if (vhb_worker_uring(rig.worker) == 1) {
        uint64_t before = enters(&rig);
        offer(&rig, DEPTH, BLK_OUT);
        static const uint32_t taken[] = {1, 3, 7, 15, 31, DEPTH};
        for (uint32_t i = 0; i < 6; i++) {
            rig_pass(&rig);
            CHECK_EQ(RIG_COUNT(&rig, next_avail), taken[i]);
            CHECK(calls.enters >= i && calls.enters <= 2 * i);
        }
        CHECK_EQ(enters(&rig) - before, calls.enters);
        CHECK_EQ(calls.writes, 0);
        for (int i = 0; i < DEPTH; i++)
            wait_used(&rig);
    }
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(disk), 0);
    close(fd);
}

static void *run(void *worker)
{
    CHECK_EQ(vhb_worker_run(worker), 0);
    return NULL;
}

static uint64_t passes(struct rig *rig)
{
    struct vhb_worker_counters counters;
    CHECK_EQ(vhb_worker_counters(rig->worker, &counters), 0);
    return counters.passes;
}

/* Behind the window, and the second look, nothing wakes the thread of an idle worker: there comes a
 * time of 100 ms in which it makes no pass. */
static void test_idle_worker_is_not_woken(void)
{
    struct vhb_worker *worker;
    struct rig rig;
    pthread_t thread;
    struct vhb_worker_config config = {.poll = VHB_POLL_AUTO, .poll_us = 50};
    CHECK_EQ(vhb_worker_new(&config, &worker), 0);
    rig_open(&rig, &(struct rig_config){.worker = worker, .threaded = true});
    CHECK_EQ(pthread_create(&thread, NULL, run, worker), 0);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    for (uint64_t before = 0; before != passes(&rig);) {
        CHECK(rig_now_ms() < end);
        before = passes(&rig);
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
    }
    rig_close(&rig);
    CHECK_EQ(vhb_worker_stop(worker), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(vhb_worker_free(worker), 0);
}

CHECK_MAIN(TEST(polled_request_costs_no_call), TEST(calls_of_a_sleeping_driver),
           TEST(event_idx_calls_once), TEST(memory_file_costs_one_read),
           TEST(file_is_entered_once_for_a_batch), TEST(idle_worker_is_not_woken))
