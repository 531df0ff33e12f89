"""What a device says of itself."""

import pytest

from vhostblk.guest.config import LAYOUT
from vhostblk.guest.guest import Guest
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import SECTOR_SIZE


def test_device_is_modern(vhostblk_guest: Guest) -> None:
    """
    VERSION_1 is offered, without which a driver of today does not begin.

    Spec: virtio 1.3, 6.1.
    """
    assert vhostblk_guest.agreement.offered & vr.F_VERSION_1


def test_sizes_fit_each_other(vhostblk_guest: Guest) -> None:
    """
    The block size is a power of two, from a sector on, and the disk has whole blocks.

    Spec: virtio 1.3, 5.2.4, 5.2.5.
    """
    config = vhostblk_guest.config()
    assert config.capacity > 0
    if vhostblk_guest.features & vb.F_BLK_SIZE:
        block = config.blk_size
        assert block >= SECTOR_SIZE
        assert not block & (block - 1)
        assert config.capacity * SECTOR_SIZE % block == 0


def test_limits_are_limits(vhostblk_guest: Guest) -> None:
    """
    A limit that a feature announces lets something through.

    Spec: virtio 1.3, 5.2.4.
    """
    config, features = vhostblk_guest.config(), vhostblk_guest.features
    if features & vb.F_SEG_MAX:
        assert config.seg_max > 0
    if features & vb.F_SIZE_MAX:
        assert config.size_max > 0
    if features & vb.F_DISCARD:
        assert config.max_discard_sectors > 0
        assert config.max_discard_seg > 0
    if features & vb.F_WRITE_ZEROES:
        assert config.max_write_zeroes_sectors > 0
        assert config.max_write_zeroes_seg > 0
        assert config.write_zeroes_may_unmap in {0, 1}


def test_queues_are_counted_alike(vhostblk_guest: Guest) -> None:
    """
    The config space and GET_QUEUE_NUM know the same number of queues.

    Spec: virtio 1.3, 5.2.4; vhost-user, "Multiple queue support".
    """
    if ProtocolFeature.MQ not in vhostblk_guest.agreement.protocol_features:
        pytest.skip("the back-end does not offer MQ")
    if not vhostblk_guest.features & vb.F_MQ:
        pytest.skip("the device does not offer MQ")
    assert vhostblk_guest.config().num_queues == vhostblk_guest.agreement.max_queues


def test_config_is_read_in_any_pieces(vhostblk_guest: Guest) -> None:
    """
    A field read by itself is what it was in the whole.

    Spec: vhost-user, VHOST_USER_GET_CONFIG.
    """
    whole = vhostblk_guest.read_config(0, LAYOUT.size)
    for offset, length in ((0, 8), (20, 4), (32, 1), (34, 2), (36, 24)):
        assert vhostblk_guest.read_config(offset, length) == whole[offset : offset + length]


def test_write_cache_is_on_or_off(vhostblk_guest: Guest) -> None:
    """
    The write cache is in one of its two modes, and stays there.

    Spec: virtio 1.3, 5.2.4.
    """
    if not vhostblk_guest.features & vb.F_CONFIG_WCE:
        pytest.skip("the device does not offer CONFIG_WCE")
    first = vhostblk_guest.config().writeback
    assert first in {0, 1}
    assert vhostblk_guest.config().writeback == first
