/* check.h - what a test in C needs: claims that stop the program, and a list of tests (TAP). */
#ifndef VHB_CHECK_H
#define VHB_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct check_test {
    const char *name;
    void (*run)(void);
};

#define TEST(function) {#function, test_##function}

#define CHECK(claim) ((claim) ? (void)0 : check_failed(__FILE__, __LINE__, #claim))
#define CHECK_EQ(got, want)                                                                        \
    check_equal(__FILE__, __LINE__, #got, (long long)(got), (long long)(want))

_Noreturn static inline void check_failed(const char *file, int line, const char *claim)
{
    printf("Bail out! %s:%d: %s\n", file, line, claim);
    fflush(stdout);
    exit(1);
}

static inline void check_equal(const char *file, int line, const char *claim, long long got,
                               long long want)
{
    if (got == want)
        return;
    printf("# %lld is not %lld\n", got, want);
    check_failed(file, line, claim);
}

/* Run all tests, or those whose names contain argv[1]. */
static inline int check_run(const struct check_test *tests, size_t n, int argc, char **argv)
{
    const char *only = argc > 1 ? argv[1] : "";
    size_t ran = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < n; i++) {
        if (!strstr(tests[i].name, only))
            continue;
        tests[i].run();
        printf("ok %zu - %s\n", ++ran, tests[i].name);
    }
    printf("1..%zu\n", ran);
    return ran ? 0 : 1;
}

#define CHECK_MAIN(...)                                                                            \
    int main(int argc, char **argv)                                                                \
    {                                                                                              \
        static const struct check_test tests[] = {__VA_ARGS__};                                    \
        return check_run(tests, sizeof(tests) / sizeof(tests[0]), argc, argv);                     \
    }

#endif
