/* crc32.c - CRC-32: eight bytes at a time by tables, 64 where the processor multiplies polynomials.
 *
 * Both rest on one fact: a message may be replaced by a shorter one that leaves the same remainder
 * modulo the polynomial P.  Folding takes the 128 bits at the front, multiplies each half by what
 * x^distance leaves modulo P, and adds the products to the bits that are *distance* further on.
 * What is left in the end, 16 bytes, goes through the tables.
 *
 * Bits are reflected (the first bit of a byte is its lowest), as in the table; a product of two
 * reflected numbers comes out one bit short, so the constants are of one bit less. */
#include "crc32.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const uint32_t POLYNOMIAL = 0xedb88320;

void vhb_crc32_init(struct vhb_crc32 *crc)
{
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t sum = b;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? POLYNOMIAL : 0);
        crc->table[0][b] = sum;
    }
    for (int k = 1; k < 8; k++)
        for (uint32_t b = 0; b < 256; b++) {
            uint32_t before = crc->table[k - 1][b];
            crc->table[k][b] = before >> 8 ^ crc->table[0][before & 0xff];
        }
#if defined(__x86_64__)
    crc->clmul = __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1");
#endif
}

/* *sum* is complemented, as inside a CRC-32. */
static uint32_t by_table(const struct vhb_crc32 *crc, uint32_t sum, const uint8_t *at, size_t n)
{
    for (; n >= 8; at += 8, n -= 8) {
        uint64_t word;
        memcpy(&word, at, sizeof(word)); /* little-endian, as everything here is */
        word ^= sum;
        sum = 0;
        for (int i = 0; i < 8; i++)
            sum ^= crc->table[7 - i][word >> 8 * i & 0xff];
    }
    for (; n; at++, n--)
        sum = sum >> 8 ^ crc->table[0][(sum ^ *at) & 0xff];
    return sum;
}

#if defined(__x86_64__)

/* x^n modulo P, reflected and one bit short, as constants of folding: over 512 bits (n = 544 - 1,
 * 480 - 1) and over 128 (160 - 1, 96 - 1).  test_crc32.c makes them once more. */
static const uint64_t OVER_512_LOW = 0x154442bd4, OVER_512_HIGH = 0x1c6e41596;
static const uint64_t OVER_128_LOW = 0x1751997d0, OVER_128_HIGH = 0x0ccaa009e;

__attribute__((target("pclmul,sse4.1"))) static inline __m128i
fold(__m128i front, __m128i constants, __m128i further_on)
{
    __m128i low = _mm_clmulepi64_si128(front, constants, 0x00);
    __m128i high = _mm_clmulepi64_si128(front, constants, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), further_on);
}

static inline __m128i load(const uint8_t *at)
{
    return _mm_loadu_si128((const __m128i *)(const void *)at);
}

/* All whole 16 bytes but for the last, which the rest of the message is folded into.  n >= 64. */
__attribute__((target("pclmul,sse4.1"))) static uint32_t
by_folding(const struct vhb_crc32 *crc, uint32_t sum, const uint8_t *at, size_t n)
{
    __m128i by_512 = _mm_set_epi64x((long long)OVER_512_HIGH, (long long)OVER_512_LOW);
    __m128i by_128 = _mm_set_epi64x((long long)OVER_128_HIGH, (long long)OVER_128_LOW);
    __m128i lane[4];
    for (int i = 0; i < 4; i++)
        lane[i] = load(at + 16 * i);
    lane[0] = _mm_xor_si128(lane[0], _mm_cvtsi32_si128((int)sum));
    for (at += 64, n -= 64; n >= 64; at += 64, n -= 64)
        for (int i = 0; i < 4; i++)
            lane[i] = fold(lane[i], by_512, load(at + 16 * i));
    __m128i all = lane[0];
    for (int i = 1; i < 4; i++)
        all = fold(all, by_128, lane[i]);
    for (; n >= 16; at += 16, n -= 16)
        all = fold(all, by_128, load(at));
    uint8_t left[16];
    _mm_storeu_si128((__m128i *)(void *)left, all);
    return by_table(crc, by_table(crc, 0, left, sizeof(left)), at, n);
}

#endif

uint32_t vhb_crc32(const struct vhb_crc32 *crc, uint32_t sum, const void *bytes, size_t n)
{
    sum = ~sum;
#if defined(__x86_64__)
    if (crc->clmul && n >= 64)
        return ~by_folding(crc, sum, bytes, n);
#endif
    return ~by_table(crc, sum, bytes, n);
}
