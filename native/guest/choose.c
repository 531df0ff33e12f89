/* choose.c - what each request is about, and with verify whether a block is what it must be.
 *
 * With verify every sector says which one it is and which generation of its block, and the rest of
 * it follows from the two: no byte can be wrong without being noticed.  A block is in flight once
 * at a time, so what it must hold is known.  One whose write has failed may hold anything. */
#include <string.h>

#include "fences.h"
#include "queue.h"

enum { WORDS = SECTOR / sizeof(uint64_t) };

#define BUSY (1u << 31) /* of a generation: the block is in flight */

/* ---- stamps --------------------------------------------------------------------------- */

static uint64_t noise_of(uint64_t sector, uint64_t generation)
{
    uint64_t x = (sector ^ generation << 29 ^ generation >> 35) * 0x9e3779b97f4a7c15;
    return x ^ x >> 31;
}

static uint64_t word_of(uint64_t sector, uint64_t generation, uint32_t i)
{
    if (i < 2)
        return i ? generation : sector;
    return noise_of(sector, generation) + i * 0xd1b54a32d192ed03;
}

static void stamp(uint8_t *data, uint32_t bytes, uint64_t sector, uint64_t generation)
{
    for (; bytes; bytes -= SECTOR, sector++)
        for (uint32_t i = 0; i < WORDS; i++, data += sizeof(uint64_t)) {
            uint64_t word = word_of(sector, generation, i);
            memcpy(data, &word, sizeof(word));
        }
}

static int compare(const struct drv_queue *q, const struct drv_slot *slot, uint64_t generation)
{
    const uint64_t *data = (const uint64_t *)slot->data;
    uint64_t sector = slot->block * (q->config.bytes / SECTOR);
    for (uint32_t n = 0; n < q->config.bytes / SECTOR; n++, sector++, data += WORDS)
        for (uint32_t i = 0; i < WORDS; i++) {
            if (load_relaxed(&data[i]) == word_of(sector, generation, i))
                continue;
            *q->fault = (struct drv_fault){
                .at = sector * SECTOR + i * sizeof(uint64_t),
                .got = load_relaxed(&data[0]),
                .got_2 = load_relaxed(&data[1]),
                .want = sector,
                .want_2 = generation,
            };
            return DRV_MISMATCH;
        }
    return 0;
}

static uint64_t tagged(const struct drv_queue *q, uint32_t generation)
{
    return (uint64_t)q->config.tag << 32 | generation;
}

/* ---- which block ---------------------------------------------------------------------- */

/* xorshift64: the same walk for the same seed. */
static uint64_t random_below(struct drv_queue *q, uint64_t n)
{
    q->random ^= q->random << 13;
    q->random ^= q->random >> 7;
    q->random ^= q->random << 17;
    return (uint64_t)(((unsigned __int128)q->random * n) >> 64);
}

static uint64_t next_block(struct drv_queue *q)
{
    uint64_t n = q->config.blocks, i;
    if (q->job.sequential) {
        i = q->next;
        q->next = i + 1 < n ? i + 1 : 0;
    } else {
        i = random_below(q, n);
    }
    /* There are more blocks than slots, and this slot has none. */
    while (q->generations && q->generations[i] & BUSY)
        i = i + 1 < n ? i + 1 : 0;
    return i;
}

void drv_choose(struct drv_queue *q, struct drv_slot *slot)
{
    uint32_t reads = q->job.read_percent;
    slot->write = reads < 100 && (reads == 0 || random_below(q, 100) >= reads);
    uint64_t i = next_block(q);
    slot->block = q->config.first + i;
    if (!q->generations)
        return;
    uint32_t generation = q->generations[i];
    q->generations[i] |= BUSY;
    if (slot->write) {
        generation = (generation + 1) & ~BUSY;
        generation += generation == 0;
        stamp(slot->data, q->config.bytes, slot->block * (q->config.bytes / SECTOR),
              tagged(q, generation));
    }
    slot->generation = generation;
}

int drv_verify(struct drv_queue *q, struct drv_slot *slot, bool ok)
{
    uint32_t *generation = &q->generations[slot->block - q->config.first];
    *generation &= ~BUSY;
    if (slot->write)
        *generation = ok ? slot->generation : 0;
    if (slot->write || !ok || !slot->generation)
        return 0;
    count(&q->counters.checked, 1);
    return compare(q, slot, tagged(q, slot->generation));
}
