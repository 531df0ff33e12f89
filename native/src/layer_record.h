/* layer_record.h - what writes requests down, and who takes that away. */
#ifndef VHB_LAYER_RECORD_H
#define VHB_LAYER_RECORD_H

#include "crc32.h"
#include "journal.h"
#include "layer.h"

struct vhb_cursor {
    uint32_t piece;
    size_t skip; /* bytes of it */
};

struct vhb_recorder {
    struct vhb_stage stage; /* first */
    struct vhb_journal journal;
    struct vhb_crc32 crc;
    uint32_t on;      /* any thread's */
    uint32_t payload; /* VHB_RECORD_* */
    uint64_t part;    /* bytes of a payload in one record */
    uint64_t dropped; /* records there was no room for; atomic */

    /* Who takes. */
    int fd;            /* -1: none; read by anyone */
    uint64_t segment;  /* what is written belongs to */
    uint64_t base;     /* where that begins; read by anyone */
    uint64_t bytes;    /* written; read by anyone */
    uint64_t lost;     /* words that could not be written; read by anyone */
    uint32_t error;    /* errno of that; 0: it goes; read by anyone */
    uint64_t again_at; /* ns; not tried before */
};

struct vhb_recorder *vhb_recorder_of(struct vhb_stage *stage); /* NULL: another kind */

/* What a record is, and how many words it has without a digest: low half of its first byte. */
enum vhb_record_kind {
    VHB_RECORDED_END = 1,
    VHB_RECORDED_SUBMIT = 2,
    VHB_RECORDED_LONG_SUBMIT = 3,
    VHB_RECORDED_LONG_END = 4,
    VHB_RECORDED_DATA = 5 /* has two, and its bytes */
};
enum { VHB_RECORDED_DIGEST_SHIFT = 6 };

/* Words of a record, by the first of them. */
static inline uint64_t record_words(uint64_t word)
{
    uint64_t kind = word & 0xf;
    if (kind == VHB_RECORDED_DATA)
        return 2 + ((word >> 32) + 7) / 8;
    return kind + (word >> VHB_RECORDED_DIGEST_SHIFT & 1);
}

/* Write what the journal has to the file, or drop it where that fails: how many words it was; 0:
 * nothing, or somebody else is writing. */
uint64_t vhb_recorder_write(struct vhb_recorder *recorder);

/* Write to another file, or none, from here on; what waits is forgotten. */
void vhb_recorder_attach(struct vhb_recorder *recorder, int fd, uint64_t segment);

#endif
