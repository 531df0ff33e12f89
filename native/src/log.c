/* log.c - the dirty log: which pages of guest memory the device has written, for a front-end that
 * migrates the guest.
 *
 * Marked by who pushes, so by the owner of the ring, and in this order: data and status are
 * written, then marked, then their used elements are written and marked, then the index.  What is
 * in flight when the log comes or goes is marked, or not, when it is pushed.
 *
 * The bits are shared with the front-end, which takes them away as it sends pages: each is set by
 * an atomic OR behind what was written.  pair: dirty-log (front-end) */
#include <errno.h>
#include <stdlib.h>

#include "vq.h"

enum { LOG_PAGE = 4096 }; /* vhost-user, "Migration": whatever the guest's page size */

struct vhb_log {
    uint8_t *bits;
    uint64_t len;      /* bytes */
    uint64_t used_gpa; /* where the used part is logged, or VHB_LOG_USED_* */
    size_t n;
    struct vhb_log_region regions[]; /* sorted by host, disjoint */
};

/* ---- marking -------------------------------------------------------------------------- */

/* What is behind the log's end is dropped: it is shorter than memory while that grows. */
static void mark(const struct vhb_log *log, uint64_t gpa, uint64_t len)
{
    uint64_t last;
    if (__builtin_add_overflow(gpa, len - 1, &last))
        last = UINT64_MAX;
    last /= LOG_PAGE;
    for (uint64_t page = gpa / LOG_PAGE; page <= last && page / 8 < log->len;) {
        uint64_t end = page / 8 == last / 8 ? last % 8 : 7;
        uint8_t bits = (uint8_t)((0xffu << page % 8) & (0xffu >> (7 - end)));
        /* What was written comes first.  pair: dirty-log (front-end) */
        __atomic_fetch_or(&log->bits[page / 8], bits, __ATOMIC_SEQ_CST);
        page = (page / 8 + 1) * 8;
    }
}

/* The first region that ends behind *host*. */
static size_t first_region(const struct vhb_log *log, uintptr_t host)
{
    size_t low = 0, high = log->n;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)log->regions[middle].host + log->regions[middle].len <= host)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void mark_host(const struct vhb_log *log, const void *host, uint64_t len)
{
    uintptr_t at = (uintptr_t)host, end = at + len;
    for (size_t i = first_region(log, at); i < log->n && at < end; i++) {
        const struct vhb_log_region *region = &log->regions[i];
        uintptr_t start = (uintptr_t)region->host, stop = start + region->len;
        if (at < start)
            at = start;
        if (stop > end)
            stop = end;
        if (at < stop)
            mark(log, region->gpa + (at - start), stop - at);
        at = stop > at ? stop : at;
    }
}

/* ---- what the device writes ------------------------------------------------------------ */

/* Bits that went to a page of zeroes are lost, and so is what the front-end sends. */
static void check_log(struct vhb_queue *q, uint32_t lost)
{
    if (vhb_fault_seen() != lost)
        vhb_break_as(q, VHB_LOG_GONE, next_at(q), 0);
}

void vhb_log_data(struct vhb_queue *q, const struct vhb_req *req)
{
    uint32_t lost = vhb_fault_seen();
    for (uint32_t i = 0; req->fills && i < req->niov; i++)
        mark_host(q->log, req->iov[i].iov_base, req->iov[i].iov_len);
    check_log(q, lost);
}

void vhb_log_done(struct vhb_queue *q)
{
    uint32_t lost = vhb_fault_seen();
    for (const struct vhb_req *req = q->done; req; req = req->next) {
        vhb_log_data(q, req);
        if (req->status)
            mark_host(q->log, req->status, 1);
    }
    check_log(q, lost);
}

/* A part may lie in several pieces. */
static void mark_part(const struct vhb_log *log, const struct vhb_part *part, size_t offset,
                      size_t len)
{
    for (size_t i = 0; i < part->n && len; i++) {
        const struct vhb_piece *piece = &part->pieces[i];
        if (offset >= piece->len) {
            offset -= piece->len;
            continue;
        }
        size_t here = piece->len - offset < len ? piece->len - offset : len;
        mark_host(log, (uint8_t *)piece->host + offset, here);
        offset = 0;
        len -= here;
    }
}

void vhb_log_part(struct vhb_queue *q, int which, size_t offset, size_t len)
{
    const struct vhb_log *log = q->log;
    uint64_t gpa;
    uint32_t lost = vhb_fault_seen();
    if (log->used_gpa == VHB_LOG_USED_NOT)
        return;
    if (which != VHB_PART_USED || log->used_gpa == VHB_LOG_USED_BY_HOST)
        mark_part(log, &q->part[which], offset, len);
    else if (!__builtin_add_overflow(log->used_gpa, offset, &gpa))
        mark(log, gpa, len);
    check_log(q, lost);
}

bool vhb_log_lost(const struct vhb_log *log)
{
    return vhb_fault_lost(log->bits, log->len);
}

/* ---- the control plane ----------------------------------------------------------------- */

static bool are_regions(const struct vhb_log_region *regions, size_t n)
{
    uintptr_t before = 0, end;
    for (size_t i = 0; i < n; i++) {
        uintptr_t start = (uintptr_t)regions[i].host;
        uint64_t last;
        if (start < before || !regions[i].len ||
            __builtin_add_overflow(start, regions[i].len, &end) ||
            __builtin_add_overflow(regions[i].gpa, regions[i].len - 1, &last))
            return false;
        before = end;
    }
    return true;
}

int vhb_queue_set_log(struct vhb_queue *q, void *bits, uint64_t len,
                      const struct vhb_log_region *regions, size_t n, uint64_t used_gpa)
{
    if (!is_ours(q))
        return -EBUSY;
    uintptr_t end;
    if (bits &&
        (!len || __builtin_add_overflow((uintptr_t)bits, len, &end) || !are_regions(regions, n)))
        return -EINVAL;
    struct vhb_log *log = NULL;
    if (bits) {
        log = malloc(sizeof(*log) + n * sizeof(*regions));
        if (!log)
            return -ENOMEM;
        *log = (struct vhb_log){.bits = bits, .len = len, .used_gpa = used_gpa, .n = n};
        for (size_t i = 0; i < n; i++)
            log->regions[i] = regions[i];
    }
    free(q->log);
    q->log = log;
    q->losses = 0;
    return 0;
}
