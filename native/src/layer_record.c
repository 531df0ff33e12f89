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

enum { KIND_SUBMIT = 1, KIND_COMPLETE = 2, KIND_COMPLETE_FAR = 3, KIND_DATA = 4 };
enum { FLAG_FUA = 0x10, FLAG_UNMAP = 0x20, FLAG_DIGEST = 0x40 };
enum { SECTOR_SHIFT = 9 };

_Static_assert(VHB_READ == 0 && VHB_WRITE == 1 && VHB_FLUSH == 2 && VHB_DISCARD == 3 &&
                   VHB_WRITE_ZEROES == 4,
               "as trace-format.md says");

static struct vhb_recorder *recorder_of(const struct vhb_layer *layer)
{
    return (struct vhb_recorder *)layer->stage;
}

/* ---- records ------------------------------------------------------------------------- */

static uint64_t first_word(uint32_t kind, uint32_t what, uint32_t small, uint64_t large)
{
    return kind | (uint64_t)what << 8 | (uint64_t)small << 16 | large << 32;
}

/* By the kind and DIGEST: no branch that depends on what the guest mixes. */
static const uint8_t WORDS[2][4] = {{0, 3, 2, 3}, {0, 4, 3, 4}};

uint64_t vhb_record_words(uint64_t word)
{
    if ((word & 0xff) == KIND_DATA)
        return 2 + ((word >> 32) + 7) / 8;
    return WORDS[word >> 14 & 1][word & 3];
}

/* Room for a record.  False: there is none, and it is counted. */
static bool make_room(struct vhb_recorder *r, uint64_t n, uint64_t *at)
{
    while (!journal_reserve(&r->journal, n, at)) {
        if (load_relaxed(&r->fd) < 0) {
            __atomic_fetch_add(&r->dropped, 1, __ATOMIC_RELAXED);
            return false;
        }
        if (vhb_recorder_write(r) == 0)
            sched_yield(); /* somebody else writes */
    }
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
    if (!make_room(r, 3 + digested, at))
        return false;
    uint32_t what = req->op | (req->flags & VHB_REQ_FUA ? FLAG_FUA : 0) |
                    (req->flags & VHB_REQ_UNMAP ? FLAG_UNMAP : 0) | (digested ? FLAG_DIGEST : 0);
    bool flush = req->op == VHB_FLUSH;
    journal_put(&r->journal, *at + 1, now);
    journal_put(&r->journal, *at + 2, flush ? 0 : vhb_req_at(req) >> SECTOR_SHIFT);
    if (digested)
        journal_put(&r->journal, *at + 3, digest_of(r, req));
    journal_publish(&r->journal, *at,
                    first_word(KIND_SUBMIT, what, load_relaxed(&req->queue->number),
                               flush ? 0 : req->len >> SECTOR_SHIFT));
    return true;
}

static void put_complete(struct vhb_recorder *r, const struct vhb_req *req, int result,
                         uint64_t submitted, uint64_t now, bool digested)
{
    uint64_t at, back;
    /* How far back it is can be told only of the place it gets: assume the worst. */
    bool far = load_relaxed(&r->journal.head) - submitted > UINT32_MAX / 2;
    if (!make_room(r, 2u + far + digested, &at))
        return;
    back = at - submitted;
    uint64_t next = at + 1;
    journal_put(&r->journal, next++, now);
    if (far)
        journal_put(&r->journal, next++, submitted);
    if (digested)
        journal_put(&r->journal, next, digest_of(r, req));
    journal_publish(&r->journal, at,
                    first_word(far ? KIND_COMPLETE_FAR : KIND_COMPLETE, digested ? FLAG_DIGEST : 0,
                               (uint32_t)-result & 0xffff, far ? 0 : back));
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
    journal_publish(&r->journal, at, first_word(KIND_DATA, 0, 0, n));
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

static int record_submit(struct vhb_layer *layer, struct vhb_req *req, struct vhb_io *io)
{
    struct vhb_recorder *r = recorder_of(layer);
    if (!load_relaxed(&r->on))
        return vhb_layer_hand_on(layer, req, io);
    bool writes = req->op == VHB_WRITE;
    uint64_t at, now = vhb_layer_time(layer, io);
    if (r->payload == VHB_RECORD_NONE || !writes) {
        if (!put_submit(r, req, now, false, &at))
            return vhb_layer_hand_on(layer, req, io);
        return vhb_layer_hand_on_noted(layer, req, io, at);
    }
    uint32_t lost = vhb_fault_seen();
    if (!put_submit(r, req, now, r->payload == VHB_RECORD_DIGEST, &at))
        return vhb_layer_hand_on(layer, req, io);
    if (r->payload == VHB_RECORD_FULL)
        put_payload(r, req, at);
    if (vhb_fault_seen() != lost) { /* zeroes must not be written in place of the guest's data */
        put_complete(r, req, -EFAULT, at, now, false);
        return -EFAULT;
    }
    return vhb_layer_hand_on_noted(layer, req, io, at);
}

static int record_done(struct vhb_layer *layer, struct vhb_req *req, int result, uint64_t note,
                       struct vhb_io *io)
{
    struct vhb_recorder *r = recorder_of(layer);
    bool digested = r->payload != VHB_RECORD_NONE && req->op == VHB_READ && result == 0;
    uint32_t lost = vhb_fault_seen();
    put_complete(r, req, result, note, vhb_layer_time(layer, io), digested);
    return digested && vhb_fault_seen() != lost ? VHB_RESULT_LOST_MEMORY : result;
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
