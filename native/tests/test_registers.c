/* test_registers.c - what a copy leaves in vector registers is gone when they are forgotten. */
#include <stdint.h>

#include "check.h"
#include "vq.h"

#if defined(__x86_64__)

static const uint8_t marker[64] = "guest data guest data guest data guest data guest data guest d";
static uint8_t seen[32][32];

#define LOW_16                                                                                     \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"
#define LOAD(n) "movups (%0), %%xmm" #n "\n"
#define STORE(n) "movups %%xmm" #n ", " #n "*32(%0)\n"
#define LOAD_WIDE(n) "vmovdqu64 (%0), %%ymm" #n "\n"
#define STORE_WIDE(n) "vmovdqu64 %%ymm" #n ", " #n "*32(%0)\n"
#define LOW(what)                                                                                  \
    what(0) what(1) what(2) what(3) what(4) what(5) what(6) what(7) what(8) what(9) what(10)       \
        what(11) what(12) what(13) what(14) what(15)
#define HIGH(what)                                                                                 \
    what(16) what(17) what(18) what(19) what(20) what(21) what(22) what(23) what(24) what(25)      \
        what(26) what(27) what(28) what(29) what(30) what(31)

static bool any_seen(void)
{
    for (size_t i = 0; i < sizeof(seen); i++)
        if (((uint8_t *)seen)[i])
            return true;
    return false;
}

static void test_low_registers(void)
{
    for (int forget = 0; forget < 2; forget++) {
        memset(seen, 0, sizeof(seen));
        __asm__ volatile(LOW(LOAD)::"r"(marker) : "memory", LOW_16);
        if (forget)
            vhb_forget_registers();
        __asm__ volatile(LOW(STORE)::"r"(seen) : "memory");
        CHECK_EQ(any_seen(), !forget);
    }
}

/* The registers that recent C libraries copy with, where there are any. */
static void test_wide_registers(void)
{
    if (!__builtin_cpu_supports("avx512vl"))
        return;
    for (int forget = 0; forget < 2; forget++) {
        memset(seen, 0, sizeof(seen));
        __asm__ volatile(LOW(LOAD_WIDE) HIGH(LOAD_WIDE)::"r"(marker) : "memory", LOW_16);
        if (forget)
            vhb_forget_registers();
        __asm__ volatile(LOW(STORE_WIDE) HIGH(STORE_WIDE)::"r"(seen) : "memory");
        CHECK_EQ(any_seen(), !forget);
    }
}

CHECK_MAIN(TEST(low_registers), TEST(wide_registers))

#else

static void test_forgetting_is_harmless(void)
{
    vhb_forget_registers();
}

CHECK_MAIN(TEST(forgetting_is_harmless))

#endif
