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
uint64_t vhb_record_words(uint64_t first_word);

/* Write what the journal has to the file, or drop it where that fails: how many words it was; 0:
 * nothing, or somebody else is writing. */
uint64_t vhb_recorder_write(struct vhb_recorder *recorder);

/* Write to another file, or none, from here on; what waits is forgotten. */
void vhb_recorder_attach(struct vhb_recorder *recorder, int fd, uint64_t segment);

#endif
