/* test_memdisk.c - memory and null disks, through the vtable that queues use. */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "disk.h"

enum { PAGE = 4096, SIZE = 8 * PAGE };

static uint8_t *map(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static int run(struct vhb_disk *disk, enum vhb_op op, uint64_t offset, uint64_t len,
               struct iovec *iov, uint32_t niov, uint32_t flags)
{
    static struct vhb_req req;
    req = (struct vhb_req){
        .op = op, .offset = offset, .len = len, .iov = iov, .niov = niov, .flags = flags};
    return disk->ops->submit(disk, &req, NULL);
}

static struct vhb_disk *memory_disk(uint8_t *host)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_memory_new(host, SIZE, &disk), 0);
    return disk;
}

/* Bytes written in three uneven pieces come back in two. */
static void test_memory_keeps_what_was_written(void)
{
    uint8_t *host = map(SIZE), in[1024], out[1024];
    struct vhb_disk *disk = memory_disk(host);
    for (size_t i = 0; i < sizeof(in); i++)
        in[i] = (uint8_t)(i * 7);
    struct iovec w[] = {{in, 1}, {in + 1, 600}, {in + 601, 423}};
    CHECK_EQ(run(disk, VHB_WRITE, 512, 1024, w, 3, 0), 0);
    struct iovec r[] = {{out, 1000}, {out + 1000, 24}};
    CHECK_EQ(run(disk, VHB_READ, 512, 1024, r, 2, 0), 0);
    CHECK(memcmp(in, out, sizeof(in)) == 0);
    CHECK(memcmp(host + 512, in, sizeof(in)) == 0);
    CHECK_EQ(host[511], 0);
    CHECK_EQ(host[1536], 0);
    CHECK_EQ(run(disk, VHB_FLUSH, 0, 0, NULL, 0, 0), 0);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, SIZE);
}

/* A range beyond the end, or one whose end overflows, touches nothing and fails. */
static void test_memory_refuses_what_is_outside(void)
{
    uint8_t *host = map(SIZE), buffer[512] = {1};
    struct vhb_disk *disk = memory_disk(host);
    struct iovec iov = {buffer, 512};
    CHECK_EQ(run(disk, VHB_WRITE, SIZE, 512, &iov, 1, 0), -EIO);
    CHECK_EQ(run(disk, VHB_WRITE, SIZE - 511, 512, &iov, 1, 0), -EIO);
    CHECK_EQ(run(disk, VHB_READ, UINT64_MAX - 100, 512, &iov, 1, 0), -EIO);
    CHECK_EQ(run(disk, VHB_DISCARD, SIZE, 1, NULL, 0, 0), -EIO);
    CHECK_EQ(run(disk, VHB_WRITE_ZEROES, 1, UINT64_MAX, NULL, 0, 0), -EIO);
    CHECK_EQ(run(disk, VHB_WRITE, SIZE - 512, 512, &iov, 1, 0), 0);
    CHECK_EQ(run(disk, VHB_READ, 0, 513, &iov, 1, 0), -EIO); /* pieces are too short */
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, SIZE);
}

static bool resident(uint8_t *page)
{
    unsigned char vec;
    CHECK_EQ(mincore(page, PAGE, &vec), 0);
    return vec & 1;
}

static void check_hole(struct vhb_disk *disk, uint8_t *host, enum vhb_op op, uint32_t flags,
                       bool freed)
{
    memset(host, 0xaa, SIZE);
    CHECK_EQ(run(disk, op, PAGE - 512, 2 * PAGE + 1024, NULL, 0, flags), 0);
    CHECK_EQ(resident(host + PAGE), !freed);
    CHECK_EQ(resident(host + 2 * PAGE), !freed);
    CHECK(resident(host));
    for (size_t i = 0; i < SIZE; i++)
        CHECK_EQ(host[i], i >= PAGE - 512 && i < 3 * PAGE + 512 ? 0 : 0xaa);
}

