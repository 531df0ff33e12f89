/* test_record.c - what a record layer writes down, word by word. */
#include "recorded.h"
#include "vq.h"

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
    uint64_t before = vhb_clock();
    CHECK_EQ(do_write(&rig, 8, 1024), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 9, RIG_DATA, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 3, RIG_DATA, 0), BLK_OK);
    uint64_t took = vhb_clock() - before;
    read_back(&r);
    CHECK_EQ(r.n, 9);
    CHECK_EQ(timeless(r.words[0]), submit(1, FUA, 5));
    CHECK_EQ(r.words[1], place(8, 2));
    CHECK_EQ(timeless(r.words[2]), end(0, 2));
    CHECK_EQ(timeless(r.words[3]), submit(0, 0, 5));
    CHECK_EQ(r.words[4], place(9, 1));
    CHECK_EQ(timeless(r.words[5]), end(0, 2));
    CHECK_EQ(timeless(r.words[6]), submit(2, 0, 5));
    CHECK_EQ(r.words[7], place(0, 0));
    CHECK_EQ(timeless(r.words[8]), end(0, 2));
    CHECK(since(r.words[0], before) <= since(r.words[2], before) &&
          since(r.words[2], before) <= took);
    CHECK(since(r.words[6], before) <= since(r.words[8], before));
    CHECK(since(r.words[8], before) <= took);
    struct vhb_record_state state;
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.words, 9);
    CHECK_EQ(state.taken, 9);
    CHECK_EQ(state.bytes, HEAD + 9 * 8);
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
    CHECK_EQ(r.n, 11);
    CHECK_EQ(timeless(r.words[4]), submit(1, 0, 0));
    CHECK_EQ(r.words[6], LONG_END);
    CHECK_EQ(r.words[7] << 24, r.words[10] >> 24 << 24); /* they have come back together */
    CHECK_EQ(r.words[8], 2);
    CHECK_EQ(r.words[9], ENOSPC);
    CHECK_EQ(timeless(r.words[10]), end(0, 10));
    rig_cancel(&s.rig);
    read_back(&r);
    CHECK_EQ(r.n, 11); /* the guest has it back, the disk has it still */
    take_cancel(&s, &third);
    finish(&s, &third);
    settle(&s.rig);
    read_back(&r);
    CHECK_EQ(r.n, 12);
    CHECK_EQ(timeless(r.words[11]), end(0, 7));
    rig_close(&s.rig);
    close_recorded(&r);
    CHECK_EQ(vhb_mailbox_free(s.box), 0);
}

/* What a short record has no room for: the number of a queue, a sector far out, an end that is
 * far behind. */
static void test_long_records(void)
{
    static struct recorded r;
    const uint64_t far_out = 1ull << 40;
    struct slow s;
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s.box), 0);
    open_recorded(&r, vhb_mailbox_disk(s.box), VHB_RECORD_FULL, memory_file());
    rig_open(&s.rig, &(struct rig_config){.disk = r.disk, .sectors = far_out + 8});
    uint64_t before = vhb_clock();
    CHECK_EQ(vhb_queue_set_number(s.rig.queue, 0x100), 0);
    struct vhb_job first = start(&s, 0, BLK_IN, 8);
    CHECK_EQ(vhb_queue_set_number(s.rig.queue, 0xff), 0);
    struct vhb_job second = start(&s, 3, BLK_IN, far_out);
    for (int i = 0; i < 4; i++) { /* of 2^14 words and some each */
        put_request(&s.rig, 6, BLK_OUT, far_out - 256, RIG_DATA, 1 << 17);
        put_avail(&s.rig, 6);
        rig_kick(&s.rig);
        struct vhb_job job;
        settle(&s.rig);
        CHECK_EQ(vhb_mailbox_take(s.box, &job, 1), 1);
        finish(&s, &job);
        wait_used(&s.rig);
    }
    finish(&s, &first);
    wait_used(&s.rig);
    finish(&s, &second);
    wait_used(&s.rig);
    uint64_t took = vhb_clock() - before;
    read_back(&r);
    CHECK_EQ(r.words[0], LONG_SUBMIT | 0x100 << 16 | 1ull << 32);
    CHECK(r.words[1] - before <= took);
    CHECK_EQ(r.words[2], 8);
    CHECK_EQ(r.words[3], LONG_SUBMIT | 0xff << 16 | 1ull << 32);
    CHECK_EQ(r.words[5], far_out);
    CHECK_EQ(timeless(r.words[6]), submit(1, 0, 0xff));
    CHECK_EQ(r.words[7], place(far_out - 256, 256));
    const uint64_t *end_of = &r.words[r.n - 10];
    for (uint64_t i = 0; i < 2; i++, end_of += 5) {
        CHECK_EQ(end_of[0], LONG_END | DIGEST);
        CHECK(end_of[1] - before <= took);
        CHECK_EQ(end_of[2], 3 * i);
        CHECK_EQ(end_of[3], 0);
    }
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
    CHECK_EQ(r.n, 8);
    uint32_t sum = vhb_crc32(&crc, 0, rig.ram + RIG_DATA + 4096, 3072);
    CHECK_EQ(timeless(r.words[0]), submit(1, DIGEST, 0));
    CHECK_EQ(r.words[1], place(8, 6));
    CHECK_EQ(r.words[2], sum);
    CHECK_EQ(timeless(r.words[3]), end(0, 3));
    CHECK_EQ(timeless(r.words[4]), submit(0, 0, 0));
    CHECK_EQ(timeless(r.words[6]), end(DIGEST, 2));
    CHECK_EQ(r.words[7], sum);
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
    uint64_t at = 0, submitted = 0, writes = 0, bytes = 0;
    while (at < r.n) {
        uint64_t first = r.words[at], n = first >> 32;
        if ((first & 0xff) == SUBMIT) {
            CHECK_EQ(timeless(first), submit(1, 0, 0));
            CHECK_EQ(r.words[at + 1] >> 40, len / 512);
            submitted = at;
            at += 2;
        } else if ((first & 0xff) == END) {
            CHECK_EQ(bytes, len);
            CHECK(memcmp(payload, rig.ram + RIG_DATA, len) == 0);
            CHECK_EQ(timeless(first), end(0, (uint32_t)(at - submitted)));
            writes++;
            bytes = 0;
            at++;
        } else {
            CHECK_EQ(first & 0xff, DATA);
            CHECK_EQ(r.words[at + 1], submitted);
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

CHECK_MAIN(TEST(requests_one_after_the_other), TEST(requests_under_way_together),
           TEST(long_records), TEST(digests), TEST(payloads))
