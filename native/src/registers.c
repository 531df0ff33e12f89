/* registers.c - the last bytes of a copy stay in the vector registers until somebody else uses
 * them, and a core dump has the registers of every thread.  So a worker clears them before it
 * sleeps. */
#include "vq.h"

#if defined(__x86_64__)

/* Writing the low 128 bits so clears the rest too, and asks for no wide execution units. */
#define CLEAR_16_TO_31                                                                             \
    "vpxord %%xmm16, %%xmm16, %%xmm16\n vpxord %%xmm17, %%xmm17, %%xmm17\n"                        \
    "vpxord %%xmm18, %%xmm18, %%xmm18\n vpxord %%xmm19, %%xmm19, %%xmm19\n"                        \
    "vpxord %%xmm20, %%xmm20, %%xmm20\n vpxord %%xmm21, %%xmm21, %%xmm21\n"                        \
    "vpxord %%xmm22, %%xmm22, %%xmm22\n vpxord %%xmm23, %%xmm23, %%xmm23\n"                        \
    "vpxord %%xmm24, %%xmm24, %%xmm24\n vpxord %%xmm25, %%xmm25, %%xmm25\n"                        \
    "vpxord %%xmm26, %%xmm26, %%xmm26\n vpxord %%xmm27, %%xmm27, %%xmm27\n"                        \
    "vpxord %%xmm28, %%xmm28, %%xmm28\n vpxord %%xmm29, %%xmm29, %%xmm29\n"                        \
    "vpxord %%xmm30, %%xmm30, %%xmm30\n vpxord %%xmm31, %%xmm31, %%xmm31\n"
#define LOW_16                                                                                     \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",       \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* To callers no vector register outlives a call (System V ABI), so 16 to 31 need no clobber. */
__attribute__((noinline)) void vhb_forget_registers(void)
{
    if (__builtin_cpu_supports("avx512vl"))
        __asm__ volatile(CLEAR_16_TO_31 ::: "memory");
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroall" ::: "memory", LOW_16);
    else
        __asm__ volatile("pxor %%xmm0, %%xmm0\n pxor %%xmm1, %%xmm1\n pxor %%xmm2, %%xmm2\n"
                         "pxor %%xmm3, %%xmm3\n pxor %%xmm4, %%xmm4\n pxor %%xmm5, %%xmm5\n"
                         "pxor %%xmm6, %%xmm6\n pxor %%xmm7, %%xmm7\n pxor %%xmm8, %%xmm8\n"
                         "pxor %%xmm9, %%xmm9\n pxor %%xmm10, %%xmm10\n pxor %%xmm11, %%xmm11\n"
                         "pxor %%xmm12, %%xmm12\n pxor %%xmm13, %%xmm13\n pxor %%xmm14, %%xmm14\n"
                         "pxor %%xmm15, %%xmm15\n" ::
                             : "memory", LOW_16);
}

#elif defined(__aarch64__)

void vhb_forget_registers(void)
{
    __asm__ volatile("movi v0.2d, #0\n movi v1.2d, #0\n movi v2.2d, #0\n movi v3.2d, #0\n"
                     "movi v4.2d, #0\n movi v5.2d, #0\n movi v6.2d, #0\n movi v7.2d, #0\n"
                     "movi v16.2d, #0\n movi v17.2d, #0\n movi v18.2d, #0\n movi v19.2d, #0\n"
                     "movi v20.2d, #0\n movi v21.2d, #0\n movi v22.2d, #0\n movi v23.2d, #0\n"
                     "movi v24.2d, #0\n movi v25.2d, #0\n movi v26.2d, #0\n movi v27.2d, #0\n"
                     "movi v28.2d, #0\n movi v29.2d, #0\n movi v30.2d, #0\n movi v31.2d, #0\n" ::
                         : "memory", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17",
                           "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", "v26", "v27",
                           "v28", "v29", "v30", "v31");
}

#else

void vhb_forget_registers(void)
{
}

#endif
