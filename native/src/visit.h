/* visit.h - what a visit of a queue is made of. */
#ifndef VHB_VISIT_H
#define VHB_VISIT_H

#include "vq.h"

/* ---- visit.c ---- */

/* One visit by the worker: completions, new requests, what was asked.  *state* was loaded by the
 * caller, which has made its watches fit.  How much was done. */
int vhb_queue_serve(struct vhb_queue *queue, struct vhb_io *io, uint32_t state);
/* The worker is about to sleep: whether it must not. */
bool vhb_queue_wants_visit(struct vhb_queue *queue);
/* How long it may sleep on for this queue: microseconds; -1: for ever. */
int64_t vhb_queue_patience(const struct vhb_queue *queue);
void vhb_queue_quiet(struct vhb_queue *queue); /* the worker is awake: kicks are not needed */

/* ---- take.c ---- */

/* Take new requests and start them, as far as *ask* lets us; how many. */
int vhb_take_some(struct vhb_queue *queue, struct vhb_io *io, uint32_t ask);
/* A queue that is to drain takes what a predecessor had taken, and nothing else: its base says that
 * all of that was taken. */
bool vhb_may_take(const struct vhb_queue *queue, uint32_t ask);
bool vhb_has_slot(const struct vhb_queue *queue); /* for one more request */

#endif
