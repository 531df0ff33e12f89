/* test_way.c - what has not paid is left alone for a while, twice as long each time, and tried
 * again; what pays goes on. */
#include "check.h"
#include "way.h"

#define MS 1000000ull

enum { LIMIT = 16 }; /* misses that go unpunished */

static struct vhb_way of_kind(enum vhb_file_way kind)
{
    return (struct vhb_way){.kind = kind};
}

static void lose(struct vhb_way *way, int n, uint64_t now)
{
    for (int i = 0; i < n; i++)
        vhb_way_lost(way, 1, now);
}

/* The ring is no way to be tried; the others are, until something is lost. */
static void test_open_at_first(void)
{
    for (uint32_t kind = VHB_WAY_PLAIN; kind <= VHB_WAY_TIMED; kind++) {
        struct vhb_way way = of_kind(kind);
        CHECK(vhb_way_is_open(&way, 0));
    }
    struct vhb_way ring = of_kind(VHB_WAY_RING);
    CHECK(!vhb_way_is_open(&ring, 0));
}

/* Up to the limit nothing happens; one more closes the way for 1 ms. */
static void test_misses_close(void)
{
    struct vhb_way way = of_kind(VHB_WAY_NOWAIT);
    lose(&way, LIMIT, 5 * MS);
    CHECK(vhb_way_is_open(&way, 5 * MS));
    lose(&way, 1, 5 * MS);
    CHECK(!vhb_way_is_open(&way, 5 * MS));
    CHECK(!vhb_way_is_open(&way, 6 * MS - 1));
    CHECK(vhb_way_is_open(&way, 6 * MS));
}

/* As many hits as misses, in any order, close nothing. */
static void test_hits_pay_for_misses(void)
{
    struct vhb_way way = of_kind(VHB_WAY_NOWAIT);
    for (int i = 0; i < 1000; i++) {
        vhb_way_lost(&way, 1, 0);
        vhb_way_won(&way, 1);
    }
    for (int i = 0; i < 100; i++) {
        lose(&way, LIMIT, 0);
        for (int k = 0; k < LIMIT; k++)
            vhb_way_won(&way, 1);
    }
    CHECK(vhb_way_is_open(&way, 0));
    CHECK_EQ(way.debt, 0);
}

/* What still misses behind a pause is left alone for twice as long, up to a bound; what hits
 * begins anew. */
static void test_pauses_grow_and_are_forgotten(void)
{
    struct vhb_way way = of_kind(VHB_WAY_NOWAIT);
    uint64_t now = 0, pause = 0;
    lose(&way, LIMIT, now);
    for (int i = 0; i < 20; i++) {
        lose(&way, 1, now);
        pause = i < 8 ? MS << i : 128 * MS;
        CHECK_EQ(way.closed_until - now, i < 7 ? MS << i : 128 * MS);
        now = way.closed_until;
        CHECK(vhb_way_is_open(&way, now));
    }
    CHECK_EQ(pause, 128 * MS);
    for (int i = 0; i < LIMIT; i++)
        vhb_way_won(&way, 1);
    lose(&way, LIMIT, now);
    CHECK(vhb_way_is_open(&way, now));
    lose(&way, 1, now);
    CHECK_EQ(way.closed_until - now, MS);
}

/* A write that takes as long as the page cache does is never late, however many there are. */
static void test_prompt_writes_are_not_late(void)
{
    struct vhb_way way = of_kind(VHB_WAY_TIMED);
    for (int i = 0; i < 10000; i++) {
        vhb_way_took(&way, 4096, 60 * 1000, 0);
        vhb_way_took(&way, 65536, 120 * 1000, 0);
    }
    CHECK(vhb_way_is_open(&way, 0));
    CHECK_EQ(way.debt, 0);
}

/* One that waits for long closes the way at once, many that wait a little close it together. */
static void test_late_writes_close(void)
{
    struct vhb_way way = of_kind(VHB_WAY_TIMED);
    vhb_way_took(&way, 4096, 200 * MS, 0);
    CHECK(!vhb_way_is_open(&way, 20 * MS - 1));
    CHECK(vhb_way_is_open(&way, 20 * MS));

    way = of_kind(VHB_WAY_TIMED);
    int n = 0;
    for (; vhb_way_is_open(&way, 0); n++)
        vhb_way_took(&way, 0, MS, 0);
    CHECK_EQ(n, 6); /* 64 us are forgiven each time, 5 ms in all */
}

/* However long it was, a pause of 10 s is the longest. */
static void test_late_writes_are_tried_again(void)
{
    struct vhb_way way = of_kind(VHB_WAY_TIMED);
    uint64_t now = 0;
    for (int i = 0; i < 100; i++) {
        CHECK(vhb_way_is_open(&way, now));
        vhb_way_took(&way, 4096, 3600 * 1000 * MS, now);
        CHECK(!vhb_way_is_open(&way, now + 20 * MS - 1));
        CHECK(vhb_way_is_open(&way, now + 10240 * MS));
        now = way.closed_until;
    }
    CHECK_EQ(way.pause, 10240 * MS);
}

CHECK_MAIN(TEST(open_at_first), TEST(misses_close), TEST(hits_pay_for_misses),
           TEST(pauses_grow_and_are_forgotten), TEST(prompt_writes_are_not_late),
           TEST(late_writes_close), TEST(late_writes_are_tried_again))
