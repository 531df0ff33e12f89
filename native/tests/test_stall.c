/* test_stall.c - what goes on while errors have stopped a queue: drains, parks, a broken ring, dead
 * requests, threads. */
#include <pthread.h>
#include <sched.h>

#include "failing.h"

static void stall(struct slow *s, uint32_t policy)
{
    open_with(s, policy);
    struct vhb_job job = start(s, 0, BLK_OUT, 8);
    fail(s, &job, ENOSPC);
    CHECK(stalled(s));
    CHECK_EQ(RIG_COUNT(&s->rig, held), 1);
}

/* A drain waits for an operator; at its deadline the driver is told, and nothing is dead. */
static void test_drain_waits_and_gives_up(void)
{
    struct slow s;
    stall(&s, VHB_ON_ERROR_STOP);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    CHECK(!(vhb_queue_take_events(s.rig.queue) & VHB_DRAINED));
    CHECK_EQ(vhb_queue_cancel(s.rig.queue), 0);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_IOERR);
    CHECK_EQ(RIG_COUNT(&s.rig, dead), 0);
    CHECK_EQ(RIG_COUNT(&s.rig, held), 0);
    CHECK(!stalled(&s));
    rig_run(&s.rig);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    finish(&s, &job);
    ends_with(&s, 0, BLK_OK);
    close_slow(&s);
}

/* A resume in time is all a drain needs. */
static void test_drain_ends_with_a_resume(void)
{
    struct slow s;
    stall(&s, VHB_ON_ERROR_ENOSPC);
    CHECK_EQ(vhb_queue_drain(s.rig.queue), 0);
    settle(&s.rig);
    resume(&s);
    struct vhb_job job = next(&s);
    CHECK_EQ(RIG_COUNT(&s.rig, held), 0);
    finish(&s, &job);
    rig_wait(&s.rig, VHB_DRAINED);
    CHECK(take_used(&s.rig));
    CHECK_EQ(status_of(&s.rig, 0), BLK_OK);
    close_slow(&s);
}

/* Parked it is stalled still: a resume tries again, and what comes of it waits for a run.  With
 * another policy the second error is reported. */
static void test_parked_and_disabled_queues_stay_stalled(void)
{
    struct slow s;
    stall(&s, VHB_ON_ERROR_STOP);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, false), 0);
    rig_run(&s.rig);
    no_job(&s);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_set_enabled(s.rig.queue, true), 0);
    CHECK(stalled(&s));
    no_job(&s);
    resume(&s);
    struct vhb_job job = next(&s);
    fail(&s, &job, EIO);
    CHECK(stalled(&s));
    CHECK_EQ(vhb_queue_set_on_error(s.rig.queue, VHB_ON_ERROR_REPORT), 0);
    resume(&s);
    job = next(&s);
    fail(&s, &job, EIO);
    CHECK(!take_used(&s.rig));
    rig_run(&s.rig);
    ends_with(&s, 0, BLK_IOERR);
    close_slow(&s);
}

/* Memory of a held request is in use until it is over. */
static void test_held_requests_use_their_memory(void)
{
    struct slow s;
    stall(&s, VHB_ON_ERROR_STOP);
    struct vhb_piece data = {s.rig.ram + RIG_DATA, 512};
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_watch_use(s.rig.queue, &data, 1), 0);
    rig_run(&s.rig);
    settle(&s.rig);
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 1);
    resume(&s);
    struct vhb_job job = next(&s);
    CHECK_EQ(vhb_queue_in_use(s.rig.queue), 1);
    finish(&s, &job);
    rig_wait(&s.rig, VHB_UNUSED);
    close_slow(&s);
}

/* Nothing more can be given back on a ring that is none: the drain is quick, the ring untouched. */
static void test_broken_queue_gives_up(void)
{
    struct slow s;
    stall(&s, VHB_ON_ERROR_STOP);
    rig_park(&s.rig);
    CHECK_EQ(vhb_queue_condemn(s.rig.queue), 0);
    rig_drain(&s.rig);
    CHECK(!take_used(&s.rig));
    CHECK(!stalled(&s));
    CHECK_EQ(RIG_COUNT(&s.rig, in_flight), 0);
    close_slow(&s);
}

