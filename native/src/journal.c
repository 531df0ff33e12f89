/* journal.c - the parts of a journal that a request does not meet. */
#include "journal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

int vhb_journal_init(struct vhb_journal *journal, uint64_t words)
{
    journal->words = calloc(words, sizeof(uint64_t));
    if (!journal->words)
        return -ENOMEM;
    journal->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (journal->wake < 0) {
        free(journal->words);
        return -errno;
    }
    journal->mask = words - 1;
    return 0;
}

void vhb_journal_free(struct vhb_journal *journal)
{
    close(journal->wake);
    free(journal->words);
}

void vhb_journal_wake(struct vhb_journal *journal)
{
    eventfd_write(journal->wake, 1);
}

void vhb_journal_copy(struct vhb_journal *journal, uint64_t at, uint64_t byte, const void *from,
                      size_t n)
{
    uint8_t *ring = (uint8_t *)journal->words;
    uint64_t size = (journal->mask + 1) * sizeof(uint64_t);
    uint64_t to = (at * sizeof(uint64_t) + byte) & (size - 1);
    size_t first = n < size - to ? n : (size_t)(size - to);
    memcpy(ring + to, from, first);
    memcpy(ring, (const uint8_t *)from + first, n - first);
}

bool vhb_journal_begin(struct vhb_journal *journal)
{
    return !__atomic_exchange_n(&journal->taking, 1u, __ATOMIC_ACQUIRE); /* pair: journal-taking */
}

void vhb_journal_end(struct vhb_journal *journal)
{
    store_release(&journal->taking, 0u); /* pair: journal-taking */
}

void vhb_journal_taken(struct vhb_journal *journal, uint64_t n)
{
    uint64_t from = journal->tail & journal->mask, words = journal->mask + 1;
    uint64_t first = n < words - from ? n : words - from;
    memset(journal->words + from, 0, first * sizeof(uint64_t));
    memset(journal->words, 0, (n - first) * sizeof(uint64_t));
    store_release(&journal->tail, journal->tail + n); /* pair: journal-room */
}
