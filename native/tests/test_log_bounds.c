/* test_log_bounds.c - a dirty log that is too short, that cannot be, that changes under the worker,
 * that vanishes. */
#include <sys/mman.h>
#include <unistd.h>

#include "slow.h"

/* ---- bounds --------------------------------------------------------------------------- */

/* Bits behind the log's end are dropped, and what is in no region is; bytes around it stay. */
static void test_drops_what_does_not_fit(void)
{
    struct rig rig;
    uint8_t around[34];
    rig_open(&rig, &(struct rig_config){.features = RIG_EVENT_IDX});
    memset(around, 0x5a, sizeof(around));
    memset(around + 1, 0, 32); /* pages 0 to 255: data begins on page 16, ram on none */
    struct vhb_log_region region = {rig.ram + RIG_DATA, 2 << 20, 16 * 4096};
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_log(rig.queue, around + 1, 32, &region, 1, UINT64_MAX - 7), 0);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA - 512, 1 << 20), BLK_OK);
    uint8_t expected[34];
    memset(expected, 0xff, sizeof(expected));
    expected[0] = expected[33] = 0x5a;
    expected[1] = expected[2] = 0; /* before the data */
    CHECK(memcmp(around, expected, sizeof(around)) == 0);
    rig_close(&rig);
}

/* Refused: an empty log, regions that overlap or wrap, a queue that its worker owns. */
static void test_refuses_what_cannot_be(void)
{
    struct rig rig;
    uint8_t log[8];
    rig_open(&rig, &(struct rig_config){0});
    struct vhb_log_region r[2] = {{rig.ram, 8192, 0}, {rig.ram + 8192, 8192, 0}};
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 2, 0), -EBUSY);
    rig_drain(&rig);
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 0, r, 2, 0), -EINVAL);
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, UINT64_MAX, r, 2, 0), -EINVAL);
    r[1].host = rig.ram + 8191;
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 2, 0), -EINVAL);
    r[1].host = rig.ram + 8192;
    r[1].len = 0;
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 2, 0), -EINVAL);
    r[1].len = UINT64_MAX;
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 2, 0), -EINVAL);
    r[0].gpa = UINT64_MAX - 8190;
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 1, 0), -EINVAL);
    r[0].gpa = UINT64_MAX - 8191;
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, 8, r, 1, 0), 0);
    rig_close(&rig);
}

/* ---- beside the worker ------------------------------------------------------------------ */

/* A worker that wakes marks that it wants no kicks, and that it wants them again; the front-end
 * takes the bits away meanwhile. */
static void test_marks_each_change_of_mind(void)
{
    struct rig rig;
    uint8_t log[8] = {0};
    struct vhb_log_region region = {.len = RIG_RAM, .gpa = 8 * 8 * 4096};
    rig_open(&rig, &(struct rig_config){.threaded = true, .stopped = true});
    region.host = rig.ram; /* behind the log: nothing but the flags is marked */
    CHECK_EQ(vhb_queue_set_log(rig.queue, log, sizeof(log), &region, 1, 8 * 4096 - 2), 0);
    rig_run(&rig);
    for (int i = 0; i < 20; i++) {
        int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
        while (!(__atomic_exchange_n(&log[0], 0, __ATOMIC_SEQ_CST) & 0x80)) {
            CHECK(rig_now_ms() < end);
            rig_pass(&rig);
        }
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    }
    rig_close(&rig);
}

/* ---- a log that vanishes ---------------------------------------------------------------- */

/* Nothing is published that could not be marked; a queue beside it stops, too. */
static void test_breaks_when_the_log_is_gone(void)
{
    struct rig a, b;
    CHECK_EQ(vhb_fault_install(), 0);
    int fd = memfd_create("log", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0);
    uint8_t *log = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(log != MAP_FAILED);
    int slot = vhb_fault_watch(log, 8192, 4096);
    CHECK(slot >= 0);
    rig_open(&a, &(struct rig_config){0});
    rig_open(&b, &(struct rig_config){.worker = a.worker});
    struct rig *both[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        struct vhb_log_region region = {both[i]->ram, RIG_RAM, 0};
        rig_park(both[i]);
        CHECK_EQ(vhb_queue_set_log(both[i]->queue, log, 8192, &region, 1, VHB_LOG_USED_NOT), 0);
        rig_run(both[i]);
        CHECK_EQ(do_request(both[i], BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    }
    CHECK_EQ(ftruncate(fd, 0), 0);
    put_request(&a, 0, BLK_IN, 0, RIG_DATA, 512);
    put_avail(&a, 0);
    rig_kick(&a);
    CHECK_EQ(rig_broken(&a).reason, VHB_LOG_GONE);
    CHECK(!take_used(&a));
    CHECK_EQ(rig_broken(&b).reason, VHB_LOG_GONE);
    CHECK_EQ(vhb_fault_count(slot), 1);
    rig_close(&b);
    rig_close(&a);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    munmap(log, 8192);
    close(fd);
}

CHECK_MAIN(TEST(drops_what_does_not_fit), TEST(refuses_what_cannot_be),
           TEST(marks_each_change_of_mind), TEST(breaks_when_the_log_is_gone))
