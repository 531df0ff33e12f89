/* way.h - whether a read or write is tried in its worker before it is given to the ring.
 *
 * One of each file and direction, shared by all workers.  A try wins or loses; what has lost too
 * much is left alone for a while, twice as long each time, and tried again.  Units are the kind's
 * own: of NOWAIT tries, of TIMED nanoseconds.  Nothing is written while all is well, so workers
 * that serve one file do not take the line from each other. */
#ifndef VHB_WAY_H
#define VHB_WAY_H

#include "vhostblk.h"

struct vhb_way {
    uint32_t kind;         /* enum vhb_file_way */
    uint64_t debt;         /* units lost and not yet won back */
    uint64_t pause;        /* ns; how long the last one was; 0: none since there was no debt */
    uint64_t closed_until; /* ns, CLOCK_MONOTONIC */
};

bool vhb_way_is_open(const struct vhb_way *way, uint64_t now);
void vhb_way_won(struct vhb_way *way, uint64_t units);
void vhb_way_lost(struct vhb_way *way, uint64_t units, uint64_t now);

/* Of a TIMED try: *len* bytes took *ns*. */
void vhb_way_took(struct vhb_way *way, uint64_t len, uint64_t ns, uint64_t now);

#endif
