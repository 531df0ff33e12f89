/* test_crash.c - the process dies at every step of inflight tracking, and another one goes on.
 *
 * A life is a process of its own: it finds the guest's memory, the region and the disk, which are
 * shared, serves what it finds, and is at the same time the driver, which asks for more.  It dies
 * by _exit in the core, at the n-th of the places named in crash.h; the driver and the disk are
 * never caught in the middle.  The next life knows nothing but what is in memory.
 *
 * What must hold in the end: every request was given back once; none that the driver had back was
 * given to the disk again.  One that it had not back may have been done twice, and is as good. */
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "crash.h"
#include "rig.h"

enum { MAX_SIZE = 16, CHAIN = 4, TOTAL = 10, START = 65530, REGION = 4096 };
enum { LIFE_DIED = 42 };

/* A ring that wraps soon; no chain of the packed one begins twice at the same place. */
static struct rig_config ring;
static const struct rig_config split = {.size = 16};
static const struct rig_config split_in_order = {.size = 16, .features = RIG_IN_ORDER};
static const struct rig_config packed = {.size = 13, .features = RIG_PACKED};
static const struct rig_config packed_in_order = {.size = 13,
                                                  .features = RIG_PACKED | RIG_IN_ORDER};

/* What outlives a life. */
struct shared {
    uint8_t region[REGION];
    struct rig driver;      /* where it stands in its ring */
    int owner[MAX_SIZE];    /* the request that a head is in use for, or -1 */
    int asked;              /* requests so far */
    int given[TOTAL];       /* back to the driver, times */
    int done[TOTAL];        /* by the disk, times */
    int done_when_given[TOTAL];
    uint32_t passed;        /* places in this life */
    uint32_t die_at;        /* 0: never */
    const char *died;       /* where */
    uint32_t lives;
};

static struct shared *shared;

/* How a disk behaves: which of the jobs it has are over next.  In each life it is another one. */
enum order { FIRST_COMES_FIRST, LAST_COMES_FIRST, ONE_BY_ONE, ORDERS };

static void pass(const char *name)
{
    if (++shared->passed != shared->die_at)
        return;
    shared->died = name;
    _exit(LIFE_DIED);
}

/* ---- the driver ------------------------------------------------------------------------ */

static void take_back(struct rig *rig)
{
    while (take_used(rig)) {
        int k = rig->last_id < MAX_SIZE ? shared->owner[rig->last_id] : -1;
        CHECK(k >= 0); /* it was asked for, and not given back before */
        CHECK_EQ(status_of(rig, rig->last_id), BLK_OK);
        shared->owner[rig->last_id] = -1;
        shared->given[k]++;
        shared->done_when_given[k] = shared->done[k];
    }
    shared->driver = *rig;
}

static uint32_t data_of(int k)
{
    return RIG_DATA + 512u * (uint32_t)k;
}

/* Write request *k*, all overlap, with one piece of data or two: lengths of chains differ. */
static void put_write(struct rig *rig, uint32_t head, int k)
{
    put32(rig, data_of(k), (uint32_t)k);
    put_request(rig, head, BLK_OUT, 0, data_of(k), 512);
    if (k % 2 == 0)
        return;
    put_desc(rig, RIG_DESC, head + 1, rig_at(data_of(k)), 256, DESC_NEXT, (uint16_t)(head + 2));
    put_desc(rig, RIG_DESC, head + 2, rig_at(data_of(k) + 256), 256, DESC_NEXT,
             (uint16_t)(head + 3));
    put_desc(rig, RIG_DESC, head + 3, rig_at(status_at(head)), 1, DESC_WRITE, 0);
}

static void ask_more(struct rig *rig)
{
    for (uint16_t head = 0; shared->asked < TOTAL; head += CHAIN) {
        if (head + (uint32_t)CHAIN > ring.size)
            break;
        if (shared->owner[head] >= 0)
            continue;
        int k = shared->asked++;
        shared->owner[head] = k;
        put_write(rig, head, k);
        put_avail(rig, head);
    }
    shared->driver = *rig;
    rig_kick(rig);
}

