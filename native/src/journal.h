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
void vhb_journal_wake(struct vhb_journal *journal);

/* ---- who appends ---- */

/* Take *n* places, a quarter of all at most, the first of them *at*.  False: there is no room. */
static inline bool journal_reserve(struct vhb_journal *journal, uint64_t n, uint64_t *at)
{
    uint64_t head = load_relaxed(&journal->head);
    do
        if (head + n - load_acquire(&journal->tail) > journal->mask + 1) /* pair: journal-room */
            return false;
    while (!__atomic_compare_exchange_n(&journal->head, &head, head + n, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED));
    *at = head;
    if ((head ^ (head + n)) & ~(journal->mask >> 1))
        vhb_journal_wake(journal);
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
 * by its first word. */
uint64_t vhb_journal_ready(const struct vhb_journal *journal, uint64_t (*size_of)(uint64_t word),
                           uint64_t most);
/* So many words are taken. */
void vhb_journal_taken(struct vhb_journal *journal, uint64_t n);
void vhb_journal_end(struct vhb_journal *journal);

#endif