/* Whole pages are freed where holes are welcome, edges zeroed, neighbours kept. */
static void test_memory_gives_pages_back(void)
{
    uint8_t *host = map(SIZE);
    madvise(host, SIZE, MADV_NOHUGEPAGE);
    struct vhb_disk *disk = memory_disk(host);
    check_hole(disk, host, VHB_DISCARD, 0, true);
    check_hole(disk, host, VHB_WRITE_ZEROES, VHB_REQ_UNMAP, true);
    check_hole(disk, host, VHB_WRITE_ZEROES, 0, false);
    memset(host, 0xaa, SIZE);
    CHECK_EQ(run(disk, VHB_DISCARD, 512, 512, NULL, 0, 0), 0); /* inside one page */
    CHECK(host[511] == 0xaa && host[512] == 0 && host[1023] == 0 && host[1024] == 0xaa);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, SIZE);
}

/* A null disk reads zeroes, or leaves the buffer alone; it accepts every write. */
static void test_null_reads_zeroes_or_nothing(void)
{
    uint8_t buffer[1024];
    struct iovec iov[] = {{buffer, 512}, {buffer + 512, 512}};
    for (int zero = 0; zero < 2; zero++) {
        struct vhb_disk *disk;
        CHECK_EQ(vhb_disk_null_new(zero, &disk), 0);
        memset(buffer, 0x55, sizeof(buffer));
        CHECK_EQ(run(disk, VHB_WRITE, 1ull << 40, 1024, iov, 2, 0), 0);
        CHECK_EQ(buffer[0], 0x55);
        CHECK_EQ(run(disk, VHB_READ, 1ull << 40, 1024, iov, 2, 0), 0);
        CHECK_EQ(buffer[0], zero ? 0 : 0x55);
        CHECK_EQ(buffer[1023], zero ? 0 : 0x55);
        CHECK_EQ(run(disk, VHB_DISCARD, 0, 1 << 20, NULL, 0, 0), 0);
        CHECK_EQ(run(disk, VHB_FLUSH, 0, 0, NULL, 0, 0), 0);
        CHECK_EQ(vhb_disk_free(disk), 0);
    }
}

/* Guest memory that is gone fails the request and not the process. */
static void test_lost_guest_memory_is_efault(void)
{
    int fd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 2 * PAGE) == 0);
    uint8_t *guest = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(guest != MAP_FAILED);
    CHECK_EQ(vhb_fault_install(), 0);
    int slot = vhb_fault_watch(guest, 2 * PAGE, PAGE);
    CHECK(slot >= 0);
    uint8_t *host = map(SIZE);
    struct vhb_disk *disk = memory_disk(host), *null;
    CHECK_EQ(vhb_disk_null_new(true, &null), 0);

    CHECK_EQ(ftruncate(fd, PAGE), 0);
    struct iovec iov = {guest, 2 * PAGE};
    CHECK_EQ(run(disk, VHB_WRITE, 0, 2 * PAGE, &iov, 1, 0), -EFAULT);
    CHECK_EQ(run(disk, VHB_WRITE, 0, 2 * PAGE, &iov, 1, 0), 0); /* zeroes stand there now */
    CHECK_EQ(ftruncate(fd, 0), 0);
    CHECK_EQ(run(null, VHB_READ, 0, 2 * PAGE, &iov, 1, 0), -EFAULT);
    CHECK_EQ(vhb_fault_count(slot), 2);

    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    CHECK_EQ(vhb_disk_free(disk), 0);
    CHECK_EQ(vhb_disk_free(null), 0);
    munmap(guest, 2 * PAGE);
    munmap(host, SIZE);
    close(fd);
}

/* A disk in use is not freed; no disk is no error. */
static void test_free_refuses_while_in_use(void)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    disk->users++;
    CHECK_EQ(vhb_disk_free(disk), -EBUSY);
    disk->users--;
    CHECK_EQ(vhb_disk_free(disk), 0);
    CHECK_EQ(vhb_disk_free(NULL), 0);
    CHECK_EQ(vhb_disk_memory_new(NULL, SIZE, &disk), -EINVAL);
}

CHECK_MAIN(TEST(memory_keeps_what_was_written), TEST(memory_refuses_what_is_outside),
           TEST(memory_gives_pages_back), TEST(null_reads_zeroes_or_nothing),
           TEST(lost_guest_memory_is_efault), TEST(free_refuses_while_in_use))
