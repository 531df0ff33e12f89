"""The feature bits a device offers its driver (virtio 1.3, 5.2.3 and 6)."""

from vhostblk.blk.device import BlkDevice
from vhostblk.spec import virtio_blk as blk
from vhostblk.spec.virtio_ring import F_VERSION_1

_ALWAYS = (
    blk.F_SIZE_MAX
    | blk.F_SEG_MAX
    | blk.F_BLK_SIZE
    | blk.F_FLUSH
    | blk.F_TOPOLOGY
    | blk.F_CONFIG_WCE
    # With one queue too: QEMU asks for it, and num_queues then says 1.
    | blk.F_MQ
)


def offered(device: BlkDevice, *, ring: int) -> int:
    """
    Return the virtio feature bits of a device.

    Args:
        device: What it promises.
        ring: Ring feature bits its data plane can, as `Engine.ring_features` says.

    Returns:
        Bits for GET_FEATURES; the server adds those that are vhost-user's own.

    Spec: virtio 1.3, 5.2.3.
    """
    bits = F_VERSION_1 | ring | _ALWAYS
    if device.read_only:
        return bits | blk.F_RO
    if device.discard:
        bits |= blk.F_DISCARD
    if device.write_zeroes:
        bits |= blk.F_WRITE_ZEROES
    return bits
