from dataclasses import replace

import pytest

from vhostblk.guest import GuestError
from vhostblk.guest.config import LAYOUT, BlkConfig
from vhostblk.guest.load import Load, Plan, make_plan
from vhostblk.guest.negotiate import DEFAULT_FEATURES, Agreement
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature

MIB = 1 << 20
CONFIG = replace(BlkConfig.parse(bytes(LAYOUT.size)), capacity=2048, blk_size=512)
FEATURES = DEFAULT_FEATURES & ~vb.F_RO


def plan(load: Load, features: int = FEATURES, config: BlkConfig | None = CONFIG) -> Plan:
    return make_plan(
        load,
        Agreement(
            offered=features,
            features=features,
            protocol_features=ProtocolFeature(0),
            max_queues=64,
            max_mem_slots=8,
        ),
        config,
    )


def test_queues_share_the_disk() -> None:
    """Every block belongs to one queue, every request too."""
    made = plan(Load(queues=3, requests=100))
    shares = [made.share(queue) for queue in range(3)]
    assert shares == [(0, 85), (85, 85), (170, 86)]
    assert [made.requests(queue) for queue in range(3)] == [33, 33, 34]


@pytest.mark.parametrize(
    ("load", "size"),
    [
        (Load(depth=1), 256),
        (Load(depth=256), 256),
        (Load(depth=257), 512),
        (Load(depth=100, indirect=False), 512),
        (Load(queue_size=32), 32),
        (Load(packed=True, depth=3, queue_size=3), 3),
    ],
)
def test_queues_are_as_large_as_they_must_be(load: Load, size: int) -> None:
    """256 descriptors as QEMU's drivers have mostly, or the next power of two that is enough."""
    indirect = FEATURES if load.indirect else FEATURES & ~vr.F_INDIRECT_DESC
    assert plan(load, indirect | vr.F_RING_PACKED).queue_size == size


def test_pieces_are_no_larger_than_the_device_takes() -> None:
    """Spec: virtio 1.3, 5.2.5.2: size_max is a descriptor's, seg_max a request's."""
    config = replace(CONFIG, size_max=5000, seg_max=2)
    assert plan(Load(bytes=8192), config=config).piece == 4608
    assert plan(Load(bytes=8192), FEATURES & ~vb.F_SIZE_MAX, config).piece == 8192
    with pytest.raises(
        GuestError, match="has 4 pieces, of 4608 bytes at most; the back-end takes 2"
    ):
        plan(Load(bytes=16384), config=config)


@pytest.mark.parametrize(
    ("load", "features", "config", "says"),
    [
        (Load(packed=True), FEATURES, CONFIG, "offers no packed rings"),
        (Load(op="write"), FEATURES | vb.F_RO, CONFIG, "read-only"),
        (Load(verify=True), FEATURES | vb.F_RO, CONFIG, "read-only"),
        (Load(bytes=512), FEATURES, replace(CONFIG, blk_size=4096), "blocks of 4096 bytes; 512"),
        (Load(bytes=1000), FEATURES, CONFIG, "1000 are no whole blocks"),
        (Load(), FEATURES, None, "does not say how large its disk is"),
        (Load(size=2 * MIB), FEATURES, CONFIG, "has 1048576 bytes, not 2097152"),
        (Load(size=4096, queues=2), FEATURES, CONFIG, "1 blocks of 4096 bytes; .* needs 2"),
        (Load(size=65536, verify=True), FEATURES, CONFIG, "16 blocks .* needs 32"),
        (Load(depth=9, queue_size=8), FEATURES, CONFIG, "1 descriptors each do not fit .*; 8 do"),
        (Load(queue_size=48), FEATURES, CONFIG, "split ring cannot have 48"),
        (Load(requests=1, queues=2), FEATURES, CONFIG, "not one for each of 2 queues"),
    ],
)
def test_what_a_device_cannot_take_is_said(
    load: Load, features: int, config: BlkConfig | None, says: str
) -> None:
    """One line that says what does not go together."""
    with pytest.raises(GuestError, match=says):
        plan(load, features, config)


def test_a_disk_of_unknown_size_is_used_as_told() -> None:
    """Without CONFIG the load says how much there is."""
    assert plan(Load(size=MIB), config=None).blocks == 256


def test_only_reading_keeps_what_is_there() -> None:
    """Verifying writes, too."""
    loads = [Load(), Load(op="write"), Load(op="rw"), Load(verify=True)]
    assert [load.writes for load in loads] == [False, True, True, True]
    assert [load.read_percent for load in loads[:3]] == [100, 0, 70]
