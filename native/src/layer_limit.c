/* layer_limit.c - a layer that lets requests on no faster than it is told.
 *
 * For each limit, requests take places in one line that all workers share: who comes takes the
 * place behind what was asked for before, or where the line is, if that has moved beyond.  The line
 * moves as fast as the limit says; a request goes on when the line, with what may be saved up, has
 * reached its place.  So requests go on in the order in which they came, whatever queues they came
 * by, and one that costs more than can be saved up passes all the same, and those behind it wait
 * for longer.
 *
 * Places outlive a change of the limits, which only says how fast the line moves on from there; who
 * waits looks now and then.  One that is cancelled leaves its place to who comes next. */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "vq.h"

enum { WAITED, WAITED_NS, N_COUNTERS };
enum { LOOK_NS = 20000000 }; /* how often one that waits looks */
enum { SECOND = 1000000000 };
/* A line is counted in such parts of a request, and in sectors: at the highest rates, its 64 bits
 * are enough for ten years. */
enum { PARTS = 64, SECTOR = 512 };

/* How the lines move: of a change, and from then on. */
struct terms {
    uint64_t from; /* ns */
    uint64_t burst_ns;
    uint64_t rates[VHB_LIMITS]; /* a second; 0: no limit */
    uint64_t base[VHB_LIMITS]; /* where the line was */
};

struct limit {
    struct vhb_stage stage; /* first */
    uint32_t live; /* some limit is set */
    uint64_t generation; /* of the terms, which are at its lowest bit */
    struct terms terms[2];
    uint64_t asked[VHB_LIMITS]; /* the place of who comes next, unless the line is there already */
};

static void limit_again(struct vhb_req *req, int result, struct vhb_io *io);

static void copy(struct terms *to, const struct terms *from)
{
    for (size_t i = 0; i < sizeof(*to) / sizeof(uint64_t); i++)
        store_release((uint64_t *)to + i, load_acquire((const uint64_t *)from + i));
}

/* What holds now.  Those of a generation are not touched before the next has been told. */
static struct terms terms_of(const struct limit *l)
{
    struct terms terms;
    uint64_t generation;
    do {
        generation = load_acquire(&l->generation); /* pair: limit */
        copy(&terms, &l->terms[generation & 1]);
    } while (load_relaxed(&l->generation) != generation);
    return terms;
}

static bool counts_requests(uint32_t limit)
{
    return limit <= VHB_LIMIT_WRITE_IOPS;
}

/* What a request takes of a line. */
static uint64_t amount(const struct vhb_req *req, uint32_t limit)
{
    bool reads = req->op == VHB_READ, moves = reads || req->op == VHB_WRITE;
    uint64_t sectors = moves ? (req->len + SECTOR - 1) / SECTOR : 0;
    switch (limit) {
    case VHB_LIMIT_IOPS:
        return PARTS;
    case VHB_LIMIT_READ_IOPS:
        return reads ? PARTS : 0;
    case VHB_LIMIT_WRITE_IOPS:
        return reads ? 0 : PARTS;
    case VHB_LIMIT_BPS:
        return sectors;
    case VHB_LIMIT_READ_BPS:
        return reads ? sectors : 0;
    default:
        return reads ? 0 : sectors;
    }
}

/* How far a line moves in *ns*, and how long it takes to move so far: a rate is at most 2^43, and
 * nothing here is more than 128 bits. */
static uint64_t moved(const struct terms *terms, uint32_t limit, uint64_t ns)
{
    unsigned __int128 units = (unsigned __int128)terms->rates[limit] * ns;
    return (uint64_t)(counts_requests(limit) ? units * PARTS / SECOND : units / SECTOR / SECOND);
}

static uint64_t lasts(const struct terms *terms, uint32_t limit, uint64_t n)
{
    unsigned __int128 units = (unsigned __int128)n * SECOND;
    units = (counts_requests(limit) ? units / PARTS : units * SECTOR) / terms->rates[limit];
    return units > VHB_DELAY_MAX_NS ? VHB_DELAY_MAX_NS : (uint64_t)units; /* it looks before that */
}

/* Where a line is; it has stood still while it was no limit. */
static uint64_t line_at(const struct limit *l, const struct terms *terms, uint32_t limit,
                        uint64_t now)
{
    if (!terms->rates[limit])
        return load_relaxed(&l->asked[limit]);
    return terms->base[limit] + (now > terms->from ? moved(terms, limit, now - terms->from) : 0);
}

/* When a place's turn comes. */
static uint64_t due_of(const struct terms *terms, uint32_t limit, uint64_t place)
{
    if (!terms->rates[limit])
        return 0;
    uint64_t ready = terms->base[limit] + moved(terms, limit, terms->burst_ns);
    return place > ready ? terms->from + lasts(terms, limit, place - ready) : 0;
}

