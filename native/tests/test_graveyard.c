/* test_graveyard.c - which new requests must wait for which dead ones. */
#include <errno.h>
#include <pthread.h>

#include "check.h"
#include "disk.h"

static struct vhb_req request(enum vhb_op op, uint64_t offset, uint64_t len)
{
    return (struct vhb_req){.op = op, .offset = offset, .len = len};
}

static bool blocks(struct vhb_graveyard *g, enum vhb_op op, uint64_t offset, uint64_t len)
{
    struct vhb_req req = request(op, offset, len);
    return vhb_grave_blocks(g, &req);
}

static struct vhb_graveyard *graveyard(void)
{
    struct vhb_graveyard *g;
    CHECK_EQ(vhb_graveyard_new(&g), 0);
    return g;
}

/* What changes bytes waits for what may still change the same bytes; touching is no overlap. */
static void test_overlapping_changes_wait(void)
{
    static const enum vhb_op changes[] = {VHB_WRITE, VHB_DISCARD, VHB_WRITE_ZEROES};
    for (size_t i = 0; i < 9; i++) {
        enum vhb_op dead = changes[i / 3], op = changes[i % 3];
        struct vhb_graveyard *g = graveyard();
        struct vhb_req req = request(dead, 4096, 1024);
        CHECK(!blocks(g, op, 4096, 1024));
        vhb_grave_bury(g, &req);
        CHECK(blocks(g, op, 4096, 1024));
        CHECK(blocks(g, op, 5119, 1));
        CHECK(blocks(g, op, 0, 4097));
        CHECK(blocks(g, op, 0, 1 << 20));
        CHECK(blocks(g, op, 4200, 8));
        CHECK(!blocks(g, op, 0, 4096));
        CHECK(!blocks(g, op, 5120, 512));
        vhb_grave_leave(g, &req);
        CHECK(!blocks(g, op, 4096, 1024));
        CHECK_EQ(vhb_graveyard_free(g), 0);
    }
}

/* Reads and flushes neither wait nor are waited for. */
static void test_reads_and_flushes_pass(void)
{
    struct vhb_graveyard *g = graveyard();
    struct vhb_req write = request(VHB_WRITE, 0, 4096);
    vhb_grave_bury(g, &write);
    CHECK(!blocks(g, VHB_READ, 0, 4096));
    CHECK(!blocks(g, VHB_FLUSH, 0, 0));
    vhb_grave_leave(g, &write);

    struct vhb_req read = request(VHB_READ, 0, 4096), flush = request(VHB_FLUSH, 0, 0);
    vhb_grave_bury(g, &read);
    vhb_grave_bury(g, &flush);
    CHECK(!blocks(g, VHB_WRITE, 0, 4096));
    vhb_grave_leave(g, &read);
    vhb_grave_leave(g, &flush);
    CHECK_EQ(vhb_graveyard_free(g), 0);
}

/* Each of several dead requests counts, in whatever order they leave; a stranger leaves none. */
static void test_dead_requests_leave_in_any_order(void)
{
    struct vhb_graveyard *g = graveyard();
    struct vhb_req dead[3], stranger = request(VHB_WRITE, 0, 512);
    for (size_t i = 0; i < 3; i++) {
        dead[i] = request(VHB_WRITE, i * 4096, 512);
        vhb_grave_bury(g, &dead[i]);
    }
    CHECK_EQ(vhb_graveyard_free(g), -EBUSY);
    vhb_grave_leave(g, &stranger);
    vhb_grave_leave(g, &dead[1]);
    CHECK(blocks(g, VHB_WRITE, 0, 512));
    CHECK(!blocks(g, VHB_WRITE, 4096, 512));
    CHECK(blocks(g, VHB_WRITE, 8192, 512));
    vhb_grave_leave(g, &dead[2]);
    vhb_grave_leave(g, &dead[0]);
    CHECK(!blocks(g, VHB_WRITE, 0, 1 << 20));
    CHECK_EQ(vhb_graveyard_free(g), 0);
}

struct visitor {
    struct vhb_graveyard *graveyard;
    uint64_t offset;
};

static void *bury_and_look(void *arg)
{
    const struct visitor *v = arg;
    for (int i = 0; i < 2000; i++) {
        struct vhb_req req = request(VHB_WRITE, v->offset, 512);
        vhb_grave_bury(v->graveyard, &req);
        CHECK(blocks(v->graveyard, VHB_WRITE, v->offset, 512));
        vhb_grave_leave(v->graveyard, &req);
        CHECK(!blocks(v->graveyard, VHB_WRITE, v->offset, 512));
    }
    return NULL;
}

/* Workers bury, look and leave at the same time, each seeing its own at once. */
static void test_workers_share_a_graveyard(void)
{
    struct visitor visitors[3];
    pthread_t threads[3];
    struct vhb_graveyard *g = graveyard();
    for (size_t i = 0; i < 3; i++) {
        visitors[i] = (struct visitor){g, i * 512};
        CHECK_EQ(pthread_create(&threads[i], NULL, bury_and_look, &visitors[i]), 0);
    }
    for (size_t i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(vhb_graveyard_free(g), 0);
    CHECK_EQ(vhb_graveyard_free(NULL), 0);
}

CHECK_MAIN(TEST(overlapping_changes_wait), TEST(reads_and_flushes_pass),
           TEST(dead_requests_leave_in_any_order), TEST(workers_share_a_graveyard))
