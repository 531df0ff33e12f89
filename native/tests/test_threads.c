/* test_threads.c - a worker in its own thread, a driver in another, the control plane in a third,
 * and where a mailbox is, its server in a fourth.  Under TSan this is where it looks. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"

enum { DEPTH = 16, SIZE = 64, SLOTS = 2 * SIZE };

static atomic_bool stop_driver;

/* ---- the driver's thread -------------------------------------------------------------- */

struct driver {
    struct rig *rig;
    uint64_t rounds; /* completed */
    bool io_errors;  /* are expected: something cancels */
    pthread_t thread;
};

/* Publish *n* requests and kick only if the device asks for it: a wish it forgot is a hang. */
static void publish(struct rig *rig, uint32_t n, uint32_t round)
{
    uint16_t old = rig->avail_idx;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t type = (round + i) % 3 == 0 ? BLK_IN : (round + i) % 3 == 1 ? BLK_OUT : BLK_FLUSH;
        uint32_t len = type == BLK_FLUSH ? 0 : 512;
        put_request(rig, 3 * i, type, i, RIG_DATA + 4096 * i, len);
        put_avail(rig, (uint16_t)(3 * i));
    }
    if (rig_wants_kick(rig, old))
        rig_kick(rig);
}

/* Every head comes back once, with a status. */
static void collect(struct rig *rig, uint32_t n, bool io_errors)
{
    uint64_t seen = 0;
    for (uint32_t i = 0; i < n; i++) {
        wait_used(rig);
        CHECK(rig->last_id < SIZE && rig->last_id % 3 == 0 && rig->last_id / 3 < n);
        CHECK(!(seen >> rig->last_id & 1));
        seen |= 1ull << rig->last_id;
        uint8_t status = status_of(rig, rig->last_id);
        CHECK(status == BLK_OK || (io_errors && status == BLK_IOERR));
    }
}

