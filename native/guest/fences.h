/* fences.h - memory orders by what they are for.
 *
 * What the device writes is loaded with these, once, into a local.  A barrier names its partner,
 * which is the device's: "pair: avail-idx" and so on are the names that the core has for its end.
 */
#ifndef VHB_GUEST_FENCES_H
#define VHB_GUEST_FENCES_H

#include <stdint.h>

#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
/* A store before it is seen by the device before a load behind it is done. */
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* One writer, many readers: no locked instruction is needed. */
#define count(p, n) store_relaxed((p), load_relaxed(p) + (uint64_t)(n))

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

#endif
