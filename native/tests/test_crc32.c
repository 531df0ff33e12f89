/* test_crc32.c - both ways to make a CRC-32, against its definition bit by bit. */
#include "check.h"
#include "crc32.h"

enum { BYTES = 4096 };

static uint32_t by_bit(uint32_t sum, const uint8_t *at, size_t n)
{
    sum = ~sum;
    for (; n; at++, n--) {
        sum ^= *at;
        for (int bit = 0; bit < 8; bit++)
            sum = sum >> 1 ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return ~sum;
}

static void test_known_sum(void)
{
    struct vhb_crc32 crc;
    vhb_crc32_init(&crc);
    CHECK_EQ(vhb_crc32(&crc, 0, "123456789", 9), 0xcbf43926);
    CHECK_EQ(vhb_crc32(&crc, 0, "", 0), 0);
}

/* Every length around the steps of 8, 16 and 64 bytes, at every alignment. */
static void test_both_ways_are_the_definition(void)
{
    static uint8_t bytes[BYTES];
    struct vhb_crc32 crc, table;
    vhb_crc32_init(&crc);
    table = crc;
    table.clmul = false;
    for (uint32_t i = 0; i < BYTES; i++)
        bytes[i] = (uint8_t)(i * i * 31 + i / 7);
    for (size_t n = 0; n < 300; n++) {
        const uint8_t *at = bytes + n % 16;
        uint32_t sum = by_bit(0x1234567, at, n);
        CHECK_EQ(vhb_crc32(&crc, 0x1234567, at, n), sum);
        CHECK_EQ(vhb_crc32(&table, 0x1234567, at, n), sum);
    }
    CHECK_EQ(vhb_crc32(&crc, 0, bytes, BYTES), by_bit(0, bytes, BYTES));
}

/* What comes in pieces has the sum of the whole. */
static void test_pieces(void)
{
    static uint8_t bytes[1000];
    struct vhb_crc32 crc;
    vhb_crc32_init(&crc);
    for (uint32_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i % 251);
    for (size_t cut = 0; cut <= sizeof(bytes); cut += 37)
        CHECK_EQ(vhb_crc32(&crc, vhb_crc32(&crc, 0, bytes, cut), bytes + cut, sizeof(bytes) - cut),
                 vhb_crc32(&crc, 0, bytes, sizeof(bytes)));
}

CHECK_MAIN(TEST(known_sum), TEST(both_ways_are_the_definition), TEST(pieces))
