/* test_blk.c - requests as a driver sends them, on a memory disk: what is done, what is refused,
 * and which status says so.  virtio 1.3, 5.2.6. */
#include <sys/mman.h>

#include "rig.h"

enum { SECTORS = 2048, BYTES = SECTORS * 512 };

struct disk {
    uint8_t *host;
    struct vhb_disk *disk;
};

static struct disk memory_disk(void)
{
    struct disk d;
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    d.host = host;
    CHECK_EQ(vhb_disk_memory_new(d.host, BYTES, &d.disk), 0);
    return d;
}

static void close_disk(struct disk *d)
{
    CHECK_EQ(vhb_disk_free(d->disk), 0);
    munmap(d->host, BYTES);
}

/* ---- data ----------------------------------------------------------------------------- */

/* What OUT stores IN returns, at the sector it says, counted in requests and bytes. */
static void test_in_returns_what_out_stored(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk});
    rig_fill(&rig, RIG_DATA, 8192, 1);
    CHECK_EQ(do_request(&rig, BLK_OUT, 5, RIG_DATA, 8192), BLK_OK);
    CHECK(memcmp(d.host + 5 * 512, rig.ram + RIG_DATA, 8192) == 0);
    CHECK_EQ(do_request(&rig, BLK_IN, 5, RIG_DATA + 16384, 8192), BLK_OK);
    CHECK(rig_is(&rig, RIG_DATA + 16384, 8192, 1));
    CHECK_EQ(rig.last_len, 8193);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(RIG_COUNT(&rig, reads), 1);
    CHECK_EQ(RIG_COUNT(&rig, writes), 1);
    CHECK_EQ(RIG_COUNT(&rig, flushes), 1);
    CHECK_EQ(RIG_COUNT(&rig, bytes_read), 8192);
    CHECK_EQ(RIG_COUNT(&rig, bytes_written), 8192);
    rig_close(&rig);
    close_disk(&d);
}

/* Cut [offset, offset + len) of guest memory into *n* descriptors of nearly the same length. */
static uint32_t put_cut(struct rig *rig, uint32_t at, uint32_t offset, uint32_t len, uint32_t n,
                        uint16_t flags)
{
    for (uint32_t i = 0; i < n; i++) {
        uint32_t from = len * i / n, to = len * (i + 1) / n;
        put_desc(rig, RIG_DESC, at, rig_at(offset + from), to - from, flags | DESC_NEXT,
                 (uint16_t)(at + 1));
        at++;
    }
    return at;
}

/* Header, data and status are where the bytes are, however they were cut: the header may share a
 * descriptor with data to write, the status with data to read. */
static void test_any_framing(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk});
    enum { AT = RIG_DATA, LEN = 1536 };
    for (uint32_t n = 1; n <= 40; n++) {
        /* header and data as one run of readable bytes */
        put_request(&rig, 0, BLK_OUT, 0, 0, 0);
        memcpy(rig.ram + AT, rig.ram + header_at(0), 16);
        rig_fill(&rig, AT + 16, LEN, n);
        uint32_t next = put_cut(&rig, 0, AT, 16 + LEN, n, 0);
        put_desc(&rig, RIG_DESC, next, rig_at(status_at(0)), 1, DESC_WRITE, 0);
        CHECK_EQ(do_chain(&rig, 0), BLK_OK);
        CHECK(memcmp(d.host, rig.ram + AT + 16, LEN) == 0);

        /* data and status as one run of writable bytes */
        put_request(&rig, 0, BLK_IN, 0, 0, 0);
        memset(rig.ram + 2 * AT, BLK_UNTOUCHED, LEN + 1);
        next = put_cut(&rig, 0, header_at(0), 16, 1 + n % 16, 0);
        next = put_cut(&rig, next, 2 * AT, LEN + 1, n, DESC_WRITE);
        put_end(&rig, next - 1);
        CHECK_EQ(do_chain(&rig, 0), BLK_UNTOUCHED); /* not where put_request has it */
        CHECK(rig_is(&rig, 2 * AT, LEN, n));
        CHECK_EQ(rig.ram[2 * AT + LEN], BLK_OK);
        CHECK_EQ(rig.last_len, LEN + 1);
    }
    rig_close(&rig);
    close_disk(&d);
}

