/* test_file_way.c - which way a file's requests take, and that one which is tried without waiting
 * ends as in the ring. */
#include "scripted.h"

/* ---- chosen at open ----------------------------------------------------------------------- */

/* By what the file system is, unless it is said. */
static void test_ways_by_file_system(void)
{
    static const struct {
        long fs;
        uint32_t flags, way;
    } all[] = {{XFS_SUPER_MAGIC, 0, VHB_WAY_NOWAIT},
               {EXT4_SUPER_MAGIC, 0, VHB_WAY_NOWAIT},
               {TMPFS_MAGIC, 0, VHB_WAY_PLAIN},
               {RAMFS_MAGIC, 0, VHB_WAY_PLAIN},
               {TMPFS_MAGIC, VHB_FILE_BLOCK_DEVICE, VHB_WAY_NOWAIT}, /* the node, in devtmpfs */
               {XFS_SUPER_MAGIC, VHB_FILE_DIRECT, VHB_WAY_RING},
               {XFS_SUPER_MAGIC, VHB_FILE_RING, VHB_WAY_RING},
               {TMPFS_MAGIC, VHB_FILE_RING, VHB_WAY_RING},
               {XFS_SUPER_MAGIC, VHB_FILE_INLINE, VHB_WAY_PLAIN},
               {XFS_SUPER_MAGIC, VHB_FILE_INLINE | VHB_FILE_DIRECT, VHB_WAY_PLAIN}};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        struct served s;
        serve_as(&s, all[i].fs, all[i].flags, 0);
        ways_are(&s, all[i].way, all[i].way);
        end(&s);
    }
}

/* A file that knows no RWF_NOWAIT is read through the ring, from its first read on. */
static void test_reads_are_probed(void)
{
    struct served s;
    serve_as(&s, XFS_SUPER_MAGIC, 0, 0);
    struct vhb_disk *disk;
    struct vhb_file_ways ways;
    SAY(-EOPNOTSUPP);
    CHECK_EQ(vhb_disk_file_new(s.fd, 0, 1, 1, &disk), 0);
    CHECK_EQ(script.nowait, 1);
    CHECK_EQ(vhb_disk_file_ways(disk, &ways), 0);
    CHECK_EQ(ways.reads, VHB_WAY_RING);
    CHECK_EQ(ways.reads_open, false);
    CHECK_EQ(vhb_disk_free(disk), 0);
    end(&s);
}

/* Only one of both ways can be asked for; only a file has ways. */
static void test_arguments(void)
{
    struct vhb_disk *disk;
    struct vhb_file_ways ways;
    CHECK_EQ(vhb_disk_file_new(0, VHB_FILE_RING | VHB_FILE_INLINE, 1, 1, &disk), -EINVAL);
    CHECK_EQ(vhb_disk_null_new(true, &disk), 0);
    CHECK_EQ(vhb_disk_file_ways(disk, &ways), -EINVAL);
    CHECK_EQ(vhb_disk_free(disk), 0);
}

/* ---- without waiting ---------------------------------------------------------------------- */

/* What is in memory is read and written by one call, which is counted as a hit. */
static void test_hits(void)
{
    struct served s;
    serve_as(&s, XFS_SUPER_MAGIC, 0, 0);
    SAY(PASS, PASS);
    CHECK_EQ(write_some(&s, 8, PAGE, 1), BLK_OK);
    is_stored(&s, PAGE, PAGE, 1);
    memset(s.rig.ram + DATA, 0, PAGE);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 8, DATA, PAGE), BLK_OK);
    CHECK(rig_is(&s.rig, DATA, PAGE, 1));
    CHECK_EQ(script.calls, 2);
    CHECK_EQ(script.nowait, 2);
    counts_are(&s, 2, 0);
    ways_are(&s, VHB_WAY_NOWAIT, VHB_WAY_NOWAIT);
    end(&s);
}