/* Take *n* of a line; the place. */
static uint64_t take(uint64_t *asked, uint64_t n, uint64_t line)
{
    uint64_t next = load_relaxed(asked), place;
    do
        place = next > line ? next : line;
    while (!__atomic_compare_exchange_n(asked, &next, place + n, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
    return place;
}

/* Give *n* back: who comes next takes it, and nobody who waits is the sooner for it. */
static void give_back(uint64_t *asked, uint64_t n)
{
    uint64_t next = load_relaxed(asked);
    while (!__atomic_compare_exchange_n(asked, &next, next > n ? next - n : 0, true,
                                        __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        ;
}

/* Take a place in each line that a request is counted in, and note the one that lasts longest
 * (step: which line; done: the place), as both are the layer's until it goes on; when that is. */
static uint64_t stand_in_line(struct limit *l, struct vhb_req *req, uint64_t now)
{
    struct terms terms = terms_of(l);
    uint64_t latest = 0;
    for (uint32_t i = 0; i < VHB_LIMITS; i++) {
        uint64_t n = terms.rates[i] ? amount(req, i) : 0;
        if (!n)
            continue;
        uint64_t place = take(&l->asked[i], n, line_at(l, &terms, i, now));
        uint64_t due = due_of(&terms, i, place);
        if (due >= latest) {
            latest = due;
            req->step = i;
            req->done = place;
        }
    }
    return latest;
}

static void leave(struct limit *l, const struct vhb_req *req)
{
    struct terms terms = terms_of(l);
    for (uint32_t i = 0; i < VHB_LIMITS; i++)
        if (terms.rates[i])
            give_back(&l->asked[i], amount(req, i));
}

static int hold(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io, uint64_t now,
                uint64_t due)
{
    req->disk = &layer->disk;
    req->resume = limit_again;
    vhb_io_hold(io, req, due - now > LOOK_NS ? now + LOOK_NS : due);
    return VHB_PENDING;
}

static int limit_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct limit *l = (struct limit *)layer->stage;
    if (!load_relaxed(&l->live) || req->op == VHB_FLUSH)
        return vhb_layer_hand_on(layer, req, io);
    uint64_t now = vhb_clock(), due = stand_in_line(l, req, now);
    if (due <= now)
        return vhb_layer_hand_on(layer, req, io);
    uint64_t *counters = vhb_stage_shard(layer->stage, io);
    count(&counters[WAITED], 1);
    count(&counters[WAITED_NS], due - now);
    return hold(layer, req, io, now, due);
}

static void limit_again(struct vhb_req *req, int result, struct vhb_io *io)
{
    struct vhb_layer *layer = (struct vhb_layer *)req->disk;
    struct limit *l = (struct limit *)layer->stage;
    if (result != 0 || req->state == VHB_REQ_DEAD) {
        leave(l, req);
        vhb_req_done(req, -ECANCELED);
        return;
    }
    struct terms terms = terms_of(l);
    uint64_t now = vhb_clock(), due = due_of(&terms, req->step, req->done);
    result = due > now ? hold(layer, req, io, now, due) : vhb_layer_hand_on(layer, req, io);
    if (result != VHB_PENDING)
        vhb_req_done(req, result);
}

static const struct vhb_layer_ops limit_ops = {.submit = limit_submit};

/* ---- the stage ------------------------------------------------------------------------ */

static bool is_limit(const struct vhb_limit *limit)
{
    for (uint32_t i = 0; i < VHB_LIMITS; i++)
        if (limit->rates[i] > (counts_requests(i) ? VHB_LIMIT_MOST_IOPS : VHB_LIMIT_MOST_BPS))
            return false;
    return limit->burst_ns <= VHB_DELAY_MAX_NS;
}

int vhb_stage_limit_set(struct vhb_stage *stage, const struct vhb_limit *limit)
{
    if (stage->kind != &limit_ops || !is_limit(limit))
        return -EINVAL;
    struct limit *l = (struct limit *)stage;
    const struct terms *old = &l->terms[l->generation & 1];
    struct terms new = {.from = vhb_clock(), .burst_ns = limit->burst_ns};
    bool live = false;
    for (uint32_t i = 0; i < VHB_LIMITS; i++) {
        new.rates[i] = limit->rates[i];
        new.base[i] = line_at(l, old, i, new.from);
        live = live || limit->rates[i];
    }
    copy(&l->terms[~l->generation & 1], &new);
    store_release(&l->generation, l->generation + 1); /* pair: limit */
    store_relaxed(&l->live, (uint32_t)live);
    return 0;
}

int vhb_stage_limit_new(const struct vhb_limit *limit, struct vhb_stage **out)
{
    if (!is_limit(limit))
        return -EINVAL;
    struct limit *l = calloc(1, sizeof(*l));
    if (!l)
        return -ENOMEM;
    int r = vhb_stage_init(&l->stage, &limit_ops, N_COUNTERS);
    if (r < 0) {
        free(l);
        return r;
    }
    vhb_stage_limit_set(&l->stage, limit);
    *out = &l->stage;
    return 0;
}
