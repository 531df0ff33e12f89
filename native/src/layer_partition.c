/* layer_partition.c - a layer that shows a part of the disk below it. */
#include <errno.h>
#include <stdlib.h>

#include "atomics.h"
#include "layer.h"

struct partition {
    struct vhb_stage stage; /* first */
    uint64_t offset, size;
};

static int partition_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    const struct partition *p = (const struct partition *)layer->stage;
    if (req->op == VHB_FLUSH)
        return vhb_layer_hand_on(layer, req, io);
    uint64_t at = vhb_req_at(req), size = load_relaxed(&p->size);
    if (at > size || req->len > size - at) /* checked by blk.c, but for the whole device */
        return -EIO;
    req->shift += load_relaxed(&p->offset);
    return vhb_layer_hand_on(layer, req, io);
}

static const struct vhb_layer_ops partition_ops = {.submit = partition_submit};

static bool is_partition(const struct vhb_partition *partition)
{
    uint64_t end;
    return !__builtin_add_overflow(partition->offset, partition->size, &end) && end <= INT64_MAX;
}

int vhb_stage_partition_set(struct vhb_stage *stage, const struct vhb_partition *partition)
{
    if (stage->kind != &partition_ops || !is_partition(partition))
        return -EINVAL;
    struct partition *p = (struct partition *)stage;
    store_relaxed(&p->offset, partition->offset);
    store_relaxed(&p->size, partition->size);
    return 0;
}

int vhb_stage_partition_new(const struct vhb_partition *partition, struct vhb_stage **out)
{
    if (!is_partition(partition))
        return -EINVAL;
    struct partition *p = calloc(1, sizeof(*p));
    if (!p)
        return -ENOMEM;
    int r = vhb_stage_init(&p->stage, &partition_ops, 0);
    if (r < 0) {
        free(p);
        return r;
    }
    vhb_stage_partition_set(&p->stage, partition);
    *out = &p->stage;
    return 0;
}
