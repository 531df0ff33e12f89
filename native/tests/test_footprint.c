/* test_footprint.c - what a queue holds in memory: as much as was in flight at once, not as much
 * as could be.  Counted in pages of its arrays that are there. */
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"
#include "vq.h"

enum { SIZE = 256, IN_FLIGHT = SIZE / 3, TABLE = 1 << 20, MOST_PIECES = 400 };

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Pages of [at, at + len) that are there; *at* is the beginning of a mapping. */
static size_t resident(void *at, size_t len)
{
    size_t n = (len + page_size() - 1) / page_size(), there = 0;
    unsigned char *pages = calloc(n, 1);
    CHECK(pages);
    CHECK_EQ(mincore(at, len, pages), 0);
    for (size_t i = 0; i < n; i++)
        there += pages[i] & 1;
    free(pages);
    return there;
}

static size_t pages_of(size_t bytes)
{
    return (bytes + page_size() - 1) / page_size();
}

static size_t slot_pages(struct vhb_queue *q)
{
    return resident(q->slots, slot_count(q) * sizeof(*q->slots));
}

static size_t wide_pages(struct vhb_queue *q)
{
    return resident(q->wide, slot_count(q) * sizeof(*q->wide));
}

static size_t layered_pages(struct vhb_queue *q)
{
    return resident(q->layered, slot_count(q) * sizeof(*q->layered));
}

static size_t borrowed_pages(struct vhb_queue *q)
{
    return resident(q->borrow, sizeof(*q->borrow) * VHB_BORROW_COUNT * VHB_MAX_IOV);
}

static size_t sample_pages(struct vhb_queue *q)
{
    return resident(q->samples.ring, sizeof(*q->samples.ring) * VHB_SAMPLE_RING);
}

/* A write of *n* buffers of 512 bytes, in an indirect table behind descriptor 0: what fits no piece
 * of its neighbour's, as they stand apart. */
static uint8_t write_pieces(struct rig *rig, uint32_t n)
{
    put_request(rig, 0, BLK_OUT, 0, RIG_DATA, 512);
    put_desc(rig, TABLE, 0, rig_at(header_at(0)), 16, DESC_NEXT, 1);
    for (uint32_t i = 1; i <= n; i++)
        put_desc(rig, TABLE, i, rig_at(RIG_DATA + 1024 * i), 512, DESC_NEXT, (uint16_t)(i + 1));
    put_desc(rig, TABLE, n + 1, rig_at(status_at(0)), 1, DESC_WRITE, 0);
    put_desc(rig, RIG_DESC, 0, rig_at(TABLE), 16 * (n + 2), DESC_INDIRECT, 0);
    return do_chain(rig, 0);
}

/* A queue of a ring that is full holds 576 bytes for each request, and nothing for long ones. */
static void test_slots_in_use(void)
{
    struct vhb_mailbox *box;
    struct vhb_job jobs[IN_FLIGHT];
    struct rig rig;
    CHECK_EQ(vhb_mailbox_new(2 * SIZE, &box), 0);
    rig_open(&rig, &(struct rig_config){.size = SIZE, .disk = vhb_mailbox_disk(box)});
    CHECK_EQ(slot_pages(rig.queue), 0);
    for (uint32_t i = 0; i < IN_FLIGHT; i++) {
        put_request(&rig, 3 * i, BLK_IN, i, RIG_DATA + 512 * i, 512);
        put_avail(&rig, (uint16_t)(3 * i));
    }
    rig_kick(&rig);
    while (RIG_COUNT(&rig, in_flight) < IN_FLIGHT)
        rig_pass(&rig);
    CHECK_EQ(slot_pages(rig.queue), pages_of(IN_FLIGHT * 576));
    CHECK_EQ(wide_pages(rig.queue), 0);
    CHECK_EQ(layered_pages(rig.queue), 0);
    CHECK_EQ(borrowed_pages(rig.queue), 0);
    CHECK_EQ(vhb_mailbox_take(box, jobs, IN_FLIGHT), IN_FLIGHT);
    for (uint32_t i = 0; i < IN_FLIGHT; i++)
        CHECK_EQ(vhb_mailbox_complete(box, jobs[i].tag, 0), 0);
    for (uint32_t i = 0; i < IN_FLIGHT; i++)
        wait_used(&rig);
    rig_close(&rig);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* Long requests, one after the other: each is right where its array ends and where the next larger
 * one begins, and uses that of one slot only. */
static void test_long_requests(void)
{
    static const uint32_t ends[] = {VHB_SLOT_IOV - 1, VHB_WIDE_IOV - 1};
    struct rig rig;
    rig_open(&rig, &(struct rig_config){.features = RIG_INDIRECT});
    for (uint32_t i = 1; i <= ends[0]; i++)
        CHECK_EQ(write_pieces(&rig, i - 1), BLK_OK);
    CHECK_EQ(wide_pages(rig.queue), 0);
    for (uint32_t i = ends[0] + 1; i <= ends[1]; i++)
        CHECK_EQ(write_pieces(&rig, i - 1), BLK_OK);
    CHECK(wide_pages(rig.queue) <= pages_of(sizeof(struct vhb_wide)));
    CHECK_EQ(borrowed_pages(rig.queue), 0);
    for (uint32_t i = ends[1] + 1; i < MOST_PIECES; i++)
        CHECK_EQ(write_pieces(&rig, i), BLK_OK);
    CHECK(borrowed_pages(rig.queue) <= pages_of(MOST_PIECES * sizeof(struct iovec)));
    rig_close(&rig);
}

/* What was taken of the samples is given back: who takes them all leaves a page at most. */
static void test_samples_taken(void)
{
    static struct vhb_sample out[VHB_SAMPLES];
    struct rig rig;
    rig_open(&rig, &(struct rig_config){0});
    rig_park(&rig);
    CHECK_EQ(vhb_queue_set_sampling(rig.queue, 0, 1), 0);
    rig_run(&rig);
    for (uint32_t round = 0; round < 40; round++) { /* of two samples each: around some laps */
        for (uint32_t i = 0; i < 500; i++)
            CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
        CHECK(sample_pages(rig.queue) <= 1 + pages_of(1000 * sizeof(*out)));
        CHECK_EQ(vhb_queue_take_samples(rig.queue, out, 300 + round), 300 + (int)round);
        CHECK_EQ(vhb_queue_take_samples(rig.queue, out, VHB_SAMPLES), 700 - (int)round);
        for (uint32_t i = 0; i < 700 - round; i++)
            CHECK(out[i].len == 16 || out[i].len == 1);
        CHECK(sample_pages(rig.queue) <= 1);
    }
    rig_close(&rig);
}

CHECK_MAIN(TEST(slots_in_use), TEST(long_requests), TEST(samples_taken))
