/* queue.c - a queue of the load generator: made, laid out in guest memory, looked at, freed. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fences.h"
#include "queue.h"

enum { MAX_SIZE = 1 << 15, CACHE_LINE = 64 };

static uint64_t round_up(uint64_t n, uint64_t to)
{
    return (n + to - 1) / to * to;
}

/* ---- layout --------------------------------------------------------------------------- */

static uint32_t parts(const struct drv_config *c)
{
    return 2 + (c->bytes + c->piece - 1) / c->piece;
}

static uint64_t table_bytes(const struct drv_config *c)
{
    return c->indirect ? round_up(parts(c) * sizeof(struct vring_desc), CACHE_LINE) : 0;
}

static uint64_t small_bytes(const struct drv_config *c)
{
    return round_up(c->depth * (sizeof(struct drv_small) + table_bytes(c)), PAGE);
}

uint64_t drv_arena_bytes(const struct drv_config *c)
{
    return small_bytes(c) + (uint64_t)c->depth * c->bytes;
}

uint32_t drv_chain_length(const struct drv_config *c)
{
    return c->indirect ? 1 : parts(c);
}

/* Header and status first, then tables, then data. */
static void lay_out(struct drv_queue *q, uint32_t i)
{
    const struct drv_config *c = &q->config;
    struct drv_slot *slot = &q->slots[i];
    uint64_t small = i * sizeof(struct drv_small);
    uint64_t table = c->depth * sizeof(struct drv_small) + i * table_bytes(c);
    uint64_t data = small_bytes(c) + (uint64_t)i * c->bytes;
    slot->small = (struct drv_small *)(c->arena + small);
    slot->data = c->arena + data;
    slot->chain = (struct drv_chain){
        .header = c->arena_address + small,
        .status = c->arena_address + small + offsetof(struct drv_small, status),
        .data = c->arena_address + data,
        .table = c->arena_address + table,
        .memory = (struct vring_desc *)(c->arena + table),
        .bytes = c->bytes,
        .piece = c->piece,
        .parts = parts(c),
    };
}

/* Noise, so that nobody finds it is all the same. */
static void fill(uint8_t *data, uint64_t bytes)
{
    uint64_t noise = 0x9e3779b97f4a7c15;
    for (uint64_t i = 0; i + sizeof(noise) <= bytes; i += sizeof(noise)) {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        memcpy(data + i, &noise, sizeof(noise));
    }
}

/* ---- life ----------------------------------------------------------------------------- */

static bool fits(const struct drv_config *c)
{
    bool blocks = c->bytes && c->bytes % SECTOR == 0 && c->blocks >= (c->verify ? c->depth : 1);
    bool size = c->size && c->size <= MAX_SIZE && (c->packed || !(c->size & (c->size - 1)));
    if (!blocks || !size || c->depth == 0 || c->piece == 0 || c->piece % SECTOR)
        return false;
    return (uint64_t)c->depth * drv_chain_length(c) <= c->size;
}

static void open_ring(struct drv_queue *q)
{
    const struct drv_config *c = &q->config;
    struct drv_ring *r = &q->ring;
    r->size = c->size;
    r->length = drv_chain_length(c);
    r->depth = c->depth;
    r->event_idx = c->event_idx;
    r->indirect = c->indirect;
    r->ops = c->packed ? &drv_packed : &drv_split;
    if (c->packed) {
        r->packed.desc = (struct vring_packed_desc *)c->desc;
        r->packed.driver = (struct vring_packed_desc_event *)c->avail;
        r->packed.device = (struct vring_packed_desc_event *)c->used;
    } else {
        r->split.desc = (struct vring_desc *)c->desc;
        r->split.avail = (struct vring_avail *)c->avail;
        r->split.used = (struct vring_used *)c->used;
    }
    r->ops->start(r);
}

int drv_queue_new(const struct drv_config *config, struct drv_queue **out)
{
    if (!fits(config))
        return -EINVAL;
    struct drv_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    q->config = *config;
    q->slots = calloc(config->depth, sizeof(*q->slots));
    q->free = calloc(config->depth, sizeof(*q->free));
    q->ring.writable = calloc(config->depth, sizeof(*q->ring.writable));
    if (config->verify)
        q->generations = calloc(config->blocks, sizeof(*q->generations));
    if (!q->slots || !q->free || !q->ring.writable || (config->verify && !q->generations)) {
        drv_queue_free(q);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < config->depth; i++) {
        lay_out(q, i);
        q->free[i] = i;
    }
    q->n_free = config->depth;
    fill(q->slots[0].data, (uint64_t)config->depth * config->bytes);
    open_ring(q);
    *out = q;
    return 0;
}

void drv_queue_free(struct drv_queue *q)
{
    if (!q)
        return;
    free(q->slots);
    free(q->free);
    free(q->ring.writable);
    free(q->generations);
    free(q);
}

/* ---- other threads -------------------------------------------------------------------- */

void drv_queue_stop(struct drv_queue *q, bool at_once)
{
    store_relaxed(&q->stop, at_once ? 2u : 1u);
    /* A call of our own wakes a thread that sleeps.  Full: it has been called. */
    uint64_t one = 1;
    ssize_t ignored = write(q->config.call_fd, &one, sizeof(one));
    (void)ignored;
}

_Static_assert(sizeof(struct drv_counters) % sizeof(uint64_t) == 0, "words, each read at once");

void drv_queue_counters(struct drv_queue *q, struct drv_counters *out)
{
    const uint64_t *from = (const uint64_t *)&q->counters;
    uint64_t *to = (uint64_t *)out;
    for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
        to[i] = load_relaxed(&from[i]);
}
