/* verifier.c - writes a disk under load and knows of every block what must be in it.
 *
 *   verifier DEVICE BLOCKS THREADS SEED
 *
 * Blocks are 4096 bytes.  Block 0 is the host's: the run ends once it begins with "stop".  Each
 * thread owns every THREADS-th run of blocks, with one request under way at a time, so it knows
 * which number a block must carry: a block with an older one was written twice or forgotten, one
 * with a newer one, or of another place, was invented.  What is on the disk at the start is taken
 * for what an earlier run wrote, if every block is whole.  All I/O is O_DIRECT.
 *
 * Says on its standard output, for the host:
 *   @@ beat OPERATIONS LONGEST_US     five times a second; the longest request since the last beat
 *   @@ bad TEXT                       what is wrong; the exit status is then 1
 *   @@ table HEX                      at the end: a digest of every block's number
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, RUN = 16, MOST = 8, WORDS = BLOCK / 8, BEAT_US = 200000 };

static const uint64_t MAGIC = 0x7665726966796d65;

/* A block: magic, its place, its number, then words that follow from both. */
struct worker {
    pthread_t thread;
    unsigned index;
    uint64_t random;
    uint64_t *buffer; /* MOST blocks */
};

static int disk;
static uint64_t blocks;
static unsigned threads;
static uint64_t *numbers; /* of each block; its owner's */
static atomic_ullong operations;
static atomic_ulong longest;
static atomic_bool over;

static uint64_t mix(uint64_t x)
{
    x ^= x >> 33;
    x *= 0xff51afd7ed558ccd;
    x ^= x >> 33;
    x *= 0xc4ceb9fe1a85ec53;
    return x ^ x >> 33;
}

static uint64_t draw(struct worker *w, uint64_t below)
{
    w->random = mix(w->random + 0x9e3779b97f4a7c15);
    return w->random % below;
}

static uint64_t now_us(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static void fail(const char *what, uint64_t block, uint64_t found, uint64_t wanted)
{
    printf("@@ bad %s: block %" PRIu64 " has %" PRIu64 ", not %" PRIu64 "\n", what, block, found,
           wanted);
    fflush(stdout);
    _exit(1);
}

static void fill(uint64_t *words, uint64_t block, uint64_t number)
{
    words[0] = MAGIC;
    words[1] = block;
    words[2] = number;
    for (unsigned i = 3; i < WORDS; i++)
        words[i] = mix(block * 0x10001 + number * 7 + i);
}

static void check(const uint64_t *words, uint64_t block)
{
    uint64_t expected[WORDS];
    if (numbers[block] == 0)
        memset(expected, 0, sizeof(expected));
    else
        fill(expected, block, numbers[block]);
    if (memcmp(words, expected, BLOCK) == 0)
        return;
    if (words[1] != block || words[0] != MAGIC)
        fail("a stranger", block, words[1], block);
    fail(words[2] < numbers[block] ? "an older write" : "torn or invented", block, words[2],
         numbers[block]);
}

/* One request, and how long it took. */
static void request(bool write, void *buffer, uint64_t block, uint64_t n)
{
    uint64_t begun = now_us();
    off_t at = (off_t)(block * BLOCK);
    ssize_t r = write ? pwrite(disk, buffer, n * BLOCK, at) : pread(disk, buffer, n * BLOCK, at);
    if (r != (ssize_t)(n * BLOCK))
        fail(write ? "a write failed, errno" : "a read failed, errno", block, (uint64_t)errno, 0);
    unsigned long took = (unsigned long)(now_us() - begun), seen = atomic_load(&longest);
    while (took > seen && !atomic_compare_exchange_weak(&longest, &seen, took))
        ;
    atomic_fetch_add(&operations, 1);
}

static void one(struct worker *w)
{
    uint64_t runs = (blocks - 1) / RUN / threads;
    uint64_t run = draw(w, runs) * threads + w->index;
    uint64_t n = 1 + draw(w, MOST), block = 1 + run * RUN + draw(w, RUN - n + 1);
    uint64_t choice = draw(w, 16);
    if (choice == 0) {
        if (fdatasync(disk) < 0)
            fail("a flush failed, errno", block, (uint64_t)errno, 0);
        return;
    }
    if (choice < 11) {
        for (uint64_t i = 0; i < n; i++)
            fill(w->buffer + i * WORDS, block + i, numbers[block + i] + 1);
        request(true, w->buffer, block, n);
        for (uint64_t i = 0; i < n; i++)
            numbers[block + i]++;
        return;
    }
    request(false, w->buffer, block, n);
    for (uint64_t i = 0; i < n; i++)
        check(w->buffer + i * WORDS, block + i);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    while (!atomic_load(&over))
        one(w);
    return NULL;
}

/* Beats until the host says stop. */
static void wait_for_stop(uint64_t *buffer)
{
    do {
        usleep(BEAT_US);
        printf("@@ beat %llu %lu\n", atomic_load(&operations), atomic_exchange(&longest, 0));
        fflush(stdout);
        request(false, buffer, 0, 1);
    } while (memcmp(buffer, "stop", 4) != 0);
}

/* Go over the disk. */
static void each(uint64_t *buffer, void (*look)(const uint64_t *words, uint64_t block))
{
    for (uint64_t block = 1, n; block < blocks; block += n) {
        n = blocks - block < MOST ? blocks - block : MOST;
        request(false, buffer, block, n);
        for (uint64_t i = 0; i < n; i++)
            look(buffer + i * WORDS, block + i);
    }
}

static void learn(const uint64_t *words, uint64_t block)
{
    numbers[block] = words[0] == MAGIC ? words[2] : 0;
    check(words, block);
}

static void check_all(uint64_t *buffer)
{
    uint64_t digest = 0;
    each(buffer, check);
    for (uint64_t block = 1; block < blocks; block++)
        digest = mix(digest ^ numbers[block]);
    printf("@@ table %016" PRIx64 "\n", digest);
}

static uint64_t *blocks_of_memory(size_t n)
{
    void *p = NULL;
    if (posix_memalign(&p, BLOCK, n * BLOCK))
        abort();
    return p;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    disk = open(argv[1], O_RDWR | O_DIRECT);
    blocks = strtoull(argv[2], NULL, 0);
    threads = (unsigned)strtoul(argv[3], NULL, 0);
    numbers = calloc(blocks, sizeof(*numbers));
    struct worker *workers = calloc(threads, sizeof(*workers));
    if (disk < 0 || !numbers || !workers || (blocks - 1) / RUN < threads)
        return 2;
    uint64_t *buffer = blocks_of_memory(MOST);
    each(buffer, learn);
    for (unsigned i = 0; i < threads; i++) {
        workers[i] = (struct worker){.index = i,
                                     .random = mix(strtoull(argv[4], NULL, 0) + i),
                                     .buffer = blocks_of_memory(MOST)};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
            return 2;
    }
    wait_for_stop(buffer);
    atomic_store(&over, true);
    for (unsigned i = 0; i < threads; i++)
        pthread_join(workers[i].thread, NULL);
    check_all(buffer);
    return 0;
}