static void *drive(void *arg)
{
    struct driver *d = arg;
    for (uint32_t round = 0; round == 0 || !stop_driver; round++) {
        uint32_t n = 1 + round % DEPTH;
        publish(d->rig, n, round);
        collect(d->rig, n, d->io_errors);
        __atomic_store_n(&d->rounds, d->rounds + 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void start_driver(struct driver *d, struct rig *rig, bool io_errors)
{
    *d = (struct driver){.rig = rig, .io_errors = io_errors};
    stop_driver = false;
    CHECK_EQ(pthread_create(&d->thread, NULL, drive, d), 0);
}

static void end_driver(struct driver *d)
{
    stop_driver = true;
    CHECK_EQ(pthread_join(d->thread, NULL), 0);
    CHECK(d->rounds > 0);
}

/* Let the driver get some rounds further: what is asked meets a queue at work. */
static void let_run(struct driver *d, uint64_t rounds)
{
    uint64_t until = __atomic_load_n(&d->rounds, __ATOMIC_RELAXED) + rounds;
    while (__atomic_load_n(&d->rounds, __ATOMIC_RELAXED) < until)
        sched_yield();
}

/* ---- a serving thread ----------------------------------------------------------------- */

struct server {
    struct vhb_mailbox *box;
    int end; /* eventfd */
    pthread_t thread;
};

/* Hold jobs for a while and end them newest first; cancelled ones like all others. */
static void *serve(void *arg)
{
    struct server *s = arg;
    struct vhb_job jobs[8], kept[SLOTS];
    uint32_t n_kept = 0;
    struct pollfd p[2] = {{.fd = vhb_mailbox_fd(s->box), .events = POLLIN},
                          {.fd = s->end, .events = POLLIN}};
    for (;;) {
        /* A timeout while jobs are kept: they are ended when nothing new comes. */
        CHECK(poll(p, 2, n_kept ? 1 : -1) >= 0);
        int got = vhb_mailbox_take(s->box, jobs, 8);
        for (int i = 0; i < got; i++)
            if (jobs[i].op != VHB_CANCEL)
                kept[n_kept++] = jobs[i];
        while (n_kept && (got == 0 || n_kept > DEPTH / 2)) {
            uint64_t tag = kept[--n_kept].tag;
            CHECK_EQ(vhb_mailbox_complete(s->box, tag, 0), 0);
            CHECK_EQ(vhb_mailbox_complete(s->box, tag, 0), -EINVAL);
        }
        if (got == 0 && p[1].revents)
            return NULL;
    }
}

static void start_server(struct server *s)
{
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s->box), 0);
    s->end = eventfd(0, EFD_CLOEXEC);
    CHECK(s->end >= 0);
    CHECK_EQ(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void end_server(struct server *s)
{
    eventfd_write(s->end, 1);
    CHECK_EQ(pthread_join(s->thread, NULL), 0);
    CHECK_EQ(vhb_mailbox_free(s->box), 0);
    close(s->end);
}

/* ---- tests ---------------------------------------------------------------------------- */

/* No request is forgotten between a worker that falls asleep and a driver that asks whether to
 * kick, in both ways of asking. */
static void test_no_kick_is_missed(void)
{
    for (int event_idx = 0; event_idx < 2; event_idx++) {
        struct rig rig;
        rig_open(&rig, &(struct rig_config){.size = SIZE,
                                            .threaded = true,
                                            .features = event_idx ? RIG_EVENT_IDX : 0});
        for (uint32_t round = 0; round < 3000; round++) {
            publish(&rig, 1 + round % 3, round);
            collect(&rig, 1 + round % 3, false);
        }
        CHECK(RIG_COUNT(&rig, kicks) > 0);
        rig_close(&rig);
    }
}

/* Settings, parks, drains and counters in the middle of I/O: every request still ends well. */
static void test_control_plane_hammers(void)
{
    struct rig rig;
    struct driver d;
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true});
    start_driver(&d, &rig, false);
    for (int i = 0; i < 300; i++) {
        let_run(&d, 1);
        rig_park(&rig);
        CHECK_EQ(vhb_queue_set_enabled(rig.queue, i % 4 != 0), 0);
        rig_space(&rig);
        rig_run(&rig);
        CHECK_EQ(vhb_queue_drain(rig.queue), 0);
        if (i % 3 == 0)
            CHECK_EQ(vhb_queue_cancel(rig.queue), 0); /* a null disk leaves nothing to cancel */
        rig_wait(&rig, VHB_DRAINED);
        rig_base(&rig);
        CHECK_EQ(RIG_COUNT(&rig, in_flight), 0);
        CHECK_EQ(vhb_queue_set_enabled(rig.queue, true), 0);
        CHECK_EQ(vhb_queue_set_call(rig.queue, i % 2 ? rig.call : -1), 0);
        CHECK_EQ(vhb_queue_set_kick(rig.queue, i % 7 ? rig.kick : -1), 0);
        rig_run(&rig);
    }
    end_driver(&d);
    rig_close(&rig);
}

/* A run that is not followed by a kick fd event still serves: nobody kicks here. */
static void test_run_meets_a_sleeping_worker(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true});
    for (uint32_t i = 0; i < 2000; i++) {
        rig_park(&rig);
        put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
        if (i % 2) {
            put_avail(&rig, 0);
            rig_run(&rig);
        } else {
            rig_run(&rig);
            uint16_t old = rig.avail_idx;
            put_avail(&rig, 0);
            if (rig_wants_kick(&rig, old))
                rig_kick(&rig);
        }
        wait_used(&rig);
    }
    rig_close(&rig);
}

/* A slow Python disk, cancels among its jobs: every head comes back once, no result is taken for
 * another request's, the dead all leave. */
static void test_mailbox_with_cancels(void)
{
    struct server server;
    struct driver d;
    struct rig rig;
    start_server(&server);
    rig_open(&rig, &(struct rig_config){
                       .size = SIZE, .threaded = true, .disk = vhb_mailbox_disk(server.box)});
    start_driver(&d, &rig, true);
    for (int i = 0; i < 200; i++) {
        let_run(&d, 2);
        CHECK_EQ(vhb_queue_drain(rig.queue), 0);
        if (i % 2)
            CHECK_EQ(vhb_queue_cancel(rig.queue), 0);
        rig_wait(&rig, VHB_DRAINED);
        CHECK_EQ(RIG_COUNT(&rig, in_flight), 0);
        rig_run(&rig);
    }
    end_driver(&d);
    rig_drain(&rig);
    while (RIG_COUNT(&rig, dead)) /* the server ends them in time */
        rig_pass(&rig);
    rig_close(&rig);
    end_server(&server);
}

/* Queues come and go on a worker that serves another one. */
static void test_queues_come_and_go(void)
{
    struct vhb_worker *worker;
    struct rig rig, guest;
    struct driver d;
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true});
    worker = rig.worker;
    start_driver(&d, &rig, false);
    for (int i = 0; i < 60; i++) {
        rig_open(&guest, &(struct rig_config){.size = 8, .threaded = true, .worker = worker});
        CHECK_EQ(do_request(&guest, BLK_FLUSH, 0, 0, 0), BLK_OK);
        enum vhb_reason reason = put_bad_head(&guest);
        rig_kick(&guest);
        if (i % 2)
            CHECK_EQ(rig_broken(&guest).reason, reason);
        rig_close(&guest);
    }
    end_driver(&d);
    rig_close(&rig);
}

