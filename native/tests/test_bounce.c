/* test_bounce.c - our own aligned memory under O_DIRECT holds guest data only while a request needs
 * it, and is in no core dump and no child. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "rig.h"
#include "smaps.h"
#include "vq.h"

enum { SECTORS = 8192, BYTES = SECTORS * 512, DATA = RIG_DATA };
enum { AREA = VHB_BOUNCE_COUNT * VHB_BOUNCE_SIZE };

struct served {
    int fd;
    struct vhb_disk *disk;
    struct rig rig;
};

/* A file under O_DIRECT that can be read, or written, too. */
static int direct_file(int flags)
{
    char path[64];
    int fd = rig_temporary(O_DIRECT, BYTES);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC | O_DIRECT);
    CHECK(again >= 0);
    close(fd);
    return again;
}

static void serve(struct served *s, int flags, struct vhb_worker *worker)
{
    s->fd = direct_file(flags);
    CHECK_EQ(rig_file(s->fd, VHB_FILE_DIRECT, 4096, &s->disk), 0);
    rig_open(&s->rig, &(struct rig_config){.disk = s->disk,
                                           .worker = worker,
                                           .size = 256,
                                           .sectors = SECTORS,
                                           .block_size = 4096});
}

static void end(struct served *s)
{
    rig_close(&s->rig);
    CHECK_EQ(vhb_disk_free(s->disk), 0);
    close(s->fd);
}

static bool is_wiped(const struct served *s)
{
    const uint8_t *area = vhb_worker_io(s->rig.worker)->bounce;
    return area[0] == 0 && memcmp(area, area + 1, AREA - 1) == 0;
}

/* ---- wiped ---------------------------------------------------------------------------- */

/* Nothing is left of what was written or read, whatever its length. */
static void test_wiped_behind_each_request(void)
{
    struct served s;
    serve(&s, O_RDWR, NULL);
    static const uint32_t lengths[] = {4096, VHB_BOUNCE_SIZE, VHB_BOUNCE_SIZE + 4096, 1 << 20};
    for (uint32_t i = 0; i < 4; i++) {
        rig_fill(&s.rig, DATA + 1, lengths[i], 9 + i);
        CHECK_EQ(do_request(&s.rig, BLK_OUT, 0, DATA + 1, lengths[i]), BLK_OK);
        CHECK(is_wiped(&s));
        memset(s.rig.ram + DATA, 0, lengths[i] + 1);
        CHECK_EQ(do_request(&s.rig, BLK_IN, 0, DATA + 1, lengths[i]), BLK_OK);
        CHECK(rig_is(&s.rig, DATA + 1, lengths[i], 9 + i));
        CHECK(is_wiped(&s));
    }
    end(&s);
}

/* Buffers that are handed on from request to request, and given up by a cancel, are wiped too. */
static void test_wiped_behind_many_and_behind_a_cancel(void)
{
    struct served s;
    serve(&s, O_RDWR, NULL);
    enum { N = 40, LEN = 64 * 1024 };
    for (int cancelled = 0; cancelled < 2; cancelled++) {
        for (uint16_t i = 0; i < N; i++) {
            rig_fill(&s.rig, DATA + (uint32_t)LEN * i + 1, LEN - 1, i);
            put_request(&s.rig, 3u * i, BLK_OUT, LEN / 512u * i, DATA + (uint32_t)LEN * i + 1, LEN);
            put_avail(&s.rig, (uint16_t)(3 * i));
        }
        rig_kick(&s.rig);
        rig_pass(&s.rig);
        if (cancelled)
            rig_cancel(&s.rig);
        else
            rig_drain(&s.rig);
        while (RIG_COUNT(&s.rig, dead))
            rig_pass(&s.rig);
        CHECK(is_wiped(&s));
        while (take_used(&s.rig))
            ;
        rig_run(&s.rig);
        while (s.rig.used_seen != s.rig.avail_idx)
            wait_used(&s.rig);
        CHECK(is_wiped(&s));
    }
    end(&s);
}