/* What is not, is left to the ring: all of it, or what a short result has left. */
static void test_misses_and_short_results(void)
{
    static const int results[] = {-EAGAIN, -EINTR, 1, 512, 5000, 8191, 0};
    for (size_t i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
        struct served s;
        serve_as(&s, XFS_SUPER_MAGIC, 0, 0);
        store(&s, 512, 3 * PAGE, 2);
        put_request(&s.rig, 0, BLK_IN, 1, DATA, 3 * PAGE);
        /* In two pieces, of which a short result ends in one or the other. */
        put_desc(&s.rig, RIG_DESC, 1, rig_at(DATA), 5000, DESC_NEXT | DESC_WRITE, 3);
        put_desc(&s.rig, RIG_DESC, 3, rig_at(DATA + 5000), 3 * PAGE - 5000, DESC_NEXT | DESC_WRITE,
                 2);
        SAY(results[i]);
        CHECK_EQ(do_chain(&s.rig, 0), BLK_OK);
        CHECK(rig_is(&s.rig, DATA, 3 * PAGE, 2));
        CHECK_EQ(script.calls, 1);
        SAY(results[i]);
        CHECK_EQ(write_some(&s, 3, 3 * PAGE, 4), BLK_OK);
        CHECK_EQ(script.calls, 1);
        is_stored(&s, 3 * 512, 3 * PAGE, 4);
        counts_are(&s, 0, 2);
        end(&s);
    }
}

/* The end of a file that was cut short, and errors, are told as the ring tells them. */
static void test_errors(void)
{
    static const int errors[] = {-EIO, -ENOSPC, -EFAULT};
    for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++) {
        struct served s;
        serve_as(&s, XFS_SUPER_MAGIC, 0, 0);
        SAY(errors[i], errors[i]);
        CHECK_EQ(write_some(&s, 0, PAGE, 1), BLK_IOERR);
        CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, PAGE), BLK_IOERR);
        CHECK_EQ(s.rig.last_len, 1);
        CHECK_EQ(script.calls, 2);
        CHECK_EQ(RIG_COUNT(&s.rig, errors), 2);
        CHECK_EQ(RIG_COUNT(&s.rig, faults), errors[i] == -EFAULT ? 2 : 0);
        end(&s);
    }
}

/* Reads that keep missing are not tried for a while, then again; writes are judged by themselves.
 */
static void test_misses_close_the_way(void)
{
    struct served s;
    struct vhb_file_ways ways;
    int misses[17];
    serve_as(&s, XFS_SUPER_MAGIC, 0, 0);
    for (int i = 0; i < 17; i++)
        misses[i] = -EAGAIN;
    script.calls = 0;
    script.n = 17;
    memcpy(script.results, misses, sizeof(misses));
    for (int i = 0; i < 20; i++)
        CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, PAGE), BLK_OK);
    CHECK_EQ(script.calls, 17);
    counts_are(&s, 0, 17);
    CHECK_EQ(vhb_disk_file_ways(s.disk, &ways), 0);
    CHECK(!ways.reads_open && ways.writes_open);
    CHECK_EQ(write_some(&s, 0, PAGE, 1), BLK_OK);
    counts_are(&s, 1, 17);
    wait_ns(&s, MS);
    CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA, PAGE), BLK_OK);
    counts_are(&s, 2, 17);
    end(&s);
}

/* A write that must be stable is the ring's: a worker does not wait for the medium. */
static void test_stable_writes_are_not_tried(void)
{
    static const long systems[] = {XFS_SUPER_MAGIC, EXT4_SUPER_MAGIC};
    for (size_t i = 0; i < 2; i++) {
        struct served s;
        serve_as(&s, systems[i], 0, VHB_BLK_WRITETHROUGH);
        CHECK_EQ(write_some(&s, 0, PAGE, 6), BLK_OK);
        CHECK_EQ(script.writes, 0);
        is_stored(&s, 0, PAGE, 6);
        counts_are(&s, 0, 0);
        end(&s);
    }
}

CHECK_MAIN(TEST(ways_by_file_system), TEST(reads_are_probed), TEST(arguments), TEST(hits),
           TEST(misses_and_short_results), TEST(errors), TEST(misses_close_the_way),
           TEST(stable_writes_are_not_tried))
