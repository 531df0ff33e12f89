/* file.c - a regular file or block device behind a queue, and the way its requests take: through
 * the ring, or by a call in the worker.
 *
 * docs/explanation/file-io.md says which way is taken when, and why. */
#include <errno.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "file.h"
#include "vq.h"

/* A longer copy gains little by saving a round trip, and others of the worker wait for it. */
enum { TIMED_MAX = 64 * 1024 };

static bool aligned(const struct file *f, const struct vhb_req *req)
{
    if ((vhb_req_at(req) | req->len) & f->offset_mask)
        return false;
    for (uint32_t i = 0; i < req->niov; i++)
        if (((uintptr_t)req->iov[i].iov_base | req->iov[i].iov_len) & f->mem_mask)
            return false;
    return true;
}

static struct file *file_of(struct vhb_disk *disk)
{
    return (struct file *)((uint8_t *)disk - offsetof(struct file, disk));
}

/* The request leaves the disk as it came. */
static void leave(struct vhb_req *req, struct vhb_io *io)
{
    vhb_file_mend(req);
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

static struct vhb_way *way_of(struct file *f, const struct vhb_req *req)
{
    return req->op == VHB_READ ? &f->reads : &f->writes;
}

static bool moves_data(const struct vhb_req *req)
{
    return req->op == VHB_READ || req->op == VHB_WRITE;
}

/* ---- all at once ---------------------------------------------------------------------- */

/* Calls until the request is over, all of them now. */
static int run_now(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    int result;
    for (;;) {
        struct call c = vhb_file_next_call(req);
        if (vhb_file_judge(req, vhb_file_call_now(f, &c), &result) == OVER)
            break;
    }
    leave(req, io);
    return end_of(f, req, result);
}

/* ---- tried at once: VHB_PENDING, the ring goes on where this has stopped ---------------- */

/* Without waiting: a hit in the page cache. */
static int try_nowait(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_way *way = way_of(f, req);
    struct call c = vhb_file_next_call(req);
    c.rwf |= RWF_NOWAIT;
    int result, r = vhb_file_call_now(f, &c);
    if (r == -EOPNOTSUPP) {
        store_relaxed(&way->kind, f->timed && c.write ? VHB_WAY_TIMED : VHB_WAY_RING);
        return VHB_PENDING;
    }
    if (r == -EAGAIN || r == 0 || vhb_file_judge(req, r, &result) == AGAIN) {
        count(&req->queue->counters.inline_misses, 1);
        vhb_way_lost(way, 1, io->now);
        return VHB_PENDING;
    }
    vhb_way_won(way, 1);
    return result;
}

/* Whole blocks are not read before they are written.  While something is made stable a write may
 * have to wait for the journal. */
static bool is_prompt(const struct file *f, const struct vhb_req *req)
{
    return req->len <= TIMED_MAX && !((vhb_req_at(req) | req->len) & f->block_mask) &&
           load_relaxed(&f->syncs) == 0;
}

/* A write to the page cache, which seldom waits. */
static int try_timed(struct file *f, struct vhb_req *req)
{
    struct call c = vhb_file_next_call(req);
    uint64_t start = vhb_clock();
    int result, r = vhb_file_call_now(f, &c);
    uint64_t now = vhb_clock();
    vhb_way_took(&f->writes, req->len, now - start, now);
    return vhb_file_judge(req, r, &result) == AGAIN ? VHB_PENDING : result;
}

static int try_now(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_way *way = way_of(f, req);
    if (!vhb_way_is_open(way, io->now) || vhb_file_syncs(req))
        return VHB_PENDING;
    int r = VHB_PENDING;
    if (load_relaxed(&way->kind) == VHB_WAY_NOWAIT)
        r = try_nowait(f, req, io);
    if (r == VHB_PENDING && load_relaxed(&way->kind) == VHB_WAY_TIMED && is_prompt(f, req))
        r = try_timed(f, req);
    if (r != VHB_PENDING)
        vhb_file_mend(req);
    return r;
}

/* ---- by the ring ----------------------------------------------------------------------- */

static void give_to_ring(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    struct call c = vhb_file_next_call(req);
    if (vhb_file_syncs(req))
        __atomic_fetch_add(&f->syncs, 1, __ATOMIC_RELAXED);
    vhb_file_call_later(f, req, &c, io);
}

static int start(struct file *f, struct vhb_req *req, struct vhb_io *io)
{
    bool now = moves_data(req) && load_relaxed(&way_of(f, req)->kind) == VHB_WAY_PLAIN;
    if (now || !io->uring) {
        if (moves_data(req))
            count(&req->queue->counters.inline_hits, 1);
        return run_now(f, req, io);
    }
    give_to_ring(f, req, io);
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
    if (vhb_file_syncs(req))
        __atomic_fetch_sub(&f->syncs, 1, __ATOMIC_RELAXED);
    if (req->state != VHB_REQ_DEAD && vhb_file_judge(req, r, &result) == AGAIN) {
        give_to_ring(f, req, io);
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

/* ---- the disk --------------------------------------------------------------------------- */

static int discard_device(struct file *f, struct vhb_req *req)
{
    uint64_t range[2] = {vhb_req_at(req), req->len};
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
    req->disk = disk;
    req->resume = file_resume;
    req->bounce = NULL;
    req->step = STEP_FIRST;
    req->at = 0;
    req->done = req->skip = 0;
    if (req->op == VHB_DISCARD && f->block_device)
        return discard_device(f, req);
    if (!moves_data(req))
        return start(f, req, io);
    if (f->direct && !aligned(f, req))
        return submit_bounced(f, req, io);
    int r = io->uring ? try_now(f, req, io) : VHB_PENDING;
    if (r == VHB_PENDING)
        return start(f, req, io);
    count(&req->queue->counters.inline_hits, 1);
    return r;
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
    .submit = file_submit, .cancel = file_cancel, .free = file_free, .at_once = 16, .waits = true};

/* ---- the way, by what the file system is ------------------------------------------------- */

static bool reads_without_waiting(int fd)
{
    uint8_t first;
    struct iovec one = {.iov_base = &first, .iov_len = 1};
    bool refused = preadv2(fd, &one, 1, 0, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP;
    explicit_bzero(&first, 1); /* the guest's */
    return !refused;
}

/* Whether writes can be tried without waiting the first of them tells: it could not be asked
 * without writing something. */
static void choose_ways(struct file *f, uint32_t flags, const struct statfs *fs)
{
    bool memory = !f->block_device && (fs->f_type == TMPFS_MAGIC || fs->f_type == RAMFS_MAGIC);
    uint32_t kind = VHB_WAY_NOWAIT;
    if (flags & VHB_FILE_INLINE || (memory && !(flags & VHB_FILE_RING)))
        kind = VHB_WAY_PLAIN;
    else if (f->direct || flags & VHB_FILE_RING)
        kind = VHB_WAY_RING;
    f->reads.kind = f->writes.kind = kind;
    if (kind == VHB_WAY_NOWAIT && !reads_without_waiting(f->fd))
        f->reads.kind = VHB_WAY_RING;
    /* Of the local file systems the one that refuses.  A remote one can wait for ever. */
    f->timed = !f->block_device && fs->f_type == EXT4_SUPER_MAGIC;
    uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE), block = (uint32_t)fs->f_bsize;
    f->block_mask = (block > page ? block : page) - 1;
}

static bool power_of_two(uint32_t n)
{
    return n && (n & (n - 1)) == 0;
}

int vhb_disk_file_new(int fd, uint32_t flags, uint32_t mem_align, uint32_t offset_align,
                      struct vhb_disk **out)
{
    bool both = flags & VHB_FILE_RING && flags & VHB_FILE_INLINE;
    if (!power_of_two(mem_align) || !power_of_two(offset_align) || both)
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
    choose_ways(f, flags, &fs);
    *out = &f->disk;
    return 0;
}

int vhb_disk_file_ways(struct vhb_disk *disk, struct vhb_file_ways *out)
{
    if (disk->ops != &file_ops)
        return -EINVAL;
    struct file *f = file_of(disk);
    uint64_t now = vhb_clock();
    *out = (struct vhb_file_ways){.reads = load_relaxed(&f->reads.kind),
                                  .writes = load_relaxed(&f->writes.kind),
                                  .reads_open = vhb_way_is_open(&f->reads, now),
                                  .writes_open = vhb_way_is_open(&f->writes, now)};
    return 0;
}
