/* blk.c - from a chain to a request: virtio-blk semantics.  Read done.c for the way back.
 *
 * virtio 1.3, 5.2.6.  Any framing: the header is the first 16 bytes of the readable part, the
 * status the last writable byte, wherever the driver cut its descriptors. */
#include <endian.h>
#include <errno.h>
#include <linux/virtio_blk.h>

#include "vq.h"

enum { SECTOR = 512, TYPE_BARRIER = 1u << 31 };

/* Bytes of one IN or OUT, more than every segment we offer at its longest.  A driver can name the
 * same page over and over: without a bound, one request could keep the worker for minutes. */
enum { MAX_TRANSFER = 512 << 20 };

_Static_assert(sizeof(struct virtio_blk_outhdr) == 16, "virtio 1.3, 5.2.6");
_Static_assert(sizeof(struct virtio_blk_discard_write_zeroes) == 16, "virtio 1.3, 5.2.6");

/* ---- pieces -------------------------------------------------------------------------- */

/* Take n bytes off the front of the pieces.  False: there are fewer. */
static bool pieces_take(struct iovec **iov, uint32_t *niov, void *local, size_t n)
{
    uint8_t *to = local;
    while (n) {
        if (*niov == 0)
            return false;
        size_t part = (*iov)->iov_len < n ? (*iov)->iov_len : n;
        copy_in(to, (*iov)->iov_base, part);
        (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + part;
        (*iov)->iov_len -= part;
        to += part;
        n -= part;
        if ((*iov)->iov_len == 0) {
            (*iov)++;
            (*niov)--;
        }
    }
    return true;
}

static uint64_t pieces_len(const struct iovec *iov, uint32_t niov)
{
    uint64_t len = 0;
    for (uint32_t i = 0; i < niov; i++)
        len += iov[i].iov_len;
    return len;
}

/* Copy a short local buffer to the front of the pieces; how many bytes fitted. */
static uint32_t pieces_put(const struct iovec *iov, uint32_t niov, const void *local, size_t n)
{
    const uint8_t *from = local;
    size_t left = n;
    for (uint32_t i = 0; i < niov && left; i++) {
        size_t part = iov[i].iov_len < left ? iov[i].iov_len : left;
        memcpy(iov[i].iov_base, from, part);
        from += part;
        left -= part;
    }
    return (uint32_t)(n - left);
}

/* ---- the start of a request ---------------------------------------------------------- */

void vhb_blk_submit(struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_queue *q = req->queue;
    req->held = vhb_grave_blocks(q->graveyard, req);
    if (req->held) {
        req->next = NULL;
        *q->held_tail = req;
        q->held_tail = &req->next;
        return;
    }
    req->shift = 0;
    req->depth = 0;
    uint32_t lost = vhb_fault_seen();
    int r = q->disk->ops->submit(q->disk, req, io);
    if (r == VHB_PENDING)
        return;
    vhb_req_done(req, vhb_fault_seen() == lost ? r : VHB_RESULT_LOST_MEMORY);
}

static void start(struct vhb_req *req, enum vhb_op op, struct vhb_io *io)
{
    store_relaxed(&req->op, op);
    vhb_blk_submit(req, io);
}

static bool in_range(const struct vhb_blk *blk, uint64_t sector, uint64_t sectors)
{
    uint64_t per_block = blk->block_size / SECTOR;
    return sector % per_block == 0 && sectors % per_block == 0 && sector <= blk->capacity_sectors &&
           sectors <= blk->capacity_sectors - sector;
}

static uint32_t stable(const struct vhb_blk *blk)
{
    return blk->flags & VHB_BLK_WRITETHROUGH ? VHB_REQ_FUA : 0;
}

static void start_data(struct vhb_queue *q, struct vhb_req *req, enum vhb_op op, uint64_t sector,
                       struct vhb_io *io)
{
    store_relaxed(&req->len, pieces_len(req->iov, req->niov));
    if (req->len > MAX_TRANSFER || req->len % SECTOR ||
        !in_range(&q->blk, sector, req->len / SECTOR)) {
        vhb_blk_finish(req, VIRTIO_BLK_S_IOERR);
        return;
    }
    if (req->len == 0) {
        vhb_blk_finish(req, VIRTIO_BLK_S_OK);
        return;
    }
    store_relaxed(&req->offset, sector * SECTOR);
    req->flags = op == VHB_WRITE ? stable(&q->blk) : 0;
    req->fills = op == VHB_READ;
    start(req, op, io);
}

/* The limits of DISCARD or of WRITE_ZEROES. */
struct range_rules {
    enum vhb_op op;
    uint32_t max_sectors, max_seg;
    uint32_t known_flags; /* virtio's */
};

static uint8_t read_range(struct vhb_queue *q, const struct range_rules *rules, struct vhb_req *req)
{
    struct virtio_blk_discard_write_zeroes raw;
    if (!pieces_take(&req->iov, &req->niov, &raw, sizeof(raw)))
        return VIRTIO_BLK_S_IOERR;
    uint32_t flags = le32toh(raw.flags), sectors = le32toh(raw.num_sectors);
    uint64_t sector = le64toh(raw.sector);
    if (flags & ~rules->known_flags)
        return VIRTIO_BLK_S_UNSUPP;
    if (sectors > rules->max_sectors || !in_range(&q->blk, sector, sectors))
        return VIRTIO_BLK_S_IOERR;
    if (sectors == 0)
        return VIRTIO_BLK_S_OK;
    bool unmap = (flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) && (q->blk.flags & VHB_BLK_UNMAP);
    wide_of(req)->ranges[req->n_ranges++] = (struct vhb_range){
        .offset = sector * SECTOR,
        .len = (uint64_t)sectors * SECTOR,
        .flags = stable(&q->blk) | (unmap ? (uint32_t)VHB_REQ_UNMAP : 0),
    };
    return VIRTIO_BLK_S_OK;
}

/* Spec: virtio 1.3, 5.2.6.1 and 5.2.6.2.  Every range is checked before the first is touched. */
static void start_ranges(struct vhb_queue *q, struct vhb_req *req, const struct range_rules *rules,
                         struct vhb_io *io)
{
    uint64_t bytes = pieces_len(req->iov, req->niov);
    uint64_t n = bytes / sizeof(struct virtio_blk_discard_write_zeroes);
    uint8_t status = VIRTIO_BLK_S_OK;
    if (n == 0 || bytes % sizeof(struct virtio_blk_discard_write_zeroes) || n > rules->max_seg)
        status = VIRTIO_BLK_S_IOERR;
    for (uint64_t i = 0; i < n && status == VIRTIO_BLK_S_OK; i++)
        status = read_range(q, rules, req);
    if (lost_memory(q))
        status = VIRTIO_BLK_S_IOERR;
    if (status != VIRTIO_BLK_S_OK || req->n_ranges == 0) {
        vhb_blk_finish(req, status);
        return;
    }
    vhb_blk_next_range(req);
    start(req, rules->op, io);
}

static void get_id(struct vhb_queue *q, struct vhb_req *req)
{
    req->fills = true;
    req->written = pieces_put(req->iov, req->niov, q->blk.serial, sizeof(q->blk.serial));
    count(&q->counters.get_ids, 1);
    vhb_blk_finish(req, lost_memory(q) ? VIRTIO_BLK_S_IOERR : VIRTIO_BLK_S_OK);
}

/* Point the request at its data: behind the header, or in front of the status. */
static void choose_data(struct vhb_req *req, uint32_t type, struct iovec *readable,
                        uint32_t n_readable)
{
    if (type != VIRTIO_BLK_T_IN && type != VIRTIO_BLK_T_GET_ID) {
        req->iov = readable;
        req->niov = n_readable;
        return;
    }
    req->iov = req->vec + req->n_readable;
    req->niov = req->n_writable;
    struct iovec *last = &req->iov[req->niov - 1];
    if (--last->iov_len == 0)
        req->niov--;
}

/* What would change a read-only disk.  What is not offered is unknown there as anywhere. */
static bool is_forbidden(const struct vhb_blk *blk, uint32_t type)
{
    if (!(blk->flags & VHB_BLK_READ_ONLY))
        return false;
    return type == VIRTIO_BLK_T_OUT ||
           (type == VIRTIO_BLK_T_DISCARD && (blk->flags & VHB_BLK_DISCARD)) ||
           (type == VIRTIO_BLK_T_WRITE_ZEROES && (blk->flags & VHB_BLK_WRITE_ZEROES));
}

static void dispatch(struct vhb_queue *q, struct vhb_req *req, uint32_t type, uint64_t sector,
                     struct vhb_io *io)
{
    const struct vhb_blk *blk = &q->blk;
    if (is_forbidden(blk, type)) {
        vhb_blk_finish(req, VIRTIO_BLK_S_IOERR);
    } else if (type == VIRTIO_BLK_T_IN || type == VIRTIO_BLK_T_OUT) {
        start_data(q, req, type == VIRTIO_BLK_T_IN ? VHB_READ : VHB_WRITE, sector, io);
    } else if (type == VIRTIO_BLK_T_FLUSH) {
        store_relaxed(&req->offset, 0);
        req->flags = 0;
        start(req, VHB_FLUSH, io);
    } else if (type == VIRTIO_BLK_T_GET_ID) {
        get_id(q, req);
    } else if (type == VIRTIO_BLK_T_DISCARD && (blk->flags & VHB_BLK_DISCARD)) {
        struct range_rules rules = {VHB_DISCARD, blk->max_discard_sectors, blk->max_discard_seg, 0};
        start_ranges(q, req, &rules, io);
    } else if (type == VIRTIO_BLK_T_WRITE_ZEROES && (blk->flags & VHB_BLK_WRITE_ZEROES)) {
        struct range_rules rules = {VHB_WRITE_ZEROES, blk->max_write_zeroes_sectors,
                                    blk->max_write_zeroes_seg, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP};
        start_ranges(q, req, &rules, io);
    } else {
        vhb_blk_finish(req, VIRTIO_BLK_S_UNSUPP);
    }
}

void vhb_blk_start(struct vhb_queue *q, struct vhb_req *req, struct vhb_io *io)
{
    store_relaxed(&req->state, VHB_REQ_LIVE);
    store_relaxed(&req->op, VHB_CANCEL); /* none, until it is started */
    req->held = req->fills = false;
    store_relaxed(&req->len, 0);
    req->written = 0;
    req->range = req->n_ranges = 0;
    q->in_flight++;
    if (!req->status) {
        count(&q->counters.malformed, 1);
        vhb_blk_finish(req, VIRTIO_BLK_S_OK);
        return;
    }
    struct virtio_blk_outhdr header;
    struct iovec *readable = req->vec;
    uint32_t n_readable = req->n_readable;
    if (req->bad || !pieces_take(&readable, &n_readable, &header, sizeof(header)) ||
        lost_memory(q)) {
        vhb_blk_finish(req, VIRTIO_BLK_S_IOERR);
        return;
    }
    uint32_t type = le32toh(header.type) & ~(uint32_t)TYPE_BARRIER;
    choose_data(req, type, readable, n_readable);
    dispatch(q, req, type, le64toh(header.sector), io);
}
