/* machine.c - what the machine itself gives in this run, for lines that are measured against it.
 *
 * usage: machine ping|wake CORE CORE SECONDS | machine memcpy CORE BYTES SPAN SECONDS
 *
 * ping: round trip of a cache line between two cores; wake: of an eventfd between two threads that
 * sleep; memcpy: one copy of BYTES out of SPAN bytes of memory, at the addresses that client.c's
 * first queue asks for, into 32 buffers.  Prints JSON: nanoseconds, the median of 64 parts. */
#include "client.h"
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PARTS = 64, BUFFERS = 32 };

struct pair {
    int core, there, back;
    bool sleep;
    _Alignas(128) uint64_t ball;
};

static void pin(int core)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((size_t)core, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0) {
        perror("machine: that core");
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t catch (struct pair *p, int fd, uint64_t ball)
{
    uint64_t got;
    if (p->sleep)
        return read(fd, &got, sizeof(got)) == sizeof(got) ? got : 0;
    while ((got = __atomic_load_n(&p->ball, __ATOMIC_ACQUIRE)) < ball)
        ;
    return got;
}

static void throw(struct pair * p, int fd, uint64_t ball)
{
    if (!p->sleep)
        __atomic_store_n(&p->ball, ball, __ATOMIC_RELEASE);
    else if (write(fd, &(uint64_t){ball == UINT64_MAX ? 2 : 1}, 8) != 8)
        exit(1);
}

static void *other(void *argument)
{
    struct pair *p = argument;
    pin(p->core);
    for (uint64_t ball = 1;; ball += 2) {
        uint64_t got = catch (p, p->there, ball);
        if (got == UINT64_MAX || (p->sleep && got == 2))
            return NULL;
        throw(p, p->back, ball + 1);
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(double *parts)
{
    qsort(parts, PARTS, sizeof(*parts), compare);
    printf("{\"ns\": %.1f}\n", parts[PARTS / 2]);
}

static void ping_pong(int a, int b, bool sleep, double seconds)
{
    struct pair p = {.core = b, .sleep = sleep, .there = eventfd(0, 0), .back = eventfd(0, 0)};
    double parts[PARTS];
    pthread_t thread;
    pin(a);
    pthread_create(&thread, NULL, other, &p);
    uint64_t ball = 1;
    for (int part = 0; part < PARTS; part++) {
        uint64_t begin = now_ns(), now = begin, trips = 0;
        for (; now < begin + (uint64_t)(seconds * 1e9 / PARTS); now = now_ns(), trips += 8)
            for (int i = 0; i < 8; i++, ball += 2) {
                throw(&p, p.there, ball);
                catch (&p, p.back, ball + 1);
            }
        parts[part] = (double)(now - begin) / (double)trips;
    }
    throw(&p, p.there, UINT64_MAX);
    pthread_join(thread, NULL);
    report(parts);
}

static uint8_t *memory(size_t size)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *m = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (m == MAP_FAILED) {
        perror("machine: memory");
        exit(1);
    }
    madvise(m, size, MADV_NOHUGEPAGE); /* as a memory: disk has it */
    memset(m, 0x5a, size);
    return m;
}

static void copy(int core, size_t bytes, size_t span, double seconds)
{
    double parts[PARTS];
    pin(core);
    uint8_t *disk = memory(span), *buffers = memory(bytes * BUFFERS);
    uint64_t state = WALK_SEED, n = 0;
    for (int part = 0; part < PARTS; part++) {
        uint64_t begin = now_ns(), now = begin, copies = 0;
        for (; now < begin + (uint64_t)(seconds * 1e9 / PARTS); now = now_ns(), copies += 32)
            for (int i = 0; i < 32; i++) {
                uint8_t *to = buffers + n++ % BUFFERS * bytes;
                memcpy(to, disk + walk(&state) % (span / bytes) * bytes, bytes);
                __asm__ volatile("" ::"r"(to) : "memory");
            }
        parts[part] = (double)(now - begin) / (double)copies;
    }
    report(parts);
}

int main(int argc, char **argv)
{
    if (argc == 5 && !strcmp(argv[1], "ping"))
        ping_pong(atoi(argv[2]), atoi(argv[3]), false, atof(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "wake"))
        ping_pong(atoi(argv[2]), atoi(argv[3]), true, atof(argv[4]));
    else if (argc == 6 && !strcmp(argv[1], "memcpy"))
        copy(atoi(argv[2]), strtoul(argv[3], NULL, 0), strtoul(argv[4], NULL, 0), atof(argv[5]));
    else {
        fprintf(stderr, "usage: machine ping|wake CORE CORE SECONDS | "
                        "machine memcpy CORE BYTES SPAN SECONDS\n");
        return 2;
    }
    return 0;
}
