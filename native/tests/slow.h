/* slow.h - a rig whose disk is a mailbox: requests end when, and how, the test says. */
#ifndef VHB_SLOW_H
#define VHB_SLOW_H

#include "rig.h"

enum { SLOTS = 128 };

struct slow {
    struct vhb_mailbox *box;
    struct rig rig;
};

static inline void open_slow(struct slow *s, const struct rig_config *config)
{
    struct rig_config c = *config;
    CHECK_EQ(vhb_mailbox_new(SLOTS, &s->box), 0);
    c.disk = vhb_mailbox_disk(s->box);
    rig_open(&s->rig, &c);
}

static inline void settle(struct rig *rig)
{
    for (int i = 0; i < 6; i++)
        rig_pass(rig);
}

/* Send a request and see it arrive at the disk. */
static inline struct vhb_job start(struct slow *s, uint16_t head, uint32_t type, uint64_t sector)
{
    struct vhb_job job;
    uint32_t len = type == BLK_FLUSH ? 0 : 512;
    put_request(&s->rig, head, type, sector, RIG_DATA + 512u * head, len);
    put_avail(&s->rig, head);
    rig_kick(&s->rig);
    int64_t end = rig_now_ms() + RIG_DEADLINE_MS; /* the worker may be a thread */
    while (vhb_mailbox_take(s->box, &job, 1) == 0) {
        CHECK(rig_now_ms() < end);
        rig_pass(&s->rig);
    }
    return job;
}

static inline void finish(struct slow *s, const struct vhb_job *job)
{
    CHECK_EQ(vhb_mailbox_complete(s->box, job->tag, 0), 0);
}

/* The disk hears of a cancel, and returns the request after all. */
static inline void take_cancel(struct slow *s, const struct vhb_job *job)
{
    struct vhb_job cancel;
    CHECK_EQ(vhb_mailbox_take(s->box, &cancel, 1), 1);
    CHECK_EQ(cancel.op, VHB_CANCEL);
    CHECK_EQ(cancel.tag, job->tag);
}

static inline void close_slow(struct slow *s)
{
    rig_close(&s->rig);
    CHECK_EQ(vhb_mailbox_free(s->box), 0);
}

#endif
