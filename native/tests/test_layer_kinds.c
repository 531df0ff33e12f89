/* test_layer_kinds.c - what each kind of layer does to requests; how they come back is
 * test_layer.c's.
 */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "rig.h"
#include "vq.h"

enum { SECTOR = 512, EIO_NO = 5 };
#define MS 1000000ull

struct kind {
    struct vhb_disk *null, *disk;
    struct vhb_stage *stage;
    struct rig rig;
};

static void open_kind(struct kind *k, int made)
{
    CHECK_EQ(made, 0);
    CHECK_EQ(vhb_disk_null_new(true, &k->null), 0);
    CHECK_EQ(vhb_layer_new(k->null, k->stage, &k->disk), 0);
    rig_open(&k->rig, &(struct rig_config){.disk = k->disk});
}

static void close_kind(struct kind *k)
{
    rig_close(&k->rig);
    CHECK_EQ(vhb_disk_free(k->disk), 0);
    CHECK_EQ(vhb_disk_free(k->null), 0);
    CHECK_EQ(vhb_stage_free(k->stage), 0);
}

static uint64_t counted(struct kind *k, uint32_t which)
{
    uint64_t counters[VHB_CANCEL * VHB_STATS_EACH];
    CHECK(vhb_stage_counters(k->stage, counters, which + 1) > (int)which);
    return counters[which];
}

/* Milliseconds that a read takes. */
static int64_t read_ms(struct kind *k)
{
    int64_t from = rig_now_ms();
    CHECK_EQ(do_request(&k->rig, BLK_IN, 0, RIG_DATA, SECTOR), BLK_OK);
    return rig_now_ms() - from;
}

/* ---- delay ---------------------------------------------------------------------------- */

static void test_delay_holds_what_it_is_told_to(void)
{
    struct kind k;
    struct vhb_delay delay = {.times[VHB_READ] = {.least_ns = 5 * MS}};
    open_kind(&k, vhb_stage_delay_new(&delay, &k.stage));
    CHECK(read_ms(&k) >= 4);
    CHECK_EQ(do_request(&k.rig, BLK_OUT, 0, RIG_DATA, SECTOR), BLK_OK);
    CHECK_EQ(counted(&k, 0), 1);
    for (uint32_t spread = VHB_DELAY_EVEN; spread <= VHB_DELAY_EXPONENTIAL; spread++) {
        delay.times[VHB_READ] = (struct vhb_delay_time){.more_ns = MS, .spread = spread};
        CHECK_EQ(vhb_stage_delay_set(k.stage, &delay), 0);
        for (int i = 0; i < 8; i++)
            read_ms(&k);
    }
    close_kind(&k);
}

static void test_delay_refuses_what_is_none(void)
{
    struct vhb_stage *stage, *other;
    struct vhb_delay delay = {.times[VHB_FLUSH] = {.least_ns = VHB_DELAY_MAX_NS + 1ull}};
    CHECK_EQ(vhb_stage_delay_new(&delay, &stage), -EINVAL);
    delay = (struct vhb_delay){.times[VHB_FLUSH] = {.spread = 2}};
    CHECK_EQ(vhb_stage_delay_new(&delay, &stage), -EINVAL);
    delay = (struct vhb_delay){.seed = 1};
    CHECK_EQ(vhb_stage_delay_new(&delay, &stage), 0);
    CHECK_EQ(vhb_stage_stats_new(&(struct vhb_stats){0}, &other), 0);
    CHECK_EQ(vhb_stage_delay_set(other, &delay), -EINVAL); /* of another kind */
    CHECK_EQ(vhb_stage_free(stage), 0);
    CHECK_EQ(vhb_stage_free(other), 0);
}

/* ---- error ---------------------------------------------------------------------------- */

static void test_error_fails_what_it_is_told_to(void)
{
    struct kind k;
    struct vhb_error error = {.offset = 8 * SECTOR,
                              .end = 16 * SECTOR,
                              .rate = VHB_ERROR_ALWAYS,
                              .ops = 1u << VHB_READ | 1u << VHB_FLUSH,
                              .error = EIO_NO,
                              .on = 1};
    open_kind(&k, vhb_stage_error_new(&error, &k.stage));
    static const struct {
        uint32_t type, sector, len;
        uint8_t status;
    } rows[] = {{BLK_IN, 0, 8 * SECTOR, BLK_OK}, {BLK_IN, 7, 2 * SECTOR, BLK_IOERR},
                {BLK_IN, 15, SECTOR, BLK_IOERR}, {BLK_IN, 16, SECTOR, BLK_OK},
                {BLK_OUT, 8, SECTOR, BLK_OK},    {BLK_FLUSH, 0, 0, BLK_IOERR}};
    for (uint32_t i = 0; i < sizeof(rows) / sizeof(*rows); i++)
        CHECK_EQ(do_request(&k.rig, rows[i].type, rows[i].sector, RIG_DATA, rows[i].len),
                 rows[i].status);
    CHECK_EQ(counted(&k, 0), 3);
    CHECK_EQ(counted(&k, 1), 3);
    error.on = 0;
    CHECK_EQ(vhb_stage_error_set(k.stage, &error), 0);
    CHECK_EQ(do_request(&k.rig, BLK_FLUSH, 0, RIG_DATA, 0), BLK_OK);
    close_kind(&k);
}

