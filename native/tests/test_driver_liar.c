/* test_driver_liar.c - devices that answer nonsense to the load generator: a named end, no crash.
 *
 * The device is the test's own thread: it waits for the kick, then writes what it likes.  Offsets
 * are written from virtio 1.3, 2.7 and 2.8. */
#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "driver.h"

enum { SIZE = 16, DEPTH = 4, BYTES = 512, CHAIN = 3, STATUS = 16, LINE = 64 };
enum { RAM = 1 << 16, DESC = 0, AVAIL = 0x1000, USED = 0x2000, ARENA = 0x4000 };
enum { UNWRITTEN = 0xff };

struct liar {
    uint8_t *ram;
    struct drv_queue *queue;
    struct drv_job job;
    struct drv_fault fault;
    int kick, call, watch;
    bool packed;
    uint32_t used; /* elements so far */
    int result;
    pthread_t thread;
};

static void *drive(void *arg)
{
    struct liar *l = arg;
    l->result = drv_queue_run(l->queue, &l->job, &l->fault);
    return NULL;
}

static void open_liar(struct liar *l, bool packed, uint64_t requests)
{
    *l = (struct liar){.packed = packed};
    l->ram = aligned_alloc(4096, RAM);
    memset(l->ram, 0, RAM);
    l->kick = eventfd(0, EFD_CLOEXEC);
    l->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    l->watch = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    struct drv_config config = {.desc = l->ram + DESC,
                                .avail = l->ram + AVAIL,
                                .used = l->ram + USED,
                                .size = SIZE,
                                .packed = packed,
                                .kick_fd = l->kick,
                                .call_fd = l->call,
                                .watch_fd = l->watch,
                                .arena = l->ram + ARENA,
                                .arena_address = ARENA,
                                .depth = DEPTH,
                                .bytes = BYTES,
                                .piece = BYTES,
                                .blocks = 100};
    CHECK_EQ(drv_queue_new(&config, &l->queue), 0);
    l->job = (struct drv_job){
        .read_percent = 100, .seed = 1, .requests = requests, .stall_ns = 10ull * 1000000000};
}

/* Start it, and wait until it has shown its requests. */
static void start(struct liar *l)
{
    uint64_t ignored;
    CHECK_EQ(pthread_create(&l->thread, NULL, drive, l), 0);
    CHECK_EQ(read(l->kick, &ignored, sizeof(ignored)), sizeof(ignored));
}

static void call(int fd)
{
    uint64_t one = 1;
    CHECK_EQ(write(fd, &one, sizeof(one)), sizeof(one));
}

/* How it ended. */
static int join(struct liar *l)
{
    CHECK_EQ(pthread_join(l->thread, NULL), 0);
    return l->result;
}

static void free_liar(struct liar *l)
{
    drv_queue_free(l->queue);
    free(l->ram);
    close(l->kick);
    close(l->call);
    close(l->watch);
}

static int end(struct liar *l)
{
    int result = join(l);
    free_liar(l);
    return result;
}

static void put_used_idx(struct liar *l, uint32_t idx)
{
    __atomic_store_n((uint16_t *)(void *)(l->ram + USED + 2), (uint16_t)idx, __ATOMIC_RELEASE);
}

/* Use a chain, by its number: the next element, as the format has it. */
static void use(struct liar *l, uint32_t id, uint32_t length)
{
    uint32_t n = l->used++;
    if (l->packed) {
        uint8_t *d = l->ram + DESC + 16 * (n * CHAIN % SIZE);
        uint16_t short_id = (uint16_t)id, flags = 1 << 7 | 1 << 15 | 2;
        memcpy(d + 8, &length, 4);
        memcpy(d + 12, &short_id, 2);
        __atomic_store_n((uint16_t *)(void *)(d + 14), flags, __ATOMIC_RELEASE);
    } else {
        memcpy(l->ram + USED + 4 + 8 * (n % SIZE), &id, 4);
        memcpy(l->ram + USED + 4 + 8 * (n % SIZE) + 4, &length, 4);
        put_used_idx(l, l->used);
    }
}

/* The number that the chain of slot *i* has. */
static uint32_t id_of(const struct liar *l, uint32_t i)
{
    return l->packed ? i : i * CHAIN;
}

static void expect(struct liar *l, int reason, uint64_t got)
{
    call(l->call);
    CHECK_EQ(end(l), reason);
    CHECK_EQ(l->fault.got, got);
}

static void test_the_used_index_jumps(void)
{
    struct liar l;
    open_liar(&l, false, DEPTH);
    start(&l);
    put_used_idx(&l, DEPTH + 1);
    expect(&l, DRV_BAD_INDEX, DEPTH + 1);
    CHECK_EQ(l.fault.want, DEPTH);
}

static void test_the_used_index_goes_back(void)
{
    struct liar l;
    open_liar(&l, false, DEPTH);
    start(&l);
    put_used_idx(&l, 0xffff);
    expect(&l, DRV_BAD_INDEX, 0xffff);
}

static void test_an_id_is_out_of_range(void)
{
    for (int packed = 0; packed < 2; packed++) {
        struct liar l;
        open_liar(&l, packed, DEPTH);
        start(&l);
        uint32_t id = packed ? 0xffff : 0xffffffff;
        use(&l, id, 0);
        expect(&l, DRV_BAD_ID, id);
    }
}

