/* polling.c - whether a worker that found no work looks again or sleeps: a policy, stepped by clock
 * values.
 *
 * A sleep costs a wake-up, of the driver's time to kick and of ours to come back; looking on costs
 * the CPU meanwhile.  The window is how long we look on behind the last request.  It doubles when a
 * request comes late in it; when none comes it is halved, and none when that happens twice in a
 * row. A request that ends a short sleep might have been met by a longer window: that is tried at
 * once, with the longest; as long as tries do not pay they become rare, so that a slow trickle of
 * requests costs next to none. */
#include <errno.h>

#include "atomics.h"
#include "polling.h"

/* No window is shorter than FLOOR_NS: it would not outlast the cheapest round trip.  A sleep is
 * short up to NEAR caps: its length has the driver's wake-up in it, and our own. */
enum { FLOOR_NS = 4000, NEAR = 4, MAX_PAUSE = 64 };

static uint64_t smaller(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void set_window(struct vhb_poll *p, uint64_t ns)
{
    p->window = ns;
    store_relaxed(&p->counters.window_us, ns / 1000);
}

int vhb_poll_init(struct vhb_poll *p, uint32_t mode, uint32_t us)
{
    if (mode > VHB_POLL_ALWAYS)
        return -EINVAL;
    *p = (struct vhb_poll){.mode = mode, .cap = us * 1000ull, .unpaid = true};
    p->window = mode == VHB_POLL_ALWAYS ? UINT64_MAX : p->cap;
    p->counters.window_us = mode == VHB_POLL_ALWAYS ? UINT64_MAX : us;
    return 0;
}

void vhb_poll_hit(struct vhb_poll *p, uint64_t found, uint64_t now)
{
    uint64_t gap = found - p->since;
    p->since = now;
    if (!p->looking)
        return;
    p->looking = false;
    count(&p->counters.polls_hit, 1);
    count(&p->counters.polled_ns, gap);
    p->unpaid = false;
    p->pause = p->to_wait = 0;
    if (p->mode == VHB_POLL_AUTO && gap > p->window / 2)
        set_window(p, smaller(2 * p->window, p->cap));
}

/* The window is over. */
static void missed(struct vhb_poll *p, uint64_t now)
{
    p->looking = false;
    count(&p->counters.polls_missed, 1);
    count(&p->counters.polled_ns, now - p->since);
    if (p->mode != VHB_POLL_AUTO)
        return;
    if (p->unpaid) {
        set_window(p, 0);
        p->to_wait = p->pause;
        p->pause = p->pause == 0 ? 1 : p->pause < MAX_PAUSE ? 2 * p->pause : MAX_PAUSE;
        return;
    }
    p->unpaid = true;
    set_window(p, smaller(p->window / 2 > FLOOR_NS ? p->window / 2 : FLOOR_NS, p->cap));
}

bool vhb_poll_goes_on(struct vhb_poll *p, uint64_t now)
{
    if (now - p->since < p->window) {
        p->looking = true;
        return true;
    }
    if (p->looking)
        missed(p, now);
    return false;
}

void vhb_poll_woken(struct vhb_poll *p, uint64_t found, uint64_t now)
{
    uint64_t gap = found - p->since;
    p->since = now;
    if (p->mode != VHB_POLL_AUTO || gap >= NEAR * p->cap)
        return;
    if (p->to_wait) {
        p->to_wait--;
        return;
    }
    p->unpaid = true;
    set_window(p, p->cap);
}

void vhb_poll_restart(struct vhb_poll *p, uint64_t now)
{
    p->looking = false;
    p->since = now;
}
