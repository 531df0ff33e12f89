/* test_scribble_packed.c - a guest that rewrites its packed ring, events, headers and tables while
 * they are read; test_scribble.c's claims hold there, too. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "rig.h"

enum { SIZE = 13, ROUNDS = 600, BYTES = 1 << 20, TABLE = 0x40000 };

static atomic_bool stop;

static uint32_t draw(uint64_t *seed, uint32_t below)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return (uint32_t)(*seed >> 20) % below;
}

/* A descriptor as good as an honest one, as a rule: of a request that is one piece of each kind. */
static void put_plausible(struct rig *rig, uint32_t table, uint32_t i, uint64_t *seed)
{
    static const uint16_t lives[] = {
        PACKED_AVAIL, PACKED_AVAIL, PACKED_USED, PACKED_USED, 0, PACKED_AVAIL | PACKED_USED};
    uint32_t kind = table != RIG_DESC ? i % 3 : draw(seed, 4), id = draw(seed, SIZE);
    uint16_t flags = lives[draw(seed, 6)];
    if (kind == 0)
        put_packed(rig, table, i, rig_at(header_at(id)), 16, (uint16_t)id, flags | DESC_NEXT);
    else if (kind == 1)
        put_packed(rig, table, i, rig_at(RIG_DATA + 512 * id), 512 * draw(seed, 3), (uint16_t)id,
                   flags | DESC_NEXT | (draw(seed, 2) ? DESC_WRITE : 0));
    else if (kind == 2)
        put_packed(rig, table, i, rig_at(status_at(id)), 1, (uint16_t)id, flags | DESC_WRITE);
    else
        put_packed(rig, table, i, rig_at(TABLE), 48, (uint16_t)id, flags | DESC_INDIRECT);
}

static void change(struct rig *rig, uint64_t *seed)
{
    static const uint32_t types[] = {BLK_IN, BLK_OUT, BLK_FLUSH, BLK_GET_ID, BLK_DISCARD, 99};
    uint32_t id = draw(seed, SIZE), victim = RIG_DESC + 16 * draw(seed, SIZE);
    put32(rig, header_at(id), types[draw(seed, 6)]);
    put64(rig, header_at(id) + 8, draw(seed, 2100));
    put_plausible(rig, TABLE, draw(seed, 3), seed);
    put_plausible(rig, RIG_DESC, draw(seed, SIZE), seed);
    switch (draw(seed, 200)) {
    case 0:
        put16(rig, victim + 12, (uint16_t)*seed);
        break;
    case 1:
        put16(rig, victim + 14, (uint16_t)*seed);
        break;
    case 2:
        put64(rig, victim, *seed);
        break;
    case 3:
        put32(rig, RIG_AVAIL, (uint32_t)*seed);
        break;
    case 4:
        put32(rig, RIG_USED, (uint32_t)*seed); /* what only the device writes */
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
        sched_yield();
    }
    return NULL;
}

/* Any base that is one: used is up to a whole ring behind. */
static uint32_t any_base(uint64_t *seed)
{
    uint32_t avail = draw(seed, 2 * SIZE);
    uint32_t used = (avail + 2 * SIZE - draw(seed, SIZE + 1)) % (2 * SIZE);
    uint32_t low = avail % SIZE | (avail < SIZE ? 0x8000 : 0);
    return low | (used % SIZE | (used < SIZE ? 0x8000u : 0)) << 16;
}

/* Take the queue back, whatever state it is in, and start it somewhere else. */
static void restart(struct rig *rig, uint64_t *seed)
{
    if (draw(seed, 2))
        rig_cancel(rig);
    else
        rig_drain(rig);
    rig->events = 0;
    CHECK_EQ(vhb_queue_set_base(rig->queue, any_base(seed)), 0);
    rig_run(rig);
}

static bool served(struct rig *rig)
{
    return RIG_COUNT(rig, reads) + RIG_COUNT(rig, writes) + RIG_COUNT(rig, flushes) > 0;
}

static void check_survives(struct vhb_disk *disk, uint64_t features)
{
    struct rig rig;
    pthread_t thread;
    uint64_t seed = 2463534242u;
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    rig_open(&rig,
             &(struct rig_config){
                 .disk = disk, .size = SIZE, .features = RIG_PACKED | features, .threaded = true});
    stop = false;
    CHECK_EQ(pthread_create(&thread, NULL, scribble, &rig), 0);
    for (int round = 0; round < ROUNDS || !served(&rig); round++) { /* some get somewhere */
        CHECK(rig_now_ms() < end);
        rig_kick(&rig);
        for (int i = 0; i < 20; i++)
            sched_yield();
        rig.events |= vhb_queue_take_events(rig.queue);
        if (rig.events & VHB_BROKEN || draw(&seed, 20) == 0)
            restart(&rig, &seed);
    }
    stop = true;
    CHECK_EQ(pthread_join(thread, NULL), 0);

    rig_cancel(&rig); /* and an honest driver finds it as good as new */
    rig.events = 0;
    put32(&rig, RIG_AVAIL, 0);
    rig_begin(&rig);
    rig_run(&rig);
    for (int i = 0; i < SIZE; i++)
        CHECK_EQ(do_request(&rig, BLK_FLUSH, 0, 0, 0), BLK_OK);
    rig_drain(&rig);
    CHECK_EQ(RIG_COUNT(&rig, in_flight), 0);
    CHECK_EQ(RIG_COUNT(&rig, dead), 0);
    rig_close(&rig);
}

static void test_scribbling_over_a_packed_ring(void)
{
    static const uint64_t features[] = {0, RIG_INDIRECT, RIG_EVENT_IDX | RIG_INDIRECT,
                                        RIG_IN_ORDER | RIG_INDIRECT};
    struct vhb_disk *disk;
    void *host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(host != MAP_FAILED);
    CHECK_EQ(vhb_disk_memory_new(host, BYTES, &disk), 0);
    for (size_t i = 0; i < sizeof(features) / sizeof(features[0]); i++)
        check_survives(disk, features[i]);
    CHECK_EQ(vhb_disk_free(disk), 0);
    munmap(host, BYTES);
}

CHECK_MAIN(TEST(scribbling_over_a_packed_ring))
