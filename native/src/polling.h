/* polling.h - how long a worker looks on before it sleeps. */
#ifndef VHB_POLLING_H
#define VHB_POLLING_H

#include "vhostblk.h"

/* One worker's, and its thread's; the counters are read by anyone.  Times are nanoseconds of any
 * clock that does not go back; only the worker looks at one. */
struct vhb_poll {
    uint32_t mode; /* VHB_POLL_* */
    uint64_t cap;
    uint64_t window;
    uint64_t since;   /* when there was work last */
    bool looking;     /* a pass behind it found none */
    bool unpaid;      /* no request was met since the window was tried, or missed */
    uint32_t pause;   /* short sleeps between the next window that does not pay and a new try */
    uint32_t to_wait; /* of those behind the last one, still to come */
    struct vhb_worker_counters counters;
};

/* -EINVAL: no such mode. */
int vhb_poll_init(struct vhb_poll *poll, uint32_t mode, uint32_t us);
/* A pass of a worker that was awake has found work; it began at *found* and is over *now*. */
void vhb_poll_hit(struct vhb_poll *poll, uint64_t found, uint64_t now);
/* A pass has found none: whether to look again, else to sleep. */
bool vhb_poll_goes_on(struct vhb_poll *poll, uint64_t now);
/* The sleep behind that is over, and the pass behind it has found work; times as of a hit. */
void vhb_poll_woken(struct vhb_poll *poll, uint64_t found, uint64_t now);
/* There was work that says nothing of the driver: the disk was waited for. */
void vhb_poll_restart(struct vhb_poll *poll, uint64_t now);

#endif
