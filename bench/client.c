/* client.c - a load on a vhost-user-blk socket through libblkio, which nobody here wrote.
 *
 * usage: client SOCKET read|write BYTES DEPTH SECONDS block|poll seq|rand SPAN
 *
 * Keeps DEPTH requests of BYTES under way for SECONDS within the first SPAN bytes of the disk
 * (0: all of it), after a tenth of that time to warm up.  "block" sleeps on the completion
 * eventfd, as a normal guest does; "poll" looks at the used ring.  Prints one line of JSON:
 * iops, latencies in microseconds, this process's CPU microseconds per I/O. */
#include <blkio.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 1024, BUCKETS = 1 << 16, BUCKET_NS = 100 };

struct load {
    struct blkio *blkio;
    struct blkioq *queue;
    struct blkio_mem_region memory;
    int fd;
    uint64_t span, next;
    size_t bytes;
    int depth;
    bool write, sequential, poll;
    uint64_t random;
    uint64_t started[MAX_DEPTH];
    uint64_t done, warm;
    uint32_t histogram[BUCKETS + 1];
};

static void check(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, strerror(-result), blkio_get_error_msg());
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static double cpu_us(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e6 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

static uint64_t next_offset(struct load *l)
{
    uint64_t blocks = l->span / l->bytes;
    if (l->sequential)
        return l->next++ % blocks * l->bytes;
    l->random ^= l->random << 13; /* xorshift: the same walk in every run */
    l->random ^= l->random >> 7;
    l->random ^= l->random << 17;
    return l->random % blocks * l->bytes;
}

static void issue(struct load *l, uintptr_t slot, uint64_t now)
{
    uint64_t offset = next_offset(l);
    void *buffer = (uint8_t *)l->memory.addr + slot * l->bytes;
    l->started[slot] = now;
    if (l->write)
        blkioq_write(l->queue, offset, buffer, l->bytes, (void *)slot, 0);
    else
        blkioq_read(l->queue, offset, buffer, l->bytes, (void *)slot, 0);
}

static void account(struct load *l, uint64_t ns)
{
    uint64_t bucket = ns / BUCKET_NS;
    l->histogram[bucket < BUCKETS ? bucket : BUCKETS]++;
}

static void wait_for_completions(struct load *l)
{
    struct pollfd p = {.fd = l->fd, .events = POLLIN};
    uint64_t ignored;
    if (poll(&p, 1, 5000) == 0) {
        fprintf(stderr, "no completion within 5 s: the back-end hangs\n");
        exit(1);
    }
    if (read(l->fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN)
        check(-errno, "completion eventfd");
}

static void turn(struct load *l, bool go_on)
{
    struct blkio_completion done[MAX_DEPTH];
    int n = blkioq_do_io(l->queue, done, 0, l->depth, NULL);
    check(n, "do_io");
    if (n == 0 && !l->poll)
        wait_for_completions(l);
    uint64_t now = n ? now_ns() : 0;
    for (int i = 0; i < n; i++) {
        uintptr_t slot = (uintptr_t)done[i].user_data;
        check(done[i].ret, "request");
        account(l, now - l->started[slot]);
        l->done++;
        if (go_on)
            issue(l, slot, now);
    }
}

static double percentile(const struct load *l, double share)
{
    uint64_t seen = 0, wanted = (uint64_t)((double)(l->done - l->warm) * share);
    for (int i = 0; i <= BUCKETS; i++)
        if ((seen += l->histogram[i]) > wanted)
            return (double)i * BUCKET_NS / 1e3;
    return 0;
}

static void connect_to(struct load *l, const char *path)
{
    uint64_t capacity;
    check(blkio_create("virtio-blk-vhost-user", &l->blkio), "create");
    check(blkio_set_str(l->blkio, "path", path), "path");
    check(blkio_connect(l->blkio), "connect");
    check(blkio_set_int(l->blkio, "num-queues", 1), "num-queues");
    check(blkio_set_int(l->blkio, "queue-size", 256), "queue-size");
    check(blkio_start(l->blkio), "start");
    check(blkio_get_uint64(l->blkio, "capacity", &capacity), "capacity");
    if (l->span == 0 || l->span > capacity)
        l->span = capacity;
    check(blkio_alloc_mem_region(l->blkio, &l->memory, (size_t)l->depth * l->bytes), "memory");
    check(blkio_map_mem_region(l->blkio, &l->memory), "map memory");
    memset(l->memory.addr, 0x5a, l->memory.len);
    l->queue = blkio_get_queue(l->blkio, 0);
    blkioq_set_completion_fd_enabled(l->queue, !l->poll);
    l->fd = blkioq_get_completion_fd(l->queue);
}

static void run(struct load *l, double seconds)
{
    uint64_t start = now_ns();
    for (uintptr_t slot = 0; slot < (uintptr_t)l->depth; slot++)
        issue(l, slot, start);
    uint64_t warm_end = start + (uint64_t)(seconds * 1e8);
    while (now_ns() < warm_end)
        turn(l, true);
    l->warm = l->done;
    memset(l->histogram, 0, sizeof(l->histogram));
    double cpu = cpu_us();
    uint64_t begin = now_ns(), end = begin + (uint64_t)(seconds * 1e9);
    while (now_ns() < end)
        turn(l, true);
    double elapsed = (double)(now_ns() - begin) / 1e9, n = (double)(l->done - l->warm);
    printf("{\"iops\": %.0f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"client_cpu_us\": %.3f, "
           "\"ios\": %.0f}\n",
           n / elapsed, percentile(l, 0.5), percentile(l, 0.99), (cpu_us() - cpu) / n, n);
    uint64_t issued = l->done + (uint64_t)l->depth;
    while (l->done < issued)
        turn(l, false);
}

int main(int argc, char **argv)
{
    if (argc != 9) {
        fprintf(stderr, "usage: client SOCKET read|write BYTES DEPTH SECONDS block|poll "
                        "seq|rand SPAN\n");
        return 2;
    }
    static struct load load;
    load.write = !strcmp(argv[2], "write");
    load.bytes = strtoul(argv[3], NULL, 0);
    load.depth = atoi(argv[4]);
    load.poll = !strcmp(argv[6], "poll");
    load.sequential = !strcmp(argv[7], "seq");
    load.span = strtoull(argv[8], NULL, 0);
    load.random = 88172645463325252u;
    if (load.depth < 1 || load.depth > MAX_DEPTH || load.bytes < 512) {
        fprintf(stderr, "depth: 1 to %d; bytes: 512 or more\n", MAX_DEPTH);
        return 2;
    }
    connect_to(&load, argv[1]);
    run(&load, atof(argv[5]));
    blkio_destroy(&load.blkio);
    return 0;
}
