/* test_file.c - files behind a queue: what is stored is there, what fails says so, and O_DIRECT
 * does not mind how the guest's buffers lie. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rig.h"

enum { SECTORS = 8192, BYTES = SECTORS * 512, DATA = RIG_DATA };

struct served {
    int fd;
    struct vhb_disk *disk;
    struct rig rig;
};

static int memory_file(void)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, BYTES) == 0);
    return fd;
}

static void serve(struct served *s, int fd, uint32_t flags, uint32_t align,
                  const struct rig_config *config)
{
    struct rig_config c = *config;
    s->fd = fd;
    CHECK_EQ(rig_file(fd, flags, align, &s->disk), 0);
    c.disk = s->disk;
    c.sectors = SECTORS;
    rig_open(&s->rig, &c);
}

static void end(struct served *s)
{
    rig_close(&s->rig);
    CHECK_EQ(vhb_disk_free(s->disk), 0);
    close(s->fd);
}

static void check_stored(struct served *s, uint64_t offset, uint32_t at, size_t len)
{
    uint8_t *got = aligned_alloc(4096, (len + 4095) & ~(size_t)4095); /* for O_DIRECT */
    CHECK(got && pread(s->fd, got, len, (off_t)offset) == (ssize_t)len);
    CHECK(memcmp(got, s->rig.ram + at, len) == 0);
    free(got);
}

/* ---- what works ----------------------------------------------------------------------- */

static void round_trip(int fd)
{
    struct served s;
    serve(&s, fd, 0, 1, &(struct rig_config){0});
    enum { LEN = 1 << 20 };
    rig_fill(&s.rig, DATA, LEN, 3);
    CHECK_EQ(do_request(&s.rig, BLK_OUT, 7, DATA, LEN), BLK_OK);
    check_stored(&s, 7 * 512, DATA, LEN);
    CHECK_EQ(do_request(&s.rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    memset(s.rig.ram + DATA, 0, LEN);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 7, DATA, LEN), BLK_OK);
    CHECK(rig_is(&s.rig, DATA, LEN, 3));
    CHECK_EQ(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0); /* now from the disk, or in part */
    CHECK_EQ(do_request(&s.rig, BLK_IN, 7, DATA, LEN), BLK_OK);
    CHECK(rig_is(&s.rig, DATA, LEN, 3));
    end(&s);
}

/* OUT, FLUSH and IN on a file of a disk file system and on one in memory. */
static void test_files_keep_what_was_written(void)
{
    round_trip(rig_temporary(0, BYTES));
    round_trip(memory_file());
}

/* A writethrough device writes with the bytes made stable; every kind of change still works. */
static void test_writethrough_changes(void)
{
    struct served s;
    serve(&s, rig_temporary(0, BYTES), 0, 1,
          &(struct rig_config){.blk_flags = VHB_BLK_WRITETHROUGH});
    rig_fill(&s.rig, DATA, 4096, 4);
    CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, DATA, 4096), BLK_OK);
    check_stored(&s, 0, DATA, 4096);
    put_range(&s.rig, DATA + 8192, 0, 0, 8, 0);
    CHECK_EQ(do_request(&s.rig, BLK_WRITE_ZEROES, 0, DATA + 8192, 16), BLK_OK);
    CHECK_EQ(do_request(&s.rig, BLK_DISCARD, 0, DATA + 8192, 16), BLK_OK);
    memset(s.rig.ram + DATA, 0, 4096);
    check_stored(&s, 0, DATA, 4096);
    end(&s);
}

static blkcnt_t blocks(int fd)
{
    struct stat st;
    CHECK_EQ(fstat(fd, &st), 0);
    CHECK_EQ(st.st_size, BYTES);
    return st.st_blocks;
}

static void zero_ranges(int fd)
{
    struct served s;
    serve(&s, fd, 0, 1, &(struct rig_config){0});
    enum { LEN = 512 * 512 };
    static const struct {
        uint32_t type, unmap;
        bool hole;
    } ways[] = {{BLK_DISCARD, 0, true}, {BLK_WRITE_ZEROES, 1, true}, {BLK_WRITE_ZEROES, 0, false}};
    for (size_t i = 0; i < 3; i++) {
        rig_fill(&s.rig, DATA, LEN, 5);
        CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, DATA, LEN), BLK_OK);
        CHECK_EQ(do_request(&s.rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK_EQ(fsync(fd), 0);
        blkcnt_t before = blocks(fd);
        put_range(&s.rig, DATA + LEN, 0, 8, 256, ways[i].unmap);
        put_range(&s.rig, DATA + LEN, 1, 511, 1, ways[i].unmap);
        CHECK_EQ(do_request(&s.rig, ways[i].type, 0, DATA + LEN, 32), BLK_OK);
        memset(s.rig.ram + DATA + 8 * 512, 0, 256 * 512);
        memset(s.rig.ram + DATA + 511 * 512, 0, 512);
        check_stored(&s, 0, DATA, LEN);
        CHECK_EQ(fsync(fd), 0);
        CHECK_EQ(blocks(fd) < before, ways[i].hole);
    }
    end(&s);
}

