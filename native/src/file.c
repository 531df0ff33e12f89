/* file.c - a regular file or block device behind a queue.
 *
 * One function says what the next system call of a request is, one what its result means; io_uring
 * and plain calls share both.  Short results go on where they stopped. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "atomics.h"
#include "io.h"

struct file {
    struct vhb_disk disk;
    int fd;
    bool direct, block_device;
    bool memory_backed;  /* tmpfs: a plain call never waits, io_uring would use a thread */
    bool try_cached;     /* reads may be tried without waiting; cleared where that is refused */
    int lost;            /* -errno of a sync that failed, for ever; 0: none has */
    uint32_t mem_mask, offset_mask;
};

/* req->step of a request: which of its calls is next. */
enum step { STEP_FIRST, STEP_SYNC, STEP_ZERO_BY_WRITE };

enum { ZEROES = 64 * 1024 };
static const uint8_t zeroes[ZEROES] __attribute__((aligned(4096)));

/* ---- the cursor ---------------------------------------------------------------------- */

/* Give the piece of the cursor back what was cut off it: no piece stays changed. */
static void mend(struct vhb_req *req)
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
            mend(req);
            req->at++;
        }
    }
}

static int batch(const struct vhb_req *req)
{
    uint32_t left = req->niov - req->at;
    return left < IOV_MAX ? (int)left : IOV_MAX;
}

static bool aligned(const struct file *f, const struct vhb_req *req)
{
    if ((req->offset | req->len) & f->offset_mask)
        return false;
    for (uint32_t i = 0; i < req->niov; i++)
        if (((uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len) & f->mem_mask)
            return false;
    return true;
}

/* ---- the next call ------------------------------------------------------------------- */

struct call {
    enum { CALL_RW, CALL_FSYNC, CALL_FALLOCATE } kind;
    bool write;
    int rwf;  /* RWF_* */
    int mode; /* FALLOC_FL_* */
    const struct iovec *iov;
    int niov;
    uint64_t offset, len;
};

static struct call call_zeroes(struct vhb_req *req)
{
    uint64_t left = req->len - req->done;
    req->one = (struct iovec){(void *)(uintptr_t)zeroes, left < ZEROES ? (size_t)left : ZEROES};
    return (struct call){.kind = CALL_RW,
                         .write = true,
                         .iov = &req->one,
                         .niov = 1,
                         .offset = req->offset + req->done};
}

static struct call call_rw(struct vhb_req *req)
{
    struct call c = {.kind = CALL_RW,
                     .write = req->op == VHB_WRITE,
                     .iov = req->iov + req->at,
                     .niov = batch(req),
                     .offset = req->offset + req->done};
    if (c.write && (req->flags & VHB_REQ_FUA))
        c.rwf = RWF_DSYNC;
    if (req->bounce) {
        req->one = (struct iovec){req->bounce, vhb_bounce_len(req)};
        c.iov = &req->one;
        c.niov = 1;
    }
    return c;
}

static struct call next_call(struct vhb_req *req)
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
                         .offset = req->offset,
                         .len = req->len};
}

static int call_now(const struct file *f, const struct call *c)
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

