/* test_driver.c - the load generator against the core: neither has a line of the other's, and both
 * threads have a sanitizer that looks. */
#include <pthread.h>
#include <sys/mman.h>

#include "driver.h"
#include "rig.h"

enum { DISK = 1 << 16, BYTES = 1024, DEPTH = 6, SIZE = 32, ARENA = RIG_DATA };

static uint8_t *contents;

struct both {
    struct rig rig;
    struct vhb_disk *disk;
    struct drv_queue *queue;
};

/* How a load is told apart: bits of a number. */
enum { EVENT_IDX = 1, INDIRECT = 2, POLL = 4, KINDS = 8 };

static void open_both(struct both *b, uint32_t kind, bool verify)
{
    contents = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(contents != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(contents, DISK, &b->disk), 0);
    uint64_t features =
        (kind & EVENT_IDX ? RIG_EVENT_IDX : 0) | (kind & INDIRECT ? RIG_INDIRECT : 0);
    rig_open(&b->rig, &(struct rig_config){.disk = b->disk,
                                           .size = SIZE,
                                           .sectors = DISK / 512,
                                           .features = features,
                                           .threaded = true});
    struct drv_config config = {
        .desc = b->rig.ram + RIG_DESC,
        .avail = b->rig.ram + RIG_AVAIL,
        .used = b->rig.ram + RIG_USED,
        .size = SIZE,
        .packed = b->rig.config.features & RIG_PACKED,
        .event_idx = kind & EVENT_IDX,
        .indirect = kind & INDIRECT,
        .verify = verify,
        .kick_fd = b->rig.kick,
        .call_fd = b->rig.call,
        .watch_fd = -1,
        .arena = b->rig.ram + ARENA,
        .arena_address = rig_at(ARENA),
        .depth = DEPTH,
        .bytes = BYTES,
        .piece = 512,
        .tag = 77,
        .first = 2,
        .blocks = DISK / BYTES - 2,
    };
    CHECK(drv_arena_bytes(&config) <= RIG_RAM - ARENA);
    CHECK_EQ(drv_chain_length(&config), kind & INDIRECT ? 1 : 4);
    CHECK_EQ(drv_queue_new(&config, &b->queue), 0);
}

static void close_both(struct both *b)
{
    drv_queue_free(b->queue);
    rig_close(&b->rig);
    CHECK_EQ(vhb_disk_free(b->disk), 0);
    munmap(contents, DISK);
}

static struct drv_job job(uint32_t kind, uint32_t read_percent, bool sequential, uint64_t requests)
{
    return (struct drv_job){.read_percent = read_percent,
                            .sequential = sequential,
                            .poll = kind & POLL,
                            .seed = 1,
                            .requests = requests,
                            .stall_ns = 20ull * 1000000000};
}

static int run(struct both *b, struct drv_job what, struct drv_counters *counted)
{
    struct drv_fault fault;
    int result = drv_queue_run(b->queue, &what, &fault);
    drv_queue_counters(b->queue, counted);
    return result;
}

static void check_counts(const struct drv_counters *c, uint64_t reads, uint64_t writes)
{
    uint64_t counted[2] = {0};
    for (uint32_t op = 0; op < 2; op++)
        for (uint32_t i = 0; i < DRV_BUCKETS; i++)
            counted[op] += c->latency[op][i];
    CHECK_EQ(c->done[0], reads);
    CHECK_EQ(c->done[1], writes);
    CHECK_EQ(counted[0], reads);
    CHECK_EQ(counted[1], writes);
    CHECK_EQ(c->ended, reads + writes);
    CHECK(c->end_ns >= c->begin_ns && c->begin_ns > 0);
    for (uint32_t i = 0; i < DRV_FAILURES; i++)
        CHECK_EQ(c->failed[i], 0);
}