/* DISCARD and WRITE_ZEROES with UNMAP leave holes, without UNMAP space stays; the neighbours and
 * the size stay in any case, also where the file system cannot zero (tmpfs) and we write. */
static void test_ranges_become_zeroes(void)
{
    zero_ranges(rig_temporary(0, BYTES));
    zero_ranges(memory_file());
}

/* Many requests at once, more than the submission queue is long, out of order or not. */
static void test_many_at_once(void)
{
    struct served s;
    serve(&s, rig_temporary(0, BYTES), 0, 1, &(struct rig_config){.size = 1024});
    for (int pass = 0; pass < 2; pass++) {
        uint32_t type = pass ? BLK_IN : BLK_OUT;
        for (uint16_t i = 0; i < 340; i++) {
            if (!pass)
                rig_fill(&s.rig, DATA + 4096u * i, 4096, i);
            put_request(&s.rig, 3u * i, type, 8u * i, DATA + 4096u * i, 4096);
            put_avail(&s.rig, (uint16_t)(3 * i));
        }
        rig_kick(&s.rig);
        for (int i = 0; i < 340; i++) {
            wait_used(&s.rig);
            CHECK_EQ(status_of(&s.rig, s.rig.last_id), BLK_OK);
        }
        for (uint32_t i = 0; i < 340; i++)
            CHECK(rig_is(&s.rig, DATA + 4096 * i, 4096, i));
        memset(s.rig.ram + DATA, 0, 340 * 4096);
    }
    end(&s);
}

/* ---- O_DIRECT ------------------------------------------------------------------------- */

static void open_direct(struct served *s, const struct rig_config *config)
{
    serve(s, rig_temporary(O_DIRECT, BYTES), VHB_FILE_DIRECT, 4096, config);
    s->rig.blk.block_size = 4096;
    rig_park(&s->rig);
    CHECK_EQ(vhb_queue_set_blk(s->rig.queue, &s->rig.blk), 0);
    rig_run(&s->rig);
}

/* Buffers at any address and in any cut, smaller and larger than our own aligned memory. */
static void test_direct_takes_misaligned_buffers(void)
{
    struct served s;
    open_direct(&s, &(struct rig_config){0});
    static const uint32_t lengths[] = {4096, 64 * 1024, 256 * 1024, 256 * 1024 + 4096, 1 << 20};
    static const uint32_t shifts[] = {0, 1, 512, 2048, 4095};
    for (uint32_t l = 0; l < 5; l++)
        for (uint32_t k = 0; k < 5; k++) {
            uint32_t at = DATA + shifts[k], len = lengths[l];
            rig_fill(&s.rig, at, len, l * 5 + k);
            CHECK_EQ(do_request(&s.rig, BLK_OUT, 8, at, len), BLK_OK);
            check_stored(&s, 4096, at, 4096);
            memset(s.rig.ram + DATA, 0, len + 8192);
            CHECK_EQ(do_request(&s.rig, BLK_IN, 8, at, len), BLK_OK);
            CHECK(rig_is(&s.rig, at, len, l * 5 + k));
            CHECK_EQ(s.rig.ram[at + len], 0);
        }
    end(&s);
}

/* More misaligned requests than there are bounce buffers wait for one another and all succeed. */
static void test_direct_requests_queue_for_bounce_memory(void)
{
    struct served s;
    open_direct(&s, &(struct rig_config){.size = 256});
    enum { N = 40, LEN = 64 * 1024 };
    for (int pass = 0; pass < 2; pass++) {
        for (uint16_t i = 0; i < N; i++) {
            uint32_t at = DATA + (uint32_t)LEN * i + 1;
            if (!pass)
                rig_fill(&s.rig, at, LEN, i);
            put_request(&s.rig, 3u * i, pass ? BLK_IN : BLK_OUT, LEN / 512u * i, at, LEN);
            put_avail(&s.rig, (uint16_t)(3 * i));
        }
        rig_kick(&s.rig);
        for (int i = 0; i < N; i++) {
            wait_used(&s.rig);
            CHECK_EQ(status_of(&s.rig, s.rig.last_id), BLK_OK);
        }
        for (uint32_t i = 0; i < N; i++)
            CHECK(rig_is(&s.rig, DATA + (uint32_t)LEN * i + 1, LEN - 1, i));
        memset(s.rig.ram + DATA, 0, LEN * N);
    }
    end(&s);
}

