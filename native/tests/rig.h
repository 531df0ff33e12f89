/* rig.h - a guest of a few hundred lines: memory, a driver that writes rings of both formats with
 * its own arithmetic, and the control plane's side of one queue.
 *
 * Knows the core by vhostblk.h only.  Offsets and numbers are written from virtio 1.3 (2.7 and 2.8
 * for the rings, 5.2.6 for requests), not taken from the kernel headers that the core uses.  Where
 * VHB_TEST_PACKED is set every ring is packed, where VHB_TEST_IN_ORDER is, every one is used in
 * order, where VHB_TEST_LAYERS is, every disk is behind layers. */
#ifndef VHB_RIG_H
#define VHB_RIG_H

#include <errno.h>

#include "check.h"
#include "rig_layers.h"
#include "vhostblk.h"

/* Where things are in guest memory, as offsets from its start. */
enum {
    RIG_RAM = 8 << 20,
    RIG_RAM_AT = 0x100000, /* guest address of the first byte: never equal to an offset */
    RIG_DESC = 0,
    RIG_AVAIL = 0x8000,
    RIG_USED = 0xa000,
    RIG_HEADERS = 0x10000, /* 32 bytes per head: header at 0, status at 16 */
    RIG_DATA = 0x20000
};

enum {
    DESC_NEXT = 1,
    DESC_WRITE = 2,
    DESC_INDIRECT = 4,
    PACKED_AVAIL = 1 << 7,
    PACKED_USED = 1 << 15
};
enum {
    BLK_IN = 0,
    BLK_OUT = 1,
    BLK_FLUSH = 4,
    BLK_GET_ID = 8,
    BLK_DISCARD = 11,
    BLK_WRITE_ZEROES = 13
};
enum { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2, BLK_UNTOUCHED = 0xee };

#define RIG_EVENT_IDX (1ull << 29)
#define RIG_INDIRECT (1ull << 28)
#define RIG_PACKED (1ull << 34)
#define RIG_IN_ORDER (1ull << 35)

struct rig_config {
    struct vhb_disk *disk;     /* or a null disk of the rig's own */
    struct vhb_worker *worker; /* or one of the rig's own */
    struct vhb_graveyard *graveyard;
    uint32_t size;           /* descriptors; 0: 64 */
    uint64_t features;       /* ring features */
    uint64_t sectors;        /* capacity; 0: 2048 */
    uint32_t block_size;     /* 0: 512 */
    uint32_t blk_flags;      /* besides everything that is offered by default */
    uint32_t blk_flags_off;
    uint32_t worker_flags;   /* VHB_WORKER_* */
    int memfd;               /* memory that is there already; 0: the rig makes some */
    bool threaded;           /* a thread runs the worker; else waiting steps it */
    bool stopped;            /* everything is set, but the queue is not run */
};

enum { RIG_CHAINS = 2048 };

/* A place in a packed ring, and the wrap counter there. */
struct place {
    uint32_t slot;
    bool wrap;
};

struct packed_driver {
    struct place avail, used, kicked; /* next of each; kicked: at the last look */
    struct aside {
        uint64_t addr;
        uint32_t len;
        uint16_t flags, next;
    } aside[RIG_CHAINS]; /* descriptors of RIG_DESC */
    uint32_t slots[RIG_CHAINS]; /* of a buffer id in flight: descriptors */
    struct place behind[RIG_CHAINS]; /* a chain, by its number */
};

/* What a driver knows of a ring that is used in order. */
struct in_order_driver {
    uint16_t heads[RIG_CHAINS]; /* made available, by their number */
    uint16_t batch;             /* until this one, which the used element named, all are used */
    bool in_batch;
    uint32_t batch_len, elements; /* used elements seen */
};

struct rig {
    struct rig_config config;
    int memfd;
    uint8_t *ram;
    struct packed_driver packed;
    struct in_order_driver in_order;
    uint32_t whole[RIG_CHAINS]; /* writable bytes of a chain, by its head */
    uint16_t avail_idx; /* as published; packed: chains */
    uint16_t used_seen;
    uint32_t last_id, last_len; /* of the used element taken last */
    int kick, call, err;
    struct vhb_worker *worker;
    struct vhb_graveyard *graveyard;
    struct vhb_disk *null_disk;
    struct rig_layers layers;
    struct vhb_queue *queue;
    struct vhb_blk blk;
    uint32_t events; /* taken from the queue, not yet waited for */
    unsigned long thread;
};

void rig_open(struct rig *rig, const struct rig_config *config);
/* Drain (cancelling what does not end), detach, free all that rig_open made. */
void rig_close(struct rig *rig);

/* A worker for several rigs; plain calls in place of io_uring where VHB_TEST_PLAIN is set. */
int rig_worker(uint32_t flags, struct vhb_worker **out);

