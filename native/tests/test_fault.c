/* test_fault.c - SIGBUS on watched memory is survived and counted, any other is handed on. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "disk.h"
#include "smaps.h"

enum { PAGE = 4096, PAGES = 8, BIG = 2 << 20 };

/* Sanitizers bring a handler of their own; ours shall find the default. */
static void ready(void)
{
    static bool done;
    if (!done)
        signal(SIGBUS, SIG_DFL);
    done = true;
    CHECK_EQ(vhb_fault_install(), 0);
}

struct memory {
    int fd;
    uint8_t *host;
};

static struct memory memory(void)
{
    struct memory m = {.fd = memfd_create("guest", MFD_CLOEXEC)};
    CHECK(m.fd >= 0 && ftruncate(m.fd, PAGES * PAGE) == 0);
    m.host = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, m.fd, 0);
    CHECK(m.host != MAP_FAILED);
    return m;
}

static void forget(struct memory *m)
{
    munmap(m->host, PAGES * PAGE);
    close(m->fd);
}

/* Reads give zeroes, writes go nowhere, each lost page counts once, others are untouched. */
static void test_lost_pages_read_as_zeroes(void)
{
    ready();
    struct memory m = memory();
    volatile uint8_t *byte = m.host;
    memset(m.host, 1, PAGES * PAGE);
    int slot = vhb_fault_watch(m.host, PAGES * PAGE, PAGE);
    CHECK(slot >= 0);
    CHECK_EQ(vhb_fault_count(slot), 0);
    CHECK_EQ(ftruncate(m.fd, 4 * PAGE), 0);

    uint32_t before = vhb_fault_seen();
    errno = 77;
    CHECK_EQ(byte[5 * PAGE + 17], 0);
    CHECK_EQ(errno, 77);
    byte[6 * PAGE] = 9;
    CHECK_EQ(byte[6 * PAGE], 9);
    CHECK_EQ(byte[0], 1);
    CHECK_EQ(byte[4 * PAGE - 1], 1);
    CHECK_EQ(vhb_fault_seen(), before + 2);
    CHECK_EQ(vhb_fault_count(slot), 2);

    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    forget(&m);
}

/* The page that takes the place is kept from core dumps and children, as guest memory is. */
static void test_replacement_is_neither_dumped_nor_inherited(void)
{
    ready();
    struct memory m = memory();
    int slot = vhb_fault_watch(m.host, PAGES * PAGE, PAGE);
    CHECK(slot >= 0 && !has_vm_flag(m.host, " dd"));
    CHECK_EQ(ftruncate(m.fd, 4 * PAGE), 0);
    ((volatile uint8_t *)m.host)[5 * PAGE] = 9;
    CHECK(has_vm_flag(m.host + 5 * PAGE, " dd") && has_vm_flag(m.host + 5 * PAGE, " dc"));
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    forget(&m);
}

/* Losses belong to the thread that met them and to the mapping, not to other ones. */
static void *touch(void *arg)
{
    volatile uint8_t *byte = arg;
    uint32_t before = vhb_fault_seen();
    (void)*byte;
    return (void *)(uintptr_t)(vhb_fault_seen() - before);
}

static void test_losses_are_counted_where_they_happen(void)
{
    ready();
    struct memory a = memory(), b = memory();
    int slot_a = vhb_fault_watch(a.host, PAGES * PAGE, PAGE);
    int slot_b = vhb_fault_watch(b.host, PAGES * PAGE, PAGE);
    CHECK(slot_a >= 0 && slot_b >= 0 && slot_a != slot_b);
    CHECK_EQ(ftruncate(b.fd, 0), 0);
    uint32_t before = vhb_fault_seen();
    pthread_t thread;
    void *lost;
    CHECK_EQ(pthread_create(&thread, NULL, touch, b.host), 0);
    CHECK_EQ(pthread_join(thread, &lost), 0);
    CHECK_EQ((uintptr_t)lost, 1);
    CHECK_EQ(vhb_fault_seen(), before);
    CHECK_EQ(vhb_fault_count(slot_a), 0);
    CHECK_EQ(vhb_fault_count(slot_b), 1);
    CHECK_EQ(vhb_fault_unwatch(slot_a), 0);
    CHECK_EQ(vhb_fault_unwatch(slot_b), 0);
    forget(&a);
    forget(&b);
}

