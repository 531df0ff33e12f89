/* bounce.c - aligned memory for requests of misaligned guest memory under O_DIRECT.
 *
 * A request takes one buffer for as long as it lasts, and goes through it in as many rounds as it
 * needs; who finds none free waits in line.  A worker serves several devices, so a buffer is wiped
 * whenever it is given back: between requests, and once a device has stopped, none holds data. */
#include "atomics.h"
#include "io.h"

/* ---- buffers -------------------------------------------------------------------------- */

static void *take(struct vhb_io *io)
{
    uint32_t i = (uint32_t)__builtin_ctz(io->bounce_free);
    io->bounce_free &= ~(1u << i);
    return io->bounce + (size_t)i * VHB_BOUNCE_SIZE;
}

void *vhb_bounce_get(struct vhb_io *io, struct vhb_req *req)
{
    if (io->bounce_free && !io->bounce_wait)
        return take(io);
    req->next = NULL;
    *io->bounce_tail = req;
    io->bounce_tail = &req->next;
    return NULL;
}

static struct vhb_req *next_in_line(struct vhb_io *io)
{
    struct vhb_req *first = io->bounce_wait;
    io->bounce_wait = first->next;
    if (!io->bounce_wait)
        io->bounce_tail = &io->bounce_wait;
    return first;
}

void vhb_bounce_put(struct vhb_io *io, struct vhb_req *req)
{
    void *buffer = req->bounce;
    req->bounce = NULL;
    explicit_bzero(buffer, req->len < VHB_BOUNCE_SIZE ? (size_t)req->len : VHB_BOUNCE_SIZE);
    io->bounce_free |= 1u << ((size_t)((uint8_t *)buffer - io->bounce) / VHB_BOUNCE_SIZE);
    if (io->bounce_giving) /* by a request that was next and is over already: the loop goes on */
        return;
    io->bounce_giving = true;
    while (io->bounce_wait && io->bounce_free) {
        struct vhb_req *next = next_in_line(io);
        next->bounce = take(io);
        next->resume(next, 0, io);
    }
    io->bounce_giving = false;
}

/* ---- rounds: at the request's cursor -------------------------------------------------- */

size_t vhb_bounce_len(const struct vhb_req *req)
{
    uint64_t left = req->len - req->done;
    return left < VHB_BOUNCE_SIZE ? (size_t)left : VHB_BOUNCE_SIZE;
}

bool vhb_bounce_fill(struct vhb_req *req)
{
    if (!req->bounce || req->op != VHB_WRITE)
        return true;
    uint32_t lost = vhb_fault_seen();
    uint8_t *to = req->bounce;
    size_t left = vhb_bounce_len(req);
    for (uint32_t i = req->at; left; i++) {
        size_t part = req->iov[i].iov_len < left ? req->iov[i].iov_len : left;
        copy_in(to, req->iov[i].iov_base, part);
        to += part;
        left -= part;
    }
    return vhb_fault_seen() == lost;
}

bool vhb_bounce_drain(struct vhb_req *req, size_t n)
{
    if (!req->bounce || req->op != VHB_READ)
        return true;
    uint32_t lost = vhb_fault_seen();
    const uint8_t *from = req->bounce;
    for (uint32_t i = req->at; n; i++) {
        size_t part = req->iov[i].iov_len < n ? req->iov[i].iov_len : n;
        memcpy(req->iov[i].iov_base, from, part);
        from += part;
        n -= part;
    }
    return vhb_fault_seen() == lost;
}