/* A header of less than 16 bytes, or none, is no request. */
static void test_short_header_fails(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(header_at(0)), 15, DESC_NEXT, 1);
    CHECK_EQ(do_chain(&rig, 0), BLK_IOERR);
    put_request(&rig, 0, BLK_FLUSH, 0, 0, 0);
    put_desc(&rig, RIG_DESC, 0, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    CHECK_EQ(do_chain(&rig, 0), BLK_IOERR);
    rig_close(&rig);
}

/* Ranges beyond the end, of odd length or off the block grid touch nothing. */
static void test_ranges_are_checked(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk, .block_size = 4096});
    static const struct {
        uint64_t sector;
        uint32_t len;
        uint8_t status;
    } cases[] = {{SECTORS - 8, 4096, BLK_OK},
                 {SECTORS, 4096, BLK_IOERR},
                 {SECTORS - 8, 8192, BLK_IOERR},
                 {SECTORS + 8, 4096, BLK_IOERR},
                 {1ull << 55, 4096, BLK_IOERR},
                 {UINT64_MAX, 4096, BLK_IOERR},
                 {UINT64_MAX - 7, 4096, BLK_IOERR},
                 {0, 512, BLK_IOERR},
                 {1, 4096, BLK_IOERR},
                 {0, 4095, BLK_IOERR},
                 {0, 4096 + 512, BLK_IOERR},
                 {0, 0, BLK_OK}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        memset(rig.ram + RIG_DATA, 0x77, 8192);
        memset(d.host, 0x11, BYTES);
        CHECK_EQ(do_request(&rig, BLK_IN, cases[i].sector, RIG_DATA, cases[i].len),
                 cases[i].status);
        bool read = cases[i].status == BLK_OK && cases[i].len;
        CHECK_EQ(rig.ram[RIG_DATA], read ? 0x11 : 0x77);
        memset(rig.ram + RIG_DATA, 0x77, 8192);
        CHECK_EQ(do_request(&rig, BLK_OUT, cases[i].sector, RIG_DATA, cases[i].len),
                 cases[i].status);
        CHECK_EQ(memchr(d.host, 0x77, BYTES) != NULL, read);
    }
    CHECK_EQ(RIG_COUNT(&rig, errors), 2 * 10);
    rig_close(&rig);
    close_disk(&d);
}

/* All segments at their longest are served; who names the same memory over and over is refused
 * before it costs anything. */
