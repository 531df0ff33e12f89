/* layer_stats.c - a layer that counts what passes, and how long it takes from here on. */
#include <errno.h>
#include <stdlib.h>

#include "layer.h"
#include "vq.h"

/* Of each kind of request, in this order: vhostblk_stages.h. */
enum { REQUESTS, BYTES, ERRORS, SUM_NS, BUCKETS, EACH = BUCKETS + VHB_LATENCY_BUCKETS };

_Static_assert((int)EACH == (int)VHB_STATS_EACH, "as the header says");

struct stats {
    struct vhb_stage stage; /* first */
};

static int stats_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    return vhb_layer_hand_on_noted(layer, req, io, vhb_layer_time(layer, io));
}

static int stats_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                      struct vhb_io *io)
{
    uint64_t *c = vhb_stage_shard(layer->stage, io) + (size_t)req->op * EACH;
    uint64_t now = vhb_layer_time(layer, io), ns = now > note ? now - note : 0;
    count(&c[BYTES], req->len);
    if (result < 0)
        count(&c[ERRORS], 1);
    count(&c[SUM_NS], ns);
    count(&c[BUCKETS + vhb_latency_bucket(ns)], 1);
    return result;
}

/* Requests are counted by how long they took. */
static uint64_t stats_counted(const struct vhb_stage *stage, uint32_t counter)
{
    if (counter % EACH != REQUESTS)
        return vhb_stage_sum(stage, counter);
    uint64_t requests = 0;
    for (uint32_t i = BUCKETS; i < EACH; i++)
        requests += vhb_stage_sum(stage, counter - REQUESTS + i);
    return requests;
}

static const struct vhb_layer_ops stats_ops = {.submit = stats_submit, .done = stats_done};

int vhb_stage_stats_set(struct vhb_stage *stage, const struct vhb_stats *stats)
{
    (void)stats;
    return stage->kind == &stats_ops ? 0 : -EINVAL;
}

int vhb_stage_stats_new(const struct vhb_stats *stats, struct vhb_stage **out)
{
    (void)stats;
    struct stats *s = calloc(1, sizeof(*s));
    if (!s)
        return -ENOMEM;
    int r = vhb_stage_init(&s->stage, &stats_ops, VHB_CANCEL * EACH);
    if (r < 0) {
        free(s);
        return r;
    }
    s->stage.counted = stats_counted;
    *out = &s->stage;
    return 0;
}
