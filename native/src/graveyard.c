/* graveyard.c - requests that were cancelled but are still with the disk.
 *
 * The guest has been told that they failed and may write the same blocks again: a late write of a
 * dead request must not overtake the new one, so new ones that overlap wait until it has left.
 * Empty is the rule; a counter answers then, without the lock. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "atomics.h"
#include "disk.h"

struct vhb_graveyard {
    uint32_t dead; /* changed under the lock; pair: grave */
    pthread_mutex_t lock;
    struct vhb_req *first;
};

int vhb_graveyard_new(struct vhb_graveyard **out)
{
    struct vhb_graveyard *g = calloc(1, sizeof(*g));
    if (!g)
        return -ENOMEM;
    int r = pthread_mutex_init(&g->lock, NULL);
    if (r) {
        free(g);
        return -r;
    }
    *out = g;
    return 0;
}

int vhb_graveyard_free(struct vhb_graveyard *g)
{
    if (!g)
        return 0;
    /* The lock also waits for a leave that has counted down but still holds it. */
    pthread_mutex_lock(&g->lock);
    bool busy = g->dead;
    pthread_mutex_unlock(&g->lock);
    if (busy)
        return -EBUSY;
    pthread_mutex_destroy(&g->lock);
    free(g);
    return 0;
}

void vhb_grave_bury(struct vhb_graveyard *g, struct vhb_req *req)
{
    pthread_mutex_lock(&g->lock);
    req->buried_next = g->first;
    g->first = req;
    /* Before the guest learns of the failure, and so before any request that it sends because of
     * it, on whichever queue.  pair: grave */
    store_release(&g->dead, g->dead + 1);
    pthread_mutex_unlock(&g->lock);
}

void vhb_grave_leave(struct vhb_graveyard *g, struct vhb_req *req)
{
    pthread_mutex_lock(&g->lock);
    struct vhb_req **at = &g->first;
    while (*at && *at != req)
        at = &(*at)->buried_next;
    if (*at) {
        *at = req->buried_next;
        req->buried_next = NULL;
        store_release(&g->dead, g->dead - 1);
    }
    pthread_mutex_unlock(&g->lock);
}

static bool changes_bytes(const struct vhb_req *req)
{
    return req->op == VHB_WRITE || req->op == VHB_DISCARD || req->op == VHB_WRITE_ZEROES;
}

/* Ranges were checked against the capacity: their ends do not overflow. */
static bool ranges_overlap(const struct vhb_req *a, const struct vhb_req *b)
{
    return a->offset < b->offset + b->len && b->offset < a->offset + a->len;
}

bool vhb_grave_blocks(struct vhb_graveyard *g, const struct vhb_req *req)
{
    if (load_acquire(&g->dead) == 0 || !changes_bytes(req)) /* pair: grave */
        return false;
    pthread_mutex_lock(&g->lock);
    const struct vhb_req *dead = g->first;
    while (dead && !(changes_bytes(dead) && ranges_overlap(dead, req)))
        dead = dead->buried_next;
    pthread_mutex_unlock(&g->lock);
    return dead;
}
