/* test_hold.c - the heap of requests that wait for a time, against a list that is searched. */
#include "check.h"
#include "io.h"
#include "vq.h"

enum { N = 300, ROUNDS = 200000 };

static struct vhb_layered layered[N];
static struct vhb_queue queue = {.layered = layered};
static struct vhb_req reqs[N];
static struct vhb_io io;

static uint64_t due_of[N], turn_of[N]; /* the model; due 0: not held */
static uint64_t turns;
static uint32_t resumed;
static bool again; /* each that goes on is held once more, due at once */

static uint32_t seed = 1;

static uint32_t number(uint32_t below)
{
    seed = seed * 1664525 + 1013904223;
    return (seed >> 8) % below;
}

/* Of the model: who is first; N: nobody. */
static uint32_t first(void)
{
    uint32_t best = N;
    for (uint32_t i = 0; i < N; i++)
        if (due_of[i] && (best == N || due_of[i] < due_of[best] ||
                          (due_of[i] == due_of[best] && turn_of[i] < turn_of[best])))
            best = i;
    return best;
}

static void hold(uint32_t i, uint64_t due)
{
    due_of[i] = due;
    turn_of[i] = turns++;
    vhb_io_hold(&io, &reqs[i], due);
}

static void on_resume(struct vhb_req *req, int result, struct vhb_io *with)
{
    uint32_t i = first();
    CHECK_EQ(result, 0);
    CHECK(with == &io && i < N && req == &reqs[i]);
    CHECK(due_of[i] <= io.now && !req->timed);
    due_of[i] = 0;
    resumed++;
    if (again)
        hold(i, io.now);
}

static void begin(void)
{
    for (uint32_t i = 0; i < N; i++)
        reqs[i] =
            (struct vhb_req){.tag = i, .queue = &queue, .state = VHB_REQ_LIVE, .resume = on_resume};
}

/* Whatever is held, let go and due in whatever order: the first is the first, and each goes on once
 * and in its turn. */
static void test_heap_is_a_queue_of_times(void)
{
    begin();
    for (uint32_t round = 0; round < ROUNDS; round++) {
        uint32_t i = number(N), what = number(10);
        if (what < 5 && !due_of[i]) {
            hold(i, io.now + 1 + number(50));
        } else if (what < 7) {
            CHECK_EQ(vhb_io_let_go(&io, &reqs[i]), due_of[i] != 0);
            CHECK(!vhb_io_let_go(&io, &reqs[i]));
            due_of[i] = 0;
        } else {
            io.now += number(4);
            vhb_io_expire(&io);
            CHECK(first() == N || due_of[first()] > io.now);
        }
        if (round % 16)
            continue;
        uint32_t at = first();
        CHECK_EQ(vhb_io_next_due(&io), at == N ? UINT64_MAX : due_of[at] - io.now);
    }
    io.now += 100;
    vhb_io_expire(&io);
    CHECK(first() == N && io.held == NULL);
    CHECK(resumed > ROUNDS / 10);
}

/* One that is held again at once waits for the next pass. */
static void test_a_pass_ends(void)
{
    begin();
    again = true;
    for (uint32_t i = 0; i < N; i++)
        hold(i, io.now);
    CHECK_EQ(vhb_io_expire(&io), N);
    CHECK_EQ(vhb_io_expire(&io), N);
    again = false;
    CHECK_EQ(vhb_io_expire(&io), N);
    CHECK_EQ(vhb_io_expire(&io), 0);
}

/* Nothing holds a dead request for long. */
static void test_dead_ones_go_on(void)
{
    begin();
    reqs[0].state = VHB_REQ_DEAD;
    due_of[0] = 1;
    vhb_io_hold(&io, &reqs[0], UINT64_MAX);
    CHECK_EQ(vhb_io_next_due(&io), 0);
    CHECK_EQ(vhb_io_expire(&io), 1);
}

CHECK_MAIN(TEST(heap_is_a_queue_of_times), TEST(a_pass_ends), TEST(dead_ones_go_on))
