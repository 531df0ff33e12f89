/* client.c - a load on vhost-user-blk sockets through libblkio, which nobody here wrote.
 *
 * usage: client KEY=VALUE... SOCKET...
 *
 * Keeps "depth" requests of "bytes" under way on each of "queues" queues of each SOCKET, all by one
 * thread, for "seconds" after a tenth of that time to warm up, or until "ios" are done.
 * wait=block sleeps on the completion eventfds, as a normal guest does; wait=poll looks at the used
 * rings.  Prints one line of JSON; CPU times are microseconds per request, of this process and of
 * the one called "pid".  hold=1: then keeps its connections until its standard input ends. */
#include "client.h"
#include <blkio.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { MAX_DEPTH = 256, MAX_LANES = 1024, STUCK_MS = 5000 };

/* A queue and what is under way on it. */
struct lane {
    struct blkioq *queue;
    uint8_t *buffers;
    int fd;
    uint64_t next, random, done;
    uint64_t started[MAX_DEPTH];
};

struct load {
    struct options o;
    uint64_t span;
    int n, epoll;
    struct lane *lanes[MAX_LANES];
    struct blkio *devices[MAX_LANES];
    int n_devices;
    bool awake[MAX_LANES];
    uint64_t done;
    struct histogram histogram;
};

static void check(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, strerror(-result), blkio_get_error_msg());
    exit(1);
}

static uint64_t clock_ns(clockid_t id)
{
    struct timespec ts = {0};
    clock_gettime(id, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t now_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

/* What all threads of the server have used, those that have ended among them; 0: nobody's. */
static uint64_t server_ns(const struct options *o)
{
    clockid_t id;
    return o->pid && clock_getcpuclockid((pid_t)o->pid, &id) == 0 ? clock_ns(id) : 0;
}

static uint64_t next_offset(const struct load *l, struct lane *lane)
{
    uint64_t blocks = l->span / l->o.bytes;
    if (l->o.sequential)
        return lane->next++ % blocks * l->o.bytes;
    return walk(&lane->random) % blocks * l->o.bytes;
}

static void issue(struct load *l, struct lane *lane, uintptr_t slot, uint64_t now)
{
    uint64_t offset = next_offset(l, lane);
    void *buffer = lane->buffers + slot * l->o.bytes;
    lane->started[slot] = now;
    if (l->o.write)
        blkioq_write(lane->queue, offset, buffer, l->o.bytes, (void *)slot, 0);
    else
        blkioq_read(lane->queue, offset, buffer, l->o.bytes, (void *)slot, 0);
}

/* Submit what is issued and take what is complete: how many. */
static int look(struct load *l, struct lane *lane, bool go_on)
{
    struct blkio_completion done[MAX_DEPTH];
    int n = blkioq_do_io(lane->queue, done, 0, (int)l->o.depth, NULL);
    check(n, "do_io");
    uint64_t now = n ? now_ns() : 0;
    for (int i = 0; i < n; i++) {
        uintptr_t slot = (uintptr_t)done[i].user_data;
        check(done[i].ret, "request");
        histogram_add(&l->histogram, now - lane->started[slot]);
        if (go_on)
            issue(l, lane, slot, now);
    }
    lane->done += (uint64_t)n;
    l->done += (uint64_t)n;
    return n;
}

/* Wake the lanes whose eventfds were written; sleeps only where none is awake. */
static void wait_for_completions(struct load *l, bool sleep)
{
    struct epoll_event ready[64];
    uint64_t ignored;
    int n = epoll_wait(l->epoll, ready, 64, sleep ? STUCK_MS : 0);
    if (n == 0 && sleep) {
        fprintf(stderr, "no completion within 5 s: the back-end hangs\n");
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        struct lane *lane = l->lanes[ready[i].data.u32];
        if (read(lane->fd, &ignored, sizeof(ignored)) < 0 && errno != EAGAIN)
            check(-errno, "completion eventfd");
        l->awake[ready[i].data.u32] = true;
    }
}

static void turn(struct load *l, bool go_on)
{
    bool any = false;
    for (int i = 0; i < l->n; i++) {
        if (!l->o.poll && !l->awake[i])
            continue;
        l->awake[i] = look(l, l->lanes[i], go_on) > 0;
        any |= l->awake[i];
    }
    if (!l->o.poll && (!any || l->n > 1))
        wait_for_completions(l, !any);
}

static void add_lane(struct load *l, struct blkio *device, int queue, uint8_t *buffers)
{
    if (l->n == MAX_LANES) {
        fprintf(stderr, "%d queues at most\n", MAX_LANES);
        exit(2);
    }
    struct lane *lane = calloc(1, sizeof(*lane));
    lane->queue = blkio_get_queue(device, queue);
    lane->buffers = buffers;
    lane->random = WALK_SEED + (uint64_t)l->n;
    lane->next = l->span / l->o.bytes / l->o.queues * (uint64_t)queue;
    blkioq_set_completion_fd_enabled(lane->queue, !l->o.poll);
    lane->fd = blkioq_get_completion_fd(lane->queue);
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)l->n};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, lane->fd, &event) < 0)
        check(-errno, "epoll");
    l->awake[l->n] = true;
    l->lanes[l->n++] = lane;
}