/* ---- what fails ----------------------------------------------------------------------- */

/* A transfer that fails leaves the guest's buffer as it was, and nothing of another device's in it.
 */
static void test_failed_transfer_shows_nothing_of_others(void)
{
    struct vhb_worker *worker;
    CHECK_EQ(rig_worker(0, &worker), 0);
    struct served good, bad;
    serve(&good, O_RDWR, worker);
    serve(&bad, O_WRONLY, worker);
    rig_fill(&good.rig, DATA + 1, VHB_BOUNCE_SIZE, 1);
    CHECK_EQ(do_request(&good.rig, BLK_OUT, 0, DATA + 1, VHB_BOUNCE_SIZE), BLK_OK);
    CHECK(is_wiped(&good));

    memset(bad.rig.ram + DATA, 0x77, VHB_BOUNCE_SIZE + 1);
    CHECK_EQ(do_request(&bad.rig, BLK_IN, 0, DATA + 1, VHB_BOUNCE_SIZE), BLK_IOERR);
    CHECK_EQ(bad.rig.last_len, 1);
    for (uint32_t i = 0; i < VHB_BOUNCE_SIZE; i++)
        CHECK_EQ(bad.rig.ram[DATA + 1 + i], 0x77);
    CHECK(is_wiped(&bad));
    end(&good);
    end(&bad);
    CHECK_EQ(vhb_worker_free(worker), 0);
}

/* ---- those that wait ------------------------------------------------------------------ */

enum { WAITING = 1000 };

static uintptr_t lowest; /* stack address that a resume was called at */
static uint32_t resumed;

/* As a request whose memory is gone when its turn comes. */
static void end_at_once(struct vhb_req *req, int result, struct vhb_io *io)
{
    uint8_t here;
    CHECK_EQ(result, 0);
    if ((uintptr_t)&here < lowest)
        lowest = (uintptr_t)&here;
    resumed++;
    vhb_bounce_put(io, req);
}

/* However many wait and end as soon as they are next, it takes no stack for each. */
static void test_those_that_wait_take_no_stack_each(void)
{
    struct vhb_io io = {.bounce = malloc(AREA), .bounce_free = 1};
    io.bounce_tail = &io.bounce_wait;
    size_t size = (WAITING + 1) * sizeof(struct vhb_req);
    struct vhb_req *reqs = aligned_alloc(_Alignof(struct vhb_req), size);
    CHECK(io.bounce && reqs);
    memset(reqs, 0, size);
    reqs[0].bounce = vhb_bounce_get(&io, &reqs[0]);
    CHECK(reqs[0].bounce);
    for (uint32_t i = 1; i <= WAITING; i++) {
        reqs[i].resume = end_at_once;
        CHECK(!vhb_bounce_get(&io, &reqs[i]));
    }
    uint8_t here;
    lowest = (uintptr_t)&here;
    vhb_bounce_put(&io, &reqs[0]);
    CHECK_EQ(resumed, WAITING);
    CHECK((uintptr_t)&here - lowest < 4096);
    CHECK(io.bounce_free == 1 && !io.bounce_wait && io.bounce_tail == &io.bounce_wait);
    free(reqs);
    free(io.bounce);
}

/* ---- not to be seen ------------------------------------------------------------------- */

/* dd: not in a core dump; dc: not in a child. */
static void test_neither_dumped_nor_inherited(void)
{
    struct served s;
    serve(&s, O_RDWR, NULL);
    const uint8_t *area = vhb_worker_io(s.rig.worker)->bounce;
    CHECK(has_vm_flag(area, " dd") && has_vm_flag(area, " dc"));
    end(&s);
}

CHECK_MAIN(TEST(wiped_behind_each_request), TEST(wiped_behind_many_and_behind_a_cancel),
           TEST(failed_transfer_shows_nothing_of_others), TEST(those_that_wait_take_no_stack_each),
           TEST(neither_dumped_nor_inherited))
