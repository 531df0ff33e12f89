/* mailbox.c - a disk that somebody else serves: one queue posts jobs, one other thread takes and
 * completes them.
 *
 * Two rings with one writer and one reader each: posts (worker to server) and completions (server
 * to worker).  Neither side ever waits for the other.  Both write as much as they have and publish
 * it at once: the worker at the end of a visit, the server when it ends jobs.  An eventfd per
 * direction is written only when the reader said that it is about to sleep (its *armed* flag), so
 * a batch costs one at most, and two busy threads make no system call:
 *
 *   reader   armed = 1;  full fence;  look at the ring once more
 *   writer   publish the entries;  full fence;  look at armed
 *
 * One of the two sees the other.  A reader that leaves with armed = 0 has a written eventfd, or
 * comes back by himself.
 *
 * A job that is cancelled before it is taken is not shown to the server: take ends it.
 *
 * A job lives in a slot.  Its tag carries the slot's generation; the server's own note of what it
 * took and has not ended (*taken*) decides whether a tag names a job, so a stale, repeated or
 * invented tag touches nothing. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "atomics.h"
#include "disk.h"

/* Of one slot the post ring holds at most: the cancel of a job that was taken and has completed,
 * and the next job with its cancel; that one was not taken, so it cannot complete. */
enum { POSTS_PER_SLOT = 3, MAX_SLOTS = 65536, MAX_ERRNO = 4095 };

/* The worker's, but for job: written before its post, read by the server after. */
struct slot {
    struct vhb_job job; /* pair: mailbox-post */
    struct vhb_req *req;
    uint32_t cancelled; /* by the worker; the server looks when it takes the job */
};

struct post {
    uint64_t tag;
    bool cancel;
};

struct completion {
    uint32_t slot;
    int result;
};

/* What the server owes. */
struct taken {
    uint64_t tag; /* to be completed, or 0 */
    uint32_t lost; /* vhb_fault_seen() of the serving thread when it took the job */
};

/* A ring and how its reader is woken.  Indices run on and are masked. */
struct way {
    uint32_t head __attribute__((aligned(64))); /* the reader's */
    uint32_t tail __attribute__((aligned(64))); /* the writer's, seen by the reader */
    uint32_t written; /* the writer's: as far as entries are filled */
    uint32_t armed; /* the reader may sleep */
    uint32_t mask;
    int fd;
};

struct vhb_mailbox {
    struct vhb_disk disk;
    uint32_t slots_n;
    struct way posts, completions;
    struct post *post;
    struct completion *completion;
    struct slot *slots;
    uint32_t *free_slots; /* the worker's: a stack */
    uint32_t n_free;
    struct taken *taken; /* the server's, by slot */
};

static struct vhb_mailbox *box_of(struct vhb_disk *disk)
{
    return (struct vhb_mailbox *)((uint8_t *)disk - offsetof(struct vhb_mailbox, disk));
}

static uint32_t slot_of(uint64_t tag)
{
    return (uint32_t)tag;
}

/* ---- one way ------------------------------------------------------------------------- */

/* An eventfd cannot be full (it would take 2^64 - 2 writes) and an empty one is no error. */
static void way_ring(struct way *way)
{
    (void)eventfd_write(way->fd, 1);
}

static void way_quiet(struct way *way)
{
    eventfd_t rings;
    (void)eventfd_read(way->fd, &rings);
}

/* The writer: make what is written visible, wake the reader if it may sleep. */
static void way_publish(struct way *way)
{
    if (way->written == way->tail)
        return;
    store_release(&way->tail, way->written); /* pair: mailbox-post, mailbox-done */
    full_fence(); /* pair: mailbox-armed */
    if (load_relaxed(&way->armed) && __atomic_exchange_n(&way->armed, 0u, __ATOMIC_ACQ_REL))
        way_ring(way);
}

/* The reader: from here on an entry wakes it.  Whether one slipped in. */
static bool way_arm(struct way *way)
{
    way_quiet(way);
    store_relaxed(&way->armed, 1u);
    full_fence(); /* pair: mailbox-armed */
    return load_acquire(&way->tail) != way->head;
}

static int way_init(struct way *way, uint32_t entries)
{
    way->mask = entries - 1;
    way->armed = 1;
    way->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return way->fd < 0 ? -errno : 0;
}

/* ---- the worker's side --------------------------------------------------------------- */

static void post(struct vhb_mailbox *box, uint64_t tag, bool cancel)
{
    struct way *way = &box->posts;
    /* Never full by POSTS_PER_SLOT, so the reader's index need not be looked at. */
    box->post[way->written++ & way->mask] = (struct post){.tag = tag, .cancel = cancel};
}

