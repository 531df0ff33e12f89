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
    uint64_t *awake;     /* a bit for each place of the table: a queue that is visited */
    uint32_t asked;      /* something may be wanted of any queue; pair: asked */
    uint32_t losses;     /* vhb_fault_total() when all were awake last */
    uint64_t rest_until; /* ns; when those that rest are looked at once; 0: never */
};

/* ---- watch.c: the worker's thread ---- */

int vhb_watch_wake(struct vhb_worker *worker);
/* Watch the kick fd while the ring is ours to take from, as *state* says.  Else not: once the ring
 * is given back the control plane may close it, and its number may soon name something else. */
void vhb_watch_kick(struct vhb_worker *worker, struct vhb_queue *queue, uint32_t state);
void vhb_watch_disk(struct vhb_worker *worker, struct vhb_queue *queue);
void vhb_watch_end(struct vhb_worker *worker, struct vhb_queue *queue); /* the queue goes */
void vhb_watch_ready(void *worker, uint64_t token, bool still_watched); /* vhb_io_ready */

/* ---- rest.c: the worker's thread ---- */

void vhb_rest_end(struct vhb_worker *worker, const struct vhb_queue *queue); /* it is visited */
/* The first queue that is awake at *at* or behind, and its place; NULL: none is. */
struct vhb_queue *vhb_next_awake(const struct vhb_worker *worker, uint32_t *at);
/* A pass begins: wake all, if they may have missed something. */
void vhb_rest_wake_asked(struct vhb_worker *worker);
/* A visit is over, and whether it has done something: let the queue rest, perhaps. */
void vhb_rest_after(struct vhb_worker *worker, struct vhb_queue *queue, bool worked);
int64_t vhb_rest_patience(const struct vhb_worker *worker); /* as of a queue; 0: at once */

/* ---- worker.c ---- */

/* The ring takes requests and nothing tells of its kicks. */
bool vhb_is_polled(const struct vhb_queue *queue);

#endif
