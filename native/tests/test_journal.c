/* test_journal.c - records that several threads append and one takes: whole, in order, none twice.
 */
#include <pthread.h>

#include "check.h"
#include "journal.h"

enum { WORDS = 64, THREADS = 3, RECORDS = 20000, LONGEST = 5 };

/* A record: its length and number of its thread, then its place in every other word. */
static uint64_t length_of(uint64_t word)
{
    return word & 0xff;
}

static void append(struct vhb_journal *j, uint64_t n, uint64_t thread)
{
    uint64_t at;
    while (!journal_reserve(j, n, &at))
        cpu_relax();
    for (uint64_t i = 1; i < n; i++)
        journal_put(j, at + i, at);
    journal_publish(j, at, n | thread << 8);
}

static void test_takes_whole_records_in_order(void)
{
    struct vhb_journal j = {0};
    CHECK_EQ(vhb_journal_init(&j, WORDS), 0);
    CHECK_EQ(journal_ready(&j, length_of, WORDS), 0);
    append(&j, 3, 0);
    append(&j, 5, 0);
    uint64_t at;
    CHECK(journal_reserve(&j, 2, &at)); /* taken, not published */
    CHECK_EQ(at, 8);
    append(&j, 4, 0);
    CHECK(vhb_journal_begin(&j));
    CHECK(!vhb_journal_begin(&j));
    CHECK_EQ(journal_ready(&j, length_of, 1), 3);
    CHECK_EQ(journal_ready(&j, length_of, WORDS), 8);
    journal_put(&j, at + 1, at);
    journal_publish(&j, at, 2);
    CHECK_EQ(journal_ready(&j, length_of, WORDS), 14);
    vhb_journal_taken(&j, 14);
    CHECK_EQ(journal_ready(&j, length_of, WORDS), 0);
    vhb_journal_end(&j);
    CHECK(vhb_journal_begin(&j));
    vhb_journal_free(&j);
}

static void test_room_is_what_was_taken(void)
{
    struct vhb_journal j = {0};
    CHECK_EQ(vhb_journal_init(&j, WORDS), 0);
    uint64_t at;
    for (int i = 0; i < WORDS / 16; i++)
        CHECK(journal_reserve(&j, 16, &at));
    CHECK(!journal_reserve(&j, 1, &at));
    vhb_journal_taken(&j, 16);
    CHECK(journal_reserve(&j, 16, &at));
    CHECK_EQ(at, WORDS);
    CHECK(!journal_reserve(&j, 1, &at));
    vhb_journal_free(&j);
}

/* Where every word is taken, what is ready ends there. */
static void test_a_full_one_is_taken_once(void)
{
    struct vhb_journal j = {0};
    CHECK_EQ(vhb_journal_init(&j, WORDS), 0);
    for (int i = 0; i < WORDS / 4; i++)
        append(&j, 4, 0);
    CHECK_EQ(journal_ready(&j, length_of, 2 * WORDS), WORDS);
    vhb_journal_free(&j);
}

/* Bytes that run over the end go on at the start. */
static void test_copies_around_the_end(void)
{
    struct vhb_journal j = {0};
    CHECK_EQ(vhb_journal_init(&j, WORDS), 0);
    uint8_t bytes[80];
    for (uint32_t i = 0; i < sizeof(bytes); i++)
        bytes[i] = (uint8_t)(i + 1);
    vhb_journal_copy(&j, WORDS - 4, 0, bytes, 30);
    vhb_journal_copy(&j, WORDS - 4, 30, bytes + 30, 50);
    CHECK(memcmp(j.words + WORDS - 4, bytes, 32) == 0);
    CHECK(memcmp(j.words, bytes + 32, 48) == 0);
    CHECK_EQ(j.words[6], 0);
    vhb_journal_free(&j);
}

struct crowd {
    struct vhb_journal journal;
    uint64_t next; /* thread's number */
};

static void *crowd_append(void *context)
{
    struct crowd *crowd = context;
    uint64_t thread = __atomic_fetch_add(&crowd->next, 1, __ATOMIC_RELAXED);
    for (uint64_t i = 0; i < RECORDS; i++)
        append(&crowd->journal, 2 + i % (LONGEST - 1), thread | i << 8);
    return NULL;
}

/* Every thread's records come in its own order, and each is at the place it says. */
static void test_a_crowd(void)
{
    static struct crowd crowd;
    struct vhb_journal *j = &crowd.journal;
    pthread_t threads[THREADS];
    uint64_t seen[THREADS] = {0}, all = 0;
    CHECK_EQ(vhb_journal_init(j, WORDS), 0);
    for (int i = 0; i < THREADS; i++)
        CHECK_EQ(pthread_create(&threads[i], NULL, crowd_append, &crowd), 0);
    while (all < THREADS * RECORDS) {
        CHECK(vhb_journal_begin(j));
        uint64_t n = journal_ready(j, length_of, WORDS / 2);
        for (uint64_t at = j->tail; at < j->tail + n; all++) {
            uint64_t word = load_relaxed(&j->words[at & j->mask]);
            uint64_t thread = word >> 8 & 0xff;
            CHECK(thread < THREADS);
            CHECK_EQ(word >> 16, seen[thread]++);
            for (uint64_t i = 1; i < length_of(word); i++)
                CHECK_EQ(load_relaxed(&j->words[(at + i) & j->mask]), at);
            at += length_of(word);
        }
        vhb_journal_taken(j, n);
        vhb_journal_end(j);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    CHECK_EQ(j->head, j->tail);
    vhb_journal_free(j);
}

CHECK_MAIN(TEST(takes_whole_records_in_order), TEST(room_is_what_was_taken),
           TEST(a_full_one_is_taken_once), TEST(copies_around_the_end), TEST(a_crowd))
