/* test_limit.c - what a limit does to requests: how many wait, and for how long. */
#include <errno.h>

#include "layer.h"
#include "rig.h"
#include "vq.h"

enum { SECTOR = 512, WAITED = 0, WAITED_NS = 1 };
#define S 1000000000ull

struct limited {
    struct vhb_disk *null, *disk;
    struct vhb_stage *stage;
};

static void open_limited(struct limited *l, const struct vhb_limit *limit)
{
    CHECK_EQ(vhb_disk_null_new(true, &l->null), 0);
    CHECK_EQ(vhb_stage_limit_new(limit, &l->stage), 0);
    CHECK_EQ(vhb_layer_new(l->null, l->stage, &l->disk), 0);
}

static void close_limited(struct limited *l)
{
    CHECK_EQ(vhb_disk_free(l->disk), 0);
    CHECK_EQ(vhb_disk_free(l->null), 0);
    CHECK_EQ(vhb_stage_free(l->stage), 0);
}

static uint64_t counted(const struct limited *l, uint32_t which)
{
    uint64_t counters[WAITED_NS + 1];
    CHECK(vhb_stage_counters(l->stage, counters, which + 1) > (int)which);
    return counters[which];
}

static void put_read(struct rig *rig, uint16_t i)
{
    put_request(rig, 3u * i, BLK_IN, 0, RIG_DATA + 1024u * i, SECTOR);
    put_avail(rig, (uint16_t)(3 * i));
}

/* Read *n* sectors at once; all but the first *pass* wait.  How long they were told to, in all. */
static uint64_t read_and_wait(struct limited *l, struct rig *rig, uint16_t from, uint16_t n,
                              uint16_t pass)
{
    uint64_t before = counted(l, WAITED_NS);
    uint64_t waiting = RIG_COUNT(rig, in_flight) + n - pass;
    for (uint16_t i = 0; i < n; i++)
        put_read(rig, (uint16_t)(from + i));
    rig_kick(rig);
    for (uint16_t i = 0; i < pass; i++)
        wait_used(rig);
    while (RIG_COUNT(rig, in_flight) < waiting)
        rig_pass(rig);
    return counted(l, WAITED_NS) - before;
}

/* Of five reads at 200 a second with nothing saved up, four wait 5 ms each. */
static void test_paces_requests(void)
{
    struct limited l;
    struct rig rig;
    struct vhb_limit limit = {.rates[VHB_LIMIT_READ_IOPS] = 200};
    open_limited(&l, &limit);
    rig_open(&rig, &(struct rig_config){.disk = l.disk});
    int64_t from = rig_now_ms();
    for (int i = 0; i < 5; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, SECTOR), BLK_OK);
    CHECK(rig_now_ms() - from >= 18);
    CHECK_EQ(counted(&l, WAITED), 4);
    for (int i = 0; i < 5; i++)
        CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA, SECTOR), BLK_OK);
    CHECK_EQ(counted(&l, WAITED), 4);
    limit.rates[VHB_LIMIT_READ_IOPS] = 0;
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), 0);
    for (int i = 0; i < 100; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, SECTOR), BLK_OK);
    CHECK_EQ(counted(&l, WAITED), 4);
    rig_close(&rig);
    close_limited(&l);
}

static void test_refuses_what_it_cannot_count(void)
{
    struct limited l;
    struct vhb_limit limit = {.rates[VHB_LIMIT_IOPS] = VHB_LIMIT_MOST_IOPS,
                              .rates[VHB_LIMIT_BPS] = VHB_LIMIT_MOST_BPS};
    open_limited(&l, &limit);
    limit.rates[VHB_LIMIT_IOPS]++;
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), -EINVAL);
    limit.rates[VHB_LIMIT_IOPS]--;
    limit.rates[VHB_LIMIT_BPS]++;
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), -EINVAL);
    close_limited(&l);
}

/* What waits ends with a cancel, however long it was to wait, and nobody pays for it. */
static void test_lets_go_of_what_is_cancelled(void)
{
    struct limited l;
    struct rig rig;
    open_limited(&l, &(struct vhb_limit){.rates[VHB_LIMIT_BPS] = 1});
    rig_open(&rig, &(struct rig_config){.disk = l.disk});
    uint64_t told = read_and_wait(&l, &rig, 0, 4, 1);
    CHECK(told <= 6 * 512 * S && told > 6 * 500 * S);
    rig_cancel(&rig);
    CHECK_EQ(RIG_COUNT(&rig, dead), 0);
    while (take_used(&rig))
        ;
    CHECK_EQ(status_of(&rig, 0), BLK_OK);
    for (uint16_t i = 1; i < 4; i++)
        CHECK_EQ(status_of(&rig, 3u * i), BLK_IOERR);
    rig_close(&rig);
    rig_open(&rig, &(struct rig_config){.disk = l.disk});
    told = read_and_wait(&l, &rig, 0, 1, 0);
    CHECK(told <= 512 * S && told > 500 * S);
    rig_close(&rig);
    close_limited(&l);
}

/* What waits keeps its place when the limit is another, and what comes then is behind it. */
static void test_keeps_places_when_it_is_changed(void)
{
    struct limited l;
    struct rig rig;
    struct vhb_limit limit = {.rates[VHB_LIMIT_BPS] = 1};
    open_limited(&l, &limit);
    rig_open(&rig, &(struct rig_config){.disk = l.disk});
    read_and_wait(&l, &rig, 0, 3, 1);
    limit.rates[VHB_LIMIT_BPS] = 2;
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), 0);
    uint64_t told = read_and_wait(&l, &rig, 3, 1, 0);
    CHECK(told <= 768 * S && told > 750 * S);
    limit.rates[VHB_LIMIT_BPS] = 0; /* all go on */
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), 0);
    for (int i = 0; i < 3; i++)
        wait_used(&rig);
    limit.rates[VHB_LIMIT_BPS] = 1; /* with nothing to be paid for */
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), 0);
    read_and_wait(&l, &rig, 0, 1, 1);
    rig_close(&rig);
    close_limited(&l);
}

/* Of two limits the one that lasts longer holds it. */
static void test_the_slower_of_two_limits_holds(void)
{
    struct limited l;
    struct rig rig;
    struct vhb_limit limit = {.rates[VHB_LIMIT_BPS] = 1, .rates[VHB_LIMIT_READ_BPS] = 4};
    open_limited(&l, &limit);
    rig_open(&rig, &(struct rig_config){.disk = l.disk});
    uint64_t told = read_and_wait(&l, &rig, 0, 2, 1);
    CHECK(told <= 512 * S && told > 500 * S);
    limit.burst_ns = 2000 * S;
    CHECK_EQ(vhb_stage_limit_set(l.stage, &limit), 0);
    wait_used(&rig);
    rig_close(&rig);
    close_limited(&l);
}

CHECK_MAIN(TEST(paces_requests), TEST(refuses_what_it_cannot_count),
           TEST(lets_go_of_what_is_cancelled), TEST(keeps_places_when_it_is_changed),
           TEST(the_slower_of_two_limits_holds))
