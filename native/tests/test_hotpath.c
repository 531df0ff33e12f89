/* test_hotpath.c - serving allocates nothing: every allocator the core could call is wrapped by
 * the linker and counted. */
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

static atomic_long allocations;

void *__real_malloc(size_t size);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *old, size_t size);
void *__real_aligned_alloc(size_t align, size_t size);
void *__real_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t size);
void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);

void *__wrap_malloc(size_t size)
{
    allocations++;
    return __real_malloc(size);
}

void *__wrap_calloc(size_t n, size_t size)
{
    allocations++;
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    allocations++;
    return __real_realloc(old, size);
}

void *__wrap_aligned_alloc(size_t align, size_t size)
{
    allocations++;
    return __real_aligned_alloc(align, size);
}

void *__wrap_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
    allocations++;
    return __real_mmap(addr, len, prot, flags, fd, offset);
}

/* Every kind of request; what the mailbox is given is completed in between. */
static void exercise(struct rig *rig, struct vhb_mailbox *box)
{
    static const uint32_t types[] = {BLK_IN,      BLK_OUT,          BLK_FLUSH,
                                     BLK_DISCARD, BLK_WRITE_ZEROES, BLK_GET_ID};
    for (uint32_t round = 0; round < 60; round++) {
        uint32_t type = types[round % 6];
        bool range = type == BLK_DISCARD || type == BLK_WRITE_ZEROES;
        put_range(rig, RIG_DATA, 0, 8, 8, 0);
        uint32_t len = range ? 16 : type == BLK_FLUSH ? 0 : 8192;
        put_request(rig, 0, type, 0, RIG_DATA + (range ? 0 : 512 * (round % 3)), len);
        put_avail(rig, 0);
        rig_kick(rig);
        while (!take_used(rig)) {
            struct vhb_job job;
            while (box && vhb_mailbox_take(box, &job, 1) == 1)
                CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
            rig_pass(rig);
        }
        CHECK_EQ(status_of(rig, 0), BLK_OK);
    }
}

/* A chain longer than a slot, in an indirect table. */
static void exercise_long(struct rig *rig)
{
    uint32_t table = 1 << 20, n = 500;
    put_request(rig, 0, BLK_OUT, 0, 0, 0);
    put_desc(rig, table, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    for (uint32_t i = 1; i <= n; i++)
        put_desc(rig, table, i, rig_at(RIG_DATA), 512, DESC_NEXT, (uint16_t)(i + 1));
    put_desc(rig, table, n + 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    put_desc(rig, RIG_DESC, 0, rig_at(table), 16 * (n + 2), DESC_INDIRECT, 0);
    CHECK_EQ(do_chain(rig, 0), BLK_OK);
}

static void check_allocates_nothing(struct vhb_disk *disk, struct vhb_mailbox *box)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = disk, .features = RIG_INDIRECT});
    rig_pass(&rig); /* adopts the queue */
    allocations = 0;
    exercise(&rig, box);
    if (!box)
        exercise_long(&rig);
    rig_park(&rig);
    rig_run(&rig);
    exercise(&rig, box);
    CHECK_EQ(allocations, 0);
    rig_close(&rig);
    if (!box)
        CHECK_EQ(vhb_disk_free(disk), 0);
}

/* The counter counts: making a queue does allocate. */
static void test_making_a_queue_allocates(void)
{
    struct rig rig;
    allocations = 0;
    rig_open(&rig, &(struct rig_config){0});
    CHECK(allocations > 5);
    rig_close(&rig);
}

static void test_null_and_memory(void)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    check_allocates_nothing(disk, NULL);
    void *host = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, 1 << 20, &disk), 0);
    check_allocates_nothing(disk, NULL);
    munmap(host, 1 << 20);
}

/* Files, with misaligned buffers under O_DIRECT as well: bounce memory was reserved before. */
static void test_files(void)
{
    struct vhb_disk *disk;
    int plain = rig_temporary(0, 1 << 20), direct = rig_temporary(O_DIRECT, 1 << 20);
    CHECK_EQ(vhb_disk_file_new(plain, 0, 1, 1, &disk), 0);
    check_allocates_nothing(disk, NULL);
    CHECK_EQ(vhb_disk_file_new(direct, VHB_FILE_DIRECT, 4096, 512, &disk), 0);
    check_allocates_nothing(disk, NULL);
    close(plain);
    close(direct);
}

static void test_mailbox(void)
{
    struct vhb_mailbox *box;
    CHECK_EQ(vhb_mailbox_new(128, &box), 0);
    check_allocates_nothing(vhb_mailbox_disk(box), box);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

CHECK_MAIN(TEST(making_a_queue_allocates), TEST(null_and_memory), TEST(files), TEST(mailbox))
