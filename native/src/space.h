/* space.h - where a queue finds guest memory: the table of segments, and the parts of its ring.
 *
 * Both are settings: the owner's of the ring. */
#ifndef VHB_SPACE_H
#define VHB_SPACE_H

#include "vhostblk.h"

/* A part of the ring: one flat run (the fast path) or several pieces. */
struct vhb_part {
    uint8_t *flat; /* NULL: look at the pieces */
    struct vhb_piece *pieces;
    size_t n;
    size_t len; /* bytes in all */
};

enum { VHB_DENIED_RANGES = 2 };

struct vhb_space {
    struct vhb_segment *segments; /* sorted, disjoint */
    size_t n;
    const struct vhb_segment *last; /* the row looked up last; an empty one: it was in none */
    bool asks;                      /* what is in no segment is asked for */
    struct vhb_miss miss;
    /* What was asked for in vain, for the chain that waits; the newest first. */
    struct {
        uint64_t iova, len;
    } denied[VHB_DENIED_RANGES];
    uint32_t n_denied;
};

int vhb_space_set(struct vhb_space *space, const struct vhb_segment *segments, size_t n);
/* The row that has *iova*, or an empty one; space.last from now on. */
const struct vhb_segment *vhb_space_row(struct vhb_space *space, uint64_t iova);

/* Where [iova, …) lives, how much is contiguous there (at most len); NULL: denied.  What its row
 * allows is in space.last.  Inlined up to the search: most lookups are in the row of the last. */
static inline void *vhb_space_find(struct vhb_space *space, uint64_t iova, uint64_t len,
                                   uint32_t access, uint64_t *contiguous)
{
    const struct vhb_segment *row = space->last;
    if (iova - row->iova >= row->len) /* an address before it wraps to behind it */
        row = vhb_space_row(space, iova);
    if ((row->access & (access | VHB_ACCESS_FATAL)) != access)
        return NULL;
    uint64_t offset = iova - row->iova, left = row->len - offset;
    *contiguous = len < left ? len : left;
    return (uint8_t *)row->host + offset;
}

/* It was not found: whether to ask for it, which space.miss then says, or to deny it. */
bool vhb_space_missing(struct vhb_space *space, uint64_t iova, uint64_t len, uint32_t access);
void vhb_space_deny(struct vhb_space *space, uint64_t iova, uint64_t len);
int vhb_part_set(struct vhb_part *part, int which, const struct vhb_piece *pieces, size_t n);
void *vhb_part_slow(const struct vhb_part *part, size_t offset);

static inline void *part_at(const struct vhb_part *part, size_t offset)
{
    return part->flat ? part->flat + offset : vhb_part_slow(part, offset);
}

#endif
