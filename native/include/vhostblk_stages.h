/* vhostblk_stages.h - layers: disks in front of disks, and the stages that say what they do.
 *
 * A *stage* is what a layer is set to and what it has counted; a *layer* is a disk that does so in
 * front of one disk.  Layers of several disks, or of the mailboxes of several queues, may share a
 * stage.  Read vhostblk.h first: who may call what, and what is returned. */
#ifndef VHOSTBLK_STAGES_H
#define VHOSTBLK_STAGES_H

#include "vhostblk_values.h"

/* cdef: begin */

struct vhb_disk;
struct vhb_stage;

/* A layer in front of *below*, which stays the caller's and must outlive it, as must the stage; it
 * is freed by vhb_disk_free().  Requests meet the layer that was made last first.  -E2BIG: there
 * are 8 already. */
int vhb_layer_new(struct vhb_disk *below, struct vhb_stage *stage, struct vhb_disk **out);

/* The first *n* counters of a stage, in the order of its kind, over all its layers; how many there
 * are.  At any time. */
int vhb_stage_counters(struct vhb_stage *stage, uint64_t *out, uint32_t n);

int vhb_stage_free(struct vhb_stage *stage); /* -EBUSY while a layer uses it */

/* ---- kinds: each is made, and set otherwise at any time, from the next request on ------------ */

/* Bytes [offset, offset + size) of the disk below. */
struct vhb_partition {
    uint64_t offset;
    uint64_t size;
};

int vhb_stage_partition_new(const struct vhb_partition *partition, struct vhb_stage **out);
int vhb_stage_partition_set(struct vhb_stage *stage, const struct vhb_partition *partition);

/* cdef: end */

#endif
