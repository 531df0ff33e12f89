/* step.c - what the core itself costs per request, by where the driver's addresses point and what
 * kind of ring it has.
 *
 * usage: step ROUNDS BATCHES
 *
 * Every world is a worker, a queue and a guest's memory of its own, stepped by hand on one thread:
 * DEPTH requests of 4 KiB, each with an indirect table of three descriptors, are made available,
 * and the clock runs while vhb_worker_step serves them.  Worlds take turns, round after round.
 * They do the same but for one thing:
 *
 *   direct      header and status are neighbours, as in Linux's struct virtblk_req
 *   bounced     table, header, data and status in swiotlb slots of their own, 2 KiB aligned
 *   iotlb-N     each of them behind an IOMMU, in a table of N segments of 4 KiB
 *   tracked     direct, and what is taken is noted in an inflight region
 *   packed      direct, in a packed ring
 *   in-order, packed-ord   direct, in a ring that is used in order
 *   record      direct, behind a layer that writes each request down, for a thread that puts it
 *               into a file, as in a server
 *   record-all  the same without that thread: all that it costs
 *   log-off     direct, behind one that does not, as it is switched off
 *   delay-off, limit-off, error-off   direct, behind one of these that is set to nothing
 *   stats       direct, behind one that counts
 *   parts-N     direct, behind N layers that each hand on a part of the disk
 *   told-N      direct, behind N layers that are told what each request has ended with
 *
 * Prints a line per world: nanoseconds per request, median over the rounds, tenth and ninetieth
 * percentile; and the same of the difference to "direct" in the same round. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "step_layers.h"

enum {
    DEPTH = 16,
    SIZE = 64, /* descriptors of the ring */
    PAGE = 4096,
    SLOT = 2048,
    LENGTH = 4096,
    RAM = 1 << 20,
    RING = 0, /* desc, avail, used: one page each; the rest is laid out below */
    BODY = 4 * PAGE,
    REGION = PAGE, /* 16 bytes, and 16 for each descriptor */
    WARM_UP = 8,
    MAX_ROUNDS = 10000
};
#define IOVA 0x100000000ull
#define PACKED (1ull << 34)
#define IN_ORDER (1ull << 35)

struct place {
    uint64_t table, header, data, status; /* offsets in ram */
};

struct world {
    const char *disk_name, *op, *shape;
    uint32_t entries;  /* of the IOTLB; 0: none */
    uint64_t features; /* beside INDIRECT_DESC */
    uint8_t *ram;
    struct vhb_disk *disk;
    struct vhb_worker *worker;
    struct vhb_graveyard *graveyard;
    struct vhb_queue *queue;
    uint16_t avail; /* requests so far */
    uint32_t random;
    double ns[MAX_ROUNDS];
};

static struct place place_of(const struct world *w, uint32_t i)
{
    uint64_t pages = BODY + (uint64_t)i * 4 * PAGE, small = 256 * (uint64_t)i;
    if (w->entries) /* four pages each; offsets in them as the allocator of the guest gives */
        return (struct place){pages + 64 * i, pages + PAGE + small, pages + 2 * PAGE,
                              pages + 3 * PAGE + small + 16};
    if (!strcmp(w->shape, "bounced"))
        return (struct place){pages, pages + SLOT, pages + PAGE, pages + 2 * PAGE};
    return (struct place){BODY + 64 * (uint64_t)i, BODY + PAGE + small,
                          BODY + 2 * PAGE + PAGE * (uint64_t)i, BODY + PAGE + small + 16};
}

/* Which row of the table gives a page: they are spread over all of it, in no order. */
static uint64_t row_of(const struct world *w, uint64_t page)
{
    return page * 37 % (4 * DEPTH) * (w->entries / (4 * DEPTH));
}

static uint64_t address(const struct world *w, uint64_t offset)
{
    if (!w->entries)
        return IOVA + offset;
    return IOVA + row_of(w, (offset - BODY) / PAGE) * PAGE + offset % PAGE;
}

static void put_desc(uint8_t *at, uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
    memcpy(at, &addr, 8);
    memcpy(at + 8, &len, 4);
    memcpy(at + 12, &flags, 2);
    memcpy(at + 14, &next, 2);
}

