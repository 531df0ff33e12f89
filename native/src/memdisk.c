/* memdisk.c - disks that are only memory, or nothing at all.
 *
 * Both answer inside submit: nothing is ever pending.  Bounds were checked by blk.c; they are
 * checked again because a disk that shrinks or a wrong capacity must not become a stray memcpy. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomics.h"
#include "disk.h"

struct memory_disk {
    struct vhb_disk disk;
    uint8_t *host;
    uint64_t size;
    uintptr_t page_mask;
};

struct null_disk {
    struct vhb_disk disk;
    bool zero;
};

/* ---- memory -------------------------------------------------------------------------- */

static int copy_out_of_disk(const uint8_t *from, const struct vhb_req *req)
{
    uint64_t left = req->len;
    for (uint32_t i = 0; i < req->niov && left; i++) {
        size_t part = req->iov[i].iov_len < left ? req->iov[i].iov_len : (size_t)left;
        memcpy(req->iov[i].iov_base, from, part);
        from += part;
        left -= part;
    }
    return left ? -EIO : 0;
}

static int copy_into_disk(uint8_t *to, const struct vhb_req *req)
{
    uint64_t left = req->len;
    for (uint32_t i = 0; i < req->niov && left; i++) {
        size_t part = req->iov[i].iov_len < left ? req->iov[i].iov_len : (size_t)left;
        memcpy(to, req->iov[i].iov_base, part);
        to += part;
        left -= part;
    }
    return left ? -EIO : 0;
}

/* Whole pages go back to the kernel and read as zeroes; the edges are zeroed by hand. */
static void give_back(const struct memory_disk *m, uint8_t *from, size_t len)
{
    uintptr_t start = (uintptr_t)from, end = start + len;
    uintptr_t inner = (start + m->page_mask) & ~m->page_mask, inner_end = end & ~m->page_mask;
    if (inner >= inner_end || madvise((void *)inner, inner_end - inner, MADV_DONTNEED) < 0) {
        memset(from, 0, len); /* no whole page, or locked memory */
        return;
    }
    memset(from, 0, inner - start);
    memset((void *)inner_end, 0, end - inner_end);
}

static int memory_run(const struct memory_disk *m, const struct vhb_req *req)
{
    uint64_t start = vhb_req_at(req), end;
    if (__builtin_add_overflow(start, req->len, &end) || end > m->size)
        return -EIO;
    uint8_t *at = m->host + start;
    switch (req->op) {
    case VHB_READ:
        return copy_out_of_disk(at, req);
    case VHB_WRITE:
        return copy_into_disk(at, req);
    case VHB_FLUSH:
        return 0; /* as stable as memory gets */
    case VHB_DISCARD:
        give_back(m, at, req->len);
        return 0;
    case VHB_WRITE_ZEROES:
        if (req->flags & VHB_REQ_UNMAP)
            give_back(m, at, req->len);
        else
            memset(at, 0, req->len);
        return 0;
    case VHB_CANCEL:
        break;
    }
    return -EINVAL;
}

static int memory_submit(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)io;
    uint32_t lost = vhb_fault_seen();
    int r = memory_run((const struct memory_disk *)disk, req);
    return vhb_fault_seen() == lost ? r : -EFAULT;
}

static void memory_free(struct vhb_disk *disk)
{
    free(disk);
}

static const struct vhb_disk_ops memory_ops = {
    .submit = memory_submit, .free = memory_free, .at_once = 8};

int vhb_disk_memory_new(void *host, uint64_t size, struct vhb_disk **out)
{
    uintptr_t end;
    if (!host || __builtin_add_overflow((uintptr_t)host, size, &end))
        return -EINVAL;
    struct memory_disk *m = calloc(1, sizeof(*m));
    if (!m)
        return -ENOMEM;
    m->disk.ops = &memory_ops;
    m->host = host;
    m->size = size;
    m->page_mask = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    *out = &m->disk;
    return 0;
}

/* ---- null ---------------------------------------------------------------------------- */

static int null_submit(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)io;
    if (req->op != VHB_READ || !((const struct null_disk *)disk)->zero)
        return 0;
    uint32_t lost = vhb_fault_seen();
    for (uint32_t i = 0; i < req->niov; i++)
        memset(req->iov[i].iov_base, 0, req->iov[i].iov_len);
    return vhb_fault_seen() == lost ? 0 : -EFAULT;
}

static void null_free(struct vhb_disk *disk)
{
    free(disk);
}

static const struct vhb_disk_ops null_ops = {
    .submit = null_submit, .free = null_free, .at_once = 8};

int vhb_disk_null_new(bool zero, struct vhb_disk **out)
{
    struct null_disk *n = calloc(1, sizeof(*n));
    if (!n)
        return -ENOMEM;
    n->disk.ops = &null_ops;
    n->zero = zero;
    *out = &n->disk;
    return 0;
}
