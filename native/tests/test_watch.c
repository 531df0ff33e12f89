/* test_watch.c - a worker that sleeps: what wakes it, what must not, and what it costs.
 *
 * The worker runs on a thread of its own, without spinning: a kick that it misses is never made
 * up for by a pass that came for another reason. */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"

struct runner {
    struct vhb_worker *worker;
    pthread_t thread;
    pid_t tid;
};

static void *run(void *arg)
{
    struct runner *r = arg;
    __atomic_store_n(&r->tid, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
    CHECK_EQ(vhb_worker_run(r->worker), 0);
    return NULL;
}

static void open_runner(struct runner *r)
{
    *r = (struct runner){0};
    CHECK_EQ(rig_worker(0, &r->worker), 0);
    CHECK_EQ(pthread_create(&r->thread, NULL, run, r), 0);
    while (__atomic_load_n(&r->tid, __ATOMIC_ACQUIRE) == 0)
        sched_yield();
}

static void close_runner(struct runner *r)
{
    CHECK_EQ(vhb_worker_stop(r->worker), 0);
    CHECK_EQ(pthread_join(r->thread, NULL), 0);
    CHECK_EQ(vhb_worker_free(r->worker), 0);
}

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

/* How often the worker has gone to sleep so far. */
static long sleeps(const struct runner *r)
{
    char path[64], line[128];
    long n = -1;
    snprintf(path, sizeof(path), "/proc/self/task/%d/status", (int)r->tid);
    FILE *status = fopen(path, "r");
    CHECK(status != NULL);
    while (fgets(line, sizeof(line), status))
        if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1)
            break;
    fclose(status);
    return n;
}

static double cpu_seconds(const struct runner *r)
{
    clockid_t clock;
    struct timespec ts;
    CHECK_EQ(pthread_getcpuclockid(r->thread, &clock), 0);
    CHECK_EQ(clock_gettime(clock, &ts), 0);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Getting there takes a while where others have the CPUs; a worker that polls never does. */
static void check_asleep(const struct runner *r)
{
    long before, after = -1;
    for (int i = 0; i < 25; i++) {
        before = after;
        pause_ms(40);
        after = sleeps(r);
        if (after == before)
            return;
    }
    CHECK_EQ(after, before);
}

/* A started ring with nothing to do costs nothing, before its first request and after. */
static void test_idle_worker_sleeps(void)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct runner r;
        struct rig rig;
        open_runner(&r);
        check_asleep(&r);
        rig_open(&rig, &(struct rig_config){.worker = r.worker,
                                            .threaded = true,
                                            .features = event_idx ? RIG_EVENT_IDX : 0});
        check_asleep(&r);
        for (int i = 0; i < 100; i++)
            CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        check_asleep(&r);
        rig_drain(&rig);
        check_asleep(&r);
        rig_close(&rig);
        check_asleep(&r);
        close_runner(&r);
    }
}

/* A kick fd that is replaced may be closed at once, and its number may come back as that of the
 * next one: that one is watched. */
static void test_kick_fd_of_the_same_number(void)
{
    struct runner r;
    struct rig rig;
    open_runner(&r);
    rig_open(&rig, &(struct rig_config){.worker = r.worker, .threaded = true});
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        if (i % 2)
            rig_park(&rig);
        else
            rig_drain(&rig);
        int number = rig.kick;
        close(rig.kick);
        rig.kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        CHECK_EQ(rig.kick, number);
        CHECK_EQ(vhb_queue_set_kick(rig.queue, rig.kick), 0);
        rig_run(&rig);
        pause_ms(2); /* asleep by then */
    }
    rig_close(&rig);
    close_runner(&r);
}

/* A parked ring's kick fd is the control plane's: nothing reads it. */
static void test_parked_ring_leaves_its_kick_fd_alone(void)
{
    struct runner r;
    struct rig rig;
    eventfd_t kicks = 0;
    open_runner(&r);
    rig_open(&rig, &(struct rig_config){.worker = r.worker, .threaded = true});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_park(&rig);
    rig_kick(&rig);
    pause_ms(20);
    CHECK_EQ(eventfd_read(rig.kick, &kicks), 0);
    CHECK_EQ(kicks, 1);
    rig_close(&rig);
    close_runner(&r);
}

