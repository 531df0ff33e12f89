/* queue_make.c - a virtqueue's memory: all of it is there when a queue is made, so that none can be
 * missing later. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "inflight.h"

static void *reserve(size_t size)
{
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static size_t slots_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_req);
}

static size_t wide_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_wide);
}

static size_t layered_size(const struct vhb_queue *q)
{
    return slot_count(q) * sizeof(struct vhb_layered);
}

static const size_t samples_size = VHB_SAMPLE_RING * sizeof(struct vhb_sample);
static const size_t borrow_size = VHB_BORROW_COUNT * VHB_MAX_IOV * sizeof(struct iovec);

/* Whether there is memory for all of it; else some of it, for queue_dispose. */
static bool allocate(struct vhb_queue *q)
{
    q->slots = reserve(slots_size(q));
    q->wide = reserve(wide_size(q));
    q->layered = reserve(layered_size(q));
    q->borrow = reserve(borrow_size);
    q->samples.ring = reserve(samples_size);
    q->free_slots = calloc(slot_count(q), sizeof(*q->free_slots));
    q->ids = calloc(1, ids_size(q));
    return q->slots && q->wide && q->layered && q->borrow && q->samples.ring && q->free_slots &&
           q->ids;
}

static void queue_dispose(struct vhb_queue *q)
{
    if (q->slots)
        munmap(q->slots, slots_size(q));
    if (q->wide)
        munmap(q->wide, wide_size(q));
    if (q->layered)
        munmap(q->layered, layered_size(q));
    if (q->borrow)
        munmap(q->borrow, borrow_size);
    if (q->samples.ring)
        munmap(q->samples.ring, samples_size);
    for (int i = 0; i < 3; i++)
        free(q->part[i].pieces);
    free(q->free_slots);
    free(q->ids);
    free(q->space.segments);
    free(q->use_asked);
    free(q->log);
    vhb_inflight_dispose(&q->inflight);
    free(q);
}

int vhb_queue_new(struct vhb_worker *worker, struct vhb_disk *disk, struct vhb_graveyard *graveyard,
                  uint32_t max_size, struct vhb_queue **out)
{
    if (max_size == 0 || max_size > 32768)
        return -EINVAL;
    struct vhb_queue *q = calloc(1, sizeof(*q));
    if (!q)
        return -ENOMEM;
    *q = (struct vhb_queue){.worker = worker,
                            .io = vhb_worker_io(worker),
                            .disk = disk,
                            .graveyard = graveyard,
                            .max_size = max_size,
                            .ring = &vhb_split_ops,
                            .kick = -1,
                            .call = -1,
                            .err = -1,
                            .watched = -1,
                            .pace = 1,
                            .attached = true,
                            .state = VHB_OWNED_BY_CONTROL,
                            .served = VHB_OWNED_BY_CONTROL,
                            .borrow_free = (1u << VHB_BORROW_COUNT) - 1};
    q->done_tail = &q->done;
    q->held_tail = &q->held;
    q->errors.tail = &q->errors.held;
    if (!allocate(q)) {
        queue_dispose(q);
        return -ENOMEM;
    }
    q->n_free = slot_count(q);
    for (uint32_t i = 0; i < q->n_free; i++)
        q->free_slots[i] = (uint16_t)(q->n_free - 1 - i);
    disk->users++;
    vhb_worker_adopt(worker, q);
    *out = q;
    return 0;
}

int vhb_queue_free(struct vhb_queue *q)
{
    if (q->attached)
        return -EBUSY;
    q->disk->users--;
    queue_dispose(q);
    return 0;
}
