/* test_file_timed.c - writes by plain calls in the worker, where they cannot be tried without
 * waiting: those that should be prompt, and only as long as they are. */
#include "scripted.h"

static void serve_timed(struct served *s)
{
    serve_as(s, EXT4_SUPER_MAGIC, 0, 0);
    SAY(-EOPNOTSUPP);
    CHECK_EQ(write_some(s, 0, PAGE, 1), BLK_OK);
    CHECK_EQ(script.calls, 2); /* refused, then a plain one */
    is_stored(s, 0, PAGE, 1);
    ways_are(s, VHB_WAY_NOWAIT, VHB_WAY_TIMED);
    counts_are(s, 1, 0);
}

/* Where writes cannot be tried without waiting the first one finds out; a file system that may be
 * remote is written through the ring from then on. */
static void test_writes_are_probed(void)
{
    struct served s;
    serve_timed(&s);
    SAY(PASS);
    CHECK_EQ(write_some(&s, 8, PAGE, 2), BLK_OK);
    CHECK_EQ(script.calls, 1);
    CHECK_EQ(script.nowait, 0);
    is_stored(&s, PAGE, PAGE, 2);
    end(&s);

    serve_as(&s, NFS_SUPER_MAGIC, 0, 0);
    SAY(-EOPNOTSUPP);
    CHECK_EQ(write_some(&s, 0, PAGE, 3), BLK_OK);
    CHECK_EQ(write_some(&s, 8, PAGE, 3), BLK_OK);
    CHECK_EQ(script.calls, 1);
    ways_are(&s, VHB_WAY_NOWAIT, VHB_WAY_RING);
    is_stored(&s, PAGE, PAGE, 3);
    end(&s);
}

/* What may have to be read first, or is long, is the ring's. */
static void test_parts_of_blocks_are_not_tried(void)
{
    static const struct {
        uint32_t sector, len;
        int tried;
    } all[] = {{8, PAGE, 1},     {8, 16 * PAGE, 1},  {1, PAGE, 0},
               {8, PAGE / 2, 0}, {8, PAGE + 512, 0}, {8, 17 * PAGE, 0}};
    struct served s;
    serve_timed(&s);
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        SAY(PASS);
        CHECK_EQ(write_some(&s, all[i].sector, all[i].len, 7 + (uint32_t)i), BLK_OK);
        CHECK_EQ(script.writes, all[i].tried);
        is_stored(&s, all[i].sector * 512ull, all[i].len, 7 + (uint32_t)i);
    }
    end(&s);
}

/* While a flush is under way its journal may keep a write waiting; behind it writes are tried. */
static void test_not_tried_during_a_sync(void)
{
    struct served s;
    serve_timed(&s);
    SAY(PASS);
    rig_fill(&s.rig, DATA, PAGE, 3);
    put_request(&s.rig, 0, BLK_FLUSH, 0, 0, 0);
    put_request(&s.rig, 3, BLK_OUT, 8, DATA, PAGE);
    put_avail(&s.rig, 0);
    put_avail(&s.rig, 3);
    rig_kick(&s.rig);
    wait_used(&s.rig);
    wait_used(&s.rig);
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    CHECK_EQ(status_of(&s.rig, 3), BLK_OK);
    CHECK_EQ(script.writes, 0);
    is_stored(&s, PAGE, PAGE, 3);
    CHECK_EQ(write_some(&s, 8, PAGE, 4), BLK_OK);
    CHECK_EQ(script.writes, 1);
    end(&s);
}

/* One write that waited for long is the last for a while that a worker waits for. */
static void test_late_writes_close_the_way(void)
{
    struct served s;
    serve_timed(&s);
    SAY(PASS);
    script.write_takes = 200 * MS;
    for (uint32_t i = 0; i < 4; i++)
        CHECK_EQ(write_some(&s, 8 * i, PAGE, i), BLK_OK);
    CHECK_EQ(script.writes, 1);
    counts_are(&s, 2, 0);
    script.write_takes = 0;
    wait_ns(&s, 20 * MS);
    CHECK_EQ(write_some(&s, 0, PAGE, 9), BLK_OK);
    CHECK_EQ(script.writes, 2);
    is_stored(&s, 0, PAGE, 9);
    is_stored(&s, 3 * PAGE, PAGE, 3);
    end(&s);
}

/* A short or failed result is dealt with as the ring's. */
static void test_timed_results(void)
{
    struct served s;
    serve_timed(&s);
    SAY(1000);
    CHECK_EQ(write_some(&s, 8, 2 * PAGE, 2), BLK_OK);
    CHECK_EQ(script.calls, 1);
    is_stored(&s, PAGE, 2 * PAGE, 2);
    SAY(-EINTR);
    CHECK_EQ(write_some(&s, 8, PAGE, 3), BLK_OK);
    is_stored(&s, PAGE, PAGE, 3);
    SAY(-ENOSPC);
    CHECK_EQ(write_some(&s, 8, PAGE, 4), BLK_IOERR);
    is_stored(&s, PAGE, PAGE, 3);
    end(&s);
}

CHECK_MAIN(TEST(writes_are_probed), TEST(parts_of_blocks_are_not_tried),
           TEST(not_tried_during_a_sync), TEST(late_writes_close_the_way), TEST(timed_results))
