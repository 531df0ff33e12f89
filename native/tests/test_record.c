/* test_record.c - what a record layer writes down, word by word. */
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crc32.h"
#include "failing.h"

enum { BYTES = 1 << 20, HEAD = 48, ROOM = 4096 };
enum { SUBMIT = 1, COMPLETE = 2, DATA = 4, FUA = 0x10, UNMAP = 0x20, DIGEST = 0x40 };

struct recorded {
    struct vhb_stage *stage;
    struct vhb_disk *disk;
    int fd;
    uint64_t words[BYTES / 8]; /* of all blocks */
    uint64_t n, blocks;
};

static void open_recorded(struct recorded *r, struct vhb_disk *below, uint32_t payload, int fd)
{
    *r = (struct recorded){.fd = fd};
    struct vhb_record record = {
        .fd = r->fd, .on = true, .payload = payload, .room = ROOM, .segment = 77};
    CHECK_EQ(vhb_stage_record_new(&record, &r->stage), 0);
    CHECK_EQ(vhb_layer_new(below, r->stage, &r->disk), 0);
}

static void close_recorded(struct recorded *r)
{
    CHECK_EQ(vhb_disk_free(r->disk), 0);
    CHECK_EQ(vhb_stage_free(r->stage), 0);
    if (r->fd >= 0)
        close(r->fd);
}

static uint64_t get(const uint8_t *at, size_t n)
{
    uint64_t value = 0;
    memcpy(&value, at, n);
    return value;
}

/* The words of all blocks of the file, which are whole and follow each other. */
static void read_back(struct recorded *r)
{
    static uint8_t file[BYTES];
    struct vhb_crc32 crc;
    vhb_crc32_init(&crc);
    CHECK_EQ(vhb_stage_record_flush(r->stage), 0);
    ssize_t size = pread(r->fd, file, BYTES, 0);
    CHECK(size >= 0);
    r->n = r->blocks = 0;
    for (const uint8_t *at = file; at < file + size; r->blocks++) {
        size_t length = (size_t)get(at + 8, 4);
        CHECK(memcmp(at, "VHBT\1\0\2", 8) == 0);
        CHECK_EQ(get(at + 12, 4), vhb_crc32(&crc, 0, at + HEAD, length));
        CHECK_EQ(get(at + 16, 8), 77);
        CHECK_EQ(get(at + 24, 8), r->n);
        CHECK_EQ(get(at + 40, 8), vhb_crc32(&crc, 0, at, 40));
        memcpy(r->words + r->n, at + HEAD, length);
        r->n += length / 8;
        at += HEAD + length;
        CHECK(at <= file + size);
    }
}

static int memory_file(void)
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0);
    return fd;
}

static uint64_t word(uint32_t kind, uint32_t what, uint32_t small, uint64_t large)
{
    return kind | (uint64_t)what << 8 | (uint64_t)small << 16 | large << 32;
}

static uint8_t do_write(struct rig *rig, uint64_t sector, uint32_t len)
{
    rig_fill(rig, RIG_DATA, len, 9);
    return do_request(rig, BLK_OUT, sector, RIG_DATA, len);
}