static void test_an_id_is_the_middle_of_a_chain(void)
{
    struct liar l;
    open_liar(&l, false, DEPTH);
    start(&l);
    use(&l, 4, 0);
    expect(&l, DRV_BAD_ID, 4);
}

static void test_an_id_comes_twice(void)
{
    for (int packed = 0; packed < 2; packed++) {
        struct liar l;
        open_liar(&l, packed, DEPTH);
        start(&l);
        uint32_t id = id_of(&l, 2);
        l.ram[ARENA + 2 * LINE + STATUS] = 0;
        use(&l, id, BYTES + 1);
        use(&l, id, BYTES + 1);
        expect(&l, DRV_BAD_ID, id);
        CHECK_EQ(l.fault.at, packed ? CHAIN : 1);
    }
}

static void test_more_is_written_than_may_be(void)
{
    for (int packed = 0; packed < 2; packed++) {
        struct liar l;
        open_liar(&l, packed, DEPTH);
        start(&l);
        use(&l, id_of(&l, 1), BYTES + 2);
        expect(&l, DRV_BAD_LENGTH, BYTES + 2);
        CHECK_EQ(l.fault.want, BYTES + 1);
    }
}

/* Statuses that mean failure, one that means nothing, and one that the device did not write. */
static void test_every_status_is_counted(void)
{
    for (int packed = 0; packed < 2; packed++) {
        struct liar l;
        struct drv_counters c;
        static const uint8_t statuses[DEPTH] = {1, 2, 77, UNWRITTEN};
        open_liar(&l, packed, DEPTH);
        start(&l);
        for (uint32_t i = 0; i < DEPTH; i++) {
            CHECK_EQ(l.ram[ARENA + i * LINE + STATUS], UNWRITTEN);
            l.ram[ARENA + i * LINE + STATUS] = statuses[i];
            use(&l, id_of(&l, i), BYTES + 1);
        }
        call(l.call);
        CHECK_EQ(join(&l), DRV_DONE);
        drv_queue_counters(l.queue, &c);
        for (uint32_t i = 0; i < DRV_FAILURES; i++)
            CHECK_EQ(c.failed[i], 1);
        CHECK_EQ(c.done[0], 0);
        free_liar(&l);
    }
}

static void test_silence_has_an_end(void)
{
    for (int poll_too = 0; poll_too < 2; poll_too++) {
        struct liar l;
        open_liar(&l, false, DEPTH);
        l.job.poll = poll_too;
        l.job.stall_ns = 1000000;
        start(&l);
        CHECK_EQ(end(&l), DRV_SILENT);
        CHECK_EQ(l.fault.got, DEPTH);
    }
}

static void test_what_is_watched_ends_it(void)
{
    for (int poll_too = 0; poll_too < 2; poll_too++) {
        struct liar l;
        open_liar(&l, true, DEPTH);
        l.job.poll = poll_too;
        start(&l);
        call(l.watch);
        CHECK_EQ(end(&l), DRV_WATCHED);
    }
}

static void test_it_can_be_abandoned(void)
{
    for (int poll_too = 0; poll_too < 2; poll_too++) {
        struct liar l;
        open_liar(&l, true, DEPTH);
        l.job.poll = poll_too;
        start(&l);
        drv_queue_stop(l.queue, true);
        CHECK_EQ(end(&l), DRV_ABANDONED);
    }
}

/* What cannot be is refused when the queue is made. */
static void test_a_queue_has_to_fit(void)
{
    struct drv_queue *queue = NULL;
    struct drv_config good = {
        .size = SIZE, .depth = DEPTH, .bytes = 512, .piece = 512, .blocks = 9};
    struct drv_config bad[] = {good, good, good, good, good, good, good};
    bad[0].depth = SIZE / CHAIN + 1;
    bad[1].bytes = 100;
    bad[2].size = 12; /* split: a power of two */
    bad[3].size = 1 << 16;
    bad[4].blocks = 0;
    bad[5].piece = 0;
    bad[6].verify = true; /* a block for each slot */
    bad[6].blocks = DEPTH - 1;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        CHECK(drv_queue_new(&bad[i], &queue) < 0);
    CHECK(queue == NULL);
    drv_queue_free(queue);
}

/* Buckets follow each other, and the middle of none is further from its ends than 1.6 percent. */
static void test_buckets_are_narrow(void)
{
    uint32_t last = 0;
    uint64_t first = 0;
    for (uint64_t ns = 0; ns < 1ull << 37; ns += 1 + ns / 1000) {
        uint32_t bucket = drv_bucket(ns);
        CHECK(bucket == last || bucket == last + 1);
        if (bucket != last)
            first = ns;
        CHECK(bucket == DRV_BUCKETS - 1 || (ns - first) * 32 <= first + 32);
        last = bucket;
    }
    CHECK_EQ(last, DRV_BUCKETS - 1);
    CHECK_EQ(drv_bucket(UINT64_MAX), DRV_BUCKETS - 1);
}

CHECK_MAIN(TEST(the_used_index_jumps), TEST(the_used_index_goes_back), TEST(an_id_is_out_of_range),
           TEST(an_id_is_the_middle_of_a_chain), TEST(an_id_comes_twice),
           TEST(more_is_written_than_may_be), TEST(every_status_is_counted),
           TEST(silence_has_an_end), TEST(what_is_watched_ends_it), TEST(it_can_be_abandoned),
           TEST(a_queue_has_to_fit), TEST(buckets_are_narrow))
