/* rig.c - see rig.h. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"

int64_t rig_now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int rig_temporary(int flags, size_t len)
{
    char path[4096];
    const char *dir = getenv("TMPDIR");
    snprintf(path, sizeof(path), "%s/vhostblk-test-XXXXXX", dir ? dir : "/var/tmp");
    int fd = mkostemp(path, O_CLOEXEC | flags);
    CHECK(fd >= 0 && unlink(path) == 0 && ftruncate(fd, (off_t)len) == 0);
    return fd;
}

/* ---- memory --------------------------------------------------------------------------- */

uint64_t rig_at(uint32_t offset)
{
    return RIG_RAM_AT + (uint64_t)offset;
}

void put16(struct rig *rig, uint32_t offset, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)(rig->ram + offset), value, __ATOMIC_RELAXED);
}

void put32(struct rig *rig, uint32_t offset, uint32_t value)
{
    __atomic_store_n((uint32_t *)(void *)(rig->ram + offset), value, __ATOMIC_RELAXED);
}

void put64(struct rig *rig, uint32_t offset, uint64_t value)
{
    __atomic_store_n((uint64_t *)(void *)(rig->ram + offset), value, __ATOMIC_RELAXED);
}

uint16_t get16(struct rig *rig, uint32_t offset)
{
    return __atomic_load_n((uint16_t *)(void *)(rig->ram + offset), __ATOMIC_ACQUIRE);
}

uint32_t get32(struct rig *rig, uint32_t offset)
{
    return __atomic_load_n((uint32_t *)(void *)(rig->ram + offset), __ATOMIC_RELAXED);
}

static uint8_t pattern(size_t i, uint32_t seed)
{
    return (uint8_t)(i * 31 + (i >> 9) * 7 + seed * 101 + 1);
}

void rig_fill(struct rig *rig, uint32_t offset, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++)
        rig->ram[offset + i] = pattern(i, seed);
}

bool rig_is(struct rig *rig, uint32_t offset, size_t len, uint32_t seed)
{
    for (size_t i = 0; i < len; i++)
        if (rig->ram[offset + i] != pattern(i, seed))
            return false;
    return true;
}

/* ---- the control plane ---------------------------------------------------------------- */

void rig_pass(struct rig *rig)
{
    if (rig->config.threaded) {
        sched_yield();
        return;
    }
    CHECK(vhb_worker_step(rig->worker) >= 0);
}

void rig_wait(struct rig *rig, uint32_t event)
{
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS;
    for (;;) {
        rig->events |= vhb_queue_take_events(rig->queue);
        if (rig->events & event)
            break;
        CHECK(rig_now_ms() < end);
        rig_pass(rig);
    }
    rig->events &= ~event;
}

struct vhb_fault rig_broken(struct rig *rig)
{
    struct vhb_fault fault;
    rig_wait(rig, VHB_BROKEN);
    CHECK_EQ(vhb_queue_fault(rig->queue, &fault), 0);
    return fault;
}

uint64_t rig_count(struct rig *rig, size_t offset)
{
    struct vhb_counters counters;
    uint64_t value;
    CHECK_EQ(vhb_queue_counters(rig->queue, &counters), 0);
    memcpy(&value, (const uint8_t *)&counters + offset, sizeof(value));
    return value;
}

void rig_space(struct rig *rig)
{
    struct vhb_segment all = {.iova = RIG_RAM_AT,
                              .len = RIG_RAM,
                              .host = rig->ram,
                              .access = VHB_ACCESS_READ | VHB_ACCESS_WRITE};
    CHECK_EQ(vhb_queue_set_space(rig->queue, &all, 1), 0);
}

void rig_parts(struct rig *rig)
{
    uint32_t size = rig->config.size;
    struct vhb_piece desc = {rig->ram + RIG_DESC, 16 * (size_t)size};
    bool packed = rig->config.features & RIG_PACKED;
    struct vhb_piece avail = {rig->ram + RIG_AVAIL, packed ? 4 : 6 + 2 * (size_t)size};
    struct vhb_piece used = {rig->ram + RIG_USED, packed ? 4 : 6 + 8 * (size_t)size};
    CHECK_EQ(vhb_queue_set_size(rig->queue, size), 0);
    CHECK_EQ(vhb_queue_set_part(rig->queue, VHB_PART_DESC, &desc, 1), 0);
    CHECK_EQ(vhb_queue_set_part(rig->queue, VHB_PART_AVAIL, &avail, 1), 0);
    CHECK_EQ(vhb_queue_set_part(rig->queue, VHB_PART_USED, &used, 1), 0);
}

void rig_run(struct rig *rig)
{
    CHECK_EQ(vhb_queue_run(rig->queue), 0);
}

void rig_park(struct rig *rig)
{
    CHECK_EQ(vhb_queue_park(rig->queue), 0);
    rig_wait(rig, VHB_PARKED);
}

void rig_drain(struct rig *rig)
{
    CHECK_EQ(vhb_queue_drain(rig->queue), 0);
    rig_wait(rig, VHB_DRAINED);
}

void rig_cancel(struct rig *rig)
{
    CHECK_EQ(vhb_queue_drain(rig->queue), 0);
    CHECK_EQ(vhb_queue_cancel(rig->queue), 0);
    rig_wait(rig, VHB_DRAINED);
}

uint32_t rig_base(struct rig *rig)
{
    uint32_t base;
    CHECK_EQ(vhb_queue_base(rig->queue, &base), 0);
    return base;
}