static void test_requests_one_after_the_other(void)
{
    static uint8_t memory[BYTES];
    static struct recorded r;
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_memory_new(memory, BYTES, &disk), 0);
    open_recorded(&r, disk, VHB_RECORD_NONE, memory_file());
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk, .blk_flags = VHB_BLK_WRITETHROUGH});
    CHECK_EQ(vhb_queue_set_number(rig.queue, 5), 0);
    CHECK_EQ(do_write(&rig, 8, 1024), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 9, RIG_DATA, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 3, RIG_DATA, 0), BLK_OK);
    read_back(&r);
    CHECK_EQ(r.n, 15);
    CHECK_EQ(r.words[0], word(SUBMIT, 1 | FUA, 5, 2));
    CHECK_EQ(r.words[2], 8);
    CHECK_EQ(r.words[3], word(COMPLETE, 0, 0, 3));
    CHECK_EQ(r.words[5], word(SUBMIT, 0, 5, 1));
    CHECK_EQ(r.words[7], 9);
    CHECK_EQ(r.words[8], word(COMPLETE, 0, 0, 3));
    CHECK_EQ(r.words[10], word(SUBMIT, 2, 5, 0));
    CHECK_EQ(r.words[12], 0);
    CHECK_EQ(r.words[13], word(COMPLETE, 0, 0, 3));
    CHECK(r.words[1] && r.words[1] <= r.words[4] && r.words[4] <= r.words[6]);
    struct vhb_record_state state;
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.words, 15);
    CHECK_EQ(state.taken, 15);
    CHECK_EQ(state.bytes, HEAD + 15 * 8);
    CHECK_EQ(state.lost | state.dropped | state.error, 0);
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* Requests that end in another order than they came, one with an error, and one that does not. */
static void test_requests_under_way_together(void)
{
    static struct recorded r;
    struct slow s;
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s.box), 0);
    open_recorded(&r, vhb_mailbox_disk(s.box), VHB_RECORD_NONE, memory_file());
    rig_open(&s.rig, &(struct rig_config){.disk = r.disk});
    struct vhb_job first = start(&s, 0, BLK_OUT, 8), second = start(&s, 3, BLK_IN, 16);
    struct vhb_job third = start(&s, 6, BLK_OUT, 24);
    CHECK_EQ(vhb_mailbox_complete(s.box, second.tag, -ENOSPC), 0);
    CHECK_EQ(vhb_mailbox_complete(s.box, first.tag, 0), 0);
    wait_used(&s.rig);
    read_back(&r);
    CHECK_EQ(r.n, 13);
    CHECK_EQ(r.words[6], word(SUBMIT, 1, 0, 1));
    CHECK_EQ(r.words[9], word(COMPLETE, 0, ENOSPC, 6));
    CHECK_EQ(r.words[11], word(COMPLETE, 0, 0, 11));
    rig_cancel(&s.rig);
    read_back(&r);
    CHECK_EQ(r.n, 13); /* the guest has it back, the disk has it still */
    take_cancel(&s, &third);
    finish(&s, &third);
    settle(&s.rig);
    read_back(&r);
    CHECK_EQ(r.n, 15);
    CHECK_EQ(r.words[13], word(COMPLETE, 0, 0, 7));
    rig_close(&s.rig);
    close_recorded(&r);
    CHECK_EQ(vhb_mailbox_free(s.box), 0);
}

static void test_digests(void)
{
    static uint8_t memory[BYTES];
    static struct recorded r;
    struct vhb_crc32 crc;
    struct vhb_disk *disk;
    vhb_crc32_init(&crc);
    CHECK_EQ(vhb_disk_memory_new(memory, BYTES, &disk), 0);
    open_recorded(&r, disk, VHB_RECORD_DIGEST, memory_file());
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk});
    CHECK_EQ(do_write(&rig, 8, 3072), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 8, RIG_DATA + 4096, 3072), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 1 << 20, RIG_DATA, 512), BLK_IOERR); /* not the disk's */
    read_back(&r);
    CHECK_EQ(r.n, 12);
    uint32_t sum = vhb_crc32(&crc, 0, rig.ram + RIG_DATA + 4096, 3072);
    CHECK_EQ(r.words[0], word(SUBMIT, 1 | DIGEST, 0, 6));
    CHECK_EQ(r.words[3], sum);
    CHECK_EQ(r.words[4], word(COMPLETE, 0, 0, 4));
    CHECK_EQ(r.words[6], word(SUBMIT, 0, 0, 6));
    CHECK_EQ(r.words[9], word(COMPLETE, DIGEST, 0, 3));
    CHECK_EQ(r.words[11], sum);
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* A payload larger than the room is written by who records it, part by part; none is missing. */
static void test_payloads(void)
{
    static uint8_t memory[BYTES], payload[BYTES];
    static struct recorded r;
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_memory_new(memory, BYTES, &disk), 0);
    open_recorded(&r, disk, VHB_RECORD_FULL, memory_file());
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk});
    const uint32_t len = 4 * ROOM + 1024;
    for (uint64_t i = 0; i < 3; i++)
        CHECK_EQ(do_write(&rig, 8 + i, len), BLK_OK);
    read_back(&r);
    CHECK(r.blocks > 3);
    uint64_t at = 0, submit = 0, writes = 0, bytes = 0;
    while (at < r.n) {
        uint64_t first = r.words[at], n = first >> 32;
        if ((first & 0xff) == SUBMIT) {
            CHECK_EQ(first, word(SUBMIT, 1, 0, len / 512));
            submit = at;
            at += 3;
        } else if ((first & 0xff) == COMPLETE) {
            CHECK_EQ(bytes, len);
            CHECK(memcmp(payload, rig.ram + RIG_DATA, len) == 0);
            CHECK_EQ(first, word(COMPLETE, 0, 0, at - submit));
            writes++;
            bytes = 0;
            at += 2;
        } else {
            CHECK_EQ(first & 0xff, DATA);
            CHECK_EQ(r.words[at + 1], submit);
            memcpy(payload + bytes, &r.words[at + 2], n);
            bytes += n;
            at += 2 + (n + 7) / 8;
        }
    }
    CHECK_EQ(writes, 3);
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* What comes behind a change of the file goes to the other, counted from there. */
static void test_another_file(void)
{
    static struct recorded r;
    struct vhb_disk *disk;
    struct vhb_record_state state;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    open_recorded(&r, disk, VHB_RECORD_NONE, memory_file());
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk});
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    read_back(&r);
    CHECK_EQ(r.n, 5);
    struct vhb_record none = {.fd = -1}, other = {.fd = memory_file(), .on = true, .segment = 77};
    CHECK_EQ(vhb_stage_record_set(r.stage, &none), 0);
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    close(r.fd);
    r.fd = other.fd;
    CHECK_EQ(vhb_stage_record_set(r.stage, &other), 0);
    CHECK_EQ(do_write(&rig, 8, 1024), BLK_OK);
    read_back(&r);
    CHECK_EQ(r.n, 5);
    CHECK_EQ(r.words[0], word(SUBMIT, 1, 0, 2));
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.words, 5);
    CHECK_EQ(state.taken, 5);
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* A file that takes nothing stops no request; what is missing is counted, and once it takes
 * something again the place of the block says how much it was. */
