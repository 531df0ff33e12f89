/* step_layers.h - what of step.c is about layers. */
#ifndef STEP_LAYERS_H
#define STEP_LAYERS_H

#include "layer.h"

enum { SECTORS = 2048 }; /* of a disk */

/* End the program where a call has failed. */
void check(int result, const char *what);

/* Put the layers that a world of this shape is about in front of *disk*; the outermost, or *disk*
 * where it is about none. */
struct vhb_disk *put_layer(struct vhb_disk *disk, const char *shape);

#endif