static void mailbox_flush(struct vhb_disk *disk)
{
    way_publish(&box_of(disk)->posts);
}

static int mailbox_submit(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)io;
    struct vhb_mailbox *box = box_of(disk);
    if (box->n_free == 0)
        return -EBUSY; /* the queue has more slots than the box was made for */
    uint32_t i = box->free_slots[--box->n_free];
    struct slot *slot = &box->slots[i];
    uint32_t generation = (uint32_t)(slot->job.tag >> 32) + 1;
    if (generation == 0)
        generation = 1; /* tag 0 is no job */
    bool data = req->op == VHB_READ || req->op == VHB_WRITE;
    slot->job = (struct vhb_job){
        .tag = (uint64_t)generation << 32 | i,
        .offset = vhb_req_at(req),
        .len = req->len,
        .op = req->op,
        .flags = req->flags,
        .n_pieces = data ? req->niov : 0,
        .pieces = data ? (const struct vhb_piece *)(const void *)req->iov : NULL,
    };
    if (slot->job.n_pieces)
        slot->job.first = slot->job.pieces[0];
    slot->req = req;
    store_relaxed(&slot->cancelled, 0u);
    req->step = i;
    post(box, slot->job.tag, false);
    return VHB_PENDING;
}

static void mailbox_cancel(struct vhb_disk *disk, struct vhb_req *req, struct vhb_io *io)
{
    (void)io;
    struct vhb_mailbox *box = box_of(disk);
    struct slot *slot = &box->slots[req->step];
    if (slot->req != req || load_relaxed(&slot->cancelled))
        return;
    store_relaxed(&slot->cancelled, 1u);
    post(box, slot->job.tag, true);
}

static int mailbox_poll_fd(struct vhb_disk *disk)
{
    return box_of(disk)->completions.fd;
}

static int reap_once(struct vhb_mailbox *box)
{
    struct way *way = &box->completions;
    uint32_t tail = load_acquire(&way->tail); /* pair: mailbox-done */
    int n = 0;
    for (; way->head != tail; n++) {
        struct completion c = box->completion[way->head & way->mask];
        struct vhb_req *req = box->slots[c.slot].req;
        box->slots[c.slot].req = NULL;
        box->free_slots[box->n_free++] = c.slot;
        way->head++; /* before done: it may submit again, and the server then reuse this entry */
        vhb_req_done(req, c.result);
    }
    return n;
}

static int mailbox_reap(struct vhb_disk *disk, bool arm)
{
    struct vhb_mailbox *box = box_of(disk);
    int n = reap_once(box);
    if (!arm) {
        /* Awake: completions need not ring.  Relaxed: a ring too many is only a ring. */
        store_relaxed(&box->completions.armed, 0u);
        return n;
    }
    /* What comes after this look finds the flag up and rings, however often done submits. */
    if (way_arm(&box->completions))
        n += reap_once(box);
    mailbox_flush(disk); /* what done submitted: no visit need follow */
    return n;
}

static const struct vhb_disk_ops mailbox_ops = {
    /* no free: the box owns its disk */
    .submit = mailbox_submit,   .cancel = mailbox_cancel, .flush = mailbox_flush,
    .poll_fd = mailbox_poll_fd, .reap = mailbox_reap,
};

/* ---- the serving thread's side ------------------------------------------------------- */

int vhb_mailbox_fd(struct vhb_mailbox *box)
{
    return box->posts.fd;
}

static int end(struct vhb_mailbox *box, uint64_t tag, int result)
{
    uint32_t i = slot_of(tag);
    if (tag == 0 || i >= box->slots_n || box->taken[i].tag != tag)
        return -EINVAL;
    box->taken[i].tag = 0;
    /* Perhaps another job's loss: better one error too many than zeroes for guest data. */
    if (result == 0 && vhb_fault_seen() != box->taken[i].lost)
        result = VHB_RESULT_LOST_MEMORY;
    struct way *way = &box->completions;
    /* Never full: one entry per slot, and a slot is posted again only after its entry was read. */
    box->completion[way->written++ & way->mask] = (struct completion){.slot = i, .result = result};
    return 0;
}