/* ---- life ----------------------------------------------------------------------------- */

static void *run_worker(void *arg)
{
    CHECK_EQ(vhb_worker_run(arg), 0);
    return NULL;
}

static void make_blk(struct rig *rig)
{
    const struct rig_config *c = &rig->config;
    uint32_t flags = VHB_BLK_DISCARD | VHB_BLK_WRITE_ZEROES | VHB_BLK_UNMAP | c->blk_flags;
    rig->blk = (struct vhb_blk){
        .capacity_sectors = c->sectors ? c->sectors : 2048,
        .block_size = c->block_size ? c->block_size : 512,
        .flags = flags & ~c->blk_flags_off,
        .max_discard_sectors = 1024,
        .max_discard_seg = 4,
        .max_write_zeroes_sectors = 1024,
        .max_write_zeroes_seg = 4,
        .serial = "rig-serial",
    };
    CHECK_EQ(vhb_queue_set_blk(rig->queue, &rig->blk), 0);
}

static void make_ram(struct rig *rig)
{
    rig->memfd = rig->config.memfd ? dup(rig->config.memfd) : memfd_create("rig", MFD_CLOEXEC);
    CHECK(rig->memfd >= 0 && ftruncate(rig->memfd, RIG_RAM) == 0);
    void *ram = mmap(NULL, RIG_RAM, PROT_READ | PROT_WRITE, MAP_SHARED, rig->memfd, 0);
    CHECK(ram != MAP_FAILED);
    rig->ram = ram;
}

int rig_worker(uint32_t flags, struct vhb_worker **out)
{
    if (getenv("VHB_TEST_PLAIN"))
        flags |= VHB_WORKER_NO_URING;
    return vhb_worker_new(&(struct vhb_worker_config){.flags = flags}, out);
}

int rig_file(int fd, uint32_t flags, uint32_t align, struct vhb_disk **out)
{
    const char *way = getenv("VHB_TEST_WAY");
    if (way && !strcmp(way, "ring"))
        flags |= VHB_FILE_RING;
    else if (way && !strcmp(way, "inline"))
        flags |= VHB_FILE_INLINE;
    return vhb_disk_file_new(fd, flags, align, align, out);
}

static void make_worker(struct rig *rig)
{
    rig->worker = rig->config.worker;
    if (rig->worker)
        return;
    CHECK_EQ(rig_worker(rig->config.worker_flags, &rig->worker), 0);
    if (rig->config.threaded) {
        pthread_t thread;
        CHECK_EQ(pthread_create(&thread, NULL, run_worker, rig->worker), 0);
        rig->thread = (unsigned long)thread;
    }
}

static void make_queue(struct rig *rig)
{
    struct rig_config *c = &rig->config;
    rig->graveyard = c->graveyard;
    if (!rig->graveyard)
        CHECK_EQ(vhb_graveyard_new(&rig->graveyard), 0);
    if (!c->disk)
        CHECK_EQ(vhb_disk_null_new(true, &rig->null_disk), 0);
    struct vhb_disk *disk = rig_layers_put(&rig->layers, c->disk ? c->disk : rig->null_disk);
    CHECK_EQ(vhb_queue_new(rig->worker, disk, rig->graveyard, c->size, &rig->queue), 0);
    CHECK_EQ(vhb_queue_set_kick(rig->queue, rig->kick), 0);
    CHECK_EQ(vhb_queue_set_call(rig->queue, rig->call), 0);
    CHECK_EQ(vhb_queue_set_err(rig->queue, rig->err), 0);
    CHECK_EQ(vhb_queue_set_features(rig->queue, c->features), 0);
    CHECK_EQ(vhb_queue_set_enabled(rig->queue, true), 0);
}

void rig_open(struct rig *rig, const struct rig_config *config)
{
    *rig = (struct rig){.config = *config};
    if (rig->config.size == 0)
        rig->config.size = 64;
    if (getenv("VHB_TEST_PACKED"))
        rig->config.features |= RIG_PACKED;
    if (getenv("VHB_TEST_IN_ORDER"))
        rig->config.features |= RIG_IN_ORDER;
    rig->kick = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    rig->call = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    rig->err = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    CHECK(rig->kick >= 0 && rig->call >= 0 && rig->err >= 0);
    make_ram(rig);
    make_worker(rig);
    make_queue(rig);
    make_blk(rig);
    rig_space(rig);
    rig_parts(rig);
    rig_first(rig);
    if (!config->stopped)
        rig_run(rig);
}

void rig_close(struct rig *rig)
{
    rig_cancel(rig);
    CHECK_EQ(vhb_queue_detach(rig->queue), 0);
    rig_wait(rig, VHB_DETACHED);
    CHECK_EQ(vhb_queue_free(rig->queue), 0);
    rig_layers_free(&rig->layers);
    if (!rig->config.worker) {
        CHECK_EQ(vhb_worker_stop(rig->worker), 0);
        if (rig->config.threaded)
            CHECK_EQ(pthread_join((pthread_t)rig->thread, NULL), 0);
        CHECK_EQ(vhb_worker_free(rig->worker), 0);
    }
    if (!rig->config.graveyard)
        CHECK_EQ(vhb_graveyard_free(rig->graveyard), 0);
    CHECK_EQ(vhb_disk_free(rig->null_disk), 0);
    munmap(rig->ram, RIG_RAM);
    close(rig->memfd);
    close(rig->kick);
    close(rig->call);
    close(rig->err);
}
