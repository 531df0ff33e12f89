/* rig_layers.h - layers in front of the disk of every rig, where VHB_TEST_LAYERS is set: what a
 * test claims of a disk holds for one behind layers. */
#ifndef VHB_RIG_LAYERS_H
#define VHB_RIG_LAYERS_H

#include "vhostblk.h"

enum { RIG_LAYERS = 3 };

struct rig_layers {
    struct vhb_stage *stages[RIG_LAYERS];
    struct vhb_disk *disks[RIG_LAYERS];
    uint32_t n;
};

/* *disk*, or the outermost of the layers in front of it. */
struct vhb_disk *rig_layers_put(struct rig_layers *layers, struct vhb_disk *disk);
void rig_layers_free(struct rig_layers *layers);

#endif
