from dataclasses import replace

import pytest

from vhostblk.blk.device import BlkDevice
from vhostblk.blk.features import names, offered
from vhostblk.spec import virtio_blk as blk
from vhostblk.spec.virtio_ring import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1

PLAIN = BlkDevice(capacity_sectors=2048)
EVERY = replace(PLAIN, discard=True, write_zeroes=True)


def test_offered_holds_what_every_device_can() -> None:
    """A plain disk offers no more and no less than this; MQ even with one queue."""
    assert offered(PLAIN, ring=0) == (
        F_VERSION_1
        | blk.F_SIZE_MAX
        | blk.F_SEG_MAX
        | blk.F_GEOMETRY
        | blk.F_BLK_SIZE
        | blk.F_FLUSH
        | blk.F_TOPOLOGY
        | blk.F_CONFIG_WCE
        | blk.F_MQ
    )


def test_offered_adds_what_the_ring_can() -> None:
    """Ring features are the data plane's, passed on as they are."""
    ring = F_INDIRECT_DESC | F_EVENT_IDX
    assert offered(PLAIN, ring=ring) == offered(PLAIN, ring=0) | ring


@pytest.mark.parametrize(
    ("device", "bits"),
    [
        (replace(PLAIN, discard=True), blk.F_DISCARD),
        (replace(PLAIN, write_zeroes=True), blk.F_WRITE_ZEROES),
        (EVERY, blk.F_DISCARD | blk.F_WRITE_ZEROES),
        (replace(EVERY, read_only=True), blk.F_RO),
    ],
)
def test_offered_follows_the_disk(device: BlkDevice, bits: int) -> None:
    """
    DISCARD and WRITE_ZEROES are offered where the disk can, and never on a read-only one.

    Spec: virtio 1.3, 5.2.3.
    """
    assert offered(device, ring=0) == offered(PLAIN, ring=0) | bits


def test_what_this_device_cannot_is_never_offered() -> None:
    """
    LIFETIME, SECURE_ERASE and ZONED would promise what no disk of ours has.

    Spec: virtio 1.3, 5.2.3.
    """
    assert not offered(EVERY, ring=0) & (blk.F_LIFETIME | blk.F_SECURE_ERASE | blk.F_ZONED)


def test_names_are_the_standards() -> None:
    """Lowest bit first; one that nobody has named is called by its number."""
    bits = blk.F_FLUSH | F_INDIRECT_DESC | 1 << 30 | F_VERSION_1 | 1 << 63
    assert names(bits) == [
        "VIRTIO_BLK_F_FLUSH",
        "VIRTIO_F_INDIRECT_DESC",
        "VHOST_USER_F_PROTOCOL_FEATURES",
        "VIRTIO_F_VERSION_1",
        "bit 63",
    ]
    assert names(0) == []
