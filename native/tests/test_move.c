/* test_move.c - a queue goes from one worker to another: ring, settings and counters come along,
 * and a driver sees nothing of it. */
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "rig.h"

enum { SIZE = 64, DISK = 1 << 20, MOVES = 50 };

/* Have *worker* serve the queue, which runs; its workers are stepped, or have threads. */
static void move_to(struct rig *rig, struct vhb_worker *worker)
{
    rig_drain(rig);
    CHECK_EQ(vhb_queue_attach(rig->queue, worker), -EBUSY);
    CHECK_EQ(vhb_queue_detach(rig->queue), 0);
    rig_wait(rig, VHB_DETACHED);
    CHECK_EQ(vhb_queue_attach(rig->queue, worker), 0);
    CHECK_EQ(vhb_queue_attach(rig->queue, worker), -EBUSY);
    rig->worker = worker;
    rig_run(rig);
}

/* Requests before and behind it, kicks on the same descriptor, one count of both. */
static void test_ring_goes_on(void)
{
    struct vhb_worker *first, *second;
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = SIZE});
    first = rig.worker;
    CHECK_EQ(rig_worker(0, &second), 0);
    for (uint32_t i = 0; i < 3 * SIZE; i++) {
        CHECK_EQ(do_request(&rig, BLK_IN, i, RIG_DATA, 512), BLK_OK);
        CHECK_EQ(RIG_COUNT(&rig, reads), i + 1);
        if (i % 7 == 0)
            move_to(&rig, rig.worker == first ? second : first);
    }
    CHECK(RIG_COUNT(&rig, kicks) > 2 * SIZE);
    CHECK_EQ(vhb_worker_free(rig.worker), -EBUSY);
    move_to(&rig, first);
    CHECK_EQ(vhb_worker_free(second), 0);
    rig_close(&rig);
}

/* The new worker takes no request before it is told to run, and the base is that of the old one. */
static void test_drained_until_run(void)
{
    struct vhb_worker *first, *second;
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.size = SIZE});
    first = rig.worker;
    CHECK_EQ(rig_worker(0, &second), 0);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_drain(&rig);
    CHECK_EQ(vhb_queue_detach(rig.queue), 0);
    rig_wait(&rig, VHB_DETACHED);
    CHECK_EQ(vhb_queue_attach(rig.queue, second), 0);
    rig.worker = second;
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_avail(&rig, 0);
    rig_kick(&rig);
    for (int i = 0; i < 3; i++)
        rig_pass(&rig);
    rig_check_base(&rig, 1);
    CHECK(!take_used(&rig));
    rig_run(&rig);
    wait_used(&rig);
    move_to(&rig, first);
    CHECK_EQ(vhb_worker_free(second), 0);
    rig_close(&rig);
}

/* What a serving thread completes wakes the worker that has the queue now. */
static void test_mailbox_comes_along(void)
{
    struct vhb_worker *first, *second;
    struct vhb_mailbox *box;
    struct vhb_job job;
    struct rig rig;
    CHECK_EQ(vhb_mailbox_new(2 * SIZE, &box), 0);
    rig_open(&rig, &(struct rig_config){.size = SIZE, .disk = vhb_mailbox_disk(box)});
    first = rig.worker;
    CHECK_EQ(rig_worker(0, &second), 0);
    for (uint32_t i = 0; i < 8; i++) {
        put_request(&rig, 0, BLK_OUT, i, RIG_DATA, 512);
        put_avail(&rig, 0);
        rig_kick(&rig);
        while (vhb_mailbox_take(box, &job, 1) == 0)
            rig_pass(&rig);
        CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
        wait_used(&rig);
        move_to(&rig, rig.worker == first ? second : first);
    }
    CHECK(rig.worker == first);
    CHECK_EQ(vhb_worker_free(second), 0);
    rig_close(&rig);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* ---- under load ----------------------------------------------------------------------- */

static atomic_bool stop_driver;
static atomic_ulong rounds;

/* Write what was never there, read it back, compare; kick only where the device asks for it. */
static void *drive(void *arg)
{
    struct rig *rig = arg;
    for (uint32_t round = 0; round == 0 || !stop_driver; round++) {
        uint32_t sector = round % (DISK / 512);
        uint16_t old = rig->avail_idx;
        rig_fill(rig, RIG_DATA, 512, round);
        put_request(rig, 0, BLK_OUT, sector, RIG_DATA, 512);
        put_avail(rig, 0);
        if (rig_wants_kick(rig, old))
            rig_kick(rig);
        wait_used(rig);
        CHECK_EQ(status_of(rig, 0), BLK_OK);
        CHECK_EQ(do_request(rig, BLK_IN, sector, RIG_DATA + 4096, 512), BLK_OK);
        CHECK(rig_is(rig, RIG_DATA + 4096, 512, round));
        rounds++;
    }
    return NULL;
}

static void test_under_load(void)
{
    struct vhb_disk *disk;
    struct rig rig, other;
    pthread_t driver;
    void *host = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, DISK, &disk), 0);
    rig_open(&rig, &(struct rig_config){.size = SIZE, .threaded = true, .disk = disk});
    rig_open(&other, &(struct rig_config){.size = SIZE, .threaded = true, .disk = disk});
    struct vhb_worker *workers[2] = {rig.worker, other.worker};
    stop_driver = false;
    CHECK_EQ(pthread_create(&driver, NULL, drive, &rig), 0);
    for (int i = 1; i <= 2 * MOVES; i++) {
        unsigned long met = rounds;
        while (i % 3 && rounds == met) /* else: it moves again at once */
            rig_pass(&rig);
        move_to(&rig, workers[i % 2]);
        CHECK_EQ(do_request(&other, BLK_FLUSH, 0, 0, 0), BLK_OK);
    }
    stop_driver = true;
    CHECK_EQ(pthread_join(driver, NULL), 0);
    CHECK_EQ(RIG_COUNT(&rig, writes), rounds);
    CHECK_EQ(RIG_COUNT(&rig, errors), 0);
    rig_close(&rig);
    rig_close(&other);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, DISK);
}

CHECK_MAIN(TEST(ring_goes_on), TEST(drained_until_run), TEST(mailbox_comes_along), TEST(under_load))
