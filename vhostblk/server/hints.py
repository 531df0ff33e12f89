"""
What an operator is told of a guest that is set up badly: every text, one line each.

The page docs/how-to/confidential-symptoms.md shows them as they are here, with the other lines
that guest and front-end print in the same situations.
"""

PAGE = "docs/how-to/confidential-symptoms.md"
NO_PLATFORM = '"device must provide VIRTIO_F_ACCESS_PLATFORM"'
"""What Linux says when a confidential guest refuses a device that lacks bit 33."""
_PLATFORM = "iommu_platform=on,disable-legacy=on"

ENCRYPTED = (
    "queue {queue}: the ring at GPA {gpa:#x} reads as random bytes (avail idx {idx:#x}, {zeroes} "
    "zero bytes of {total}): this guest's memory looks encrypted from the host, and its rings are "
    f"not shared. If it is an SEV guest, give the device {_PLATFORM}, and use a guest kernel whose "
    "virtio drivers know the DMA API (Linux 4.15 or newer); in the guest look for "
    f"{NO_PLATFORM}. The queue waits until the guest is restarted or the device reset. See {PAGE}"
)
ADDRESS_BIT = (
    "queue {queue}: the {what} at {address:#x} is outside guest memory, and {plain:#x}, the same "
    "without {bits}, is inside: the driver or the firmware has left the bit in that tells private "
    "pages from shared ones (SEV's C-bit, TDX's shared bit). It is not taken off here, as the page "
    "may be a private one: correct the guest's driver, or use a guest kernel and firmware that "
    f"know this kind of confidential guest. See {PAGE}"
)
ZEROES = (
    "queue {queue}: kicked {times}, but its ring at GPA {gpa:#x} reads as zeroes: (a) the "
    "front-end's RAM lacks share=on (QEMU: -object memory-backend-memfd,…,share=on, as "
    "`vhostblk qemu-args` prints it), or (b) the guest (SEV-SNP, TDX) has never shared its rings: "
    f"give the device {_PLATFORM}, and in the guest look for {NO_PLATFORM}. See {PAGE}"
)
NO_DRIVER = (
    "connected for {seconds:g} s, and no driver has set up a ring. If the guest has booted, its "
    f"kernel has no virtio-blk driver, or the driver refused the device: look for {NO_PLATFORM} in "
    "the guest (a confidential one, of which the front-end was told iommu_platform=off: give the "
    f"device {_PLATFORM}). See {PAGE}"
)
NONSENSE = (
    "queue {queue}: not one of its first {requests} requests makes sense ({unsupported} of unknown "
    "type, {malformed} without room for a status, {errors} failed). Its ring is sound, so this is "
    "no matter of encryption: the guest's driver is broken, or drives another kind of device. "
    f"See {PAGE}"
)


def bits(numbers: tuple[int, ...]) -> str:
    """Return address bits in words."""
    return f"bit{'s' if len(numbers) > 1 else ''} {' and '.join(map(str, numbers))}"


def times(number: int) -> str:
    """Return how often, in words."""
    return f"{number} time{'s' if number > 1 else ''}"
