/* test_fair.c - queues that share a worker share it fairly: one whose driver never leaves it empty
 * delays the others by one budget a pass, however fast it fills its ring. */
#include <sys/mman.h>

#include "rig.h"

enum {
    SIZE = 256,
    MOST = 32,            /* requests of one queue in a pass */
    MOST_BYTES = 4 << 20, /* and bytes, and one request more */
    LARGE = 1 << 20,
    DISK = 2 << 20
};

/* Fill the ring of a greedy driver again: as many requests as it has chains, at once. */
static void refill(struct rig *greedy, uint32_t bytes)
{
    while (take_used(greedy)) {
        put_request(greedy, greedy->last_id, BLK_IN, 0, RIG_DATA, bytes);
        put_avail(greedy, (uint16_t)greedy->last_id);
    }
    rig_kick(greedy);
}

static void fill(struct rig *greedy, uint32_t bytes)
{
    for (uint32_t head = 0; head + 3 <= SIZE; head += 3) {
        put_request(greedy, head, BLK_IN, 0, RIG_DATA, bytes);
        put_avail(greedy, (uint16_t)head);
    }
    rig_kick(greedy);
}

/* One request of the modest driver, in a pass of its own: it is given back by then. */
static void ask(struct rig *modest)
{
    put_request(modest, 0, BLK_FLUSH, 0, 0, 0);
    put_avail(modest, 0);
    rig_kick(modest);
    for (int pass = 0; !take_used(modest); pass++) {
        CHECK(pass < 2); /* one to hear the kick, one to serve it */
        rig_pass(modest);
    }
}

static void share(struct vhb_disk *disk, uint32_t bytes, uint64_t passes)
{
    struct vhb_worker *worker;
    struct rig greedy, modest;
    CHECK_EQ(rig_worker(0, &worker), 0);
    struct rig_config config = {
        .size = SIZE, .worker = worker, .disk = disk, .sectors = DISK / 512};
    rig_open(&greedy, &config);
    rig_open(&modest, &config);
    fill(&greedy, bytes);
    for (uint64_t pass = 0, reads = 0, copied = 0; pass < passes; pass++) {
        ask(&modest);
        uint64_t now = RIG_COUNT(&greedy, reads), now_copied = RIG_COUNT(&greedy, bytes_read);
        CHECK(now > reads);
        CHECK(now - reads <= 2 * MOST);
        CHECK(now_copied - copied <= 2 * (MOST_BYTES + LARGE));
        reads = now;
        copied = now_copied;
        refill(&greedy, bytes);
    }
    CHECK_EQ(RIG_COUNT(&modest, flushes), passes);
    rig_close(&greedy);
    rig_close(&modest);
    CHECK_EQ(vhb_worker_free(worker), 0);
}

/* Small requests of a disk that answers inside submit: the most a driver can get done in a pass. */
static void test_small_requests(void)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    share(disk, 512, 500);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* Large ones, whose bytes are copied inside submit: few of them are a pass. */
static void test_large_requests(void)
{
    struct vhb_disk *disk;
    void *host = mmap(NULL, DISK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, DISK, &disk), 0);
    share(disk, LARGE, 50);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, DISK);
}

CHECK_MAIN(TEST(small_requests), TEST(large_requests))
