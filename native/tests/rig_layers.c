/* rig_layers.c - layers of the test's own: one shifts far, one tells whether it is told of each
 * request once, one shifts back. */
#include "rig_layers.h"

#include <errno.h>

#include "check.h"
#include "layer.h"

enum { NOTE = 7 };
#define FAR (1ull << 40)

static int shift_far(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    CHECK_EQ(req->shift, 0);
    CHECK_EQ(req->depth, 0);
    req->shift += FAR;
    return vhb_layer_hand_on_noted(layer, req, io, NOTE);
}

static int far_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                    struct vhb_io *io)
{
    (void)layer;
    (void)io;
    CHECK(note == NOTE && req->shift == FAR && req->depth == 0);
    return result;
}

static int note(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    return vhb_layer_hand_on_noted(layer, req, io, req->offset);
}

static int note_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t offset,
                     struct vhb_io *io)
{
    (void)layer;
    (void)io;
    CHECK(offset == req->offset && req->depth == 1);
    return result;
}

static int shift_back(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    CHECK_EQ(req->shift, FAR);
    req->shift -= FAR;
    return vhb_layer_hand_on(layer, req, io);
}

/* The outermost first. */
static const struct vhb_layer_ops kinds[RIG_LAYERS] = {
    {.submit = shift_far, .done = far_done},
    {.submit = note, .done = note_done},
    {.submit = shift_back},
};

struct vhb_disk *rig_layers_put(struct rig_layers *layers, struct vhb_disk *disk)
{
    *layers = (struct rig_layers){0};
    for (uint32_t i = RIG_LAYERS; getenv("VHB_TEST_LAYERS") && i-- > 0;) {
        layers->stages[i] = calloc(1, sizeof(*layers->stages[i]));
        CHECK(layers->stages[i] && vhb_stage_init(layers->stages[i], &kinds[i], 0) == 0);
        CHECK_EQ(vhb_layer_new(disk, layers->stages[i], &disk), 0);
        layers->disks[i] = disk;
        layers->n = RIG_LAYERS;
    }
    return disk;
}

void rig_layers_free(struct rig_layers *layers)
{
    for (uint32_t i = 0; i < layers->n; i++) {
        CHECK_EQ(vhb_stage_free(layers->stages[i]), -EBUSY);
        CHECK_EQ(vhb_disk_free(layers->disks[i]), 0);
        CHECK_EQ(vhb_stage_free(layers->stages[i]), 0);
    }
}
