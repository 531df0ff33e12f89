/* scripted.h - a rig with a file whose system calls end as the test says.
 *
 * The linker puts the __wrap_ functions in front of those of the system (by their names for 64-bit
 * offsets) and of the clock: time passes when the test says. */
#ifndef VHB_SCRIPTED_H
#define VHB_SCRIPTED_H

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "rig.h"

#define MS 1000000ull

enum { SECTORS = 8192, BYTES = SECTORS * 512, DATA = RIG_DATA, PAGE = 4096 };

/* ---- in front of the system --------------------------------------------------------------- */

enum { PASS = 1 << 30, SCRIPT = 64 };

static struct {
    int fd;
    int results[SCRIPT]; /* of its calls in turn: PASS, bytes at most, or -errno; then PASS */
    int n, calls, nowait, writes, syncs;
    uint64_t now, write_takes;
    long fs;
} script;

ssize_t __real_preadv64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
ssize_t __real_pwritev64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
int __real_fstatfs64(int fd, struct statfs *fs);
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags);
int __wrap_fstatfs64(int fd, struct statfs *fs);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);

/* What the next call is to do; *iov is cut to it. */
static inline int next_result(int flags, const struct iovec **iov, int *niov, struct iovec *one)
{
    int result = script.calls < script.n ? script.results[script.calls] : PASS;
    script.calls++;
    script.nowait += flags & RWF_NOWAIT ? 1 : 0;
    if (result >= 0 && result != PASS) {
        *one = (struct iovec){(*iov)->iov_base, (size_t)result};
        *iov = one;
        *niov = 1;
    }
    return result;
}

/* What the file system says to RWF_NOWAIT is the script's, not its own. */
ssize_t __wrap_preadv64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags)
{
    struct iovec one;
    if (script.fd != fd)
        return __real_preadv64v2(fd, iov, niov, offset, flags);
    int result = next_result(flags, &iov, &niov, &one);
    if (result >= 0)
        return __real_preadv64v2(fd, iov, niov, offset, flags & ~RWF_NOWAIT);
    errno = -result;
    return -1;
}

ssize_t __wrap_pwritev64v2(int fd, const struct iovec *iov, int niov, off_t offset, int flags)
{
    struct iovec one;
    script.writes++;
    int result = next_result(flags, &iov, &niov, &one);
    script.now += script.write_takes;
    if (result >= 0)
        return __real_pwritev64v2(fd, iov, niov, offset, flags & ~RWF_NOWAIT);
    errno = -result;
    return -1;
}

int __wrap_fstatfs64(int fd, struct statfs *fs)
{
    int r = __real_fstatfs64(fd, fs);
    fs->f_type = script.fs;
    fs->f_bsize = PAGE;
    return r;
}

int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
    (void)clock;
    *ts = (struct timespec){.tv_sec = (time_t)(script.now / 1000000000),
                            .tv_nsec = (long)(script.now % 1000000000)};
    return 0;
}

/* ---- the rig ------------------------------------------------------------------------------ */

struct served {
    int fd;
    struct vhb_disk *disk;
    struct rig rig;
};

static inline void serve_as(struct served *s, long fs, uint32_t flags, uint32_t blk_flags)
{
    s->fd = rig_temporary(0, BYTES);
    memset(&script, 0, sizeof(script));
    script.fs = fs;
    script.fd = s->fd;
    script.now = 1000 * MS;
    CHECK_EQ(vhb_disk_file_new(s->fd, flags, 1, 1, &s->disk), 0);
    script.calls = script.nowait = 0; /* what was found out at open */
    rig_open(&s->rig,
             &(struct rig_config){.disk = s->disk, .sectors = SECTORS, .blk_flags = blk_flags});
    CHECK_EQ(vhb_worker_uring(s->rig.worker), 1);
}

static inline void end(struct served *s)
{
    rig_close(&s->rig);
    CHECK_EQ(vhb_disk_free(s->disk), 0);
    close(s->fd);
}

/* The next calls of the file. */
#define SAY(...)                                                                                   \
    do {                                                                                           \
        const int said[] = {__VA_ARGS__};                                                          \
        script.calls = script.nowait = script.writes = 0;                                          \
        script.n = (int)(sizeof(said) / sizeof(said[0]));                                          \
        memcpy(script.results, said, sizeof(said));                                                \
    } while (0)

static inline void is_stored(struct served *s, uint64_t offset, uint32_t len, uint32_t seed)
{
    static uint8_t got[1 << 20];
    rig_fill(&s->rig, DATA + (4 << 20), len, seed);
    CHECK(len <= sizeof(got) && pread(s->fd, got, len, (off_t)offset) == (ssize_t)len);
    CHECK(memcmp(got, s->rig.ram + DATA + (4 << 20), len) == 0);
}

static inline void store(struct served *s, uint64_t offset, uint32_t len, uint32_t seed)
{
    rig_fill(&s->rig, DATA + (4 << 20), len, seed);
    CHECK_EQ(pwrite(s->fd, s->rig.ram + DATA + (4 << 20), len, (off_t)offset), len);
}

static inline void wait_ns(struct served *s, uint64_t ns)
{
    script.now += ns;
    rig_pass(&s->rig); /* which looks at the clock */
    rig_pass(&s->rig);
}

static inline uint8_t write_some(struct served *s, uint64_t sector, uint32_t len, uint32_t seed)
{
    rig_fill(&s->rig, DATA, len, seed);
    return do_request(&s->rig, BLK_OUT, sector, DATA, len);
}

static inline void ways_are(struct served *s, uint32_t reads, uint32_t writes)
{
    struct vhb_file_ways ways;
    CHECK_EQ(vhb_disk_file_ways(s->disk, &ways), 0);
    CHECK_EQ(ways.reads, reads);
    CHECK_EQ(ways.writes, writes);
}

static inline void counts_are(struct served *s, uint64_t hits, uint64_t misses)
{
    CHECK_EQ(RIG_COUNT(&s->rig, inline_hits), hits);
    CHECK_EQ(RIG_COUNT(&s->rig, inline_misses), misses);
}

#endif