static void test_length_is_bounded(void)
{
    struct vhb_disk *disk;
    struct rig rig;
    CHECK_EQ(vhb_disk_null_new(false, &disk), 0);
    rig_open(&rig, &(struct rig_config){.disk = disk, .size = 256, .sectors = 1 << 30});
    enum { SEGMENT = 4 << 20 };
    for (uint32_t n = 126; n <= 132; n += 6) {
        put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 512);
        for (uint32_t i = 1; i <= n; i++)
            put_desc(&rig, RIG_DESC, i, rig_at(RIG_DATA), SEGMENT, DESC_WRITE | DESC_NEXT,
                     (uint16_t)(i + 1));
        put_desc(&rig, RIG_DESC, n + 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
        CHECK_EQ(do_chain(&rig, 0), n == 126 ? BLK_OK : BLK_IOERR);
        CHECK_EQ(rig.last_len, n == 126 ? 126u * SEGMENT + 1 : 1);
    }
    rig_close(&rig);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* ---- the other types ------------------------------------------------------------------ */

/* GET_ID gives 20 bytes, padded with NUL, or what fits; used length says how many. */
static void test_get_id(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    static const uint32_t lengths[] = {20, 64, 5};
    for (size_t i = 0; i < 3; i++) {
        memset(rig.ram + RIG_DATA, 0x77, 64);
        CHECK_EQ(do_request(&rig, BLK_GET_ID, 99, RIG_DATA, lengths[i]), BLK_OK);
        uint32_t n = lengths[i] < 20 ? lengths[i] : 20;
        CHECK(memcmp(rig.ram + RIG_DATA, "rig-serial\0\0\0\0\0\0\0\0\0\0", n) == 0);
        CHECK_EQ(rig.ram[RIG_DATA + n], 0x77);
        CHECK_EQ(rig.last_len, n + 1);
    }
    CHECK_EQ(RIG_COUNT(&rig, get_ids), 3);
    rig_close(&rig);
}

/* A type nobody knows, or that was not offered, is UNSUPP; the legacy barrier bit is ignored. */
static void test_types(void)
{
    struct rig rig;
    uint32_t off = VHB_BLK_DISCARD | VHB_BLK_WRITE_ZEROES;
    rig_open(&rig, &(struct rig_config){.blk_flags_off = off});
    static const uint32_t unknown[] = {2, 3, 9, 10, BLK_DISCARD, BLK_WRITE_ZEROES, 14, 15, 77};
    put_range(&rig, RIG_DATA, 0, 0, 8, 0);
    for (size_t i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        CHECK_EQ(do_request(&rig, unknown[i], 0, RIG_DATA, 16), BLK_UNSUPP);
    CHECK_EQ(RIG_COUNT(&rig, unsupported), 9);
    CHECK_EQ(do_request(&rig, BLK_FLUSH | 1u << 31, 0, 0, 0), BLK_OK);
    rig_close(&rig);
}

/* A read-only device fails every change and serves the rest. */
static void test_read_only(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk, .blk_flags = VHB_BLK_READ_ONLY});
    memset(rig.ram + RIG_DATA, 0x77, 512);
    put_range(&rig, RIG_DATA + 4096, 0, 0, 8, 0);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, 512), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_DISCARD, 0, RIG_DATA + 4096, 16), BLK_IOERR);
    CHECK_EQ(do_request(&rig, BLK_WRITE_ZEROES, 0, RIG_DATA + 4096, 16), BLK_IOERR);
    CHECK_EQ(d.host[0], 0);
    CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);

    /* What it does not offer it does not know, read-only or not. */
    rig_park(&rig);
    rig.blk.flags = VHB_BLK_READ_ONLY;
    CHECK_EQ(vhb_queue_set_blk(rig.queue, &rig.blk), 0);
    rig_run(&rig);
    CHECK_EQ(do_request(&rig, BLK_DISCARD, 0, RIG_DATA + 4096, 16), BLK_UNSUPP);
    CHECK_EQ(do_request(&rig, BLK_WRITE_ZEROES, 0, RIG_DATA + 4096, 16), BLK_UNSUPP);
    rig_close(&rig);
    close_disk(&d);
}

/* Every range of DISCARD and WRITE_ZEROES is carried out. */
static void test_several_ranges(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk});
    for (uint32_t unmap = 0; unmap < 2; unmap++) {
        memset(d.host, 0x11, BYTES);
        for (uint32_t i = 0; i < 4; i++)
            put_range(&rig, RIG_DATA, i, 100 * i, 8 * i, unmap);
        CHECK_EQ(do_request(&rig, BLK_WRITE_ZEROES, 0, RIG_DATA, 64), BLK_OK);
        for (uint32_t s = 0; s < 400; s++)
            CHECK_EQ(d.host[512 * s], s % 100 < 8 * (s / 100) ? 0 : 0x11);
    }
    memset(d.host, 0x11, BYTES);
    for (uint32_t i = 0; i < 3; i++)
        put_range(&rig, RIG_DATA, i, 1024 + 100 * i, 8, 0);
    CHECK_EQ(do_request(&rig, BLK_DISCARD, 0, RIG_DATA, 48), BLK_OK);
    for (uint32_t i = 0; i < 3; i++)
        CHECK_EQ(d.host[512 * (1024 + 100 * i)], 0);
    CHECK_EQ(RIG_COUNT(&rig, discards), 1);
    CHECK_EQ(RIG_COUNT(&rig, write_zeroes), 2);
    rig_close(&rig);
    close_disk(&d);
}

