/* atomics.h - the few memory orders we use, by the name of what they are for.
 *
 * Guest memory changes under us: it is loaded with these, once, into a local.  Every pair of
 * barriers carries the same name at both ends ("pair: used-idx"). */
#ifndef VHB_ATOMICS_H
#define VHB_ATOMICS_H

#include <stdint.h>
#include <string.h>

#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define full_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)

/* One writer, many readers: no locked instruction is needed. */
#define count(p, n) store_relaxed((p), load_relaxed(p) + (uint64_t)(n))

/* Copy out of guest memory, once: the compiler may not come back for a second look. */
static inline void copy_in(void *local, const void *guest, size_t n)
{
    memcpy(local, guest, n);
    __asm__ volatile("" : : "r"(local) : "memory");
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

#endif
