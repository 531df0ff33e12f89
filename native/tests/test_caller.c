/* test_caller.c - a thread that asks disks of the core, layers and all. */
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "layer_rig.h"

enum { BYTES = 1 << 20, CALLS = 8 };

struct asking {
    struct vhb_caller *caller;
    struct stack stack;
    struct vhb_disk *bottom;
    struct vhb_mailbox *box;
};

static void ask_of(struct asking *a, struct vhb_disk *bottom, uint32_t layers)
{
    uint32_t flags = getenv("VHB_TEST_PLAIN") ? VHB_WORKER_NO_URING : 0;
    a->bottom = bottom;
    struct vhb_disk *top = make_stack(&a->stack, layers, bottom);
    CHECK_EQ(vhb_caller_new(top, CALLS, flags, &a->caller), 0);
}

static void ask_memory(struct asking *a, uint8_t *memory, uint32_t layers)
{
    struct vhb_disk *disk;
    CHECK_EQ(vhb_disk_memory_new(memory, BYTES, &disk), 0);
    ask_of(a, disk, layers);
}

static void ask_box(struct asking *a, uint32_t layers)
{
    CHECK_EQ(vhb_mailbox_new(CALLS, &a->box), 0);
    ask_of(a, vhb_mailbox_disk(a->box), layers);
}

static void ask_no_more(struct asking *a)
{
    CHECK_EQ(vhb_caller_free(a->caller), 0);
    free_stack(&a->stack);
    if (a->box)
        CHECK_EQ(vhb_mailbox_free(a->box), 0);
    else
        CHECK_EQ(vhb_disk_free(a->bottom), 0);
}

static int submit(struct asking *a, uint32_t op, uint64_t offset, struct vhb_piece *piece,
                  uint64_t *tag)
{
    struct vhb_job job = {.op = op, .offset = offset, .len = piece->len, .n_pieces = 1};
    job.pieces = piece;
    return vhb_caller_submit(a->caller, &job, tag);
}

static bool is_ready(struct asking *a, int ms)
{
    struct pollfd one = {.fd = vhb_caller_fd(a->caller), .events = POLLIN};
    return poll(&one, 1, ms) == 1;
}

/* Turn until one is over, sleeping as a loop would. */
static struct vhb_ended ending(struct asking *a)
{
    struct vhb_ended ended;
    while (vhb_caller_turn(a->caller, &ended, 1) == 0)
        CHECK(is_ready(a, RIG_DEADLINE_MS));
    return ended;
}

static struct vhb_job take(struct asking *a)
{
    struct vhb_ended none;
    struct vhb_job job;
    CHECK_EQ(vhb_caller_turn(a->caller, &none, 1), 0); /* which posts it */
    CHECK_EQ(vhb_mailbox_take(a->box, &job, 1), 1);
    return job;
}

static void is_quiet(struct asking *a)
{
    struct vhb_ended none;
    CHECK_EQ(vhb_caller_turn(a->caller, &none, 1), 0);
    CHECK(!is_ready(a, 0));
}

/* ---- ends ------------------------------------------------------------------------------ */

/* What is over at once has no tag, and needs no turn. */
static void test_at_once(void)
{
    static uint8_t memory[BYTES], buffer[4096];
    struct asking a = {0};
    ask_memory(&a, memory, 2);
    memset(buffer, 7, sizeof(buffer));
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t tag = 0;
    CHECK_EQ(submit(&a, VHB_WRITE, 8192, &piece, &tag), 0);
    CHECK(memcmp(memory + 8192 + 1024, buffer, sizeof(buffer)) == 0);
    CHECK_EQ(submit(&a, VHB_READ, BYTES, &piece, &tag), -EIO);
    CHECK_EQ(tag, 0);
    CHECK_EQ(a.stack.told, 4);
    is_quiet(&a);
    ask_no_more(&a);
}