/* Spec: virtio 1.3, 2.7.5, 2.8.13 and 5.2.6. */
static void lay(struct world *w, uint32_t i)
{
    struct place at = place_of(w, i);
    bool writes = !strcmp(w->op, "write");
    uint32_t type = writes;
    uint64_t sector = 8 * (uint64_t)i;
    uint8_t *table = w->ram + at.table;
    memcpy(w->ram + at.header, &type, 4);
    memcpy(w->ram + at.header + 8, &sector, 8);
    bool packed = w->features & PACKED; /* flags come last there; NEXT means nothing in a table */
    put_desc(table, address(w, at.header), 16, !packed, !packed);
    put_desc(table + 16, address(w, at.data), LENGTH,
             packed   ? 0
             : writes ? 1
                      : 3,
             packed ? 2 * !writes : 2);
    put_desc(table + 32, address(w, at.status), 1, packed ? 0 : 2, packed ? 2 : 0);
    if (!packed)
        put_desc(w->ram + RING + 16 * i, address(w, at.table), 48, 4, 0);
}

static void set_space(struct world *w)
{
    uint32_t n = w->entries ? w->entries : 1;
    struct vhb_segment *rows = calloc(n, sizeof(*rows));
    check(rows ? 0 : -ENOMEM, "memory");
    rows[0] = (struct vhb_segment){.iova = IOVA, .len = RAM, .host = w->ram, .access = 3};
    for (uint32_t i = 0; w->entries && i < n; i++) /* what nobody uses lives in the first page */
        rows[i] = (struct vhb_segment){
            .iova = IOVA + (uint64_t)i * PAGE, .len = PAGE, .host = w->ram + BODY, .access = 3};
    for (uint64_t page = 0; w->entries && page < 4 * DEPTH; page++)
        rows[row_of(w, page)].host = w->ram + BODY + page * PAGE;
    check(vhb_queue_set_space(w->queue, rows, n), "memory table");
    free(rows);
}

static void *map(size_t size)
{
    void *p =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    check(p == MAP_FAILED ? -errno : 0, "mmap");
    return p;
}

