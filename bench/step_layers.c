/* step_layers.c - the layers that step.c measures. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "step_layers.h"

enum { RECORD_ROOM = 1 << 19 }; /* as vhostblk/disk/record.py */

void check(int result, const char *what)
{
    if (result >= 0)
        return;
    fprintf(stderr, "step: %s: %s\n", what, strerror(-result));
    exit(1);
}

/* Nameless, and on a real file system where TMPDIR is on one. */
static int trace_file(void)
{
    const char *directory = getenv("TMPDIR");
    int fd = open(directory ? directory : "/tmp", O_TMPFILE | O_RDWR | O_APPEND, 0600);
    check(fd < 0 ? -errno : 0, "file");
    return fd;
}

/* On any CPU but ours. */
static void *write_out(void *stage)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        CPU_SET(cpu, &cpus);
    CPU_CLR(sched_getcpu(), &cpus);
    sched_setaffinity(0, sizeof(cpus), &cpus);
    struct pollfd waits = {.fd = vhb_stage_record_wake_fd(stage), .events = POLLIN};
    for (;;) {
        poll(&waits, 1, -1);
        check(vhb_stage_record_flush(stage), "flush");
    }
    return NULL;
}

static struct vhb_disk *put_parts(struct vhb_disk *disk, int n)
{
    struct vhb_partition whole = {.size = SECTORS * 512};
    struct vhb_stage *stage;
    for (int i = 0; i < n; i++) {
        check(vhb_stage_partition_new(&whole, &stage), "stage");
        check(vhb_layer_new(disk, stage, &disk), "layer");
    }
    return disk;
}

static int tell_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    return vhb_layer_hand_on_noted(layer, req, io, 0);
}

static int tell_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                     struct vhb_io *io)
{
    (void)layer, (void)req, (void)note, (void)io;
    return result;
}

static struct vhb_disk *put_told(struct vhb_disk *disk, int n)
{
    static const struct vhb_layer_ops kind = {.submit = tell_submit, .done = tell_done};
    for (int i = 0; i < n; i++) {
        struct vhb_stage *stage = calloc(1, sizeof(*stage));
        check(stage ? vhb_stage_init(stage, &kind, 0) : -ENOMEM, "stage");
        check(vhb_layer_new(disk, stage, &disk), "layer");
    }
    return disk;
}

/* A layer of a kind that has nothing to do; stats, which always counts.  False: another kind. */
static bool make_idle(const char *shape, struct vhb_stage **stage)
{
    struct vhb_error error = {.rate = 1, .end = 1, .error = 5};
    if (!strcmp(shape, "delay-off"))
        return vhb_stage_delay_new(&(struct vhb_delay){0}, stage) == 0;
    if (!strcmp(shape, "limit-off"))
        return vhb_stage_limit_new(&(struct vhb_limit){0}, stage) == 0;
    if (!strcmp(shape, "error-off"))
        return vhb_stage_error_new(&error, stage) == 0;
    if (!strcmp(shape, "stats"))
        return vhb_stage_stats_new(&(struct vhb_stats){0}, stage) == 0;
    return false;
}

struct vhb_disk *put_layer(struct vhb_disk *disk, const char *shape)
{
    struct vhb_stage *stage;
    if (!strncmp(shape, "parts-", 6))
        return put_parts(disk, atoi(shape + 6));
    if (!strncmp(shape, "told-", 5))
        return put_told(disk, atoi(shape + 5));
    if (!make_idle(shape, &stage)) {
        bool on = !strncmp(shape, "record", 6);
        if (!on && strcmp(shape, "log-off") != 0)
            return disk;
        struct vhb_record record = {.fd = on ? trace_file() : -1, .room = RECORD_ROOM, .on = on};
        check(vhb_stage_record_new(&record, &stage), "stage");
    }
    check(vhb_layer_new(disk, stage, &disk), "layer");
    pthread_t thread;
    if (!strcmp(shape, "record"))
        check(-pthread_create(&thread, NULL, write_out, stage), "thread");
    return disk;
}
