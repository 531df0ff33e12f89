/* client.h - what the load client is told, and how it counts: options, addresses, latencies. */
#ifndef BENCH_CLIENT_H
#define BENCH_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct options {
    size_t bytes, depth, queues;
    uint64_t span, ios;
    long pid;
    double seconds;
    bool write, sequential, poll, hold;
};

#define OPTIONS_DEFAULT {.bytes = 4096, .depth = 1, .queues = 1, .seconds = 1}

static inline bool take_number(struct options *o, const char *key, const char *value)
{
    if (!strcmp(key, "seconds"))
        o->seconds = atof(value);
    else if (!strcmp(key, "bytes"))
        o->bytes = strtoul(value, NULL, 0);
    else if (!strcmp(key, "depth"))
        o->depth = strtoul(value, NULL, 0);
    else if (!strcmp(key, "queues"))
        o->queues = strtoul(value, NULL, 0);
    else if (!strcmp(key, "span"))
        o->span = strtoull(value, NULL, 0);
    else if (!strcmp(key, "ios"))
        o->ios = strtoull(value, NULL, 0);
    else if (!strcmp(key, "pid"))
        o->pid = strtol(value, NULL, 0);
    else
        return false;
    return true;
}

static inline bool take_word(struct options *o, const char *key, const char *value)
{
    if (!strcmp(key, "op"))
        o->write = !strcmp(value, "write");
    else if (!strcmp(key, "order"))
        o->sequential = !strcmp(value, "seq");
    else if (!strcmp(key, "wait"))
        o->poll = !strcmp(value, "poll");
    else if (!strcmp(key, "hold"))
        o->hold = !strcmp(value, "1");
    else
        return false;
    return true;
}

/* Returns where the sockets begin. */
static inline int parse_options(struct options *o, int argc, char **argv)
{
    int i = 1;
    for (; i < argc && argv[i][0] != '/'; i++) {
        char *value = strchr(argv[i], '=');
        if (value != NULL)
            *value++ = 0;
        if (value == NULL || !(take_number(o, argv[i], value) || take_word(o, argv[i], value))) {
            fprintf(stderr, "%s: no such option (a socket is an absolute path)\n", argv[i]);
            exit(2);
        }
    }
    return i;
}

/* xorshift: the same walk in every run, and in machine.c. */
#define WALK_SEED 88172645463325252u

static inline uint64_t walk(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

/* Nanoseconds in 64 buckets for each power of two: within 1.6 %, from nothing to hours. */
enum { SUB_BITS = 6, SUB = 1 << SUB_BITS, BUCKETS = 40 * SUB };

struct histogram {
    uint64_t count[BUCKETS];
    uint64_t all;
};

static inline void histogram_add(struct histogram *h, uint64_t ns)
{
    uint64_t octave = ns < SUB ? 0 : (uint64_t)(63 - __builtin_clzll(ns)) - SUB_BITS + 1;
    uint64_t bucket = octave ? octave * SUB + ((ns >> (octave - 1)) - SUB) : ns;
    h->count[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
    h->all++;
}

static inline double histogram_at(const struct histogram *h, double percent)
{
    uint64_t seen = 0, wanted = (uint64_t)((double)h->all * percent / 100);
    for (uint64_t i = 0; i < BUCKETS; i++) {
        if ((seen += h->count[i]) <= wanted && seen < h->all)
            continue;
        uint64_t octave = i / SUB;
        return (double)(octave ? (SUB + i % SUB) << (octave - 1) : i) / 1e3;
    }
    return 0;
}

static inline void histogram_print(const struct histogram *h)
{
    static const double percents[] = {0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 100};
    const char *between = "{";
    for (size_t i = 0; i < sizeof(percents) / sizeof(*percents); i++) {
        printf("%s\"%g\": %.3f", between, percents[i], histogram_at(h, percents[i]));
        between = ", ";
    }
    printf("}");
}

#endif