/* A file's requests end by the descriptor becoming readable, layer by layer. */
static void test_file(void)
{
    static uint8_t buffers[CALLS][4096];
    struct asking a = {0};
    struct vhb_disk *disk;
    int fd = rig_temporary(0, BYTES);
    CHECK_EQ(vhb_disk_file_new(fd, VHB_FILE_RING, 1, 1, &disk), 0);
    ask_of(&a, disk, 1);
    struct vhb_piece pieces[CALLS];
    uint32_t over = 0;
    for (uint32_t i = 0; i < CALLS; i++) {
        uint64_t tag;
        memset(buffers[i], (int)i + 1, 4096);
        pieces[i] = (struct vhb_piece){buffers[i], 4096};
        int r = submit(&a, VHB_WRITE, 4096 * i, &pieces[i], &tag);
        CHECK(r == 0 || r == 1);
        over += r == 0; /* plain calls end at once */
    }
    for (; over < CALLS; over++)
        CHECK_EQ(ending(&a).error, 0);
    is_quiet(&a);
    for (uint32_t i = 0; i < CALLS; i++) {
        uint8_t got[4096];
        CHECK_EQ(pread(fd, got, 4096, 4096 * (off_t)i + 512), 4096);
        CHECK(i == CALLS - 1 || got[0] == i + 1);
    }
    CHECK_EQ(a.stack.told, CALLS);
    ask_no_more(&a);
    close(fd);
}

/* Pieces are copied, but for those of long requests; all arrive, through as many layers as can be.
 */
static void test_pieces(void)
{
    enum { MOST = VHB_COPIED_PIECES + 3 };
    static uint8_t buffers[MOST][512];
    struct asking a = {0};
    ask_box(&a, VHB_MAX_LAYERS);
    for (uint32_t n = VHB_COPIED_PIECES - 1; n <= MOST; n++) {
        struct vhb_piece pieces[MOST];
        for (uint32_t i = 0; i < n; i++)
            pieces[i] = (struct vhb_piece){buffers[i], 512};
        struct vhb_job asked = {.op = VHB_READ, .len = 512ull * n, .n_pieces = n, .pieces = pieces};
        uint64_t tag;
        CHECK_EQ(vhb_caller_submit(a.caller, &asked, &tag), 1);
        if (n <= VHB_COPIED_PIECES)
            memset(pieces, 0, sizeof(pieces));
        struct vhb_job job = take(&a);
        CHECK_EQ(job.n_pieces, n);
        CHECK_EQ(job.offset, 512 * VHB_MAX_LAYERS);
        for (uint32_t i = 0; i < n; i++)
            CHECK(job.pieces[i].host == buffers[i] && job.pieces[i].len == 512);
        a.stack.told = 0;
        CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
        CHECK_EQ(ending(&a).error, 0);
        CHECK_EQ(a.stack.told, VHB_MAX_LAYERS);
    }
    ask_no_more(&a);
}

/* A disk that somebody else serves, here the same thread: its completions wake the descriptor. */
static void test_mailbox_below(void)
{
    static uint8_t buffer[512];
    struct asking a = {0};
    ask_box(&a, 2);
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t tag;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(submit(&a, VHB_READ, 512, &piece, &tag), 1);
        struct vhb_job job = take(&a);
        CHECK_EQ(job.offset, 512 + 1024);
        CHECK(job.first.host == buffer);
        CHECK(!is_ready(&a, 0));
        CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, i ? -ENOSPC : 0), 0);
        CHECK(is_ready(&a, RIG_DEADLINE_MS));
        struct vhb_ended ended = ending(&a);
        CHECK_EQ(ended.tag, tag);
        CHECK_EQ(ended.error, i ? ENOSPC : 0);
        is_quiet(&a);
    }
    ask_no_more(&a);
}

/* Full is an answer, not an end; what is over makes room. */
static void test_full(void)
{
    static uint8_t buffer[512];
    struct asking a = {0};
    ask_box(&a, 0);
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t tags[CALLS + 1];
    for (int i = 0; i < CALLS; i++)
        CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tags[i]), 1);
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tags[CALLS]), -ENOBUFS);
    CHECK_EQ(vhb_caller_free(a.caller), -EBUSY);
    for (int i = 0; i < CALLS; i++) {
        struct vhb_job job = take(&a);
        CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
        CHECK_EQ(ending(&a).tag, tags[i]);
    }
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tags[CALLS]), 1);
    for (int i = 0; i < CALLS; i++)
        CHECK(tags[i] != tags[CALLS]);
    struct vhb_job job = take(&a);
    CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
    CHECK_EQ(ending(&a).error, 0);
    ask_no_more(&a);
}

/* ---- time ------------------------------------------------------------------------------ */

