/* test_latency.c - how long requests took, and which are under way for long. */
#include <pthread.h>
#include <time.h>

#include "failing.h"
#include "vq.h"

/* ---- buckets -------------------------------------------------------------------------- */

/* A bucket holds what lies between its bound and the next one's; each is a quarter of a doubling.
 */
static void test_buckets_are_where_their_bounds_say(void)
{
    for (uint32_t i = 0; i < VHB_LATENCY_BUCKETS; i++) {
        uint64_t bound = vhb_latency_bound(i);
        CHECK_EQ(vhb_latency_bucket(bound), i);
        if (i)
            CHECK_EQ(vhb_latency_bucket(bound - 1), i - 1);
        if (i > 1 && i < VHB_LATENCY_BUCKETS - 1)
            CHECK(4 * (vhb_latency_bound(i + 1) - bound) <= bound);
    }
    CHECK_EQ(vhb_latency_bound(1), 256);
    CHECK_EQ(vhb_latency_bound(VHB_LATENCY_BUCKETS - 1), 1ull << 36);
    CHECK_EQ(vhb_latency_bucket(UINT64_MAX), VHB_LATENCY_BUCKETS - 1);
}

/* ---- what is counted ------------------------------------------------------------------ */

static struct vhb_latency latency(struct rig *rig, uint32_t op)
{
    struct vhb_latency latency;
    CHECK_EQ(vhb_queue_latency(rig->queue, op, &latency), 0);
    return latency;
}

/* Every request that reached the disk, once, by what it was; what was refused is not. */
static void test_counts_by_operation(void)
{
    struct rig rig;
    struct vhb_latency none;
    rig_open(&rig, &(struct rig_config){0});
    put_range(&rig, RIG_DATA, 0, 0, 8, 0);
    for (int i = 0; i < 3; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA + 4096, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_OUT, 0, RIG_DATA + 4096, 512), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_DISCARD, 0, RIG_DATA, 16), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_WRITE_ZEROES, 0, RIG_DATA, 16), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_GET_ID, 0, RIG_DATA, 20), BLK_OK);
    CHECK_EQ(do_request(&rig, BLK_IN, 1 << 20, RIG_DATA, 512), BLK_IOERR);
    CHECK_EQ(latency(&rig, VHB_READ).count, 3);
    for (uint32_t op = VHB_WRITE; op <= VHB_WRITE_ZEROES; op++)
        CHECK_EQ(latency(&rig, op).count, 1);
    CHECK_EQ(vhb_queue_latency(rig.queue, VHB_CANCEL, &none), -EINVAL);
    rig_close(&rig);
}

static void sleep_ms(long ms)
{
    struct timespec ts = {.tv_nsec = ms * 1000000};
    nanosleep(&ts, NULL);
}

/* From the pass that took it to its used element; of requests that go together each counts. */
static void test_measures_from_pop_to_push(void)
{
    struct slow s;
    enum { MS = 1000000 };
    open_slow(&s, &(struct rig_config){0});
    settle(&s.rig);
    uint64_t before = vhb_clock();
    struct vhb_job a = start(&s, 0, BLK_IN, 0);
    sleep_ms(6);
    struct vhb_job b = start(&s, 3, BLK_IN, 8);
    finish(&s, &a);
    finish(&s, &b);
    settle(&s.rig);
    uint64_t most = vhb_clock() - before;
    struct vhb_latency reads = latency(&s.rig, VHB_READ);
    CHECK_EQ(reads.count, 2);
    CHECK(reads.max_ns >= 6 * MS && reads.max_ns <= most);
    CHECK(reads.sum_ns >= reads.max_ns && reads.sum_ns < 2 * reads.max_ns);
    uint64_t of_a = reads.buckets[vhb_latency_bucket(reads.max_ns)];
    CHECK(of_a >= 1);
    close_slow(&s);
}

/* A request that is cancelled took as long as its driver waited; the disk's late answer counts for
 * nothing. */
static void test_counts_cancelled_requests_once(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    sleep_ms(3);
    rig_cancel(&s.rig);
    CHECK_EQ(latency(&s.rig, VHB_WRITE).count, 1);
    CHECK(latency(&s.rig, VHB_WRITE).max_ns >= 3000000);
    finish(&s, &job);
    settle(&s.rig);
    CHECK_EQ(latency(&s.rig, VHB_WRITE).count, 1);
    close_slow(&s);
}

/* ---- what is slow --------------------------------------------------------------------- */

/* Those under way for so long, with what they do; not those that are done, dead or younger. */
static void test_lists_what_is_slow(void)
{
    struct slow s;
    struct vhb_slow list[4];
    open_slow(&s, &(struct rig_config){0});
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, list, 4), 0);
    settle(&s.rig);
    struct vhb_job a = start(&s, 0, BLK_IN, 8);
    sleep_ms(5);
    settle(&s.rig);
    struct vhb_job b = start(&s, 3, BLK_OUT, 16), c = start(&s, 6, BLK_FLUSH, 0);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 5000000, list, 4), 1);
    CHECK_EQ(list[0].op, VHB_READ);
    CHECK_EQ(list[0].offset, 8 * 512);
    CHECK_EQ(list[0].len, 512);
    CHECK(list[0].age_ns >= 5000000);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 1000000000, list, 4), 0);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, list, 1), 3);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, NULL, 0), 3);
    finish(&s, &a);
    settle(&s.rig);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, list, 4), 2);
    rig_cancel(&s.rig);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, list, 4), 0);
    finish(&s, &b);
    finish(&s, &c);
    close_slow(&s);
}