/* Whatever kind of ring, waiting and chain: every block holds what was written there last. */
static void test_what_is_written_is_read(void)
{
    enum { BLOCKS = DISK / BYTES - 2, MANY = 500 };
    for (uint32_t kind = 0; kind < KINDS; kind++) {
        struct both b;
        struct drv_counters c;
        open_both(&b, kind, true);
        CHECK_EQ(run(&b, job(kind, 0, true, BLOCKS), &c), DRV_DONE);
        check_counts(&c, 0, BLOCKS);
        CHECK_EQ(run(&b, job(kind, 60, false, MANY), &c), DRV_DONE);
        CHECK(c.done[0] > MANY / 2 && c.done[0] < MANY * 7 / 10);
        check_counts(&c, c.done[0], MANY - c.done[0]);
        CHECK_EQ(c.checked, c.done[0]);
        CHECK_EQ(run(&b, job(kind, 100, true, BLOCKS), &c), DRV_DONE);
        check_counts(&c, BLOCKS, 0);
        CHECK_EQ(c.checked, BLOCKS);
        CHECK_EQ(contents[2 * BYTES - 1], 0); /* in front of the first block of this queue */
        CHECK(kind & POLL ? c.sleeps == 0 : c.sleeps + c.kicks > 0);
        close_both(&b);
    }
}

/* One byte of the disk changes between two jobs, and the read says which word it was in. */
static void test_a_wrong_byte_is_found(void)
{
    struct both b;
    struct drv_counters c;
    open_both(&b, EVENT_IDX | INDIRECT, true);
    CHECK_EQ(run(&b, job(0, 0, true, 20), &c), DRV_DONE);
    enum { WRONG = 9 * BYTES + 777 };
    contents[WRONG] ^= 1;
    struct drv_job read = job(0, 100, true, 20);
    struct drv_fault fault;
    CHECK_EQ(drv_queue_run(b.queue, &read, &fault), DRV_MISMATCH);
    CHECK_EQ(fault.at, WRONG / 8 * 8);
    CHECK_EQ(fault.want, WRONG / 512);
    CHECK_EQ(fault.want_2, 77ull << 32 | 1);
    CHECK_EQ(fault.got_2, fault.want_2);
    close_both(&b);
}

/* What was never written is not checked, nor is a block whose write has failed. */
static void test_only_what_was_written_is_checked(void)
{
    struct both b;
    struct drv_counters c;
    open_both(&b, 0, true);
    CHECK_EQ(run(&b, job(0, 100, true, 20), &c), DRV_DONE);
    CHECK_EQ(c.checked, 0);
    close_both(&b);
}

/* A device that refuses is counted, not taken for a fast one. */
static void test_failures_are_counted(void)
{
    struct both b;
    struct drv_counters c;
    open_both(&b, EVENT_IDX, false);
    rig_park(&b.rig);
    b.rig.blk.capacity_sectors = 2; /* everything is beyond the end now */
    CHECK_EQ(vhb_queue_set_blk(b.rig.queue, &b.rig.blk), 0);
    rig_run(&b.rig);
    CHECK_EQ(run(&b, job(0, 50, false, 40), &c), DRV_DONE);
    CHECK_EQ(c.failed[DRV_IOERR], 40);
    CHECK_EQ(c.ended, 40);
    CHECK_EQ(c.done[0] + c.done[1], 0);
    close_both(&b);
}

static void *stop_soon(void *arg)
{
    struct both *b = arg;
    struct drv_counters c;
    do
        drv_queue_counters(b->queue, &c);
    while (c.ended < 100);
    drv_queue_stop(b->queue, false);
    return NULL;
}

/* A run without end is ended by another thread, which sees it count meanwhile; nothing is left in
 * flight, and nothing is begun any more. */
static void test_another_thread_stops_it(void)
{
    for (uint32_t kind = 0; kind <= POLL; kind += POLL) {
        struct both b;
        struct drv_counters c;
        pthread_t thread;
        open_both(&b, kind, false);
        CHECK_EQ(pthread_create(&thread, NULL, stop_soon, &b), 0);
        CHECK_EQ(run(&b, job(kind, 70, false, 0), &c), DRV_DONE);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK(c.ended >= 100);
        CHECK_EQ(run(&b, job(kind, 70, false, 0), &c), DRV_DONE);
        CHECK_EQ(c.ended, 0);
        close_both(&b);
    }
}

CHECK_MAIN(TEST(what_is_written_is_read), TEST(a_wrong_byte_is_found),
           TEST(only_what_was_written_is_checked), TEST(failures_are_counted),
           TEST(another_thread_stops_it))