/* Cancelled with the kernel and cancelled while they wait: all end with IOERR or OK at once, and
 * the bounce memory serves the next ones. */
static void test_direct_requests_are_cancelled(void)
{
    struct served s;
    open_direct(&s, &(struct rig_config){.size = 256});
    enum { N = 40, LEN = 64 * 1024 };
    for (int round = 0; round < 5; round++) {
        for (uint16_t i = 0; i < N; i++) {
            put_request(&s.rig, 3u * i, i % 2 ? BLK_IN : BLK_OUT, LEN / 512u * i,
                        DATA + (uint32_t)LEN * i + 1, LEN);
            put_avail(&s.rig, (uint16_t)(3 * i));
        }
        rig_pass(&s.rig);
        rig_cancel(&s.rig);
        while (take_used(&s.rig))
            CHECK(status_of(&s.rig, s.rig.last_id) <= BLK_IOERR);
        while (RIG_COUNT(&s.rig, dead))
            rig_pass(&s.rig);
        rig_run(&s.rig);
        put_request(&s.rig, 0, BLK_IN, 0, DATA + 1, LEN);
        put_avail(&s.rig, 0); /* what the drain left in the ring comes first */
        do
            wait_used(&s.rig);
        while (s.rig.used_seen != s.rig.avail_idx);
        CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    }
    end(&s);
}

/* ---- what fails ----------------------------------------------------------------------- */

/* A full disk is an error for the write that does not fit, not for reads. */
static void test_full_disk(void)
{
    struct served s;
    serve(&s, open("/dev/full", O_RDWR | O_CLOEXEC), 0, 1, &(struct rig_config){0});
    CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, DATA, 4096), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, 4096), BLK_OK);
    CHECK_EQ(RIG_COUNT(&s.rig, errors), 1);
    end(&s);
}

static void shrink(int fd)
{
    struct served s;
    serve(&s, fd, 0, 1, &(struct rig_config){0});
    CHECK_EQ(ftruncate(fd, 6 * 512), 0);
    memset(s.rig.ram + DATA, 0x77, 8192);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 2, DATA, 4096), BLK_IOERR); /* short */
    CHECK_EQ(s.rig.last_len, 1);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 100, DATA, 4096), BLK_IOERR); /* nothing */
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, 3072), BLK_OK);
    end(&s);
}

/* A file that was cut short under us fails reads beyond its end, all or in part. */
static void test_file_that_shrank(void)
{
    shrink(rig_temporary(0, BYTES));
    shrink(memory_file());
}

/* A file that cannot be written fails writes, ranges and nothing else. */
static void test_read_only_file(void)
{
    struct served s;
    int writable = rig_temporary(0, BYTES);
    char path[64];
    snprintf(path, sizeof(path), "/proc/self/fd/%d", writable);
    serve(&s, open(path, O_RDONLY | O_CLOEXEC), 0, 1, &(struct rig_config){0});
    put_range(&s.rig, DATA, 0, 0, 8, 0);
    CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, DATA, 512), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, BLK_DISCARD, 0, DATA, 16), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, BLK_WRITE_ZEROES, 0, DATA, 16), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, 512), BLK_OK);
    CHECK_EQ(do_request(&s.rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    end(&s);
    close(writable);
}

/* Guest memory that the kernel cannot touch fails the request; the queue serves on. */
static void test_kernel_meets_lost_memory(void)
{
    struct served s;
    serve(&s, rig_temporary(0, BYTES), 0, 1, &(struct rig_config){0});
    uint32_t at = RIG_RAM - 4096;
    CHECK_EQ(ftruncate(s.rig.memfd, RIG_RAM - 4096), 0);
    CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, at, 4096), BLK_IOERR);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, at, 4096), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, faults), 2);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, 4096), BLK_OK);
    end(&s);
}

/* Alignments are powers of two, and the descriptor is one. */
static void test_new_checks_its_arguments(void)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_file_new(0, 0, 0, 1, &disk), -EINVAL);
    CHECK_EQ(vhb_disk_file_new(0, 0, 1, 3, &disk), -EINVAL);
    CHECK_EQ(vhb_disk_file_new(-1, 0, 1, 1, &disk), -EBADF);
}

CHECK_MAIN(TEST(files_keep_what_was_written), TEST(writethrough_changes),
           TEST(ranges_become_zeroes), TEST(many_at_once), TEST(direct_takes_misaligned_buffers),
           TEST(direct_requests_queue_for_bounce_memory), TEST(direct_requests_are_cancelled),
           TEST(full_disk), TEST(file_that_shrank), TEST(read_only_file),
           TEST(kernel_meets_lost_memory), TEST(new_checks_its_arguments))
