/* mailbox_rig.h - a mailbox whose queue's side is played by the test.
 *
 * vhb_req_done() is the test's own. */
#ifndef VHB_MAILBOX_RIG_H
#define VHB_MAILBOX_RIG_H

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "check.h"
#include "disk.h"

enum { SLOTS = 4, MANY = 64 };

/* What came back, by request. */
static struct {
    int n, result;
} done[MANY];
static int done_in_all;

static struct vhb_disk *resubmit_to; /* while set, a request that is done is sent again */
static int resubmits;

void vhb_req_done(struct vhb_req *req, int result)
{
    done[req->tag].n++;
    done[req->tag].result = result;
    done_in_all++;
    if (resubmit_to && resubmits > 0) {
        resubmits--;
        CHECK_EQ(resubmit_to->ops->submit(resubmit_to, req, NULL), VHB_PENDING);
    }
}

static inline struct vhb_mailbox *mailbox(uint32_t slots)
{
    struct vhb_mailbox *box;
    CHECK_EQ(vhb_mailbox_new(slots, &box), 0);
    memset(done, 0, sizeof(done));
    done_in_all = 0;
    return box;
}

static inline struct vhb_req request(uint32_t tag)
{
    return (struct vhb_req){.op = VHB_FLUSH, .tag = tag};
}

static inline void flush(struct vhb_mailbox *box)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    disk->ops->flush(disk);
}

/* In a visit, which *flush* ends. */
static inline int post(struct vhb_mailbox *box, struct vhb_req *req)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->submit(disk, req, NULL);
}

static inline int submit(struct vhb_mailbox *box, struct vhb_req *req)
{
    int r = post(box, req);
    flush(box);
    return r;
}

static inline void cancel(struct vhb_mailbox *box, struct vhb_req *req)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    disk->ops->cancel(disk, req, NULL);
    flush(box);
}

static inline int reap(struct vhb_mailbox *box, bool arm)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->reap(disk, arm);
}

static inline bool readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

/* How often an eventfd was written; it is quiet then. */
static inline eventfd_t rings(int fd)
{
    eventfd_t n = 0;
    (void)eventfd_read(fd, &n);
    return n;
}

static inline int worker_fd(struct vhb_mailbox *box)
{
    struct vhb_disk *disk = vhb_mailbox_disk(box);
    return disk->ops->poll_fd(disk);
}

#endif
