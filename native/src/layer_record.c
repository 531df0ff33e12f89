/* layer_record.c - a layer that writes down every request: when it was submitted, and when and how
 * it ended.
 *
 * What is written down is words of 64 bits, as docs/reference/trace-format.md has them, in a
 * journal that all workers share.  A thread of the control plane takes them away soon: into blocks
 * of a file, or to where somebody reads them.  Who finds the journal full writes to the file
 * himself, so nothing is lost; where there is no file, a record is dropped and counted. */
#include "layer_record.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "vq.h"

enum { FLAG_FUA = 0x10, FLAG_UNMAP = 0x20, FLAG_DIGEST = 1 << VHB_RECORDED_DIGEST_SHIFT };
enum { SECTOR_SHIFT = 9 };
enum { TIME_BITS = 40, TIME_SHIFT = 64 - TIME_BITS }; /* of the short records */
enum { SHORT_QUEUE = 0xff, SHORT_BACK = 0xffff, SHORT_SECTORS = 0xffffff };
#define SHORT_SECTOR 0xffffffffffull

_Static_assert(VHB_READ == 0 && VHB_WRITE == 1 && VHB_FLUSH == 2 && VHB_DISCARD == 3 &&
                   VHB_WRITE_ZEROES == 4,
               "as trace-format.md says");

static struct vhb_recorder *recorder_of(const struct vhb_layer *layer)
{
    return (struct vhb_recorder *)layer->stage;
}

/* ---- records ------------------------------------------------------------------------- */

/* A record is three words or less, mostly: a call for it, or a register that is put aside for one,
 * is a good part of what it costs.  So what a request meets is one function each way. */

/* Wait for room.  False: nobody makes any, and a record is counted as dropped. */
static __attribute__((cold)) bool wait_for_room(struct vhb_recorder *r)
{
    if (load_relaxed(&r->fd) < 0) {
        __atomic_fetch_add(&r->dropped, 1, __ATOMIC_RELAXED);
        return false;
    }
    if (vhb_recorder_write(r) == 0)
        sched_yield(); /* somebody else writes */
    return true;
}

/* Places for a record of *n* words.  False: it is not recorded. */
static inline __attribute__((always_inline)) bool make_room(struct vhb_recorder *r, uint64_t n,
                                                            uint64_t *at)
{
    while (!journal_reserve(&r->journal, n, at))
        if (!wait_for_room(r))
            return false;
    return true;
}

static uint32_t digest_of(const struct vhb_recorder *r, const struct vhb_req *req)
{
    uint32_t sum = 0;
    for (uint32_t i = 0; i < req->niov; i++)
        sum = vhb_crc32(&r->crc, sum, req->iov[i].iov_base, req->iov[i].iov_len);
    return sum;
}

/* *at*: its place.  False: it is not recorded. */
static bool put_submit(struct vhb_recorder *r, const struct vhb_req *req, uint64_t now,
                       bool digested, uint64_t *at)
{
    struct vhb_journal *j = &r->journal;
    bool flush = req->op == VHB_FLUSH;
    uint64_t sector = flush ? 0 : vhb_req_at(req) >> SECTOR_SHIFT;
    uint64_t sectors = flush ? 0 : req->len >> SECTOR_SHIFT;
    uint64_t queue = load_relaxed(&req->queue->number);
    uint64_t what = (uint64_t)req->op << 8 | (req->flags & VHB_REQ_FUA ? FLAG_FUA : 0) |
                    (req->flags & VHB_REQ_UNMAP ? FLAG_UNMAP : 0) | (digested ? FLAG_DIGEST : 0);
    bool fits = sector <= SHORT_SECTOR && sectors <= SHORT_SECTORS && queue <= SHORT_QUEUE;
    uint64_t n = fits ? VHB_RECORDED_SUBMIT : VHB_RECORDED_LONG_SUBMIT;
    if (!make_room(r, n + digested, at))
        return false;
    if (digested)
        journal_put(j, *at + n, digest_of(r, req));
    if (fits) {
        journal_put(j, *at + 1, sector | sectors << 40);
        journal_publish(j, *at, VHB_RECORDED_SUBMIT | what | queue << 16 | now << TIME_SHIFT);
        return true;
    }
    journal_put(j, *at + 1, now);
    journal_put(j, *at + 2, sector);
    journal_publish(j, *at, VHB_RECORDED_LONG_SUBMIT | what | queue << 16 | sectors << 32);
    return true;
}

static inline __attribute__((always_inline)) void put_complete(struct vhb_recorder *r, int result,
                                                               uint64_t submitted, uint64_t now,
                                                               const struct vhb_req *digested)
{
    struct vhb_journal *j = &r->journal;
    uint64_t at = load_relaxed(&j->head), what = digested ? FLAG_DIGEST : 0, n;
    do { /* how far back it is can be told only of the place it gets */
        bool fits = result == 0 && at - submitted <= SHORT_BACK;
        n = fits ? VHB_RECORDED_END : VHB_RECORDED_LONG_END;
        while (!journal_has_room(j, at, n + !!digested))
            if (!wait_for_room(r))
                return;
    } while (!journal_claim(j, &at, n + !!digested));
    if (digested)
        journal_put(j, at + n, digest_of(r, digested));
    if (n == VHB_RECORDED_END) {
        journal_publish(j, at, VHB_RECORDED_END | what | (at - submitted) << 8 | now << TIME_SHIFT);
        return;
    }
    journal_put(j, at + 1, now);
    journal_put(j, at + 2, submitted);
    journal_put(j, at + 3, (uint32_t)-result & 0xffff);
    journal_publish(j, at, VHB_RECORDED_LONG_END | what);
}

