/* ring.c - what both formats of a ring ask about a request. */
#include <linux/virtio_blk.h>

#include "ring.h"

struct drv_part drv_part(const struct drv_chain *chain, uint32_t i, bool in)
{
    if (i == 0)
        return (struct drv_part){chain->header, sizeof(struct virtio_blk_outhdr), false};
    if (i + 1 == chain->parts)
        return (struct drv_part){chain->status, 1, true};
    uint32_t at = (i - 1) * chain->piece;
    uint32_t left = chain->bytes - at;
    return (struct drv_part){chain->data + at, left < chain->piece ? left : chain->piece, in};
}

int drv_ring_check(struct drv_ring *r, uint64_t at, uint32_t id, struct drv_used *used)
{
    *r->fault = (struct drv_fault){.at = at, .got = id};
    if (used->slot >= r->depth || r->writable[used->slot] == 0)
        return -DRV_BAD_ID;
    r->fault->got = used->length;
    r->fault->want = r->writable[used->slot];
    r->writable[used->slot] = 0;
    r->in_flight--;
    return used->length > r->fault->want ? -DRV_BAD_LENGTH : 0;
}
