/* respond.c - the least a polled back-end can do: pop and push on one split queue.
 *
 * The ceiling of a client: nothing that serves requests gives it more of them.  respond.py brings a
 * front-end's ring here and calls respond() on a thread of its own.  It trusts its client, polls
 * all the time, and neither kicks nor calls there are: the client polls, too. */
#include <linux/virtio_ring.h>
#include <stddef.h>
#include <stdint.h>

/* The ring, as respond.py lays it out.  "delta": from an address in a descriptor to ours; libblkio
 * keeps ring, headers and status bytes in one region.  "status": write the status byte of each
 * request, as a device must, or leave even its descriptors alone. */
struct respond {
    struct vring_desc *desc;
    struct vring_avail *avail;
    struct vring_used *used;
    ptrdiff_t delta;
    uint32_t size;
    uint32_t status;
    uint32_t stop;
};

static void finish(const struct respond *r, uint32_t mask, uint32_t head)
{
    const struct vring_desc *d = &r->desc[head & mask];
    for (uint32_t n = 0; n < r->size && (d->flags & VRING_DESC_F_NEXT); n++)
        d = &r->desc[d->next & mask];
    *(uint8_t *)(d->addr + (uint64_t)r->delta) = 0; /* VIRTIO_BLK_S_OK */
}

/* Serve until "stop" is set; returns how many requests it gave back. */
uint64_t respond(struct respond *r)
{
    const uint32_t mask = r->size - 1;
    uint16_t next = 0;
    uint64_t done = 0;
    r->used->flags = VRING_USED_F_NO_NOTIFY;
    while (!__atomic_load_n(&r->stop, __ATOMIC_RELAXED)) {
        uint16_t avail = __atomic_load_n(&r->avail->idx, __ATOMIC_ACQUIRE);
        if (avail == next) {
            __builtin_ia32_pause();
            continue;
        }
        for (; next != avail; next++, done++) {
            uint32_t head = r->avail->ring[next & mask];
            if (r->status)
                finish(r, mask, head);
            r->used->ring[next & mask] = (struct vring_used_elem){.id = head, .len = 1};
        }
        __atomic_store_n(&r->used->idx, next, __ATOMIC_RELEASE);
    }
    return done;
}
