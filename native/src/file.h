/* file.h - between the parts of the file disk: file.c, the disk and the way a request takes, and
 * file_call.c, what its next system call is and what the result of one means. */
#ifndef VHB_FILE_H
#define VHB_FILE_H

#include "io.h"
#include "way.h"

struct file {
    struct vhb_disk disk;
    int fd;
    bool direct, block_device;
    bool timed;     /* where writes cannot be tried without waiting they are timed */
    int lost;       /* -errno of a sync that failed, for ever; 0: none has */
    uint32_t syncs; /* that the kernel has now */
    uint32_t mem_mask, offset_mask, block_mask;
    struct vhb_way reads, writes;
};

/* req->step of a request: which of its calls is next. */
enum step { STEP_FIRST, STEP_SYNC, STEP_ZERO_BY_WRITE };

/* ---- file_call.c ---- */

struct call {
    enum { CALL_RW, CALL_FSYNC, CALL_FALLOCATE } kind;
    bool write;
    int rwf;  /* RWF_* */
    int mode; /* FALLOC_FL_* */
    const struct iovec *iov;
    int niov;
    uint64_t offset, len;
};

enum verdict { AGAIN, OVER };

/* Give the piece of the cursor back what was cut off it: no piece stays changed. */
void vhb_file_mend(struct vhb_req *req);

struct call vhb_file_next_call(struct vhb_req *req);
/* Make it: bytes, 0 or -errno. */
int vhb_file_call_now(const struct file *f, const struct call *call);
/* Give it to the ring; req->resume gets the same. */
void vhb_file_call_later(const struct file *f, struct vhb_req *req, const struct call *call,
                         struct vhb_io *io);
/* Whether the request's next call, or the one that has just ended, makes something stable. */
bool vhb_file_syncs(const struct vhb_req *req);

/* Look at the result of the last call: AGAIN, there is another one; OVER, *result is final. */
enum verdict vhb_file_judge(struct vhb_req *req, int r, int *result);

#endif