static void test_a_full_file(void)
{
    static struct recorded r;
    struct vhb_disk *disk;
    struct vhb_record_state state;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    int full = open("/dev/full", O_RDWR | O_CLOEXEC);
    CHECK(full >= 0);
    open_recorded(&r, disk, VHB_RECORD_NONE, full);
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk});
    for (int i = 0; i < 300; i++)
        CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_flush(r.stage), 0);
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.words, 1500);
    CHECK_EQ(state.taken, 1500);
    CHECK_EQ(state.lost, 1500);
    CHECK_EQ(state.bytes, 0);
    CHECK_EQ(state.error, ENOSPC);
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* Without a file somebody takes the records; what finds no room is counted, and no request waits.
 */
static void test_without_a_file(void)
{
    static struct recorded r;
    static uint64_t out[ROOM];
    struct vhb_disk *disk;
    struct vhb_record_state state;
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    open_recorded(&r, disk, VHB_RECORD_NONE, -1);
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = r.disk});
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 0);
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_take(r.stage, out, 32), 3 * 8);
    CHECK_EQ(out[0], word(SUBMIT, 1, 0, 1));
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 2 * 8);
    CHECK_EQ(out[0], word(COMPLETE, 0, 0, 3));
    struct vhb_record off = {.fd = -1}, on = {.fd = -1, .on = true};
    CHECK_EQ(vhb_stage_record_set(r.stage, &off), 0);
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 0);
    CHECK_EQ(vhb_stage_record_set(r.stage, &on), 0);
    for (int i = 0; i < 200; i++)
        CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 102 * 5 * 8);
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.dropped, 98); /* what is not begun is not ended */
    rig_close(&rig);
    close_recorded(&r);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

static void test_refuses_what_it_cannot_be(void)
{
    struct vhb_stage *stage;
    struct vhb_record good = {.fd = 0, .payload = VHB_RECORD_FULL, .room = ROOM}, bad = good;
    bad.payload = 3;
    CHECK_EQ(vhb_stage_record_new(&bad, &stage), -EINVAL);
    bad = good;
    bad.room = ROOM - 8;
    CHECK_EQ(vhb_stage_record_new(&bad, &stage), -EINVAL);
    bad.room = 3 * ROOM;
    CHECK_EQ(vhb_stage_record_new(&bad, &stage), -EINVAL);
    bad = good;
    bad.fd = -1;
    CHECK_EQ(vhb_stage_record_new(&bad, &stage), -EINVAL);
    struct vhb_partition part = {.size = 512};
    CHECK_EQ(vhb_stage_partition_new(&part, &stage), 0);
    CHECK_EQ(vhb_stage_record_flush(stage), -EINVAL);
    CHECK_EQ(vhb_stage_record_wake_fd(stage), -EINVAL);
    CHECK_EQ(vhb_stage_free(stage), 0);
}

CHECK_MAIN(TEST(requests_one_after_the_other), TEST(requests_under_way_together), TEST(digests),
           TEST(payloads), TEST(another_file), TEST(a_full_file), TEST(without_a_file),
           TEST(refuses_what_it_cannot_be))