/* One bad range and none is carried out.  Spec: virtio 1.3, 5.2.6.1, 5.2.6.2. */
static void test_bad_ranges(void)
{
    struct disk d = memory_disk();
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = d.disk});
    static const struct {
        uint32_t type;
        uint64_t sector;
        uint32_t sectors, flags, bytes;
        uint8_t status;
    } cases[] = {{BLK_DISCARD, SECTORS, 1, 0, 32, BLK_IOERR},
                 {BLK_DISCARD, SECTORS - 1, 2, 0, 32, BLK_IOERR},
                 {BLK_DISCARD, UINT64_MAX, 8, 0, 32, BLK_IOERR},
                 {BLK_DISCARD, 0, 1025, 0, 32, BLK_IOERR}, /* more than is promised */
                 {BLK_DISCARD, 0, 8, 1, 32, BLK_UNSUPP},   /* UNMAP is for WRITE_ZEROES */
                 {BLK_DISCARD, 0, 8, 2, 32, BLK_UNSUPP},
                 {BLK_WRITE_ZEROES, 0, 8, 2, 32, BLK_UNSUPP},
                 {BLK_WRITE_ZEROES, 0, 1025, 0, 32, BLK_IOERR},
                 {BLK_WRITE_ZEROES, SECTORS, 8, 1, 32, BLK_IOERR},
                 {BLK_WRITE_ZEROES, 0, 8, 0, 31, BLK_IOERR}, /* not whole ranges */
                 {BLK_WRITE_ZEROES, 0, 8, 0, 0, BLK_IOERR},
                 {BLK_WRITE_ZEROES, 0, 8, 0, 80, BLK_IOERR}}; /* five; four are promised */
    memset(d.host, 0x11, BYTES);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (uint32_t k = 0; k < 5; k++)
            put_range(&rig, RIG_DATA, k, 0, 8, 0);
        put_range(&rig, RIG_DATA, 1, cases[i].sector, cases[i].sectors, cases[i].flags);
        CHECK_EQ(do_request(&rig, cases[i].type, 0, RIG_DATA, cases[i].bytes), cases[i].status);
    }
    for (uint32_t i = 0; i < BYTES; i++)
        CHECK_EQ(d.host[i], 0x11);
    put_range(&rig, RIG_DATA, 0, 0, 0, 0); /* nothing is a range, too */
    CHECK_EQ(do_request(&rig, BLK_DISCARD, 0, RIG_DATA, 16), BLK_OK);
    rig_close(&rig);
    close_disk(&d);
}

/* ---- what the disk is told ------------------------------------------------------------ */

/* Flags reach the disk: stable writes where the device is writethrough, holes where welcome. */
static uint32_t flags_of(struct rig *rig, struct vhb_mailbox *box, uint32_t type, uint32_t unmap)
{
    struct vhb_job job;
    put_request(rig, 0, type, 0, RIG_DATA, type == BLK_IN || type == BLK_OUT ? 512 : 16);
    if (type == BLK_WRITE_ZEROES || type == BLK_DISCARD)
        put_range(rig, RIG_DATA, 0, 0, 8, unmap);
    put_avail(rig, 0);
    rig_kick(rig);
    while (vhb_mailbox_take(box, &job, 1) == 0)
        rig_pass(rig);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    wait_used(rig);
    CHECK_EQ(status_of(rig, 0), BLK_OK);
    return job.flags;
}