static void connect_to(struct load *l, const char *path)
{
    uint64_t capacity;
    struct blkio *device;
    struct blkio_mem_region memory;
    size_t share = l->o.depth * l->o.bytes;
    check(blkio_create("virtio-blk-vhost-user", &device), "create");
    check(blkio_set_str(device, "path", path), "path");
    check(blkio_connect(device), "connect");
    check(blkio_set_int(device, "num-queues", (int)l->o.queues), "num-queues");
    check(blkio_set_int(device, "queue-size", 256), "queue-size");
    check(blkio_start(device), "start");
    check(blkio_get_uint64(device, "capacity", &capacity), "capacity");
    l->span = l->o.span && l->o.span < capacity ? l->o.span : capacity;
    check(blkio_alloc_mem_region(device, &memory, share * l->o.queues), "memory");
    check(blkio_map_mem_region(device, &memory), "map memory");
    memset(memory.addr, 0x5a, memory.len);
    for (size_t i = 0; i < l->o.queues; i++)
        add_lane(l, device, (int)i, (uint8_t *)memory.addr + i * share);
    l->devices[l->n_devices++] = device;
}

static void warm_up(struct load *l)
{
    uint64_t now = now_ns(), end = now + (uint64_t)(l->o.seconds * 1e8);
    for (int i = 0; i < l->n; i++)
        for (uintptr_t slot = 0; slot < l->o.depth; slot++)
            issue(l, l->lanes[i], slot, now);
    while (l->o.ios == 0 && now_ns() < end)
        turn(l, true);
    memset(&l->histogram, 0, sizeof(l->histogram));
    for (int i = 0; i < l->n; i++)
        l->lanes[i]->done = 0;
    l->done = 0;
}

static void report(const struct load *l, double seconds, double client_ns, double server)
{
    double n = l->done ? (double)l->done : 1;
    uint64_t least = UINT64_MAX, most = 0;
    for (int i = 0; i < l->n; i++) {
        least = l->lanes[i]->done < least ? l->lanes[i]->done : least;
        most = l->lanes[i]->done > most ? l->lanes[i]->done : most;
    }
    printf("{\"ios\": %.0f, \"iops\": %.1f, \"client_cpu_us\": %.4f, \"server_cpu_us\": %.4f, "
           "\"least\": %.0f, \"most\": %.0f, \"latency_us\": ",
           (double)l->done, (double)l->done / seconds, client_ns / 1e3 / n, server / 1e3 / n,
           (double)least, (double)most);
    histogram_print(&l->histogram);
    printf("}\n");
    fflush(stdout);
}

static void run(struct load *l)
{
    warm_up(l);
    uint64_t server = server_ns(&l->o), client = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    uint64_t begin = now_ns(), end = begin + (uint64_t)(l->o.seconds * 1e9);
    while (l->o.ios ? l->done < l->o.ios : now_ns() < end)
        turn(l, true);
    double seconds = (double)(now_ns() - begin) / 1e9;
    client = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - client;
    report(l, seconds, (double)client, (double)(server_ns(&l->o) - server));
    uint64_t issued = l->done + (uint64_t)l->n * l->o.depth;
    while (l->done < issued)
        turn(l, false);
}

int main(int argc, char **argv)
{
    static struct load load = {.o = OPTIONS_DEFAULT};
    int first = parse_options(&load.o, argc, argv);
    if (first == argc || load.o.depth < 1 || load.o.depth > MAX_DEPTH || load.o.bytes < 512) {
        fprintf(stderr, "usage: client KEY=VALUE... SOCKET... (depth 1 to %d, bytes from 512)\n",
                MAX_DEPTH);
        return 2;
    }
    load.epoll = epoll_create1(EPOLL_CLOEXEC);
    for (int i = first; i < argc; i++)
        connect_to(&load, argv[i]);
    run(&load);
    char ignored;
    while (load.o.hold && read(STDIN_FILENO, &ignored, 1) > 0)
        ;
    for (int i = 0; i < load.n_devices; i++)
        blkio_destroy(&load.devices[i]);
    return 0;
}