/* Two workers, two queues of one device: one memory disk and one graveyard between them. */
static void test_two_workers_share_a_disk(void)
{
    struct vhb_graveyard *graveyard;
    struct vhb_disk *disk;
    struct rig a, b;
    struct driver d;
    enum { BYTES = 1 << 20 };
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, BYTES, &disk), 0);
    CHECK_EQ(vhb_graveyard_new(&graveyard), 0);
    struct rig_config config = {
        .size = SIZE, .threaded = true, .disk = disk, .graveyard = graveyard};
    rig_open(&a, &config);
    rig_open(&b, &config);
    start_driver(&d, &a, false);
    for (uint32_t i = 0; i < 2000; i++) {
        uint32_t sector = 100 + i % 100; /* the driver of *a* stays below */
        rig_fill(&b, RIG_DATA, 512, i);
        CHECK_EQ(do_request(&b, BLK_OUT, sector, RIG_DATA, 512), BLK_OK);
        CHECK_EQ(do_request(&b, BLK_IN, sector, RIG_DATA + 512, 512), BLK_OK);
        CHECK(rig_is(&b, RIG_DATA + 512, 512, i));
    }
    CHECK_EQ(vhb_disk_free(disk), -EBUSY);
    end_driver(&d);
    rig_close(&a);
    rig_close(&b);
    CHECK_EQ(vhb_graveyard_free(graveyard), 0);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, BYTES);
}

/* The events of a worker make one descriptor readable, so the control plane can sleep. */
static void test_events_wake_the_control_plane(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true});
    struct pollfd p = {.fd = vhb_worker_event_fd(rig.worker), .events = POLLIN};
    for (int i = 0; i < 300; i++) {
        CHECK_EQ(i % 2 ? vhb_queue_park(rig.queue) : vhb_queue_drain(rig.queue), 0);
        uint32_t want = i % 2 ? VHB_PARKED : VHB_DRAINED, events = 0;
        while (!(events & want)) {
            eventfd_t ignored;
            CHECK_EQ(poll(&p, 1, 10000), 1);
            CHECK_EQ(eventfd_read(p.fd, &ignored), 0);
            events |= vhb_queue_take_events(rig.queue);
        }
        rig_run(&rig);
    }
    rig_close(&rig);
}

static int64_t cpu_us(pthread_t thread)
{
    clockid_t clock;
    struct timespec ts;
    CHECK_EQ(pthread_getcpuclockid(thread, &clock), 0);
    CHECK_EQ(clock_gettime(clock, &ts), 0);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* A kick fd that is no eventfd, and always readable, does not keep the worker awake; the next one
 * is listened to. */
static void test_foreign_kick_fd_is_ignored(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true});
    int ends[2];
    CHECK_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_EQ(close(ends[1]), 0); /* its end is readable for ever */
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, ends[0]), 0);
    rig_run(&rig);
    usleep(5000);
    int64_t before = cpu_us((pthread_t)rig.thread);
    usleep(50000);
    CHECK(cpu_us((pthread_t)rig.thread) - before < 25000);
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_kick(rig.queue, rig.kick), 0);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_close(&rig);
    close(ends[0]);
}

static void *run_worker(void *arg)
{
    CHECK_EQ(vhb_worker_run(arg), 0);
    return NULL;
}

/* A worker is stopped asleep, awake, or before it began. */
static void test_worker_stops(void)
{
    for (int i = 0; i < 50; i++) {
        struct vhb_worker *worker;
        pthread_t thread;
        CHECK_EQ(rig_worker(0, &worker), 0);
        CHECK_EQ(pthread_create(&thread, NULL, run_worker, worker), 0);
        if (i % 2)
            usleep(200);
        CHECK_EQ(vhb_worker_stop(worker), 0);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK_EQ(vhb_worker_free(worker), 0);
    }
}

CHECK_MAIN(TEST(no_kick_is_missed), TEST(control_plane_hammers), TEST(run_meets_a_sleeping_worker),
           TEST(mailbox_with_cancels), TEST(queues_come_and_go), TEST(two_workers_share_a_disk),
           TEST(events_wake_the_control_plane), TEST(foreign_kick_fd_is_ignored),
           TEST(worker_stops))
