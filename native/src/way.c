/* way.c - which requests are tried in their worker: by what trying has brought lately. */
#include "way.h"

#include "atomics.h"

#define MS 1000000ull

/* A miss costs a system call, a hit saves a round trip that costs about as much.  A write that
 * waits (for the medium, a journal, the dirty limit) holds up all queues of its worker: by LIMIT at
 * most beyond what writes of the page cache take, then by one write in each pause. */
enum { MISSES_LIMIT = 16 };
#define LATE_LIMIT (5 * MS)

/* What a write may take and is not late: more than a long walk through a large folio (50 us), and a
 * copy at 1 GB/s. */
enum { PROMPT_NS = 64 * 1000, PROMPT_NS_PER_BYTE = 1 };

struct rules {
    uint64_t limit, first_pause, longest_pause; /* units; ns; ns */
};

static struct rules rules_of(const struct vhb_way *way)
{
    if (load_relaxed(&way->kind) == VHB_WAY_TIMED)
        return (struct rules){LATE_LIMIT, 20 * MS, 10240 * MS};
    return (struct rules){MISSES_LIMIT, 1 * MS, 128 * MS};
}

bool vhb_way_is_open(const struct vhb_way *way, uint64_t now)
{
    return load_relaxed(&way->kind) != VHB_WAY_RING && now >= load_relaxed(&way->closed_until);
}

void vhb_way_won(struct vhb_way *way, uint64_t units)
{
    uint64_t debt = load_relaxed(&way->debt);
    if (debt == 0)
        return;
    debt = debt > units ? debt - units : 0;
    store_relaxed(&way->debt, debt);
    if (debt == 0)
        store_relaxed(&way->pause, 0);
}

void vhb_way_lost(struct vhb_way *way, uint64_t units, uint64_t now)
{
    struct rules rules = rules_of(way);
    uint64_t debt = load_relaxed(&way->debt) + units;
    if (debt <= rules.limit) {
        store_relaxed(&way->debt, debt);
        return;
    }
    /* One more loss behind the pause closes it again. */
    store_relaxed(&way->debt, rules.limit);
    uint64_t pause = 2 * load_relaxed(&way->pause);
    if (pause == 0)
        pause = rules.first_pause;
    if (pause > rules.longest_pause)
        pause = rules.longest_pause;
    store_relaxed(&way->pause, pause);
    store_relaxed(&way->closed_until, now + pause);
}

void vhb_way_took(struct vhb_way *way, uint64_t len, uint64_t ns, uint64_t now)
{
    uint64_t prompt = PROMPT_NS + PROMPT_NS_PER_BYTE * len;
    if (ns <= prompt)
        vhb_way_won(way, prompt - ns);
    else
        vhb_way_lost(way, ns - prompt, now);
}
