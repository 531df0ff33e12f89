/* watch.c - what wakes a worker: its own eventfd, the kicks of its queues, their disks.
 *
 * A token says what became ready: a queue's position, and a generation, as a late event may be of a
 * watch that has ended. */
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/uio.h>

#include "worker.h"

/* In bits 3-7 of a token; the rest is a queue's position and generation. */
enum watch { WATCH_WAKE = 1 << 3, WATCH_KICK = 2 << 3, WATCH_DISK = 3 << 3 };
enum { WATCH_KIND = 0xf8 };

static uint64_t token(const struct vhb_queue *q, enum watch kind, uint32_t generation)
{
    return (uint64_t)generation << 32 | (uint64_t)q->position << 8 | (uint64_t)kind;
}

/* Take the count off a kick fd; whether it is one.  Never waits: who shares the descriptor may have
 * made it blocking, and take the count away before us. */
static bool take_kicks(int fd)
{
    uint64_t n;
    struct iovec one = {.iov_base = &n, .iov_len = sizeof(n)};
    ssize_t r = preadv2(fd, &one, 1, -1, RWF_NOWAIT);
    return r == sizeof(n) || (r < 0 && errno == EAGAIN);
}

static void stop_watching_kick(struct vhb_worker *w, struct vhb_queue *q)
{
    if (q->watching)
        vhb_io_unwatch(&w->io, q->watched, token(q, WATCH_KICK, q->kick_generation));
    q->watching = false;
    q->kick_generation = ++w->generation;
}

static void kicked(struct vhb_worker *w, struct vhb_queue *q, bool still_watched)
{
    q->watching = still_watched;
    bool taken = take_kicks(q->watched);
    if (taken)
        count(&q->counters.kicks, 1);
    if (taken && still_watched)
        return;
    /* It cannot be watched, is no eventfd, or the ring of completions was full for a moment: to
     * watch it again at once could be a busy loop. */
    stop_watching_kick(w, q);
    q->deaf = true;
}

void vhb_watch_ready(void *context, uint64_t tok, bool still_watched)
{
    struct vhb_worker *w = context;
    uint64_t kind = tok & WATCH_KIND;
    uint32_t position = tok >> 8 & 0xffffff, generation = (uint32_t)(tok >> 32);
    if (kind == WATCH_WAKE) {
        eventfd_t ignored;
        eventfd_read(w->wake_fd, &ignored);
        if (!still_watched)
            vhb_io_watch(&w->io, w->wake_fd, WATCH_WAKE);
        return;
    }
    struct vhb_queue *q = position < w->n_queues ? w->queues[position] : NULL;
    if (!q)
        return;
    vhb_rest_end(w, q);
    if (kind == WATCH_DISK && generation == q->disk_generation)
        q->watching_disk = still_watched;
    else if (kind == WATCH_KICK && generation == q->kick_generation)
        kicked(w, q, still_watched); /* else: an event of a watch that has ended */
}

void vhb_watch_disk(struct vhb_worker *w, struct vhb_queue *q)
{
    if (q->watching_disk || !q->disk->ops->poll_fd)
        return;
    int fd = q->disk->ops->poll_fd(q->disk);
    q->watching_disk = vhb_io_watch(&w->io, fd, token(q, WATCH_DISK, q->disk_generation)) == 0;
}

void vhb_watch_kick(struct vhb_worker *w, struct vhb_queue *q, uint32_t state)
{
    int want = state == VHB_ASK_RUN ? q->kick : -1;
    if (q->watched != want) {
        stop_watching_kick(w, q);
        q->watched = want;
        q->deaf = false;
    }
    if (want < 0 || q->watching || q->deaf)
        return;
    q->watching = vhb_io_watch(&w->io, want, token(q, WATCH_KICK, q->kick_generation)) == 0;
    q->deaf = !q->watching;
}

int vhb_watch_wake(struct vhb_worker *w)
{
    return vhb_io_watch(&w->io, w->wake_fd, WATCH_WAKE);
}

void vhb_watch_end(struct vhb_worker *w, struct vhb_queue *q)
{
    stop_watching_kick(w, q);
    if (q->watching_disk)
        vhb_io_unwatch(&w->io, q->disk->ops->poll_fd(q->disk),
                       token(q, WATCH_DISK, q->disk_generation));
}