/* A file disk whose requests take the way that VHB_TEST_WAY says: ring, inline; else by itself. */
int rig_file(int fd, uint32_t flags, uint32_t align, struct vhb_disk **out);

/* A file on a disk file system (TMPDIR or /var/tmp) that has no name any more. */
int rig_temporary(int flags, size_t len);

/* ---- the control plane ---- */

void rig_space(struct rig *rig); /* one segment: all memory, read and write */
void rig_parts(struct rig *rig);
void rig_run(struct rig *rig);
void rig_park(struct rig *rig);  /* and wait until it is */
void rig_drain(struct rig *rig); /* likewise */
void rig_cancel(struct rig *rig);
uint32_t rig_base(struct rig *rig); /* of a ring that is ours */
enum { RIG_DEADLINE_MS = 20000 };
int64_t rig_now_ms(void);
void rig_wait(struct rig *rig, uint32_t event); /* for one VHB_* event, with a deadline */
void rig_pass(struct rig *rig);                 /* one step, or a moment for the thread */
uint64_t rig_count(struct rig *rig, size_t offset);
#define RIG_COUNT(rig, name) rig_count(rig, offsetof(struct vhb_counters, name))
struct vhb_fault rig_broken(struct rig *rig); /* wait until the queue breaks, and why */

/* ---- memory ---- */

uint64_t rig_at(uint32_t offset); /* the guest address of an offset */
void put16(struct rig *rig, uint32_t offset, uint16_t value);
void put32(struct rig *rig, uint32_t offset, uint32_t value);
void put64(struct rig *rig, uint32_t offset, uint64_t value);
uint16_t get16(struct rig *rig, uint32_t offset);
uint32_t get32(struct rig *rig, uint32_t offset);
void rig_fill(struct rig *rig, uint32_t offset, size_t len, uint32_t seed);
bool rig_is(struct rig *rig, uint32_t offset, size_t len, uint32_t seed);

/* ---- the driver ---- */

/* A descriptor of the table at *table* (RIG_DESC, or an indirect one). */
void put_desc(struct rig *rig, uint32_t table, uint32_t index, uint64_t addr, uint32_t len,
              uint16_t flags, uint16_t next);
void put_avail(struct rig *rig, uint16_t head); /* and publish it */
void put_avail_idx(struct rig *rig, uint16_t idx);
void rig_kick(struct rig *rig);
bool take_used(struct rig *rig); /* into last_id, last_len */
void wait_used(struct rig *rig); /* with a deadline */
bool rig_wants_kick(struct rig *rig, uint16_t old_idx);

void rig_first(struct rig *rig); /* both sides begin in a ring that was never used */
void rig_begin(struct rig *rig); /* and in one that was, whose memory is made as good as new */
/* The driver goes on where it stood *before*, in the same memory. */
void rig_go_on(struct rig *rig, const struct rig *before);
/* How a miss or fault names chain number *n*. */
uint32_t rig_index(struct rig *rig, uint16_t n);
/* So many chains were taken, says the base of a ring that is ours. */
void rig_check_base(struct rig *rig, uint16_t taken);

/* Break the ring by a head, or a buffer id, that is out of range; the reason that follows. */
enum vhb_reason put_bad_head(struct rig *rig);
void put_end(struct rig *rig, uint32_t index); /* of RIG_DESC: nothing follows it */

/* A descriptor of a packed ring or table, *flags* last. */
void put_packed(struct rig *rig, uint32_t table, uint32_t index, uint64_t addr, uint32_t len,
                uint16_t id, uint16_t flags);
uint16_t packed_avail_flags(const struct place *at);
uint32_t packed_base(const struct place *at); /* where nothing is in flight: a place twice */
void packed_step(const struct rig *rig, struct place *at, uint32_t n);

/* ---- requests ---- */

uint32_t header_at(uint32_t head);
uint32_t status_at(uint32_t head);
uint8_t status_of(struct rig *rig, uint32_t head);
/* Header, *len* bytes of data at *data*, status: descriptors head to head + 2. */
void put_request(struct rig *rig, uint32_t head, uint32_t type, uint64_t sector, uint32_t data,
                 uint32_t len);
/* A range of DISCARD or WRITE_ZEROES, number *i* of those at *data*. */
void put_range(struct rig *rig, uint32_t data, uint32_t i, uint64_t sector, uint32_t sectors,
               uint32_t flags);
/* Publish, kick, wait; the status.  The used element must be this one. */
uint8_t do_chain(struct rig *rig, uint16_t head);
uint8_t do_request(struct rig *rig, uint32_t type, uint64_t sector, uint32_t data, uint32_t len);

#endif