/* One that is held since an error is as slow as any; it keeps its name. */
static void test_held_requests_are_slow(void)
{
    struct slow s;
    struct vhb_slow before, after;
    open_with(&s, VHB_ON_ERROR_STOP);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, &before, 1), 1);
    fail(&s, &job, EIO);
    resume(&s);
    job = next(&s);
    CHECK_EQ(vhb_queue_slow(s.rig.queue, 0, &after, 1), 1);
    CHECK(before.tag == after.tag && before.since_ns == after.since_ns);
    finish(&s, &job);
    close_slow(&s);
}

static int take(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)disk, (void)req, (void)io;
    return VHB_PENDING;
}

static void drop(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)disk, (void)io;
    vhb_req_done(req, -ECANCELED);
}

/* Whatever slot a request has got: behind a cancel that the disk obeys at once it is another. */
static void test_any_slot_may_be_slow(void)
{
    static const struct vhb_disk_ops ops = {.submit = take, .cancel = drop};
    struct vhb_disk disk = {.ops = &ops};
    struct vhb_slow list[2];
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.disk = &disk});
    for (int round = 0; round < 3; round++) {
        put_request(&rig, 0, BLK_IN, 8, RIG_DATA, 512);
        put_avail(&rig, 0);
        rig_kick(&rig);
        settle(&rig);
        CHECK_EQ(vhb_queue_slow(rig.queue, 0, list, 2), 1);
        CHECK_EQ(list[0].offset, 8 * 512);
        rig_cancel(&rig);
        CHECK(take_used(&rig));
        CHECK_EQ(vhb_queue_slow(rig.queue, 0, list, 2), 0);
        rig_run(&rig);
    }
    rig_close(&rig);
}

/* ---- who looks on --------------------------------------------------------------------- */

static bool busy(struct slow *s)
{
    settle(&s->rig);
    return vhb_queue_take_events(s->rig.queue) & VHB_BUSY;
}

/* Told of the next request only, and only when asked. */
static void test_tells_once_that_it_is_busy(void)
{
    struct slow s;
    open_slow(&s, &(struct rig_config){0});
    struct vhb_job a = start(&s, 0, BLK_IN, 0);
    CHECK(!busy(&s));
    CHECK_EQ(vhb_queue_watch_busy(s.rig.queue, true), 0);
    CHECK(!busy(&s));
    struct vhb_job b = start(&s, 3, BLK_IN, 0);
    CHECK(busy(&s));
    struct vhb_job c = start(&s, 6, BLK_IN, 0);
    CHECK(!busy(&s));
    CHECK_EQ(vhb_queue_watch_busy(s.rig.queue, true), 0);
    CHECK_EQ(vhb_queue_watch_busy(s.rig.queue, false), 0);
    struct vhb_job d = start(&s, 9, BLK_IN, 0);
    CHECK(!busy(&s));
    struct vhb_job *jobs[] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; i++)
        finish(&s, jobs[i]);
    close_slow(&s);
}

struct looker {
    struct vhb_queue *queue;
    bool stop;
};

static void *look(void *arg)
{
    struct looker *looker = arg;
    struct vhb_slow list[8];
    struct vhb_latency one;
    while (!__atomic_load_n(&looker->stop, __ATOMIC_ACQUIRE)) {
        CHECK(vhb_queue_slow(looker->queue, 0, list, 8) >= 0);
        CHECK_EQ(vhb_queue_latency(looker->queue, VHB_READ, &one), 0);
    }
    return NULL;
}

/* While the worker serves anybody may look; in the end all is counted. */
static void test_may_be_looked_at_any_time(void)
{
    struct rig rig;
    enum { READS = 400 };
    rig_open(&rig, &(struct rig_config){.threaded = true});
    struct looker looker = {.queue = rig.queue};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, look, &looker), 0);
    for (int i = 0; i < READS; i++)
        CHECK_EQ(do_request(&rig, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    __atomic_store_n(&looker.stop, true, __ATOMIC_RELEASE);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(latency(&rig, VHB_READ).count, READS);
    rig_close(&rig);
}

CHECK_MAIN(TEST(buckets_are_where_their_bounds_say), TEST(counts_by_operation),
           TEST(measures_from_pop_to_push), TEST(counts_cancelled_requests_once),
           TEST(lists_what_is_slow), TEST(held_requests_are_slow), TEST(any_slot_may_be_slow),
           TEST(tells_once_that_it_is_busy), TEST(may_be_looked_at_any_time))