/* One record of the next *n* bytes of what *req* writes. */
static void put_part(struct vhb_recorder *r, const struct vhb_req *req, uint64_t submitted,
                     struct vhb_cursor *cursor, uint64_t n)
{
    uint64_t at, words = (n + 7) / 8;
    if (!make_room(r, 2 + words, &at))
        return;
    journal_put(&r->journal, at + 1, submitted);
    if (n % 8)
        journal_put(&r->journal, at + 1 + words, 0);
    for (uint64_t done = 0; done < n;) {
        const struct iovec *piece = &req->iov[cursor->piece];
        size_t part = piece->iov_len - cursor->skip;
        part = part < n - done ? part : (size_t)(n - done);
        vhb_journal_copy(&r->journal, at + 2, done, (uint8_t *)piece->iov_base + cursor->skip,
                         part);
        done += part;
        cursor->skip += part;
        if (cursor->skip == piece->iov_len) {
            cursor->piece++;
            cursor->skip = 0;
        }
    }
    journal_publish(&r->journal, at, VHB_RECORDED_DATA | n << 32);
}

static void put_payload(struct vhb_recorder *r, const struct vhb_req *req, uint64_t submitted)
{
    struct vhb_cursor cursor = {0};
    for (uint64_t left = req->len; left;) {
        uint64_t n = left < r->part ? left : r->part;
        put_part(r, req, submitted, &cursor, n);
        left -= n;
    }
}

/* ---- the layer ----------------------------------------------------------------------- */

static int record_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                       struct vhb_io *io)
{
    struct vhb_recorder *r = recorder_of(layer);
    uint64_t now = vhb_layer_time(layer, io);
    if (r->payload == VHB_RECORD_NONE || req->op != VHB_READ || result != 0) {
        put_complete(r, result, note, now, NULL);
        return result;
    }
    uint32_t lost = vhb_fault_seen();
    put_complete(r, result, note, now, req);
    return vhb_fault_seen() != lost ? VHB_RESULT_LOST_MEMORY : result;
}

static int record_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_recorder *r = recorder_of(layer);
    if (!load_relaxed(&r->on))
        return vhb_layer_hand_on(layer, req, io);
    uint32_t kept = req->op == VHB_WRITE ? r->payload : VHB_RECORD_NONE, lost = vhb_fault_seen();
    uint64_t at;
    if (!put_submit(r, req, vhb_layer_time(layer, io), kept == VHB_RECORD_DIGEST, &at))
        return vhb_layer_hand_on(layer, req, io);
    if (kept == VHB_RECORD_FULL)
        put_payload(r, req, at);
    if (kept != VHB_RECORD_NONE && vhb_fault_seen() != lost)
        return record_done(layer, req, -EFAULT, at, io); /* not zeroes in place of the guest's */
    return vhb_layer_hand_on_noted(layer, req, io, at);
}

static const struct vhb_layer_ops record_ops = {.submit = record_submit, .done = record_done};

/* ---- the stage ----------------------------------------------------------------------- */

struct vhb_recorder *vhb_recorder_of(struct vhb_stage *stage)
{
    return stage->kind == &record_ops ? (struct vhb_recorder *)stage : NULL;
}

static void record_free(struct vhb_stage *stage)
{
    struct vhb_recorder *r = (struct vhb_recorder *)stage;
    vhb_journal_free(&r->journal);
    free(r);
}

static bool is_record(const struct vhb_record *record)
{
    uint64_t room = record->room;
    bool whole = record->fd >= 0 || record->payload == VHB_RECORD_NONE;
    return record->payload <= VHB_RECORD_FULL && whole && room >= VHB_RECORD_MIN_ROOM &&
           room <= VHB_RECORD_MAX_ROOM && (room & (room - 1)) == 0;
}

int vhb_stage_record_set(struct vhb_stage *stage, const struct vhb_record *record)
{
    struct vhb_recorder *r = vhb_recorder_of(stage);
    if (!r)
        return -EINVAL;
    if (record->fd != load_relaxed(&r->fd))
        vhb_recorder_attach(r, record->fd, record->segment);
    store_relaxed(&r->on, (uint32_t)record->on);
    return 0;
}

int vhb_stage_record_new(const struct vhb_record *record, struct vhb_stage **out)
{
    if (!is_record(record))
        return -EINVAL;
    struct vhb_recorder *r = aligned_alloc(_Alignof(struct vhb_recorder), sizeof(*r));
    if (!r)
        return -ENOMEM;
    memset(r, 0, sizeof(*r));
    int result = vhb_journal_init(&r->journal, record->room / sizeof(uint64_t));
    if (result < 0) {
        free(r);
        return result;
    }
    vhb_stage_init(&r->stage, &record_ops, 0);
    r->stage.free = record_free;
    vhb_crc32_init(&r->crc);
    r->payload = record->payload;
    r->part = record->room / 8;
    r->fd = record->fd;
    r->segment = record->segment;
    r->on = record->on;
    *out = &r->stage;
    return 0;
}

int vhb_queue_set_number(struct vhb_queue *q, uint16_t number)
{
    store_relaxed(&q->number, number);
    return 0;
}
