from pathlib import Path

from kernel_header import values

from vhostblk.spec import virtio_ring

RING = {
    "VRING_DESC_F_NEXT": virtio_ring.DESC_F_NEXT,
    "VRING_DESC_F_WRITE": virtio_ring.DESC_F_WRITE,
    "VRING_DESC_F_INDIRECT": virtio_ring.DESC_F_INDIRECT,
    "VRING_AVAIL_F_NO_INTERRUPT": virtio_ring.AVAIL_F_NO_INTERRUPT,
    "VRING_USED_F_NO_NOTIFY": virtio_ring.USED_F_NO_NOTIFY,
    "VRING_DESC_ALIGN_SIZE": virtio_ring.DESC_ALIGN,
    "VRING_AVAIL_ALIGN_SIZE": virtio_ring.AVAIL_ALIGN,
    "VRING_USED_ALIGN_SIZE": virtio_ring.USED_ALIGN,
    "sizeof(struct vring_desc)": virtio_ring.DESC_SIZE,
    "sizeof(struct vring_used_elem)": virtio_ring.USED_ELEM_SIZE,
    "offsetof(struct vring_avail, ring)": virtio_ring.AVAIL_HEADER_SIZE,
    "offsetof(struct vring_used, ring)": virtio_ring.USED_HEADER_SIZE,
    "sizeof(((struct vring_avail *)0)->ring[0])": virtio_ring.AVAIL_ELEM_SIZE,
    "1u << VRING_PACKED_DESC_F_AVAIL": virtio_ring.PACKED_DESC_F_AVAIL,
    "1u << VRING_PACKED_DESC_F_USED": virtio_ring.PACKED_DESC_F_USED,
    "sizeof(struct vring_packed_desc)": virtio_ring.DESC_SIZE,
    "sizeof(struct vring_packed_desc_event)": virtio_ring.PACKED_EVENT_SIZE,
    "VRING_PACKED_EVENT_FLAG_ENABLE": virtio_ring.PACKED_EVENT_ENABLE,
    "VRING_PACKED_EVENT_FLAG_DISABLE": virtio_ring.PACKED_EVENT_DISABLE,
    "VRING_PACKED_EVENT_FLAG_DESC": virtio_ring.PACKED_EVENT_DESC,
    "1u << VRING_PACKED_EVENT_F_WRAP_CTR": virtio_ring.PACKED_WRAP,
    "1ull << VIRTIO_RING_F_INDIRECT_DESC": virtio_ring.F_INDIRECT_DESC,
    "1ull << VIRTIO_RING_F_EVENT_IDX": virtio_ring.F_EVENT_IDX,
}
CONFIG = {
    f"1ull << VIRTIO_F_{name}": getattr(virtio_ring, f"F_{name}")
    for name in (
        "NOTIFY_ON_EMPTY",
        "ANY_LAYOUT",
        "VERSION_1",
        "ACCESS_PLATFORM",
        "RING_PACKED",
        "IN_ORDER",
        "ORDER_PLATFORM",
        "RING_RESET",
    )
}


def test_ring_numbers_are_the_kernels(tmp_path: Path) -> None:
    """Flags, sizes and alignments agree with <linux/virtio_ring.h>."""
    assert values(tmp_path, ["linux/virtio_ring.h"], list(RING)) == RING


def test_feature_bits_are_the_kernels(tmp_path: Path) -> None:
    """The device-independent bits agree with <linux/virtio_config.h>."""
    assert values(tmp_path, ["linux/virtio_config.h"], list(CONFIG)) == CONFIG


def test_event_fields_follow_the_rings(tmp_path: Path) -> None:
    """used_event and avail_event are 16 bits wide and follow the last element."""
    size = 8
    avail = virtio_ring.AVAIL_HEADER_SIZE + virtio_ring.AVAIL_ELEM_SIZE * size
    used = virtio_ring.USED_HEADER_SIZE + virtio_ring.USED_ELEM_SIZE * size
    vring = f"((struct vring){{.num = {size}, .avail = (void *)64, .used = (void *)1024}})"
    expected = {
        f"(char *)&vring_used_event(&{vring}) - (char *)64": avail,
        f"(char *)&vring_avail_event(&{vring}) - (char *)1024": used,
        f"sizeof(vring_used_event(&{vring}))": virtio_ring.EVENT_SIZE,
    }
    assert values(tmp_path, ["linux/virtio_ring.h"], list(expected)) == expected