static bool all_given(void)
{
    for (int k = 0; k < TOTAL; k++)
        if (shared->given[k] == 0)
            return false;
    return true;
}

/* ---- the disk -------------------------------------------------------------------------- */

struct disk {
    struct vhb_mailbox *box;
    enum order order;
    struct vhb_job jobs[MAX_SIZE];
    uint32_t n;
};

static void take_jobs(struct disk *disk)
{
    disk->n += (uint32_t)vhb_mailbox_take(disk->box, disk->jobs + disk->n, MAX_SIZE - disk->n);
}

/* Do all there are, or one, and say so. */
static void do_jobs(struct disk *disk)
{
    uint32_t n = disk->order == ONE_BY_ONE && disk->n ? 1 : disk->n;
    for (; n; n--) {
        uint32_t i = disk->order == FIRST_COMES_FIRST ? 0 : --disk->n, k;
        struct vhb_job job = disk->jobs[i];
        if (disk->order == FIRST_COMES_FIRST)
            memmove(disk->jobs, disk->jobs + 1, --disk->n * sizeof(job));
        memcpy(&k, job.pieces[0].host, sizeof(k));
        CHECK(k < TOTAL);
        shared->done[k]++;
        CHECK_EQ(vhb_mailbox_complete(disk->box, job.tag, 0), 0);
    }
}

/* ---- lives ----------------------------------------------------------------------------- */

static void open_life(struct rig *rig, struct disk *disk, int memfd)
{
    struct rig_config config = ring;
    CHECK_EQ(vhb_mailbox_new(2 * MAX_SIZE, &disk->box), 0);
    config.disk = vhb_mailbox_disk(disk->box);
    config.memfd = memfd;
    config.worker_flags = VHB_WORKER_NO_URING;
    config.stopped = true;
    rig_open(rig, &config);
    rig_go_on(rig, &shared->driver);
    CHECK_EQ(vhb_queue_set_inflight(rig->queue, shared->region, REGION, ring.size), 0);
    /* As QEMU does: it knows the used index of a split ring, and nothing of a packed one. */
    bool is_packed = ring.features & RIG_PACKED;
    uint32_t base = is_packed ? 0x80008000 : get16(rig, RIG_USED + 2);
    CHECK_EQ(vhb_queue_set_base(rig->queue, base), 0);
}

static void live(int memfd, enum order order)
{
    struct rig rig;
    struct disk disk = {.order = order};
    open_life(&rig, &disk, memfd);
    vhb_crash_set_hook(pass);
    take_back(&rig);
    rig_run(&rig);
    for (int i = 0; !all_given(); i++) {
        CHECK(i < 1000);
        ask_more(&rig);
        rig_pass(&rig);
        take_back(&rig);
        take_jobs(&disk);
        do_jobs(&disk);
    }
    rig_drain(&rig);
    rig_check_base(&rig, rig.avail_idx);
    vhb_crash_set_hook(NULL);
    rig_close(&rig);
    CHECK_EQ(vhb_mailbox_free(disk.box), 0);
}

/* Whether it died at the *die_at*-th place; else it has served all there was. */
static bool life_dies(int memfd, enum order order, uint32_t die_at)
{
    order = (enum order)(((uint32_t)order + shared->lives++) % ORDERS);
    shared->passed = 0;
    shared->die_at = die_at;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        live(memfd, order);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == LIFE_DIED);
    return WEXITSTATUS(status) == LIFE_DIED;
}

static void check_story(void)
{
    for (int k = 0; k < TOTAL; k++) {
        CHECK_EQ(shared->given[k], 1);
        CHECK(shared->done[k] >= 1);
        CHECK_EQ(shared->done[k], shared->done_when_given[k]);
    }
}

