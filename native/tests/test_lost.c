/* test_lost.c - guest memory that vanishes under a request, part by part: what was read there is a
 * page of zeroes that nobody wrote, so nothing is done by it and nothing succeeds.
 *
 * Every part of a request lies on a page of its own; those from LOST on are taken away. */
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

enum { LOST = 4 << 20, PAGE = 4096, SECTORS = 2048, BYTES = SECTORS * 512 };

struct lost {
    struct rig rig;
    struct vhb_disk *disk;
    uint8_t *host;
    int fd; /* of a file disk */
    int slot;
};

static void open_lost(struct lost *l, struct vhb_disk *disk)
{
    CHECK_EQ(vhb_fault_install(), 0);
    l->disk = disk;
    rig_open(&l->rig, &(struct rig_config){.disk = disk, .features = RIG_INDIRECT});
    l->slot = vhb_fault_watch(l->rig.ram, RIG_RAM, PAGE);
    CHECK(l->slot >= 0);
    memset(l->rig.ram + RIG_DATA, 0x77, 4 * PAGE);
    CHECK_EQ(do_request(&l->rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
}

static void open_memory(struct lost *l)
{
    struct vhb_disk *disk;
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    *l = (struct lost){.host = host, .fd = -1};
    memset(l->host, 0x11, BYTES);
    CHECK_EQ(vhb_disk_memory_new(host, BYTES, &disk), 0);
    open_lost(l, disk);
}

/* A file whose every request of misaligned memory is bounced. */
static void open_bounced(struct lost *l)
{
    struct vhb_disk *disk;
    *l = (struct lost){.fd = memfd_create("disk", MFD_CLOEXEC)};
    CHECK(l->fd >= 0 && ftruncate(l->fd, BYTES) == 0);
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, l->fd, 0);
    CHECK(host != MAP_FAILED);
    l->host = host;
    memset(l->host, 0x11, BYTES);
    CHECK_EQ(vhb_disk_file_new(l->fd, VHB_FILE_DIRECT, PAGE, 512, &disk), 0);
    open_lost(l, disk);
}

/* Take the memory away, kick, and wait for what must come of it. */
static void lose(struct lost *l)
{
    CHECK_EQ(ftruncate(l->rig.memfd, LOST), 0);
    rig_kick(&l->rig);
    CHECK_EQ(rig_broken(&l->rig).reason, VHB_MEMORY_GONE);
    CHECK(RIG_COUNT(&l->rig, faults) >= 1);
}

static void close_lost(struct lost *l)
{
    for (uint32_t i = 0; i < BYTES; i++)
        CHECK_EQ(l->host[i], 0x11);
    rig_close(&l->rig);
    CHECK_EQ(vhb_fault_unwatch(l->slot), 0);
    CHECK_EQ(vhb_disk_free(l->disk), 0);
    munmap(l->host, BYTES);
    if (l->fd >= 0)
        close(l->fd);
}

/* The head came back as an error, or not at all. */
static void check_failed_if_back(struct lost *l)
{
    if (take_used(&l->rig))
        CHECK_EQ(status_of(&l->rig, l->rig.last_id), BLK_IOERR);
}

/* A table of zeroes is a chain without a status: it must not come back as one. */
static void test_lost_table(void)
{
    struct lost l;
    open_memory(&l);
    put_desc(&l.rig, RIG_DESC, 0, rig_at(LOST), 48, DESC_INDIRECT, 0);
    put_avail(&l.rig, 0);
    lose(&l);
    CHECK(!take_used(&l.rig));
    CHECK_EQ(RIG_COUNT(&l.rig, malformed), 0);
    close_lost(&l);
}

/* A header of zeroes reads sector 0: the write that it was has not succeeded. */
static void test_lost_header(void)
{
    struct lost l;
    open_memory(&l);
    put_request(&l.rig, 0, BLK_OUT, 8, RIG_DATA, 512);
    put_desc(&l.rig, RIG_DESC, 0, rig_at(LOST), 16, DESC_NEXT, 1);
    put_avail(&l.rig, 0);
    lose(&l);
    check_failed_if_back(&l);
    CHECK_EQ(RIG_COUNT(&l.rig, reads), 0);
    close_lost(&l);
}

/* A range of zeroes is nothing to do: that is no success either. */
static void test_lost_ranges(void)
{
    struct lost l;
    open_memory(&l);
    put_request(&l.rig, 0, BLK_WRITE_ZEROES, 0, LOST, 16);
    put_avail(&l.rig, 0);
    lose(&l);
    check_failed_if_back(&l);
    close_lost(&l);
}

static void test_lost_id(void)
{
    struct lost l;
    open_memory(&l);
    put_request(&l.rig, 0, BLK_GET_ID, 0, LOST, 20);
    put_avail(&l.rig, 0);
    lose(&l);
    check_failed_if_back(&l);
    close_lost(&l);
}

/* Bounced data that is lost before the disk has it, or after. */
static void test_lost_data_of_a_bounced_request(void)
{
    for (int submitted = 0; submitted < 2; submitted++) {
        struct lost l;
        open_bounced(&l);
        put_request(&l.rig, 0, BLK_IN, 8, LOST + 512, 512);
        put_avail(&l.rig, 0);
        if (submitted)
            rig_pass(&l.rig); /* popped, and with plain calls all over */
        bool over = take_used(&l.rig);
        if (!over)
            lose(&l);
        check_failed_if_back(&l);
        close_lost(&l);
    }
}

/* Of a request that takes several rounds of bounce memory the later parts are lost. */
static void test_lost_data_of_a_long_write(void)
{
    struct lost l;
    open_bounced(&l);
    CHECK_EQ(ftruncate(l.fd, BYTES), 0);
    uint32_t len = 512 << 10, at = LOST - (256 << 10) + 512;
    memset(l.rig.ram + at, 0x11, len);
    put_request(&l.rig, 0, BLK_OUT, 0, at, len);
    put_avail(&l.rig, 0);
    CHECK_EQ(ftruncate(l.rig.memfd, LOST), 0);
    rig_kick(&l.rig);
    CHECK_EQ(rig_broken(&l.rig).reason, VHB_MEMORY_GONE);
    check_failed_if_back(&l);
    memset(l.host, 0x11, BYTES); /* in part zeroes: the request has failed */
    close_lost(&l);
}

/* A request that lost its memory while somebody else served it; its page is not the guest's any
 * more, so the queue does not go on. */
static void test_lost_data_of_a_mailbox(void)
{
    struct vhb_mailbox *box;
    struct vhb_job job;
    struct lost l = {.fd = -1};
    CHECK_EQ(vhb_mailbox_new(128, &box), 0);
    CHECK_EQ(vhb_fault_install(), 0);
    rig_open(&l.rig, &(struct rig_config){.disk = vhb_mailbox_disk(box)});
    l.slot = vhb_fault_watch(l.rig.ram, RIG_RAM, PAGE);
    put_request(&l.rig, 0, BLK_IN, 8, LOST, 512);
    put_avail(&l.rig, 0);
    rig_kick(&l.rig);
    while (vhb_mailbox_take(box, &job, 1) == 0)
        rig_pass(&l.rig);
    CHECK_EQ(ftruncate(l.rig.memfd, LOST), 0);
    memset(job.pieces[0].host, 0, 512);
    CHECK_EQ(vhb_mailbox_complete(box, job.tag, 0), 0);
    CHECK_EQ(rig_broken(&l.rig).reason, VHB_MEMORY_GONE);
    check_failed_if_back(&l);
    rig_close(&l.rig);
    CHECK_EQ(vhb_fault_unwatch(l.slot), 0);
    CHECK_EQ(vhb_mailbox_free(box), 0);
}

/* Another queue of the same guest stops, too: it would go on in a page that the guest does not
 * see.  A queue of another guest does not. */
static void test_lost_page_stops_every_queue_of_the_guest(void)
{
    struct lost l;
    struct rig second, stranger;
    open_memory(&l);
    rig_open(&second, &(struct rig_config){.stopped = true});
    struct vhb_segment seg[2] = {
        {.iova = RIG_RAM_AT, .len = RIG_RAM, .host = second.ram, .access = 3},
        {.iova = 1ull << 32, .len = RIG_RAM, .host = l.rig.ram, .access = 3}};
    CHECK_EQ(vhb_queue_set_space(second.queue, seg, 2), 0);
    rig_run(&second);
    rig_open(&stranger, &(struct rig_config){0});
    CHECK_EQ(do_request(&second, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    put_request(&l.rig, 0, BLK_IN, 8, LOST, 512);
    put_avail(&l.rig, 0);
    lose(&l);
    rig_kick(&second);
    CHECK_EQ(rig_broken(&second).reason, VHB_MEMORY_GONE);
    CHECK_EQ(do_request(&stranger, BLK_IN, 0, RIG_DATA, 512), BLK_OK);
    rig_close(&stranger);
    rig_close(&second);
    close_lost(&l);
}

static void restart(struct rig *rig)
{
    rig_drain(rig);
    rig_begin(rig);
    rig_run(rig);
}

/* A restart alone does not help; memory that is mapped anew does. */
static void test_lost_page_stays_until_it_is_mapped_anew(void)
{
    struct lost l;
    open_memory(&l);
    put_request(&l.rig, 0, BLK_IN, 8, LOST, 512);
    put_avail(&l.rig, 0);
    lose(&l);
    int lost = vhb_fault_count(l.slot);
    CHECK_EQ(ftruncate(l.rig.memfd, RIG_RAM), 0);
    restart(&l.rig);
    CHECK_EQ(rig_broken(&l.rig).reason, VHB_MEMORY_GONE);
    CHECK_EQ(vhb_fault_count(l.slot), lost);

    rig_drain(&l.rig);
    CHECK_EQ(vhb_fault_unwatch(l.slot), 0);
    CHECK(mmap(l.rig.ram, RIG_RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, l.rig.memfd,
               0) == l.rig.ram);
    l.slot = vhb_fault_watch(l.rig.ram, RIG_RAM, PAGE);
    rig_space(&l.rig);
    restart(&l.rig);
    CHECK_EQ(do_request(&l.rig, BLK_IN, 8, LOST, 512), BLK_OK);
    CHECK_EQ(l.rig.ram[LOST], 0x11);
    close_lost(&l);
}

CHECK_MAIN(TEST(lost_table), TEST(lost_header), TEST(lost_ranges), TEST(lost_id),
           TEST(lost_data_of_a_bounced_request), TEST(lost_data_of_a_long_write),
           TEST(lost_data_of_a_mailbox), TEST(lost_page_stops_every_queue_of_the_guest),
           TEST(lost_page_stays_until_it_is_mapped_anew))
