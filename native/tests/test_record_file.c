/* test_record_file.c - where a record layer writes to: a file, another, a full one, or none. */
#include "recorded.h"

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
    CHECK_EQ(r.n, 3);
    struct vhb_record none = {.fd = -1}, other = {.fd = memory_file(), .on = true, .segment = 77};
    CHECK_EQ(vhb_stage_record_set(r.stage, &none), 0);
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    close(r.fd);
    r.fd = other.fd;
    CHECK_EQ(vhb_stage_record_set(r.stage, &other), 0);
    CHECK_EQ(do_write(&rig, 8, 1024), BLK_OK);
    read_back(&r);
    CHECK_EQ(r.n, 3);
    CHECK_EQ(timeless(r.words[0]), submit(1, 0, 0));
    CHECK_EQ(r.words[1], place(8, 2));
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.words, 3);
    CHECK_EQ(state.taken, 3);
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
    CHECK_EQ(state.words, 900);
    CHECK_EQ(state.taken, 900);
    CHECK_EQ(state.lost, 900);
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
    CHECK_EQ(vhb_stage_record_take(r.stage, out, 40), 2 * 8);
    CHECK_EQ(timeless(out[0]), submit(1, 0, 0));
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 1 * 8);
    CHECK_EQ(timeless(out[0]), end(0, 2));
    struct vhb_record off = {.fd = -1}, on = {.fd = -1, .on = true};
    CHECK_EQ(vhb_stage_record_set(r.stage, &off), 0);
    CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 0);
    CHECK_EQ(vhb_stage_record_set(r.stage, &on), 0);
    for (int i = 0; i < 300; i++)
        CHECK_EQ(do_write(&rig, 8, 512), BLK_OK);
    CHECK_EQ(vhb_stage_record_take(r.stage, out, sizeof(out)), 170 * 3 * 8 + 2 * 8);
    CHECK_EQ(vhb_stage_record_state(r.stage, &state), 0);
    CHECK_EQ(state.dropped, 130); /* the end of one, and 129 that were not begun and so not ended */
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

CHECK_MAIN(TEST(another_file), TEST(a_full_file), TEST(without_a_file),
           TEST(refuses_what_it_cannot_be))
