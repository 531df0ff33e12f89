/* fault.c - guest memory that vanishes under a read or write (SIGBUS).
 *
 * A guest's memory file can be truncated, or run out of huge pages, while it is mapped here.  The
 * access then raises SIGBUS on the thread that made it.  The handler puts a private page of zeroes
 * there, counts the loss and returns: the access succeeds on nothing, and whoever made it sees by
 * the count that it did.  No longjmp: nobody's state is abandoned half way.
 *
 * The only global state of the core, because a signal handler has no argument.
 *
 * Everything the handler calls is async-signal-safe: mmap, madvise, sigaction and raise are plain
 * system calls here, and its counters are lock-free.
 *
 * Watching and unwatching take a slot by compare-and-swap and never wait.  The handler reads a
 * slot between two looks at its sequence number and ignores one that changed meanwhile.  What that
 * cannot prevent is a handler that took a mapping for watched, was delayed, and puts its page down
 * after the mapping is gone and the address reused.  Hence the rule: unwatch comes after the last
 * access (queues drained, none dead, views released) and before munmap; with no access under way
 * no handler is either. */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include "atomics.h"
#include "disk.h"

enum { FAULT_SLOTS = 8192 }; /* 16 devices with 509 regions each */

enum { SLOT_FREE, SLOT_TAKEN, SLOT_LIVE };

struct fault_slot {
    uint32_t state;
    uint32_t seq; /* odd: being changed.  pair: fault-slot */
    uint32_t lost;
    uintptr_t start, end; /* whole pages */
    uintptr_t page;
};

static struct fault_slot slots[FAULT_SLOTS];
static uint32_t slots_used; /* slots from here on were never taken */
static uint32_t total;      /* pages lost in all.  pair: fault-total */
static uint32_t installed;
static struct sigaction previous;

/* initial-exec: in a module that was dlopen()ed the first touch of ordinary thread-local memory
 * may allocate, which a signal handler must not. */
static _Thread_local uint32_t seen __attribute__((tls_model("initial-exec")));

uint32_t vhb_fault_seen(void)
{
    /* Accesses to guest memory stay on their side of the look, even when this is inlined. */
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    uint32_t n = load_relaxed(&seen);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    return n;
}

uint32_t vhb_fault_total(void)
{
    return load_acquire(&total); /* pair: fault-total */
}

bool vhb_fault_lost(const void *host, uint64_t len)
{
    uintptr_t start = (uintptr_t)host;
    uint32_t n = load_acquire(&slots_used);
    for (uint32_t i = 0; i < n; i++) {
        const struct fault_slot *slot = &slots[i];
        if (load_relaxed(&slot->lost) && load_acquire(&slot->state) == SLOT_LIVE &&
            load_relaxed(&slot->start) < start + len && start < load_relaxed(&slot->end))
            return true;
    }
    return false;
}

/* ---- the handler --------------------------------------------------------------------- */

/* Whether *slot* watches *addr*, and the page that holds it. */
static bool slot_page(struct fault_slot *slot, uintptr_t addr, uintptr_t *at, size_t *len)
{
    uint32_t before = load_acquire(&slot->seq); /* pair: fault-slot */
    if (before & 1 || load_relaxed(&slot->state) != SLOT_LIVE)
        return false;
    /* Acquire: the second look at seq may not come before these. */
    uintptr_t start = load_acquire(&slot->start), end = load_acquire(&slot->end);
    uintptr_t page = load_acquire(&slot->page);
    if (load_relaxed(&slot->seq) != before || addr < start || addr >= end)
        return false;
    *at = addr & ~(page - 1);
    *len = page;
    return true;
}

