/* ring.h - the driver's side of a virtqueue: what the two formats have in common.
 *
 * A slot is one request's place: chain, buffers, times.  It is what a chain is called in the ring:
 * its first descriptor, or its buffer id, follows from its number.  Layouts come from the kernel's
 * headers; split.c and packed.c share nothing but this. */
#ifndef VHB_GUEST_RING_H
#define VHB_GUEST_RING_H

#include <linux/virtio_ring.h>

#include "driver.h"

/* A request's buffers, as the device sees them: header, data in pieces, status. */
struct drv_chain {
    uint64_t header, data, status;
    uint64_t table;            /* of indirect descriptors, */
    struct vring_desc *memory; /* and where it is here; both formats have entries of this size */
    uint32_t bytes, piece;
    uint32_t parts;
};

struct drv_part {
    uint64_t address;
    uint32_t length;
    bool writable; /* by the device */
};

/* Part number *i*; *in*: the device writes the data. */
struct drv_part drv_part(const struct drv_chain *chain, uint32_t i, bool in);

struct drv_ring;

struct drv_used {
    uint32_t slot;
    uint32_t length; /* that the device says it wrote; 0 where it says nothing */
};

struct drv_ring_ops {
    void (*start)(struct drv_ring *r);
    /* Write a chain and show it to the device, which may begin at once; there is room. */
    void (*add)(struct drv_ring *r, uint32_t slot, const struct drv_chain *chain, bool in);
    /* Whether the device wants a kick for what was added since this was asked last. */
    bool (*wants_kick)(struct drv_ring *r);
    /* Take one: 1, 0 where there is none, or minus a reason of enum drv_reason. */
    int (*pop)(struct drv_ring *r, struct drv_used *out);
    bool (*has_used)(const struct drv_ring *r);
    void (*quiet)(struct drv_ring *r); /* ask not to be called */
    void (*arm)(struct drv_ring *r);   /* ask for it, from here on; look again afterwards */
};

struct drv_ring {
    const struct drv_ring_ops *ops;
    union {
        struct {
            struct vring_desc *desc;
            struct vring_avail *avail;
            struct vring_used *used;
        } split;
        struct {
            struct vring_packed_desc *desc;
            struct vring_packed_desc_event *driver, *device;
        } packed;
    };
    uint32_t size;
    uint32_t length; /* descriptors of a chain in the ring */
    uint32_t depth;  /* slots */
    bool event_idx, indirect;

    uint16_t next_avail, next_used; /* split: indices that run freely; packed: descriptors */
    bool avail_wrap, used_wrap;     /* packed */
    uint16_t device_idx;            /* split: as last read */
    uint32_t added; /* since wants_kick; split: chains; packed: descriptors */

    uint32_t in_flight;
    uint32_t *writable; /* of each slot: bytes the device may write; 0: not in flight */
    struct drv_fault *fault;
};

extern const struct drv_ring_ops drv_split, drv_packed;

/* Whether a slot that the device names is in flight, in element number *at*. */
int drv_ring_check(struct drv_ring *r, uint64_t at, uint32_t id, struct drv_used *used);

#endif
