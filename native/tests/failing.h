/* failing.h - a slow rig whose disk fails, and what becomes of it. */
#ifndef VHB_FAILING_H
#define VHB_FAILING_H

#include "slow.h"

static inline void open_with(struct slow *s, uint32_t policy)
{
    open_slow(s, &(struct rig_config){.stopped = true});
    CHECK_EQ(vhb_queue_set_on_error(s->rig.queue, policy), 0);
    rig_run(&s->rig);
}

static inline void fail(struct slow *s, const struct vhb_job *job, int error)
{
    CHECK_EQ(vhb_mailbox_complete(s->box, job->tag, -error), 0);
    settle(&s->rig);
}

/* The next job, which must come. */
static inline struct vhb_job next(struct slow *s)
{
    struct vhb_job job;
    settle(&s->rig);
    CHECK_EQ(vhb_mailbox_take(s->box, &job, 1), 1);
    return job;
}

static inline void no_job(struct slow *s)
{
    struct vhb_job job;
    settle(&s->rig);
    CHECK_EQ(vhb_mailbox_take(s->box, &job, 1), 0);
}

static inline void resume(struct slow *s)
{
    CHECK_EQ(vhb_queue_resume(s->rig.queue), 0);
}

static inline void ends_with(struct slow *s, uint16_t head, uint8_t status)
{
    wait_used(&s->rig);
    CHECK_EQ(s->rig.last_id, head);
    CHECK_EQ(status_of(&s->rig, head), status);
}

static inline void is_note(const struct vhb_stall *note, uint32_t op, uint64_t offset, uint64_t len,
                           int error)
{
    CHECK_EQ(note->op, op);
    CHECK_EQ(note->offset, offset);
    CHECK_EQ(note->len, len);
    CHECK_EQ(note->error, error);
}

static inline bool stalled(struct slow *s)
{
    struct vhb_stall stall;
    return vhb_queue_stall(s->rig.queue, &stall);
}

static inline void stall_is(struct slow *s, uint32_t op, uint64_t offset, uint64_t len, int error)
{
    struct vhb_stall stall;
    rig_wait(&s->rig, VHB_STALLED);
    CHECK_EQ(vhb_queue_stall(s->rig.queue, &stall), 1);
    is_note(&stall, op, offset, len, error);
}

#endif