/* What a layer holds ends the sleep by itself, the sooner first. */
static void test_held(void)
{
    static uint8_t memory[BYTES], buffer[512];
    struct asking a = {0};
    ask_memory(&a, memory, 2);
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t late, soon;
    a.stack.layers[1].hold_ns = 30000000;
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &late), 1);
    a.stack.layers[1].hold_ns = 1000000;
    int64_t from = rig_now_ms();
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &soon), 1);
    CHECK_EQ(ending(&a).tag, soon);
    CHECK(rig_now_ms() - from < 25);
    CHECK_EQ(ending(&a).tag, late);
    CHECK(rig_now_ms() - from >= 25);
    is_quiet(&a);
    ask_no_more(&a);
}

/* ---- cancelling ------------------------------------------------------------------------ */

/* One that is held ends at once; one that is with the disk when the disk says so. */
static void test_cancel(void)
{
    static uint8_t buffer[512];
    struct asking a = {0};
    ask_box(&a, 2);
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t held, with_disk;
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &with_disk), 1);
    struct vhb_job job = take(&a), cancel;
    a.stack.layers[0].hold_ns = 3600000000000;
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &held), 1);
    CHECK_EQ(vhb_caller_cancel(a.caller, held), 0);
    struct vhb_ended ended = ending(&a);
    CHECK_EQ(ended.tag, held);
    CHECK_EQ(ended.error, ECANCELED);
    CHECK_EQ(vhb_caller_cancel(a.caller, held), -EINVAL);

    a.stack.layers[1].hold_back_ns = 3600000000000; /* a dead one is not held */
    CHECK_EQ(vhb_caller_cancel(a.caller, with_disk), 0);
    CHECK_EQ(vhb_caller_cancel(a.caller, with_disk), 0);
    is_quiet(&a);
    CHECK_EQ(vhb_mailbox_take(a.box, &cancel, 1), 1);
    CHECK(cancel.op == VHB_CANCEL && cancel.tag == job.tag);
    CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
    ended = ending(&a);
    CHECK_EQ(ended.tag, with_disk);
    is_quiet(&a);
    ask_no_more(&a);
}

static void test_wrong_tags_touch_nothing(void)
{
    static uint8_t buffer[512];
    struct asking a = {0};
    ask_box(&a, 1);
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t tag;
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tag), 1);
    const uint64_t wrong[] = {0, CALLS, tag + 1, tag + (1ull << 32), (uint32_t)tag, UINT64_MAX};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        CHECK_EQ(vhb_caller_cancel(a.caller, wrong[i]), -EINVAL);
    struct vhb_job job = take(&a);
    CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
    CHECK_EQ(ending(&a).error, 0);
    CHECK_EQ(submit(&a, VHB_CANCEL, 0, &piece, &tag), -EINVAL);
    ask_no_more(&a);
}

/* ---- guest memory ---------------------------------------------------------------------- */

/* A disk that keeps a view, and memory that vanishes, are told of, whatever the layers say. */
static void test_views_and_memory(void)
{
    static uint8_t buffer[512];
    struct asking a = {0};
    ask_box(&a, 2);
    a.stack.layers[0].answer = -EROFS;
    struct vhb_piece piece = {buffer, sizeof(buffer)};
    uint64_t tag;
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tag), 1);
    struct vhb_job job = take(&a);
    CHECK_EQ(vhb_mailbox_break(a.box, job.tag), 0);
    CHECK_EQ(ending(&a).error, VHB_KEPT_VIEW);
    a.stack.layers[0].answer = 0;

    int fd = memfd_create("guest", MFD_CLOEXEC); /* empty */
    volatile uint8_t *guest = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(fd >= 0 && guest != MAP_FAILED);
    CHECK_EQ(vhb_fault_install(), 0);
    int slot = vhb_fault_watch((void *)(uintptr_t)guest, 4096, 4096);
    CHECK_EQ(submit(&a, VHB_READ, 0, &piece, &tag), 1);
    job = take(&a);
    CHECK_EQ(guest[0], 0); /* lost by this thread, while it is under way */
    CHECK_EQ(vhb_mailbox_complete(a.box, job.tag, 0), 0);
    CHECK_EQ(ending(&a).error, EFAULT);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    munmap((void *)(uintptr_t)guest, 4096);
    close(fd);
    ask_no_more(&a);
}

CHECK_MAIN(TEST(at_once), TEST(file), TEST(pieces), TEST(mailbox_below), TEST(full), TEST(held),
           TEST(cancel), TEST(wrong_tags_touch_nothing), TEST(views_and_memory))
