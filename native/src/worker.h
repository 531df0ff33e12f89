/* worker.h - a worker, and what it watches. */
#ifndef VHB_WORKER_H
#define VHB_WORKER_H

#include "io.h"
#include "polling.h"
#include "visit.h"

struct vhb_worker {
    struct vhb_io io;
    struct vhb_poll poll;
    int wake_fd, event_fd;
    uint32_t sleeping; /* pair: sleeping */
    uint32_t stop, running;
    uint32_t attached;       /* queues, counted by the control plane and the worker */
    struct vhb_queue *inbox; /* a stack of queues to adopt */
    bool started;            /* the io is enabled and watches wake_fd */
    bool lent;               /* a thread of this process has requests of ours */
    uint32_t empty;          /* passes that found nothing to do */
    uint32_t generation;     /* of watches: a late event is told by it */

    struct vhb_queue **queues;
    uint32_t n_queues, room;
};

/* ---- watch.c: the worker's thread ---- */

int vhb_watch_wake(struct vhb_worker *worker);
/* Watch the kick fd while the ring is ours to take from, as *state* says.  Else not: once the ring
 * is given back the control plane may close it, and its number may soon name something else. */
void vhb_watch_kick(struct vhb_worker *worker, struct vhb_queue *queue, uint32_t state);
void vhb_watch_disk(struct vhb_worker *worker, struct vhb_queue *queue);
void vhb_watch_end(struct vhb_worker *worker, struct vhb_queue *queue); /* the queue goes */
void vhb_watch_ready(void *worker, uint64_t token, bool still_watched); /* vhb_io_ready */

#endif