/* The page that takes the place is as large as the mapping's pages. */
static void test_replacement_has_the_page_size_of_the_mapping(void)
{
    ready();
    size_t room = 3 * (size_t)BIG;
    uint8_t *area = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    uint8_t *host = (uint8_t *)(((uintptr_t)area + BIG - 1) & ~(uintptr_t)(BIG - 1));
    int fd = memfd_create("guest", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(mmap(host, BIG, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
    int slot = vhb_fault_watch(host, BIG - PAGE, BIG); /* the last huge page is a whole one */
    CHECK(slot >= 0);
    volatile uint8_t *byte = host;
    uint32_t before = vhb_fault_seen();
    CHECK_EQ(byte[5 * PAGE], 0);
    CHECK_EQ(byte[0], 0);
    CHECK_EQ(byte[BIG - 1], 0);
    CHECK_EQ(vhb_fault_seen(), before + 1);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    munmap(area, room);
    close(fd);
}

/* What cannot be a mapping is refused; a slot that is not watched is unknown. */
static void test_watch_checks_its_arguments(void)
{
    uint8_t *page = (uint8_t *)(uintptr_t)(1 << 30);
    CHECK_EQ(vhb_fault_watch(page, PAGE, 0), -EINVAL);
    CHECK_EQ(vhb_fault_watch(page, PAGE, PAGE + 1), -EINVAL);
    CHECK_EQ(vhb_fault_watch(page, PAGE, 512), -EINVAL);
    CHECK_EQ(vhb_fault_watch(page + 1, PAGE, PAGE), -EINVAL);
    CHECK_EQ(vhb_fault_watch(page, 0, PAGE), -EINVAL);
    CHECK_EQ(vhb_fault_watch(page, UINT64_MAX, PAGE), -EINVAL);
    CHECK_EQ(vhb_fault_count(-1), -EINVAL);
    CHECK_EQ(vhb_fault_count(1 << 20), -EINVAL);
    CHECK_EQ(vhb_fault_unwatch(5), -EINVAL);
}

/* Slots come back: more mappings than slots, one after the other; too many at once are refused. */
static void test_slots_are_bounded_and_reused(void)
{
    static int slots[8192];
    uint8_t *page = (uint8_t *)(uintptr_t)(1 << 30);
    for (size_t i = 0; i < 8192; i++) {
        slots[i] = vhb_fault_watch(page + i * PAGE, PAGE, PAGE);
        CHECK(slots[i] >= 0);
    }
    CHECK_EQ(vhb_fault_watch(page, PAGE, PAGE), -ENOSPC);
    CHECK_EQ(vhb_fault_unwatch(slots[100]), 0);
    CHECK_EQ(vhb_fault_unwatch(slots[100]), -EINVAL);
    slots[100] = vhb_fault_watch(page, PAGE, PAGE);
    CHECK(slots[100] >= 0);
    CHECK_EQ(vhb_fault_count(slots[100]), 0);
    for (size_t i = 0; i < 8192; i++)
        CHECK_EQ(vhb_fault_unwatch(slots[i]), 0);
}

/* ---- what is not ours ----------------------------------------------------------------- */

static int how_it_ends(void (*body)(void))
{
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        body();
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return status;
}

static void touch_unwatched(void)
{
    struct memory m = memory();
    CHECK_EQ(ftruncate(m.fd, 0), 0);
    volatile uint8_t *byte = m.host;
    (void)*byte;
}

static void touch_after_unwatch(void)
{
    struct memory m = memory();
    CHECK_EQ(ftruncate(m.fd, 0), 0);
    int slot = vhb_fault_watch(m.host, PAGES * PAGE, PAGE);
    CHECK_EQ(vhb_fault_unwatch(slot), 0);
    volatile uint8_t *byte = m.host;
    (void)*byte;
}

static void send_to_self(void)
{
    raise(SIGBUS);
}

/* With no handler before ours the process dies of SIGBUS, by a fault or by a signal sent. */
static void test_other_faults_are_fatal_as_before(void)
{
    void (*bodies[])(void) = {touch_unwatched, touch_after_unwatch, send_to_self};
    ready();
    for (size_t i = 0; i < 3; i++) {
        int status = how_it_ends(bodies[i]);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    }
}

static void simple_handler(int sig)
{
    _exit(sig == SIGBUS ? 42 : 1);
}

static void behind_simple(void)
{
    signal(SIGBUS, simple_handler);
    vhb_fault_install();
    touch_unwatched();
}

static void info_handler(int sig, siginfo_t *info, void *context)
{
    _exit(sig == SIGBUS && info->si_code == BUS_ADRERR && info->si_addr && context ? 43 : 1);
}

static void behind_info(void)
{
    struct sigaction action = {.sa_sigaction = info_handler, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    vhb_fault_install();
    touch_unwatched();
}

static void behind_ignore(void)
{
    signal(SIGBUS, SIG_IGN);
    vhb_fault_install();
    raise(SIGBUS);
    _exit(44);
}

static void fault_behind_ignore(void)
{
    signal(SIGBUS, SIG_IGN);
    vhb_fault_install();
    touch_unwatched();
}

/* A handler that was there first gets what is not ours, in its own calling convention. */
static void test_earlier_handlers_are_called(void)
{
    CHECK_EQ(WEXITSTATUS(how_it_ends(behind_simple)), 42);
    CHECK_EQ(WEXITSTATUS(how_it_ends(behind_info)), 43);
    CHECK_EQ(WEXITSTATUS(how_it_ends(behind_ignore)), 44);
    CHECK_EQ(WTERMSIG(how_it_ends(fault_behind_ignore)), SIGBUS);
}

/* The first in the list: it forks before this process has installed anything. */
CHECK_MAIN(TEST(earlier_handlers_are_called), TEST(lost_pages_read_as_zeroes),
           TEST(replacement_is_neither_dumped_nor_inherited),
           TEST(losses_are_counted_where_they_happen),
           TEST(replacement_has_the_page_size_of_the_mapping), TEST(watch_checks_its_arguments),
           TEST(slots_are_bounded_and_reused), TEST(other_faults_are_fatal_as_before))
