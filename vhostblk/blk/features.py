"""The feature bits a device offers its driver (virtio 1.3, 5.2.3 and 6)."""

from vhostblk.blk.device import BlkDevice
from vhostblk.spec import virtio_blk as blk
from vhostblk.spec import virtio_ring as ring_spec
from vhostblk.spec.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES
from vhostblk.spec.virtio_ring import F_VERSION_1

_ALWAYS = (
    blk.F_SIZE_MAX
    | blk.F_SEG_MAX
    | blk.F_GEOMETRY
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


_NAMES = {
    **{bit: f"VIRTIO_{name}" for name, bit in vars(ring_spec).items() if name.startswith("F_")},
    **{bit: f"VIRTIO_BLK_{name}" for name, bit in vars(blk).items() if name.startswith("F_")},
    VHOST_USER_F_PROTOCOL_FEATURES: "VHOST_USER_F_PROTOCOL_FEATURES",
}


def names(features: int) -> list[str]:
    """
    Return feature bits as the standards call them, lowest first.

    Args:
        features: 64 bits; one that has no name is called by its number.
    """
    bits = (1 << number for number in range(64) if features >> number & 1)
    return [_NAMES.get(bit, f"bit {bit.bit_length() - 1}") for bit in bits]
