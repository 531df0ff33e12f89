/* test_scribble.c - a guest that rewrites its ring, headers and tables while they are read.
 *
 * What comes of a request is anybody's guess; that the queue can always be taken back, that every
 * slot comes home and that a sanitizer has nothing to say is not.  Two threads race, so no two runs
 * are the same; what each of them does is drawn from a fixed seed. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rig.h"

enum { SIZE = 64, CHAINS = SIZE / 3, ROUNDS = 400, BYTES = 1 << 20 };

static atomic_bool stop;

static uint32_t draw(uint64_t *seed, uint32_t below)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (uint32_t)(*seed >> 20) % below;
}

static uint32_t data_of(uint32_t head)
{
    return RIG_DATA + 0x4000 * head;
}

static void lay_out(struct rig *rig)
{
    for (uint32_t chain = 0; chain < CHAINS; chain++)
        put_request(rig, 3 * chain, chain % 2 ? BLK_IN : BLK_OUT, chain, data_of(3 * chain), 512);
}

/* One change to one chain: a plausible one as a rule, so that most chains get somewhere. */
static void change(struct rig *rig, uint64_t *seed)
{
    static const uint32_t types[] = {BLK_IN,     BLK_IN,      BLK_OUT,          BLK_OUT, BLK_FLUSH,
                                     BLK_GET_ID, BLK_DISCARD, BLK_WRITE_ZEROES, 99};
    uint32_t head = 3 * draw(seed, CHAINS), type = types[draw(seed, 9)];
    bool writes = type == BLK_IN || type == BLK_GET_ID, ranges = type >= BLK_DISCARD;
    uint32_t data = 16 * (head + 1);
    put32(rig, header_at(head), type);
    put64(rig, header_at(head) + 8, draw(seed, 2100));
    put16(rig, data + 12, DESC_NEXT | (writes ? DESC_WRITE : 0));
    put32(rig, data + 8, (ranges ? 16 : 512) * (1 + draw(seed, 5)) + (draw(seed, 9) == 0));
    for (uint32_t i = 0; ranges && i < 4; i++)
        put_range(rig, data_of(head), i, draw(seed, 2100), draw(seed, 64), draw(seed, 3));
    uint32_t victim = 16 * (head + draw(seed, 3));
    switch (draw(seed, 500)) {
    case 0:
        put16(rig, victim + 12, (uint16_t)draw(seed, 8));
        break;
    case 1:
        put16(rig, victim + 14, (uint16_t)draw(seed, SIZE + 1));
        break;
    case 2:
        put64(rig, victim, *seed);
        break;
    default:
        break;
    }
}

static void *scribble(void *arg)
{
    uint64_t seed = 88172645463325252u;
    while (!stop) {
        change(arg, &seed);
        if (draw(&seed, 60) == 0)
            lay_out(arg);
        sched_yield();
    }
    return NULL;
}

/* Make a handful available, an impossible head now and then, and give them a moment. */
static void offer(struct rig *rig, uint64_t *seed)
{
    for (uint32_t n = 1 + draw(seed, 40); n; n--)
        put_avail(rig, (uint16_t)(draw(seed, 2000) ? 3 * draw(seed, CHAINS) : draw(seed, 70)));
    rig_kick(rig);
    for (int i = 0; i < 50 && get16(rig, RIG_USED + 2) != rig->avail_idx; i++)
        sched_yield();
}

/* Take the queue back, whatever state it is in, and start it somewhere else. */
static void restart(struct rig *rig, uint64_t *seed)
{
    uint16_t base = (uint16_t)draw(seed, 65536);
    if (draw(seed, 2))
        rig_cancel(rig);
    else
        rig_drain(rig);
    rig->events = 0;
    lay_out(rig);
    put_avail_idx(rig, base);
    put16(rig, RIG_USED + 2, base);
    CHECK_EQ(vhb_queue_set_base(rig->queue, base), 0);
    rig_run(rig);
}

static void check_survives(struct vhb_disk *disk, uint64_t features)
{
    struct rig rig;
    pthread_t thread;
    uint64_t seed = 2463534242u;
    rig_open(&rig, &(struct rig_config){
                       .disk = disk, .size = SIZE, .features = features, .threaded = true});
    lay_out(&rig);
    stop = false;
    CHECK_EQ(pthread_create(&thread, NULL, scribble, &rig), 0);
    for (int round = 0; round < ROUNDS; round++) {
        offer(&rig, &seed);
        rig.events |= vhb_queue_take_events(rig.queue);
        if (rig.events & VHB_BROKEN || draw(&seed, 20) == 0)
            restart(&rig, &seed);
    }
    stop = true;
    CHECK_EQ(pthread_join(thread, NULL), 0);

    restart(&rig, &seed); /* and an honest driver finds it as good as new */
    rig.used_seen = rig.avail_idx;
    for (int i = 0; i < SIZE; i++)
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    CHECK_EQ(RIG_COUNT(&rig, in_flight), 0);
    CHECK_EQ(RIG_COUNT(&rig, dead), 0);
    rig_close(&rig);
}

static void test_scribbling_over_a_memory_disk(void)
{
    struct vhb_disk *disk;
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, BYTES, &disk), 0);
    check_survives(disk, RIG_INDIRECT);
    check_survives(disk, RIG_EVENT_IDX);
    check_survives(disk, RIG_IN_ORDER);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, BYTES);
}

/* A file whose misaligned requests are bounced: pieces change between its rounds. */
static void test_scribbling_over_a_bounced_file(void)
{
    struct vhb_disk *disk;
    FILE *file = tmpfile();
    CHECK(file != NULL && ftruncate(fileno(file), BYTES) == 0);
    CHECK_EQ(vhb_disk_file_new(fileno(file), VHB_FILE_DIRECT, 4096, 512, &disk), 0);
    check_survives(disk, RIG_INDIRECT | RIG_EVENT_IDX);
    CHECK_EQ(vhb_disk_free(disk), 0);
    fclose(file);
}

CHECK_MAIN(TEST(scribbling_over_a_memory_disk), TEST(scribbling_over_a_bounced_file))