static void call_later(const struct file *f, struct vhb_req *req, const struct call *c,
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

enum verdict { AGAIN, OVER };

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

/* Look at the result of the last call: AGAIN, there is another one; OVER, *result is final. */
static enum verdict judge(struct vhb_req *req, int r, int *result)
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

/* ---- the disk ------------------------------------------------------------------------ */

static struct file *file_of(struct vhb_disk *disk)
{
    return (struct file *)((uint8_t *)disk - offsetof(struct file, disk));
}

/* The request leaves the disk as it came. */
static void leave(struct vhb_req *req, struct vhb_io *io)
{
    mend(req);
    if (req->bounce)
        vhb_bounce_put(io, req);
}

/* What the page cache could not write is clean afterwards, and the next sync would succeed without
 * it.  Nobody can tell what is missing, so none succeeds any more.  O_DIRECT leaves nothing there.
 */
static int end_of(struct file *f, const struct vhb_req *req, int result)
{
    bool sync = req->op == VHB_FLUSH || req->step == STEP_SYNC;
    if (!sync || f->direct || req->state == VHB_REQ_DEAD)
        return result;
    if (result < 0)
        store_relaxed(&f->lost, result);
    return load_relaxed(&f->lost);
}

/* Calls until the request is over, all of them now. */
static int run_now(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    int result;
    for (;;) {
        struct call c = next_call(req);
        if (judge(req, call_now(f, &c), &result) == OVER)
            break;
    }
    leave(req, io);
    return end_of(f, req, result);
}

static int start(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    if (!io->uring)
        return run_now(f, req, io);
    struct call c = next_call(req);
    call_later(f, req, &c, io);
    return VHB_PENDING;
}

static int start_bounced(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    if (vhb_bounce_fill(req))
        return start(f, req, io);
    leave(req, io);
    return VHB_RESULT_LOST_MEMORY;
}

static void file_resume(struct vhb_req *req, int r, struct vhb_io *io)
{
    struct file *f = file_of(req->disk);
    int result = -ECANCELED;
    if (req->state != VHB_REQ_DEAD && judge(req, r, &result) == AGAIN) {
        struct call c = next_call(req);
        call_later(f, req, &c, io);
        return;
    }
    leave(req, io);
    vhb_req_done(req, end_of(f, req, result));
}

/* Bounce memory was given back and this request is next. */
static void file_bounced(struct vhb_req *req, int r, struct vhb_io *io)
{
    struct file *f = file_of(req->disk);
    req->resume = file_resume;
    if (r < 0 || req->state == VHB_REQ_DEAD) {
        leave(req, io);
        vhb_req_done(req, -ECANCELED);
        return;
    }
    r = start_bounced(f, req, io);
    if (r != VHB_PENDING)
        vhb_req_done(req, r);
}

static int submit_bounced(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    req->resume = file_bounced;
    req->bounce = vhb_bounce_get(io, req);
    if (!req->bounce)
        return VHB_PENDING;
    req->resume = file_resume;
    return start_bounced(f, req, io);
}

/* A hit in the page cache costs less than a round trip through the ring.  VHB_PENDING: no hit. */
static int try_cached(struct file *f, struct vhb_req *req)
{
    struct call c = next_call(req);
    c.rwf |= RWF_NOWAIT;
    int result, r = call_now(f, &c);
    if (r == -EOPNOTSUPP) {
        store_relaxed(&f->try_cached, false);
        return VHB_PENDING;
    }
    if (r == -EAGAIN || r == 0 || judge(req, r, &result) == AGAIN)
        return VHB_PENDING;
    mend(req);
    return result;
}

static int discard_device(struct file *f, struct vhb_req *req)
{
    uint64_t range[2] = {req->offset, req->len};
    if (ioctl(f->fd, BLKDISCARD, range) < 0 && errno != EOPNOTSUPP)
        return -errno;
    if (!(req->flags & VHB_REQ_FUA))
        return 0;
    req->step = STEP_SYNC;
    return end_of(f, req, fdatasync(f->fd) < 0 ? -errno : 0);
}

static int file_submit(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    struct file *f = file_of(disk);
    bool data = req->op == VHB_READ || req->op == VHB_WRITE;
    req->disk = disk;
    req->resume = file_resume;
    req->bounce = NULL;
    req->step = STEP_FIRST;
    req->at = 0;
    req->done = req->skip = 0;
    if (req->op == VHB_DISCARD && f->block_device)
        return discard_device(f, req);
    if (data && f->direct && !aligned(f, req))
        return submit_bounced(f, req, io);
    if (data && f->memory_backed)
        return run_now(f, req, io);
    if (req->op == VHB_READ && load_relaxed(&f->try_cached)) {
        int r = try_cached(f, req);
        if (r != VHB_PENDING)
            return r;
    }
    return start(f, req, io);
}

static void file_cancel(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)disk;
    vhb_io_cancel(io, req);
}

static void file_free(struct vhb_disk *disk)
{
    free(file_of(disk));
}

static const struct vhb_disk_ops file_ops = {
    .submit = file_submit, .cancel = file_cancel, .free = file_free};

int vhb_disk_file_new(int fd, uint32_t flags, uint32_t mem_align, uint32_t offset_align,
                      struct vhb_disk **out)
{
    if (mem_align == 0 || (mem_align & (mem_align - 1)) || offset_align == 0 ||
        (offset_align & (offset_align - 1)))
        return -EINVAL;
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return -errno;
    struct file *f = calloc(1, sizeof(*f));
    if (!f)
        return -ENOMEM;
    *f = (struct file){.disk = {.ops = &file_ops},
                       .fd = fd,
                       .direct = flags & VHB_FILE_DIRECT,
                       .block_device = flags & VHB_FILE_BLOCK_DEVICE,
                       .mem_mask = mem_align - 1,
                       .offset_mask = offset_align - 1};
    f->memory_backed = fs.f_type == TMPFS_MAGIC && !f->block_device;
    f->try_cached = !f->direct && !f->memory_backed;
    *out = &f->disk;
    return 0;
}