/* ---- descriptors that are no eventfds --------------------------------------------------- */

/* The worker neither spins nor goes deaf, whatever a front-end sends as a kick fd; *kicker*: what
 * to write to, or -1 where nothing can be said through it. */
static void check_serves_with(int kick, int kicker)
{
    struct runner r;
    struct rig rig;
    open_runner(&r);
    rig_open(&rig, &(struct rig_config){.worker = r.worker, .threaded = true});
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, kick), 0);
    rig_run(&rig);
    double before = cpu_seconds(&r);
    pause_ms(200);
    CHECK(cpu_seconds(&r) - before < 0.1);
    put_avail(&rig, 0);
    if (kicker >= 0)
        CHECK_EQ(write(kicker, "k", 1), 1);
    wait_used(&rig);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, rig.kick), 0);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    check_asleep(&r);
    rig_close(&rig);
    close_runner(&r);
}

static void test_kick_fd_that_hung_up(void)
{
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    close(ends[1]);
    check_serves_with(ends[0], -1);
    close(ends[0]);
}

static void test_kick_fd_that_cannot_be_watched(void)
{
    static const char *const paths[] = {"/proc/self/exe", "/dev/zero", "/dev/null"};
    for (size_t i = 0; i < 3; i++) {
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        CHECK(fd >= 0);
        check_serves_with(fd, -1);
        close(fd);
    }
}

/* A pipe does as a kick fd, whatever is written to it. */
static void test_kick_fd_that_is_a_pipe(void)
{
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_EQ(write(ends[1], "abc", 3), 3);
    check_serves_with(ends[0], ends[1]);
    close(ends[0]);
    close(ends[1]);
}

/* Who shares the kick fd may make it blocking and take every count away: nothing waits in a
 * read for the next one. */
static void test_kick_fd_whose_count_is_stolen(void)
{
    struct runner r;
    struct rig rig, other;
    open_runner(&r);
    rig_open(&rig, &(struct rig_config){.worker = r.worker, .threaded = true});
    rig_open(&other, &(struct rig_config){.worker = r.worker, .threaded = true});
    CHECK_EQ(fcntl(rig.kick, F_SETFL, 0), 0);
    for (int i = 0; i < 2000; i++) {
        rig_kick(&rig);
        CHECK_EQ(fcntl(rig.kick, F_SETFL, O_NONBLOCK), 0);
        eventfd_t kicks;
        (void)eventfd_read(rig.kick, &kicks);
        CHECK_EQ(fcntl(rig.kick, F_SETFL, 0), 0);
        if (i % 100 == 0)
            CHECK_EQ(do_request(&other, BLK_FLUSH, 0, 0, 0), BLK_OK);
    }
    rig_close(&rig);
    rig_close(&other);
    close_runner(&r);
}

/* ---- a driver that never stops kicking --------------------------------------------------- */

static int flood_stop;

static void *flood(void *arg)
{
    struct rig *rig = arg;
    while (!__atomic_load_n(&flood_stop, __ATOMIC_RELAXED))
        rig_kick(rig);
    return NULL;
}

/* Kicks without number cost their own queue; another queue of the worker goes on. */
static void test_flood_of_kicks(void)
{
    struct runner r;
    struct rig rig, other;
    pthread_t threads[2];
    open_runner(&r);
    rig_open(&rig, &(struct rig_config){.worker = r.worker, .threaded = true});
    rig_open(&other, &(struct rig_config){.worker = r.worker, .threaded = true});
    flood_stop = 0;
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, flood, &rig), 0);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(do_request(&other, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_park(&rig);
    rig_run(&rig);
    __atomic_store_n(&flood_stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
    rig_close(&other);
    close_runner(&r);
}

CHECK_MAIN(TEST(idle_worker_sleeps), TEST(kick_fd_of_the_same_number),
           TEST(parked_ring_leaves_its_kick_fd_alone), TEST(kick_fd_that_hung_up),
           TEST(kick_fd_that_cannot_be_watched), TEST(kick_fd_that_is_a_pipe),
           TEST(kick_fd_whose_count_is_stolen), TEST(flood_of_kicks))
