/* journal.h - a ring of words to which any number of threads append records, and from which one at
 * a time takes them, in order.
 *
 * A place is taken from one counter; it never goes back, so it is a sequence number over all
 * threads.  A record is published by its first word, which is never 0: it is stored last, and what
 * was taken is zeroed before its place is used again.  Who appends waits for nobody but for room.
 */
#ifndef VHB_JOURNAL_H
#define VHB_JOURNAL_H

#include <stdbool.h>

#include "atomics.h"

struct vhb_journal {
    uint64_t *words;
    uint64_t mask;       /* words - 1 */
    int wake;            /* an eventfd, written each time half of it was filled */
    uint32_t taking;     /* by somebody; pair: journal-taking */
    _Alignas(64) uint64_t head; /* the next place */
    _Alignas(64) uint64_t tail; /* the first that was not taken; pair: journal-room */
};

/* *words*: a power of two. */
int vhb_journal_init(struct vhb_journal *journal, uint64_t words);
void vhb_journal_free(struct vhb_journal *journal);
__attribute__((cold)) void vhb_journal_wake(struct vhb_journal *journal);

/* ---- who appends ---- */

/* Whether there is room for *n* words at *at*, a quarter of all at most.  True as well where *at*
 * was taken meanwhile, perhaps even away. */
static inline bool journal_has_room(const struct vhb_journal *journal, uint64_t at, uint64_t n)
{
    int64_t used = (int64_t)(at + n - load_acquire(&journal->tail)); /* pair: journal-room */
    return used <= (int64_t)journal->mask + 1;
}

/* Take *n* places that there is room for, if the next is *at*; else *at* is what it may be. */
static inline bool journal_claim(struct vhb_journal *journal, uint64_t *at, uint64_t n)
{
    if (!__atomic_compare_exchange_n(&journal->head, at, *at + n, true, __ATOMIC_RELAXED,
                                     __ATOMIC_RELAXED))
        return false;
    if ((*at ^ (*at + n)) & ~(journal->mask >> 1))
        vhb_journal_wake(journal);
    return true;
}

/* Take *n* places, a quarter of all at most, the first of them *at*.  False: there is no room. */
static inline bool journal_reserve(struct vhb_journal *journal, uint64_t n, uint64_t *at)
{
    *at = load_relaxed(&journal->head);
    do
        if (!journal_has_room(journal, *at, n))
            return false;
    while (!journal_claim(journal, at, n));
    return true;
}

/* Fill a place that was taken. */
static inline void journal_put(struct vhb_journal *journal, uint64_t at, uint64_t word)
{
    store_relaxed(&journal->words[at & journal->mask], word);
}

/* The last of a record: its first word, not 0. */
static inline void journal_publish(struct vhb_journal *journal, uint64_t at, uint64_t word)
{
    store_release(&journal->words[at & journal->mask], word); /* pair: journal-record */
}

/* Fill places with *n* bytes from *byte* of the place *at* on. */
void vhb_journal_copy(struct vhb_journal *journal, uint64_t at, uint64_t byte, const void *from,
                      size_t n);

/* ---- who takes ---- */

/* Be the one.  False: somebody else is. */
bool vhb_journal_begin(struct vhb_journal *journal);
/* Words of whole records from the tail on, about *most* of them.  size_of: of a record, in words,
 * by its first word; inline, as each look waits for the one before. */
static inline uint64_t journal_ready(const struct vhb_journal *journal,
                                     uint64_t (*size_of)(uint64_t word), uint64_t most)
{
    uint64_t at = journal->tail, all = journal->mask + 1;
    uint64_t end = at + (most < all ? most : all); /* in a full one no 0 comes behind the last */
    while (at < end) {
        uint64_t word =
            load_acquire(&journal->words[at & journal->mask]); /* pair: journal-record */
        if (!word)
            break;
        at += size_of(word);
    }
    return at - journal->tail;
}
/* So many words are taken. */
void vhb_journal_taken(struct vhb_journal *journal, uint64_t n);
void vhb_journal_end(struct vhb_journal *journal);

#endif
