from pathlib import Path

from kernel_header import values

from vhostblk.spec import virtio_blk
from vhostblk.spec.virtio_blk import RequestType, Status

FEATURES = {
    f"1ull << VIRTIO_BLK_F_{name}": getattr(virtio_blk, f"F_{name}")
    for name in (
        "SIZE_MAX",
        "SEG_MAX",
        "GEOMETRY",
        "RO",
        "BLK_SIZE",
        "FLUSH",
        "TOPOLOGY",
        "CONFIG_WCE",
        "MQ",
        "DISCARD",
        "WRITE_ZEROES",
        "SECURE_ERASE",
    )
}
# Newer than some headers: GET_LIFETIME, with F_LIFETIME and F_ZONED.
TYPES = {
    f"VIRTIO_BLK_T_{kind.name}": int(kind)
    for kind in RequestType
    if kind is not RequestType.GET_LIFETIME
}
STATUS = {f"VIRTIO_BLK_S_{status.name}": int(status) for status in Status}
LAYOUT = {
    "VIRTIO_BLK_T_BARRIER": virtio_blk.TYPE_BARRIER,
    "VIRTIO_BLK_ID_BYTES": virtio_blk.SERIAL_SIZE,
    "VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP": virtio_blk.WRITE_ZEROES_F_UNMAP,
    "sizeof(struct virtio_blk_outhdr)": virtio_blk.REQUEST_HEADER_SIZE,
    "sizeof(struct virtio_blk_discard_write_zeroes)": virtio_blk.RANGE_SIZE,
    "offsetof(struct virtio_blk_config, wce)": virtio_blk.CONFIG_WRITEBACK_OFFSET,
    "offsetof(struct virtio_blk_config, unused1) + 3": virtio_blk.CONFIG_SIZE,
}


def test_block_numbers_are_the_kernels(tmp_path: Path) -> None:
    """Features, request types, status codes and layouts agree with <linux/virtio_blk.h>."""
    expected = FEATURES | TYPES | STATUS | LAYOUT
    assert values(tmp_path, ["linux/virtio_blk.h"], list(expected)) == expected


def test_numbers_newer_than_the_header_are_the_standards() -> None:
    """Virtio 1.3, 5.2.3 and 5.2.6."""
    assert virtio_blk.F_LIFETIME == 1 << 15
    assert virtio_blk.F_ZONED == 1 << 17
    assert int(RequestType.GET_LIFETIME) == 10
    assert virtio_blk.SECTOR_SIZE == 512
