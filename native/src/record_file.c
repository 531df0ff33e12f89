/* record_file.c - from the journal of a recorder to blocks of a file, or to who reads it.
 *
 * Where the file takes nothing more, what comes is dropped and counted, and tried again every
 * second: the place of the next block then says how much is missing. */
#include <endian.h>
#include <errno.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

#include "layer_record.h"
#include "vq.h"

enum { VERSION = 2, KIND_RECORDS = 2, MAX_PIECES = 3 };
enum { LONGEST = 5 }; /* words of a record without payload */
#define AGAIN_NS 1000000000ull

/* docs/reference/trace-format.md */
struct head {
    uint8_t magic[4];
    uint16_t version, kind;
    uint32_t length, sum;
    uint64_t segment, first, time;
    uint32_t own_sum, zero;
};

_Static_assert(sizeof(struct head) == 48, "as trace-format.md says");
_Static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "words of a trace are");

/* All of it, at the end of the file.  -errno: *put* bytes of it are there. */
static int append_all(int fd, struct iovec *iov, int n, uint64_t *put)
{
    while (n) {
        ssize_t done = writev(fd, iov, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return done < 0 ? -errno : -ENOSPC;
        *put += (uint64_t)done;
        for (; n && (size_t)done >= iov->iov_len; iov++, n--)
            done -= (ssize_t)iov->iov_len;
        if (n) {
            iov->iov_base = (uint8_t *)iov->iov_base + done;
            iov->iov_len -= (size_t)done;
        }
    }
    return 0;
}

/* A torn block would be the end of the trace.  Whoever else writes to the file has it locked, too,
 * and its end may be his then: the block stays. */
static void cut_off(int fd, uint64_t put)
{
    off_t end = lseek(fd, 0, SEEK_END);
    if (!put || end < (off_t)put || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return;
    (void)!ftruncate(fd, end - (off_t)put);
    flock(fd, LOCK_SH);
}

/* The *n* words from the tail on as one block. */
static int write_block(struct vhb_recorder *r, uint64_t n)
{
    struct vhb_journal *j = &r->journal;
    uint64_t from = j->tail & j->mask, words = j->mask + 1;
    uint64_t first = n < words - from ? n : words - from;
    struct head head = {.magic = {'V', 'H', 'B', 'T'},
                        .version = VERSION,
                        .kind = KIND_RECORDS,
                        .length = (uint32_t)(n * 8),
                        .segment = r->segment,
                        .first = j->tail - r->base,
                        .time = vhb_clock()};
    struct iovec iov[MAX_PIECES] = {{&head, sizeof(head)},
                                    {j->words + from, (size_t)first * 8},
                                    {j->words, (size_t)(n - first) * 8}};
    head.sum = vhb_crc32(&r->crc, 0, iov[1].iov_base, iov[1].iov_len);
    head.sum = vhb_crc32(&r->crc, head.sum, iov[2].iov_base, iov[2].iov_len);
    head.own_sum = vhb_crc32(&r->crc, 0, &head, offsetof(struct head, own_sum));
    uint64_t put = 0;
    int result = append_all(r->fd, iov, n > first ? 3 : 2, &put);
    if (result < 0)
        cut_off(r->fd, put);
    else
        count(&r->bytes, put);
    return result;
}

/* Write, or give up, *n* words. */
static void put_away(struct vhb_recorder *r, uint64_t n)
{
    if (r->fd < 0 || (r->error && vhb_clock() < r->again_at)) {
        count(&r->lost, n);
        return;
    }
    int result = write_block(r, n);
    store_relaxed(&r->error, (uint32_t)-result);
    if (result < 0) {
        count(&r->lost, n);
        r->again_at = vhb_clock() + AGAIN_NS;
    }
}

/* Half of the journal at most: those who append may go on before all is written. */
uint64_t vhb_recorder_write(struct vhb_recorder *r)
{
    if (!vhb_journal_begin(&r->journal))
        return 0;
    uint64_t n = journal_ready(&r->journal, record_words, r->journal.mask / 2);
    if (n) {
        put_away(r, n);
        vhb_journal_taken(&r->journal, n);
    }
    vhb_journal_end(&r->journal);
    return n;
}

void vhb_recorder_attach(struct vhb_recorder *r, int fd, uint64_t segment)
{
    struct vhb_journal *j = &r->journal;
    while (!vhb_journal_begin(j))
        sched_yield();
    uint64_t n;
    while ((n = journal_ready(j, record_words, j->mask / 2)))
        vhb_journal_taken(j, n);
    store_relaxed(&r->fd, fd);
    r->segment = segment;
    store_relaxed(&r->base, j->tail);
    store_relaxed(&r->bytes, 0ull);
    store_relaxed(&r->lost, 0ull);
    store_relaxed(&r->error, 0u);
    vhb_journal_end(j);
}

int vhb_stage_record_flush(struct vhb_stage *stage)
{
    struct vhb_recorder *r = vhb_recorder_of(stage);
    if (!r || r->fd < 0)
        return -EINVAL;
    eventfd_t rings;
    (void)eventfd_read(r->journal.wake, &rings);
    uint64_t until = load_acquire(&r->journal.head);
    while ((int64_t)(until - load_acquire(&r->journal.tail)) > 0 && vhb_recorder_write(r))
        continue;
    return 0;
}

int vhb_stage_record_take(struct vhb_stage *stage, void *out, size_t n)
{
    struct vhb_recorder *r = vhb_recorder_of(stage);
    if (!r || r->fd >= 0 || n < LONGEST * sizeof(uint64_t) || n > INT32_MAX)
        return -EINVAL;
    eventfd_t rings;
    (void)eventfd_read(r->journal.wake, &rings);
    struct vhb_journal *j = &r->journal;
    if (!vhb_journal_begin(j))
        return 0;
    uint64_t words = journal_ready(j, record_words, n / 8 - LONGEST + 1);
    for (uint64_t i = 0; i < words; i++)
        ((uint64_t *)out)[i] = load_relaxed(&j->words[(j->tail + i) & j->mask]);
    vhb_journal_taken(j, words);
    vhb_journal_end(j);
    return (int)(words * 8);
}

int vhb_stage_record_wake_fd(struct vhb_stage *stage)
{
    struct vhb_recorder *r = vhb_recorder_of(stage);
    return r ? r->journal.wake : -EINVAL;
}

int vhb_stage_record_state(struct vhb_stage *stage, struct vhb_record_state *out)
{
    struct vhb_recorder *r = vhb_recorder_of(stage);
    if (!r)
        return -EINVAL;
    uint64_t base = load_relaxed(&r->base);
    *out = (struct vhb_record_state){.words = load_relaxed(&r->journal.head) - base,
                                     .taken = load_relaxed(&r->journal.tail) - base,
                                     .bytes = load_relaxed(&r->bytes),
                                     .lost = load_relaxed(&r->lost),
                                     .dropped = load_relaxed(&r->dropped),
                                     .error = load_relaxed(&r->error)};
    return 0;
}