static uint32_t take_once(struct vhb_mailbox *box, struct vhb_job *jobs, uint32_t n)
{
    struct way *way = &box->posts;
    uint32_t tail = load_acquire(&way->tail); /* pair: mailbox-post */
    uint32_t got = 0;
    for (; way->head != tail && got < n; way->head++) {
        struct post p = box->post[way->head & way->mask];
        struct taken *taken = &box->taken[slot_of(p.tag)];
        struct slot *slot = &box->slots[slot_of(p.tag)];
        if (!p.cancel) {
            *taken = (struct taken){.tag = p.tag, .lost = vhb_fault_seen()};
            if (load_relaxed(&slot->cancelled))
                end(box, p.tag, -ECANCELED);
            else
                jobs[got++] = slot->job;
        } else if (taken->tag == p.tag) { /* else it completed before this reached us */
            jobs[got++] = (struct vhb_job){.tag = p.tag, .op = VHB_CANCEL};
        }
    }
    way_publish(&box->completions);
    return got;
}

int vhb_mailbox_take(struct vhb_mailbox *box, struct vhb_job *jobs, uint32_t n)
{
    if (n == 0)
        return 0;
    uint32_t got;
    /* The fd stays readable until a take finds nothing: under load neither side rings. */
    while ((got = take_once(box, jobs, n)) == 0) {
        if (!way_arm(&box->posts))
            return 0;
        /* Slipped in between the two looks, perhaps without a ring: we stay awake, and leave a
         * readable fd for what does not fit into *jobs*. */
        store_relaxed(&box->posts.armed, 0u);
        way_ring(&box->posts);
    }
    return (int)got;
}

int vhb_mailbox_complete_many(struct vhb_mailbox *box, const struct vhb_ended *ended, uint32_t n)
{
    int r = 0;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t error = ended[i].error <= MAX_ERRNO ? ended[i].error : EIO;
        if (end(box, ended[i].tag, -(int)error) < 0)
            r = -EINVAL;
    }
    way_publish(&box->completions);
    return r;
}

int vhb_mailbox_complete(struct vhb_mailbox *box, uint64_t tag, int result)
{
    /* Of a positive result the error is larger than any errno. */
    struct vhb_ended one = {.tag = tag, .error = (uint64_t)-(int64_t)result};
    return vhb_mailbox_complete_many(box, &one, 1);
}

int vhb_mailbox_break(struct vhb_mailbox *box, uint64_t tag)
{
    int r = end(box, tag, VHB_RESULT_KEPT_VIEW);
    way_publish(&box->completions);
    return r;
}

/* ---- life ---------------------------------------------------------------------------- */

static uint32_t power_of_two(uint32_t at_least)
{
    uint32_t n = 1;
    while (n < at_least)
        n *= 2;
    return n;
}

static void destroy(struct vhb_mailbox *box)
{
    if (box->posts.fd >= 0)
        close(box->posts.fd);
    if (box->completions.fd >= 0)
        close(box->completions.fd);
    free(box->post);
    free(box->completion);
    free(box->slots);
    free(box->free_slots);
    free(box->taken);
    free(box);
}

static int init(struct vhb_mailbox *box, uint32_t slots)
{
    uint32_t posts = power_of_two(slots * POSTS_PER_SLOT), completions = power_of_two(slots);
    box->disk.ops = &mailbox_ops;
    box->slots_n = slots;
    box->post = calloc(posts, sizeof(*box->post));
    box->completion = calloc(completions, sizeof(*box->completion));
    box->slots = calloc(slots, sizeof(*box->slots));
    box->free_slots = calloc(slots, sizeof(*box->free_slots));
    box->taken = calloc(slots, sizeof(*box->taken));
    if (!box->post || !box->completion || !box->slots || !box->free_slots || !box->taken)
        return -ENOMEM;
    while (box->n_free < slots) {
        box->free_slots[box->n_free] = slots - 1 - box->n_free;
        box->n_free++;
    }
    int r = way_init(&box->posts, posts);
    return r < 0 ? r : way_init(&box->completions, completions);
}

int vhb_mailbox_new(uint32_t slots, struct vhb_mailbox **out)
{
    if (slots == 0 || slots > MAX_SLOTS)
        return -EINVAL;
    struct vhb_mailbox *box = aligned_alloc(_Alignof(struct vhb_mailbox), sizeof(*box));
    if (!box)
        return -ENOMEM;
    memset(box, 0, sizeof(*box));
    box->posts.fd = box->completions.fd = -1;
    int r = init(box, slots);
    if (r < 0) {
        destroy(box);
        return r;
    }
    *out = box;
    return 0;
}

struct vhb_disk *vhb_mailbox_disk(struct vhb_mailbox *box)
{
    return &box->disk;
}

int vhb_mailbox_free(struct vhb_mailbox *box)
{
    if (!box)
        return 0;
    if (atomic_load(&box->disk.users))
        return -EBUSY;
    destroy(box);
    return 0;
}
