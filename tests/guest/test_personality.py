import pytest
from guest_peers.scripted import offers, scripted

from vhostblk.guest import DEFAULT_FEATURES, FrontEnd, Guest, GuestError, wire
from vhostblk.guest.confidential import Confidential
from vhostblk.guest.personality import (
    CLOUD_HYPERVISOR,
    CROSVM,
    NO_REPLY_ACK,
    PLAIN,
    QEMU_COCO,
    QEMU_COCO_STRICT,
    Personality,
)
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature, Request

BIT_33 = vr.F_ACCESS_PLATFORM
ALL = 0x1B22B
"""What QEMU 10 agrees on with a back-end that offers everything."""


def connected(personality: Personality, features: int, protocol: int = ALL) -> dict[int, bytes]:
    """Start a guest; return the last payload of each message."""
    confidential = Confidential(kind="bounced", personality=personality)
    with (
        scripted(offers(features, protocol)) as backend,
        Guest(FrontEnd.over(backend.front), confidential=confidential) as guest,
    ):
        guest.start()
        guest.frontend.get_features()
        assert guest.features & BIT_33 == features & BIT_33, "the driver acknowledges it"
        return {m.request: m.payload for m in backend.seen}


@pytest.mark.parametrize(
    ("personality", "passed"),
    [
        (PLAIN, True),
        (QEMU_COCO, False),
        (QEMU_COCO_STRICT, False),
        (CROSVM, True),
        (CLOUD_HYPERVISOR, False),
        (NO_REPLY_ACK, False),
    ],
    ids=["plain", "qemu", "qemu strict", "crosvm", "cloud-hypervisor", "no REPLY_ACK"],
)
def test_bit_33_in_set_features(personality: Personality, *, passed: bool) -> None:
    """
    QEMU and cloud-hypervisor hide the bit their driver acknowledged; crosvm passes it on.

    In all of them rings are told by the front-end's addresses.
    """
    said = connected(personality, DEFAULT_FEATURES | BIT_33)
    features = wire.parse_u64(said[Request.SET_FEATURES])
    assert bool(features & BIT_33) == passed
    assert features & ~BIT_33 == DEFAULT_FEATURES
    addresses = wire.VRING_ADDR.unpack(said[Request.SET_VRING_ADDR])[2:5]
    assert min(addresses) > 1 << 46


def test_protocol_features_that_are_lacking() -> None:
    """A front-end without a feature does not agree on it, nor use it."""
    said = connected(CLOUD_HYPERVISOR, DEFAULT_FEATURES)
    agreed = ProtocolFeature(wire.parse_u64(said[Request.SET_PROTOCOL_FEATURES]))
    assert ProtocolFeature.BACKEND_REQ not in agreed
    assert ProtocolFeature.REPLY_ACK in agreed
    assert Request.SET_BACKEND_REQ_FD not in said
    agreed = ProtocolFeature(
        wire.parse_u64(connected(NO_REPLY_ACK, DEFAULT_FEATURES)[Request.SET_PROTOCOL_FEATURES])
    )
    assert ProtocolFeature.REPLY_ACK not in agreed


@pytest.mark.parametrize(
    ("features", "protocol", "message"),
    [
        (DEFAULT_FEATURES, ALL, "iommu_platform=true is not supported by the device"),
        (
            DEFAULT_FEATURES | BIT_33,
            ALL & ~int(ProtocolFeature.REPLY_ACK),
            "IOMMU support requires reply-ack and backend-req",
        ),
        (
            DEFAULT_FEATURES | BIT_33,
            ALL & ~int(ProtocolFeature.BACKEND_REQ),
            "IOMMU support requires reply-ack and backend-req",
        ),
    ],
)
def test_strict_qemu_turns_back_ends_away(features: int, protocol: int, message: str) -> None:
    """What QEMU says to a back-end that cannot serve a confidential guest."""
    with pytest.raises(GuestError, match=message):
        connected(QEMU_COCO_STRICT, features, protocol)
