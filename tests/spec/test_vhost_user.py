from pathlib import Path

from kernel_header import values

from vhostblk.spec import vhost_user
from vhostblk.spec.vhost_user import BackendRequest, DeviceStatus, ProtocolFeature, Request


def test_shared_numbers_are_the_kernels(tmp_path: Path) -> None:
    """What vhost-user took over from vhost agrees with <linux/vhost_types.h>."""
    expected = {
        "1ull << VHOST_F_LOG_ALL": vhost_user.VHOST_F_LOG_ALL,
        "1ull << VHOST_VRING_F_LOG": int(vhost_user.VringAddrFlag.LOG),
        **{f"VHOST_IOTLB_{kind.name}": int(kind) for kind in vhost_user.IotlbType},
    }
    assert values(tmp_path, ["linux/vhost_types.h"], list(expected)) == expected


def test_status_bits_are_the_kernels(tmp_path: Path) -> None:
    """SET_STATUS carries virtio's own bits: <linux/virtio_config.h>."""
    expected = {f"VIRTIO_CONFIG_S_{bit.name}": int(bit) for bit in DeviceStatus}
    assert values(tmp_path, ["linux/virtio_config.h"], list(expected)) == expected


def test_message_numbers_have_no_gap() -> None:
    """Front-end messages are 1 to 43; the ends and some in between by the standard's list."""
    assert [int(request) for request in Request] == list(range(1, 44))
    assert int(Request.GET_VRING_BASE) == 11
    assert int(Request.GET_CONFIG) == 24
    assert int(Request.RESET_DEVICE) == 34
    assert int(Request.CHECK_DEVICE_STATE) == 43
    assert [int(request) for request in BackendRequest] == [1, 2, 3, 4, 5]


def test_protocol_features_are_as_recorded() -> None:
    """QEMU 10.2 acked 0x1b22b of a back-end that offered these."""
    names = (
        "MQ|LOG_SHMFD|REPLY_ACK|BACKEND_REQ|CONFIG|INFLIGHT_SHMFD|RESET_DEVICE"
        "|CONFIGURE_MEM_SLOTS|STATUS"
    )
    assert ProtocolFeature(0x1B22B).name == names
    assert ProtocolFeature.DEVICE_STATE == 1 << 19