/* A guest that has done nothing yet; the indexes of a split ring are about to wrap. */
static int new_guest(void)
{
    struct rig rig;
    struct rig_config config = ring;
    config.stopped = true;
    rig_open(&rig, &config);
    if (!(ring.features & RIG_PACKED)) {
        put_avail_idx(&rig, START);
        put16(&rig, RIG_USED + 2, START);
        rig.used_seen = START;
    }
    int memfd = dup(rig.memfd);
    CHECK(memfd >= 0);
    memset(shared, 0, sizeof(*shared));
    shared->driver = rig;
    for (int i = 0; i < MAX_SIZE; i++)
        shared->owner[i] = -1;
    rig_close(&rig);
    return memfd;
}

/* ---- stories --------------------------------------------------------------------------- */

static const char *seen[4096]; /* where lives have ended */
static size_t n_seen;

static bool was_seen(const char *name)
{
    for (size_t i = 0; i < n_seen; i++)
        if (strcmp(seen[i], name) == 0)
            return true;
    return false;
}

static bool dies(int memfd, enum order order, uint32_t die_at)
{
    bool died = life_dies(memfd, order, die_at);
    if (died && !was_seen(shared->died))
        seen[n_seen++] = shared->died;
    return died;
}

/* Die at the *first*-th place, die again at the *second*-th of the next life (0: do not), and live
 * on.  False: the first life has not so many places. */
static bool tell_story(enum order order, uint32_t first, uint32_t second)
{
    int memfd = new_guest();
    bool died = dies(memfd, order, first);
    if (died && (second == 0 || dies(memfd, order, second)))
        CHECK(!dies(memfd, order, 0));
    else if (died)
        died = shared->passed < second; /* the second life had served all before */
    check_story();
    close(memfd);
    return died;
}

static void open_story(void)
{
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
}

static void close_story(void)
{
    munmap(shared, sizeof(*shared));
}

static void die_everywhere(const struct rig_config *config)
{
    ring = *config;
    open_story();
    for (int order = 0; order < ORDERS; order++) {
        uint32_t first = 1;
        while (tell_story((enum order)order, first, 0))
            first++;
        CHECK(first > 8 * TOTAL); /* each request passes that many */
    }
    close_story();
}

static void test_dying_anywhere_split(void)
{
    die_everywhere(&split);
}

static void test_dying_anywhere_packed(void)
{
    die_everywhere(&packed);
}

static void test_dying_anywhere_split_in_order(void)
{
    die_everywhere(&split_in_order);
}

static void test_dying_anywhere_packed_in_order(void)
{
    die_everywhere(&packed_in_order);
}

/* Who takes over dies, too: while he recovers, or with the first of what he takes again. */
static void die_twice(const struct rig_config *config)
{
    ring = *config;
    open_story();
    for (uint32_t second = 1; second <= 15; second++)
        for (uint32_t first = second % 5 + 1; tell_story(LAST_COMES_FIRST, first, second);)
            first += 5;
    close_story();
}

static void test_dying_twice_split(void)
{
    die_twice(&split);
}

static void test_dying_twice_packed(void)
{
    die_twice(&packed);
}

static void test_dying_twice_split_in_order(void)
{
    die_twice(&split_in_order);
}

static void test_dying_twice_packed_in_order(void)
{
    die_twice(&packed_in_order);
}

/* The stories above have ended at each place there is in the core. */
static void test_no_place_was_left_out(void)
{
    for (unsigned i = 0; vhb_crash_name(i); i++) {
        if (!was_seen(vhb_crash_name(i)))
            printf("# nobody died at %s\n", vhb_crash_name(i));
        CHECK(was_seen(vhb_crash_name(i)));
    }
    CHECK(n_seen > 10);
}

CHECK_MAIN(TEST(dying_anywhere_split), TEST(dying_twice_split), TEST(dying_anywhere_packed),
           TEST(dying_twice_packed), TEST(dying_anywhere_split_in_order),
           TEST(dying_twice_split_in_order), TEST(dying_anywhere_packed_in_order),
           TEST(dying_twice_packed_in_order), TEST(no_place_was_left_out))
