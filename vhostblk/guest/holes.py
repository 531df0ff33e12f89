"""
Which pages of guest memory anybody has touched, as the kernel tells it.

A page of a memfd that nobody has read or written is a hole, and stays one until the first touch: a
load or store through any mapping, in any process, or the kernel's own copying for a system call.
So a page that has turned from hole to data was touched, and if the guest did not do it the
back-end did.  Looking with ``SEEK_DATA`` touches nothing and needs no privilege.

What this cannot see: a second touch of a page, and anything on huge pages.  It needs the kernel not
to put huge pages behind memfds by itself (``/sys/kernel/mm/transparent_hugepage/shmem_enabled`` is
``never`` or ``advise``), or one touch would fill up to 2 MiB.
"""

from vhostblk.guest.memory import GuestMemory


def touched_pages(memory: GuestMemory) -> frozenset[int]:
    """
    Find the pages that exist.

    Args:
        memory: Of a guest, with or without protection.

    Returns:
        GPA of every page for which there is memory in its memfd.
    """
    return frozenset(page for mapping in memory.mappings for page in mapping.touched())
