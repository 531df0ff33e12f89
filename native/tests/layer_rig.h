/* layer_rig.h - a slow rig behind layers of the test's own, which do as they are told and tell what
 * they have seen. */
#ifndef VHB_LAYER_RIG_H
#define VHB_LAYER_RIG_H

#include "failing.h"
#include "layer.h"
#include "vq.h"

enum { STACK = 8, TALES = 64 };

struct stack;

/* A stage, so that its layer finds it. */
struct told_layer {
    struct vhb_stage stage; /* first */
    struct stack *stack;
    uint32_t number;
    int answer; /* in place of a success; 0: none */
    uint64_t hold_ns, hold_back_ns; /* on the way down, on the way back */
};

struct stack {
    struct told_layer layers[STACK]; /* the outermost first */
    struct vhb_disk *disks[STACK];
    uint32_t n, told;
    bool mute; /* nothing is told: for a worker in a thread */
    struct {
        uint32_t layer;
        uint64_t at;
        int result;
    } tale[TALES];
};

static inline struct told_layer *told_of(struct vhb_layer *layer)
{
    return (struct told_layer *)layer->stage;
}

/* Down it goes, a sector further. */
static inline int told_go_on(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    if (req->op != VHB_FLUSH)
        req->shift += 512;
    return vhb_layer_hand_on_noted(layer, req, io, told_of(layer)->number);
}

static inline void told_resumed(struct vhb_req *req, int result, struct vhb_io *io)
{
    if (result == 0)
        result = told_go_on((struct vhb_layer *)req->disk, req, io);
    if (result != VHB_PENDING)
        vhb_req_done(req, result);
}

static inline void told_resumed_back(struct vhb_req *req, int result, struct vhb_io *io)
{
    (void)io;
    vhb_req_done(req, result < 0 ? result : -(int)req->done);
}

static inline int told_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    uint64_t hold_ns = load_relaxed(&told_of(layer)->hold_ns);
    if (!hold_ns)
        return told_go_on(layer, req, io);
    req->disk = &layer->disk;
    req->resume = told_resumed;
    vhb_io_hold(io, req, vhb_clock() + hold_ns);
    return VHB_PENDING;
}

static inline int told_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                            struct vhb_io *io)
{
    struct told_layer *told = told_of(layer);
    struct stack *stack = told->stack;
    CHECK(stack->told < TALES && note == told->number);
    if (stack->mute)
        return result;
    stack->tale[stack->told].layer = told->number;
    stack->tale[stack->told].at = vhb_req_at(req);
    stack->tale[stack->told++].result = result;
    if (told->answer && result == 0)
        result = told->answer;
    if (!told->hold_back_ns)
        return result;
    req->disk = &layer->disk;
    req->resume = told_resumed_back;
    req->done = (uint64_t)-(int64_t)result;
    vhb_io_hold(io, req, vhb_clock() + told->hold_back_ns);
    return VHB_PENDING;
}

static const struct vhb_layer_ops told_ops = {.submit = told_submit, .done = told_done};

/* *n* layers in front of *disk*; the outermost. */
static inline struct vhb_disk *make_stack(struct stack *stack, uint32_t n, struct vhb_disk *disk)
{
    *stack = (struct stack){.n = n};
    for (uint32_t i = n; i-- > 0;) {
        struct told_layer *told = &stack->layers[i];
        CHECK_EQ(vhb_stage_init(&told->stage, &told_ops, 0), 0);
        told->stack = stack;
        told->number = i;
        CHECK_EQ(vhb_layer_new(disk, &told->stage, &disk), 0);
        stack->disks[i] = disk;
    }
    return disk;
}

static inline void free_stack(struct stack *stack)
{
    for (uint32_t i = 0; i < stack->n; i++)
        CHECK_EQ(vhb_disk_free(stack->disks[i]), 0);
}

/* A slow rig whose mailbox is behind *n* layers. */
static inline void open_stack(struct slow *s, struct stack *stack, uint32_t n, uint32_t policy)
{
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s->box), 0);
    struct vhb_disk *disk = make_stack(stack, n, vhb_mailbox_disk(s->box));
    rig_open(&s->rig, &(struct rig_config){.disk = disk, .stopped = true});
    CHECK_EQ(vhb_queue_set_on_error(s->rig.queue, policy), 0);
    rig_run(&s->rig);
}

static inline void close_stack(struct slow *s, struct stack *stack)
{
    rig_close(&s->rig);
    free_stack(stack);
    CHECK_EQ(vhb_mailbox_free(s->box), 0);
}

#endif