static void test_error_refuses_what_is_none(void)
{
    struct vhb_stage *stage;
    static struct vhb_error error;
    error = (struct vhb_error){.rate = 1, .end = 1};
    CHECK_EQ(vhb_stage_error_new(&error, &stage), -EINVAL); /* no errno */
    error.error = EIO_NO;
    error.rate = VHB_ERROR_ALWAYS + 1ull;
    CHECK_EQ(vhb_stage_error_new(&error, &stage), -EINVAL);
    error.rate = 1;
    memset(error.file, 'x', sizeof(error.file));
    CHECK_EQ(vhb_stage_error_new(&error, &stage), -EINVAL); /* it does not end */
    error.file[0] = 0;
    CHECK_EQ(vhb_stage_error_new(&error, &stage), 0);
    CHECK_EQ(vhb_stage_free(stage), 0);
}

/* ---- stats ---------------------------------------------------------------------------- */

static void test_stats_count(void)
{
    struct kind k;
    open_kind(&k, vhb_stage_stats_new(&(struct vhb_stats){0}, &k.stage));
    for (int i = 0; i < 3; i++)
        CHECK_EQ(do_request(&k.rig, BLK_OUT, 0, RIG_DATA, 1024), BLK_OK);
    CHECK_EQ(do_request(&k.rig, BLK_FLUSH, 0, RIG_DATA, 0), BLK_OK);
    uint32_t write = VHB_WRITE * VHB_STATS_EACH, flush = VHB_FLUSH * VHB_STATS_EACH;
    CHECK_EQ(counted(&k, write), 3);
    CHECK_EQ(counted(&k, write + 1), 3072);
    CHECK_EQ(counted(&k, write + 2), 0);
    CHECK_EQ(counted(&k, flush), 1);
    CHECK_EQ(counted(&k, flush + 1), 0);
    uint64_t sum = 0;
    for (uint32_t i = 4; i < VHB_STATS_EACH; i++)
        sum += counted(&k, write + i);
    CHECK_EQ(sum, 3);
    close_kind(&k);
}

/* Each has counters of its own, whatever the others' addresses; those that come too late share. */
static void test_counters_of_many_workers(void)
{
    static const struct vhb_layer_ops none;
    static uint8_t workers[4 * VHB_SHARDS * VHB_SHARD_LINE];
    struct vhb_stage *stage = calloc(1, sizeof(*stage));
    uint64_t *own[VHB_SHARDS];
    CHECK(stage && vhb_stage_init(stage, &none, 2) == 0);
    for (size_t i = 0; i < VHB_SHARDS; i++) {
        /* Every address twice, as the hash sees it. */
        const void *io = workers + (i / 2 + i % 2 * VHB_SHARDS) * VHB_SHARD_LINE;
        own[i] = vhb_stage_shard(stage, io);
        CHECK(vhb_stage_shard(stage, io) == own[i]);
        CHECK((uintptr_t)own[i] % VHB_SHARD_LINE == 0);
        for (size_t other = 0; other < i; other++)
            CHECK(own[other] != own[i]);
        count(&own[i][1], 1);
    }
    for (size_t late = 2; late < 4; late++) {
        uint64_t *shared = vhb_stage_shard(stage, (void *)(workers + late * sizeof(workers) / 4));
        for (size_t i = 0; i < VHB_SHARDS; i++)
            CHECK(shared != own[i]);
        count(&shared[1], 1);
    }
    uint64_t sums[2];
    CHECK_EQ(vhb_stage_counters(stage, sums, 2), 2);
    CHECK_EQ(sums[0], 0);
    CHECK_EQ(sums[1], VHB_SHARDS + 2);
    CHECK_EQ(vhb_stage_free(stage), 0);
}

/* One that is alone looks at one place, whatever its address. */
static void test_counters_of_one_worker(void)
{
    static const struct vhb_layer_ops none;
    static uint8_t workers[VHB_SHARDS * VHB_SHARD_LINE];
    for (size_t i = 0; i < VHB_SHARDS; i++) {
        struct vhb_stage *stage = calloc(1, sizeof(*stage));
        CHECK(stage && vhb_stage_init(stage, &none, 1) == 0);
        const void *io = workers + i * VHB_SHARD_LINE;
        vhb_stage_shard(stage, io);
        CHECK(stage->owners[(uintptr_t)io / VHB_SHARD_LINE % VHB_SHARDS] == io);
        CHECK_EQ(vhb_stage_free(stage), 0);
    }
}

CHECK_MAIN(TEST(delay_holds_what_it_is_told_to), TEST(delay_refuses_what_is_none),
           TEST(error_fails_what_it_is_told_to), TEST(error_refuses_what_is_none),
           TEST(stats_count), TEST(counters_of_many_workers), TEST(counters_of_one_worker))