static bool replace_page(uintptr_t addr)
{
    uint32_t n = load_acquire(&slots_used);
    for (uint32_t i = 0; i < n; i++) {
        uintptr_t at;
        size_t len;
        if (!slot_page(&slots[i], addr, &at, &len))
            continue;
        /* A mapping of huge pages can only be cut at their borders; small pages fill the gap. */
        int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        if (mmap((void *)at, len, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
            return false; /* no memory even for this: as fatal as it was before us */
        /* It may yet get the guest's data: what holds for the mapping holds for its stand-in. */
        (void)madvise((void *)at, len, MADV_DONTDUMP);
        (void)madvise((void *)at, len, MADV_DONTFORK);
        __atomic_fetch_add(&slots[i].lost, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&total, 1, __ATOMIC_RELEASE); /* pair: fault-total */
        store_relaxed(&seen, load_relaxed(&seen) + 1);
        return true;
    }
    return false;
}

/* Not ours: what would have happened had we not been here. */
static void hand_on(int sig, siginfo_t *info, void *context)
{
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(sig, info, context);
        return;
    }
    bool sent = info->si_code <= 0; /* by kill(): there is no access that could fault again */
    if (previous.sa_handler == SIG_IGN && sent)
        return;
    if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(sig);
        return;
    }
    sigaction(sig, &previous, NULL);
    if (sent)
        raise(sig); /* blocked until we return */
}

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
    int saved = errno;
    /* si_addr of a signal that was sent is not an address. */
    if (info->si_code <= 0 || !replace_page((uintptr_t)info->si_addr))
        hand_on(sig, info, context);
    errno = saved;
}

/* ---- the control plane's side -------------------------------------------------------- */

int vhb_fault_install(void)
{
    uint32_t no = 0;
    if (!__atomic_compare_exchange_n(&installed, &no, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return 0;
    /* Where to go on, before the first signal can arrive. */
    if (sigaction(SIGBUS, NULL, &previous) < 0)
        return -errno;
    /* SA_ONSTACK: a thread that keeps a stack for signals has a reason to, and the handlers behind
     * us may count on it; on all others the flag does nothing. */
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

static int slot_take(void)
{
    for (uint32_t i = 0; i < FAULT_SLOTS; i++) {
        uint32_t want = SLOT_FREE;
        if (load_relaxed(&slots[i].state) == SLOT_FREE &&
            __atomic_compare_exchange_n(&slots[i].state, &want, SLOT_TAKEN, false, __ATOMIC_ACQ_REL,
                                        __ATOMIC_RELAXED))
            return (int)i;
    }
    return -ENOSPC;
}

static void slots_used_reach(uint32_t n)
{
    uint32_t now = load_relaxed(&slots_used);
    while (now < n && !__atomic_compare_exchange_n(&slots_used, &now, n, false, __ATOMIC_RELEASE,
                                                   __ATOMIC_RELAXED))
        ;
}

/* Nobody but the holder of a TAKEN slot writes it; the handler may look on. */
static void slot_fill(struct fault_slot *slot, uintptr_t start, uintptr_t end, uintptr_t page,
                      uint32_t state)
{
    /* Exchange: none of the stores below may come before seq is odd.  pair: fault-slot */
    __atomic_exchange_n(&slot->seq, slot->seq + 1, __ATOMIC_ACQ_REL);
    store_release(&slot->start, start);
    store_release(&slot->end, end);
    store_release(&slot->page, page);
    store_release(&slot->lost, 0u);
    store_release(&slot->seq, slot->seq + 1); /* pair: fault-slot */
    store_release(&slot->state, state);
}

int vhb_fault_watch(void *host, uint64_t len, uint64_t page)
{
    uintptr_t start = (uintptr_t)host, end;
    if (page == 0 || (page & (page - 1)) || page < (uint64_t)sysconf(_SC_PAGESIZE) ||
        start % page || len == 0 || __builtin_add_overflow(start, len, &end) ||
        __builtin_add_overflow(end, page - 1, &end))
        return -EINVAL;
    int i = slot_take();
    if (i < 0)
        return i;
    slot_fill(&slots[i], start, end & ~(page - 1), page, SLOT_LIVE);
    slots_used_reach((uint32_t)i + 1);
    return i;
}

static bool slot_is_live(int slot)
{
    return slot >= 0 && slot < FAULT_SLOTS && load_acquire(&slots[slot].state) == SLOT_LIVE;
}

int vhb_fault_count(int slot)
{
    return slot_is_live(slot) ? (int)load_relaxed(&slots[slot].lost) : -EINVAL;
}

int vhb_fault_unwatch(int slot)
{
    if (!slot_is_live(slot))
        return -EINVAL;
    uint32_t want = SLOT_LIVE;
    if (!__atomic_compare_exchange_n(&slots[slot].state, &want, SLOT_TAKEN, false, __ATOMIC_ACQ_REL,
                                     __ATOMIC_RELAXED))
        return -EINVAL; /* somebody else is doing it */
    slot_fill(&slots[slot], 0, 0, (uintptr_t)1, SLOT_FREE);
    return 0;
}