/* One that is tried again waits for a dead one, as a new one does. */
static void test_resumed_writes_wait_for_dead_ones(void)
{
    struct vhb_graveyard *graveyard;
    CHECK_EQ(vhb_graveyard_new(&graveyard), 0);
    struct slow a, b;
    open_slow(&a, &(struct rig_config){.graveyard = graveyard});
    open_slow(&b, &(struct rig_config){.graveyard = graveyard, .stopped = true});
    CHECK_EQ(vhb_queue_set_on_error(b.rig.queue, VHB_ON_ERROR_STOP), 0);
    rig_run(&b.rig);
    struct vhb_job dead = start(&a, 0, BLK_OUT, 8), job = start(&b, 0, BLK_OUT, 8);
    fail(&b, &job, EIO);
    rig_cancel(&a.rig);
    resume(&b);
    no_job(&b);
    CHECK(!stalled(&b));
    finish(&a, &dead);
    settle(&a.rig);
    job = next(&b);
    finish(&b, &job);
    ends_with(&b, 0, BLK_OK);
    close_slow(&a);
    close_slow(&b);
    CHECK_EQ(vhb_graveyard_free(graveyard), 0);
}

/* Guest memory that is gone does not come back: no operator could help. */
static void test_faults_are_never_held(void)
{
    struct slow s;
    open_with(&s, VHB_ON_ERROR_STOP);
    struct vhb_job job = start(&s, 0, BLK_OUT, 8);
    fail(&s, &job, EFAULT);
    ends_with(&s, 0, BLK_IOERR);
    CHECK(!stalled(&s));
    close_slow(&s);
}

/* ---- threads -------------------------------------------------------------------------- */

struct server {
    struct vhb_mailbox *box;
    bool stop;
};

/* A disk that fails two of three jobs. */
static void *serve(void *arg)
{
    struct server *server = arg;
    struct vhb_job jobs[16];
    for (uint32_t seen = 0; !__atomic_load_n(&server->stop, __ATOMIC_ACQUIRE);) {
        int n = vhb_mailbox_take(server->box, jobs, 16);
        for (int i = 0; i < n; i++)
            CHECK_EQ(vhb_mailbox_complete(server->box, jobs[i].tag, seen++ % 3 ? -EIO : 0), 0);
        if (n == 0)
            sched_yield();
    }
    return NULL;
}

/* However often it stalls and is resumed, in whatever state it is then: every request ends, and
 * well. */
static void test_every_request_ends(void)
{
    struct slow s;
    enum { REQUESTS = 600, AT_ONCE = 20 };
    open_slow(&s, &(struct rig_config){.threaded = true, .stopped = true});
    CHECK_EQ(vhb_queue_set_on_error(s.rig.queue, VHB_ON_ERROR_STOP), 0);
    rig_run(&s.rig);
    struct server server = {.box = s.box};
    pthread_t thread;
    CHECK_EQ(pthread_create(&thread, NULL, serve, &server), 0);
    uint16_t heads[AT_ONCE]; /* that are the driver's */
    for (uint16_t i = 0; i < AT_ONCE; i++)
        heads[i] = (uint16_t)(3 * i);
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    for (int ended = 0, asked = 0; ended < REQUESTS;) {
        CHECK(rig_now_ms() < end);
        for (; asked < REQUESTS && asked - ended < AT_ONCE; asked++) {
            uint16_t head = heads[AT_ONCE - 1 - (asked - ended)];
            put_request(&s.rig, head, BLK_OUT, 8, RIG_DATA, 512);
            put_avail(&s.rig, head);
        }
        rig_kick(&s.rig);
        for (; take_used(&s.rig); ended++) {
            CHECK_EQ(status_of(&s.rig, s.rig.last_id), BLK_OK);
            heads[AT_ONCE - (asked - ended)] = (uint16_t)s.rig.last_id;
        }
        if (asked % 7 == 0) {
            rig_park(&s.rig);
            rig_run(&s.rig);
        }
        if (stalled(&s))
            resume(&s);
    }
    __atomic_store_n(&server.stop, true, __ATOMIC_RELEASE);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK(RIG_COUNT(&s.rig, stalls) > 0);
    close_slow(&s);
}

CHECK_MAIN(TEST(drain_waits_and_gives_up), TEST(drain_ends_with_a_resume),
           TEST(parked_and_disabled_queues_stay_stalled), TEST(held_requests_use_their_memory),
           TEST(broken_queue_gives_up), TEST(resumed_writes_wait_for_dead_ones),
           TEST(faults_are_never_held), TEST(every_request_ends))
