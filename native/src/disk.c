/* disk.c - what all disks of the core share. */
#include <errno.h>

#include "disk.h"

int vhb_disk_free(struct vhb_disk *disk)
{
    if (!disk)
        return 0;
    if (!disk->ops->free)
        return -EINVAL; /* a mailbox's disk goes with its box */
    if (atomic_load(&disk->users))
        return -EBUSY;
    disk->ops->free(disk);
    return 0;
}