static void test_flags_reach_the_disk(void)
{
    for (uint32_t through = 0; through < 2; through++) {
        struct vhb_mailbox *box;
        struct rig rig;
        CHECK_EQ(vhb_mailbox_new(128, &box), 0);
        rig_open(&rig, &(struct rig_config){.disk = vhb_mailbox_disk(box),
                                            .blk_flags = through ? VHB_BLK_WRITETHROUGH : 0});
        uint32_t fua = through ? VHB_REQ_FUA : 0;
        CHECK_EQ(flags_of(&rig, box, BLK_IN, 0), 0);
        CHECK_EQ(flags_of(&rig, box, BLK_OUT, 0), fua);
        CHECK_EQ(flags_of(&rig, box, BLK_DISCARD, 0), fua);
        CHECK_EQ(flags_of(&rig, box, BLK_WRITE_ZEROES, 0), fua);
        CHECK_EQ(flags_of(&rig, box, BLK_WRITE_ZEROES, 1), fua | VHB_REQ_UNMAP);
        rig_park(&rig);
        rig.blk.flags &= ~(uint32_t)VHB_BLK_UNMAP;
        CHECK_EQ(vhb_queue_set_blk(rig.queue, &rig.blk), 0);
        rig_run(&rig);
        CHECK_EQ(flags_of(&rig, box, BLK_WRITE_ZEROES, 1), fua);
        rig_close(&rig);
        CHECK_EQ(vhb_mailbox_free(box), 0);
    }
}

/* An error of the disk is IOERR for its request, with no data claimed, and nothing else. */
static void test_disk_errors_are_ioerr(void)
{
    struct vhb_mailbox *box;
    struct rig rig;
    struct vhb_job job;
    CHECK_EQ(vhb_mailbox_new(128, &box), 0);
    rig_open(&rig, &(struct rig_config){.disk = vhb_mailbox_disk(box)});
    static const int results[] = {-ENOSPC, -EIO, -EFAULT, 1};
    for (size_t i = 0; i < 4; i++) {
        put_request(&rig, 0, BLK_IN, 0, RIG_DATA, 512);
        put_avail(&rig, 0);
        rig_kick(&rig);
        while (vhb_mailbox_take(box, &job, 1) == 0)
            rig_pass(&rig);
        CHECK_EQ(vhb_mailbox_complete(box, job.tag, results[i]), 0);
        wait_used(&rig);
        CHECK_EQ(status_of(&rig, 0), BLK_IOERR);
        CHECK_EQ(rig.last_len, 1);
    }
    CHECK_EQ(RIG_COUNT(&rig, errors), 4);
    CHECK_EQ(RIG_COUNT(&rig, reads), 0);
    CHECK_EQ(RIG_COUNT(&rig, faults), 1);
    rig_close(&rig);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* A promise that cannot be kept is refused when it is made. */
static void test_set_blk_checks_its_promises(void)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.stopped = true});
    struct vhb_blk blk = rig.blk;
    static const uint32_t sizes[] = {0, 1, 511, 513, 768};
    for (size_t i = 0; i < 5; i++) {
        blk.block_size = sizes[i];
        CHECK_EQ(vhb_queue_set_blk(rig.queue, &blk), -EINVAL);
    }
    blk = rig.blk;
    blk.max_discard_seg = VHB_MAX_RANGES + 1;
    CHECK_EQ(vhb_queue_set_blk(rig.queue, &blk), -EINVAL);
    blk = rig.blk;
    blk.max_write_zeroes_seg = VHB_MAX_RANGES + 1;
    CHECK_EQ(vhb_queue_set_blk(rig.queue, &blk), -EINVAL);
    rig_close(&rig);
}

CHECK_MAIN(TEST(in_returns_what_out_stored), TEST(any_framing), TEST(short_header_fails),
           TEST(ranges_are_checked), TEST(length_is_bounded), TEST(get_id), TEST(types),
           TEST(read_only), TEST(several_ranges), TEST(bad_ranges), TEST(flags_reach_the_disk),
           TEST(disk_errors_are_ioerr), TEST(set_blk_checks_its_promises))