static void open_world(struct world *w)
{
    struct vhb_blk blk = {.capacity_sectors = SECTORS, .block_size = 512};
    struct vhb_worker_config config = {.flags = VHB_WORKER_NO_URING};
    w->ram = map(RAM);
    if (!strcmp(w->disk_name, "null"))
        check(vhb_disk_null_new(false, &w->disk), "disk");
    else
        check(vhb_disk_memory_new(map(SECTORS * 512), SECTORS * 512, &w->disk), "disk");
    w->disk = put_layer(w->disk, w->shape);
    check(vhb_worker_new(&config, &w->worker), "worker");
    check(vhb_graveyard_new(&w->graveyard), "graveyard");
    check(vhb_queue_new(w->worker, w->disk, w->graveyard, SIZE, &w->queue), "queue");
    check(vhb_queue_set_size(w->queue, SIZE), "size");
    for (int part = 0; part < 3; part++) {
        struct vhb_piece piece = {w->ram + RING + part * PAGE, PAGE};
        check(vhb_queue_set_part(w->queue, part, &piece, 1), "ring");
    }
    check(vhb_queue_set_blk(w->queue, &blk), "device");
    check(vhb_queue_set_features(w->queue, w->features | 1ull << 28), "features");
    check(vhb_queue_set_base(w->queue, w->features & PACKED ? 0x80008000 : 0), "base");
    check(vhb_queue_set_enabled(w->queue, true), "enable");
    for (uint32_t i = 0; i < DEPTH; i++)
        lay(w, i);
    set_space(w);
    if (!strcmp(w->shape, "tracked"))
        check(vhb_queue_set_inflight(w->queue, map(REGION), REGION, SIZE), "inflight region");
    check(vhb_queue_run(w->queue), "run");
    check(vhb_worker_step(w->worker), "step"); /* adopts it */
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Split: the entries; all are published by the index.  Packed: the descriptors, one for each.
 * Spec: virtio 1.3, 2.7.6 and 2.8.13. */
static void make_available(struct world *w, uint16_t head)
{
    uint32_t slot = w->avail % SIZE;
    uint16_t flags = 4 | (w->avail / SIZE % 2 ? 1 << 15 : 1 << 7);
    if (w->features & PACKED)
        put_desc(w->ram + RING + 16 * slot, address(w, place_of(w, head).table), 48, head, flags);
    else
        memcpy(w->ram + RING + PAGE + 4 + 2 * slot, &head, 2);
    w->avail++;
}

/* Nanoseconds that the core took for DEPTH requests, in an order that no branch predictor learns
 * and that is the same in every run. */
static uint64_t batch(struct world *w)
{
    uint16_t head = 0, *avail_idx = (void *)(w->ram + RING + PAGE + 2);
    w->random = w->random * 1664525 + 1013904223;
    for (uint32_t i = 0; i < DEPTH; i++) {
        head = (uint16_t)((i * (w->random >> 16 | 1) + (w->random >> 8)) % DEPTH);
        w->ram[place_of(w, head).status] = 0xee;
        make_available(w, head);
    }
    if (!(w->features & PACKED))
        __atomic_store_n(avail_idx, w->avail, __ATOMIC_RELEASE);
    uint8_t *last = &w->ram[place_of(w, head).status]; /* they end as they came */
    uint64_t start = now_ns();
    while (__atomic_load_n(last, __ATOMIC_ACQUIRE) == 0xee)
        check(vhb_worker_step(w->worker), "step");
    uint64_t taken = now_ns() - start;
    for (uint32_t i = 0; i < DEPTH; i++)
        if (w->ram[place_of(w, i).status] != 0)
            check(-EIO, "a request");
    return taken;
}

static void play_round(struct world *w, int round, int batches)
{
    uint64_t ns = 0;
    for (int i = 0; i < WARM_UP; i++)
        batch(w);
    for (int i = 0; i < batches; i++)
        ns += batch(w);
    w->ns[round] = (double)ns / batches / DEPTH;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_spread(const struct world *w, const struct world *base, int rounds)
{
    static double sorted[MAX_ROUNDS];
    for (int i = 0; i < rounds; i++)
        sorted[i] = w->ns[i] - (base ? base->ns[i] : 0);
    qsort(sorted, (size_t)rounds, sizeof(*sorted), compare);
    printf(" %8.1f (%.1f to %.1f)", sorted[rounds / 2], sorted[rounds / 10],
           sorted[rounds * 9 / 10]);
}

static const char *const disks[] = {"null", "memory"}, *const ops[] = {"read", "write"};
static const struct {
    const char *name;
    uint32_t entries;
    uint64_t features;
} shapes[] = {{"direct", 0, 0},          {"bounced", 0, 0},
              {"iotlb-64", 64, 0},       {"iotlb-2048", 2048, 0},
              {"tracked", 0, 0},         {"packed", 0, PACKED},
              {"in-order", 0, IN_ORDER}, {"packed-ord", 0, PACKED | IN_ORDER},
              {"record", 0, 0},          {"record-all", 0, 0},
              {"log-off", 0, 0},         {"delay-off", 0, 0},
              {"limit-off", 0, 0},       {"error-off", 0, 0},
              {"stats", 0, 0},           {"parts-1", 0, 0},
              {"parts-8", 0, 0},         {"told-1", 0, 0},
              {"told-8", 0, 0}};
enum { SHAPES = sizeof(shapes) / sizeof(*shapes), WORLDS = 2 * 2 * SHAPES };

int main(int argc, char **argv)
{
    static struct world worlds[WORLDS];
    int rounds = argc == 3 ? atoi(argv[1]) : 0, batches = argc == 3 ? atoi(argv[2]) : 0;
    if (rounds < 1 || rounds > MAX_ROUNDS || batches < 1) {
        fprintf(stderr, "usage: step ROUNDS BATCHES\n");
        return 2;
    }
    for (int i = 0; i < WORLDS; i++) {
        worlds[i] = (struct world){.disk_name = disks[i / SHAPES / 2],
                                   .op = ops[i / SHAPES % 2],
                                   .shape = shapes[i % SHAPES].name,
                                   .entries = shapes[i % SHAPES].entries,
                                   .features = shapes[i % SHAPES].features};
        open_world(&worlds[i]);
    }
    for (int round = 0; round < rounds; round++)
        for (int i = 0; i < WORLDS; i++)
            play_round(&worlds[i], round, batches);
    for (int i = 0; i < WORLDS; i++) {
        const struct world *w = &worlds[i], *base = &worlds[i - i % SHAPES];
        printf("%-6s %-5s %-10s", w->disk_name, w->op, w->shape);
        print_spread(w, NULL, rounds);
        if (w != base)
            print_spread(w, base, rounds);
        putchar('\n');
    }
    return 0;
}
