/* hold.c - requests that wait for a time, on their worker: a pairing heap of nodes in their slots.
 *
 * Nothing is allocated, however many wait; to hold one and to know the first is O(1), to let one go
 * O(log n) on average.  Who is due at the same time goes on in the order of coming. */
#include "io.h"
#include "vq.h"

static bool before(const struct vhb_hold *a, const struct vhb_hold *b)
{
    return a->due != b->due ? a->due < b->due : a->turn < b->turn;
}

/* Make one heap of two, neither with siblings.  back: of a first child its parent, of another its
 * elder sibling. */
static struct vhb_hold *meld(struct vhb_hold *a, struct vhb_hold *b)
{
    if (!a || !b)
        return a ? a : b;
    struct vhb_hold *first = before(b, a) ? b : a, *other = first == a ? b : a;
    other->back = first;
    other->next = first->child;
    if (first->child)
        first->child->back = other;
    first->child = other;
    return first;
}

/* Make one heap of a list of siblings: of pairs, then of those together, the last pair first. */
static struct vhb_hold *meld_all(struct vhb_hold *list)
{
    struct vhb_hold *pairs = NULL, *heap = NULL;
    while (list) {
        struct vhb_hold *a = list, *b = a->next;
        list = b ? b->next : NULL;
        a->next = NULL;
        if (b)
            b->next = NULL;
        a = meld(a, b);
        a->next = pairs;
        pairs = a;
    }
    while (pairs) {
        struct vhb_hold *next = pairs->next;
        pairs->next = NULL;
        heap = meld(heap, pairs);
        pairs = next;
    }
    if (heap)
        heap->back = NULL;
    return heap;
}

static void take_out(struct vhb_io *io, struct vhb_hold *hold)
{
    struct vhb_hold *rest = meld_all(hold->child), *back = hold->back;
    hold->req->timed = false;
    if (hold == io->held) {
        io->held = rest;
        return;
    }
    *(back->child == hold ? &back->child : &back->next) = hold->next;
    if (hold->next)
        hold->next->back = back;
    io->held = meld(io->held, rest);
}

void vhb_io_hold(struct vhb_io *io, struct vhb_req *req, uint64_t due)
{
    struct vhb_hold *hold = &layered_of(req)->hold;
    *hold = (struct vhb_hold){
        .due = req->state == VHB_REQ_DEAD ? 0 : due, .turn = io->hold_turn++, .req = req};
    req->timed = true;
    io->held = meld(io->held, hold);
}

bool vhb_io_let_go(struct vhb_io *io, struct vhb_req *req)
{
    if (!req->timed)
        return false;
    take_out(io, &layered_of(req)->hold);
    return true;
}

int vhb_io_expire(struct vhb_io *io)
{
    int n = 0;
    /* Who is held again meanwhile waits for the next pass, however soon it is due. */
    uint64_t end = io->hold_turn;
    for (struct vhb_hold *hold; (hold = io->held) && hold->due <= io->now && hold->turn < end;
         n++) {
        struct vhb_req *req = hold->req;
        take_out(io, hold);
        req->resume(req, 0, io);
    }
    return n;
}

uint64_t vhb_io_next_due(const struct vhb_io *io)
{
    if (!io->held)
        return UINT64_MAX;
    return io->held->due > io->now ? io->held->due - io->now : 0;
}
