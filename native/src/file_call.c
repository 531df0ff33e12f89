/* file_call.c - the system calls of a request to a file.
 *
 * One function says what the next call is, one what its result means; io_uring and plain calls
 * share both, so a request may change from one to the other in the middle.  Short results go on
 * where they stopped. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <unistd.h>

#include "file.h"

enum { ZEROES = 64 * 1024 };
static const uint8_t zeroes[ZEROES] __attribute__((aligned(4096)));

/* ---- the cursor ---------------------------------------------------------------------- */

void vhb_file_mend(struct vhb_req *req)
{
    if (req->skip == 0)
        return;
    struct iovec *piece = &req->iov[req->at];
    piece->iov_base = (uint8_t *)piece->iov_base - req->skip;
    piece->iov_len += req->skip;
    req->skip = 0;
}

static void consume(struct vhb_req *req, size_t n)
{
    req->done += n;
    while (n) {
        struct iovec *piece = &req->iov[req->at];
        size_t part = piece->iov_len < n ? piece->iov_len : n;
        piece->iov_base = (uint8_t *)piece->iov_base + part;
        piece->iov_len -= part;
        req->skip += part;
        n -= part;
        if (piece->iov_len == 0) {
            vhb_file_mend(req);
            req->at++;
        }
    }
}

static int batch(const struct vhb_req *req)
{
    uint32_t left = req->niov - req->at;
    return left < IOV_MAX ? (int)left : IOV_MAX;
}

/* ---- the next call ------------------------------------------------------------------- */

static struct call call_zeroes(struct vhb_req *req)
{
    uint64_t left = req->len - req->done;
    req->one = (struct iovec){(void *)(uintptr_t)zeroes, left < ZEROES ? (size_t)left : ZEROES};
    return (struct call){.kind = CALL_RW,
                         .write = true,
                         .iov = &req->one,
                         .niov = 1,
                         .offset = vhb_req_at(req) + req->done};
}

static struct call call_rw(struct vhb_req *req)
{
    struct call c = {.kind = CALL_RW,
                     .write = req->op == VHB_WRITE,
                     .iov = req->iov + req->at,
                     .niov = batch(req),
                     .offset = vhb_req_at(req) + req->done};
    if (c.write && (req->flags & VHB_REQ_FUA))
        c.rwf = RWF_DSYNC;
    if (req->bounce) {
        req->one = (struct iovec){req->bounce, vhb_bounce_len(req)};
        c.iov = &req->one;
        c.niov = 1;
    }
    return c;
}

bool vhb_file_syncs(const struct vhb_req *req)
{
    return req->step == STEP_SYNC || req->op == VHB_FLUSH ||
           (req->op == VHB_WRITE && req->flags & VHB_REQ_FUA);
}

struct call vhb_file_next_call(struct vhb_req *req)
{
    if (req->step == STEP_SYNC || req->op == VHB_FLUSH)
        return (struct call){.kind = CALL_FSYNC};
    if (req->step == STEP_ZERO_BY_WRITE)
        return call_zeroes(req);
    if (req->op == VHB_READ || req->op == VHB_WRITE)
        return call_rw(req);
    bool hole = req->op == VHB_DISCARD || (req->flags & VHB_REQ_UNMAP);
    return (struct call){.kind = CALL_FALLOCATE,
                         .mode = FALLOC_FL_KEEP_SIZE |
                                 (hole ? FALLOC_FL_PUNCH_HOLE : FALLOC_FL_ZERO_RANGE),
                         .offset = vhb_req_at(req),
                         .len = req->len};
}

int vhb_file_call_now(const struct file *f, const struct call *c)
{
    ssize_t r;
    if (c->kind == CALL_FSYNC)
        r = fdatasync(f->fd);
    else if (c->kind == CALL_FALLOCATE)
        r = fallocate(f->fd, c->mode, (off_t)c->offset, (off_t)c->len);
    else if (c->write)
        r = pwritev2(f->fd, c->iov, c->niov, (off_t)c->offset, c->rwf);
    else
        r = preadv2(f->fd, c->iov, c->niov, (off_t)c->offset, c->rwf);
    return r < 0 ? -errno : (int)r;
}

void vhb_file_call_later(const struct file *f, struct vhb_req *req, const struct call *c,
                         struct vhb_io *io)
{
    struct io_uring_sqe *sqe = vhb_io_sqe(io);
    io->pending++;
    unsigned niov = (unsigned)c->niov;
    if (c->kind == CALL_FSYNC)
        io_uring_prep_fsync(sqe, f->fd, IORING_FSYNC_DATASYNC);
    else if (c->kind == CALL_FALLOCATE)
        io_uring_prep_fallocate(sqe, f->fd, c->mode, (off_t)c->offset, (off_t)c->len);
    else if (c->write)
        io_uring_prep_writev2(sqe, f->fd, c->iov, niov, c->offset, c->rwf);
    else
        io_uring_prep_readv2(sqe, f->fd, c->iov, niov, c->offset, c->rwf);
    io_uring_sqe_set_data(sqe, req);
}

/* ---- what a result means ------------------------------------------------------------- */

static enum verdict take_bytes(struct vhb_req *req, int n, int *result)
{
    if (n == 0) { /* the end of a file that was long enough when it was opened */
        *result = -EIO;
        return OVER;
    }
    *result = vhb_bounce_drain(req, (size_t)n) ? 0 : VHB_RESULT_LOST_MEMORY;
    if (req->step == STEP_ZERO_BY_WRITE)
        req->done += (unsigned)n;
    else
        consume(req, (size_t)n);
    if (*result < 0 || req->done == req->len)
        return OVER;
    if (vhb_bounce_fill(req))
        return AGAIN;
    *result = VHB_RESULT_LOST_MEMORY;
    return OVER;
}

enum verdict vhb_file_judge(struct vhb_req *req, int r, int *result)
{
    bool range = req->op == VHB_DISCARD || req->op == VHB_WRITE_ZEROES;
    if (r == -EINTR || r == -EAGAIN)
        return AGAIN;
    if (range && req->step == STEP_FIRST && r == -EOPNOTSUPP) {
        if (req->op == VHB_WRITE_ZEROES) { /* the file system cannot: write them */
            req->step = STEP_ZERO_BY_WRITE;
            return AGAIN;
        }
        r = 0; /* a discard is a hint */
    }
    *result = r;
    if (r < 0)
        return OVER;
    bool bytes = req->op == VHB_READ || req->op == VHB_WRITE || req->step == STEP_ZERO_BY_WRITE;
    if (bytes && take_bytes(req, r, result) == AGAIN)
        return AGAIN;
    if (range && (req->flags & VHB_REQ_FUA) && req->step != STEP_SYNC && *result == 0) {
        req->step = STEP_SYNC;
        return AGAIN;
    }
    return OVER;
}
