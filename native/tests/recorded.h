/* recorded.h - a disk behind a layer that records, and what it has written down. */
#ifndef VHB_RECORDED_H
#define VHB_RECORDED_H

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crc32.h"
#include "failing.h"

enum { BYTES = 1 << 20, HEAD = 48, ROOM = 4096 };
enum { END = 1, SUBMIT, LONG_SUBMIT, LONG_END, DATA, FUA = 0x10, UNMAP = 0x20, DIGEST = 0x40 };

struct recorded {
    struct vhb_stage *stage;
    struct vhb_disk *disk;
    int fd;
    uint64_t words[BYTES / 8]; /* of all blocks */
    uint64_t n, blocks;
};

static inline void open_recorded(struct recorded *r, struct vhb_disk *below, uint32_t payload,
                                 int fd)
{
    *r = (struct recorded){.fd = fd};
    struct vhb_record record = {
        .fd = r->fd, .on = true, .payload = payload, .room = ROOM, .segment = 77};
    CHECK_EQ(vhb_stage_record_new(&record, &r->stage), 0);
    CHECK_EQ(vhb_layer_new(below, r->stage, &r->disk), 0);
}

static inline void close_recorded(struct recorded *r)
{
    CHECK_EQ(vhb_disk_free(r->disk), 0);
    CHECK_EQ(vhb_stage_free(r->stage), 0);
    if (r->fd >= 0)
        close(r->fd);
}

static inline uint64_t get(const uint8_t *at, size_t n)
{
    uint64_t value = 0;
    memcpy(&value, at, n);
    return value;
}

/* The words of all blocks of the file, which are whole and follow each other. */
static inline void read_back(struct recorded *r)
{
    static uint8_t file[BYTES];
    struct vhb_crc32 crc;
    vhb_crc32_init(&crc);
    CHECK_EQ(vhb_stage_record_flush(r->stage), 0);
    ssize_t size = pread(r->fd, file, BYTES, 0);
    CHECK(size >= 0);
    r->n = r->blocks = 0;
    for (const uint8_t *at = file; at < file + size; r->blocks++) {
        size_t length = (size_t)get(at + 8, 4);
        CHECK(memcmp(at, "VHBT\2\0\2", 8) == 0);
        CHECK_EQ(get(at + 12, 4), vhb_crc32(&crc, 0, at + HEAD, length));
        CHECK_EQ(get(at + 16, 8), 77);
        CHECK_EQ(get(at + 24, 8), r->n);
        CHECK_EQ(get(at + 40, 8), vhb_crc32(&crc, 0, at, 40));
        memcpy(r->words + r->n, at + HEAD, length);
        r->n += length / 8;
        at += HEAD + length;
        CHECK(at <= file + size);
    }
}

static inline int memory_file(void)
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    CHECK(fd >= 0 && fcntl(fd, F_SETFL, O_APPEND) == 0);
    return fd;
}

/* First words of short records, without their times, and a submission's second. */
static inline uint64_t timeless(uint64_t word)
{
    return word & 0xffffff;
}

/* Of the time in one. */
static inline uint64_t since(uint64_t word, uint64_t before)
{
    return ((word >> 24) - before) << 24 >> 24;
}

static inline uint64_t submit(uint32_t op, uint32_t flags, uint32_t queue)
{
    return SUBMIT | flags | op << 8 | queue << 16;
}

static inline uint64_t end(uint32_t flags, uint32_t back)
{
    return END | flags | back << 8;
}

static inline uint64_t place(uint64_t sector, uint64_t sectors)
{
    return sector | sectors << 40;
}

static inline uint8_t do_write(struct rig *rig, uint64_t sector, uint32_t len)
{
    rig_fill(rig, RIG_DATA, len, 9);
    return do_request(rig, BLK_OUT, sector, RIG_DATA, len);
}

#endif
