/* crc32.h - CRC-32 as zip, PNG and Python's zlib have it: polynomial 0x04c11db7, reflected. */
#ifndef VHB_CRC32_H
#define VHB_CRC32_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vhb_crc32 {
    uint32_t table[8][256]; /* [k][b]: byte b with k bytes of zeroes behind it */
    bool clmul;             /* the processor multiplies polynomials */
};

void vhb_crc32_init(struct vhb_crc32 *crc);

/* Of *n* bytes more; *sum* is what came out for those before, or 0. */
uint32_t vhb_crc32(const struct vhb_crc32 *crc, uint32_t sum, const void *bytes, size_t n);

#endif
