/* mem.c - guest addresses to addresses in this process: one lookup in one flat table.
 *
 * What may be touched was decided when the table was built (memory/space.py); here is no policy. */
#include <errno.h>
#include <stdlib.h>

#include "vq.h"

_Static_assert(sizeof(struct vhb_piece) == sizeof(struct iovec), "pieces are iovecs");
_Static_assert(offsetof(struct vhb_piece, len) == offsetof(struct iovec, iov_len), "in order");

int vhb_space_set(struct vhb_space *space, const struct vhb_segment *segments, size_t n)
{
    uint64_t end = 0;
    for (size_t i = 0; i < n; i++) {
        if (segments[i].len == 0 || segments[i].iova < end ||
            __builtin_add_overflow(segments[i].iova, segments[i].len, &end))
            return -EINVAL;
    }
    struct vhb_segment *copy = calloc(n ? n : 1, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    if (n)
        memcpy(copy, segments, n * sizeof(*copy));
    free(space->segments);
    space->segments = copy;
    space->n = n;
    space->last = copy; /* without rows: an empty one */
    return 0;
}

static const struct vhb_segment *space_search(const struct vhb_space *space, uint64_t iova)
{
    size_t low = 0, high = space->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct vhb_segment *seg = &space->segments[middle];
        if (iova < seg->iova) {
            high = middle;
        } else if (iova - seg->iova >= seg->len) {
            low = middle + 1;
        } else {
            return seg;
        }
    }
    return NULL;
}

const struct vhb_segment *vhb_space_row(struct vhb_space *space, uint64_t iova)
{
    static const struct vhb_segment none;
    const struct vhb_segment *row = space_search(space, iova);
    space->last = row ? row : &none;
    return space->last;
}

void vhb_space_deny(struct vhb_space *space, uint64_t iova, uint64_t len)
{
    space->denied[1] = space->denied[0];
    space->denied[0].iova = iova;
    space->denied[0].len = len;
    if (space->n_denied < VHB_DENIED_RANGES)
        space->n_denied++;
}

bool vhb_space_missing(struct vhb_space *space, uint64_t iova, uint64_t len, uint32_t access)
{
    if (!space->asks)
        return false;
    const struct vhb_segment *seg = space_search(space, iova);
    if (seg && !(seg->access & (VHB_ACCESS_READ | VHB_ACCESS_WRITE)))
        return false;
    if (seg && (seg->access & VHB_ACCESS_FATAL))
        return false;
    for (uint32_t i = 0; i < space->n_denied; i++) {
        if (iova >= space->denied[i].iova && iova - space->denied[i].iova < space->denied[i].len)
            return false;
    }
    space->miss = (struct vhb_miss){.iova = iova, .len = len, .access = access};
    return true;
}

/* Bytes of a part's header and of its elements: no border may split any of them. */
static const struct {
    size_t header, element, align;
} part_shape[] = {
    [VHB_PART_DESC] = {0, sizeof(struct vring_desc), 16},
    [VHB_PART_AVAIL] = {4, sizeof(uint16_t), 2},
    [VHB_PART_USED] = {4, sizeof(struct vring_used_elem), 4},
};

static bool part_border_fits(int which, size_t offset)
{
    if (offset < part_shape[which].header)
        return offset == 0;
    return (offset - part_shape[which].header) % part_shape[which].element == 0;
}

int vhb_part_set(struct vhb_part *part, int which, const struct vhb_piece *pieces, size_t n)
{
    if (which < VHB_PART_DESC || which > VHB_PART_USED || n == 0)
        return -EINVAL;
    size_t total = 0;
    for (size_t i = 0; i < n; i++) {
        if ((uintptr_t)pieces[i].host % part_shape[which].align || pieces[i].len == 0 ||
            !part_border_fits(which, total) || __builtin_add_overflow(total, pieces[i].len, &total))
            return -EINVAL;
    }
    struct vhb_piece *copy = calloc(n, sizeof(*copy));
    if (!copy)
        return -ENOMEM;
    memcpy(copy, pieces, n * sizeof(*copy));
    free(part->pieces);
    *part = (struct vhb_part){
        .flat = n == 1 ? copy[0].host : NULL, .pieces = copy, .n = n, .len = total};
    return 0;
}

void *vhb_part_slow(const struct vhb_part *part, size_t offset)
{
    const struct vhb_piece *piece = part->pieces;
    while (offset >= piece->len)
        offset -= (piece++)->len;
    return (uint8_t *)piece->host + offset;
}
