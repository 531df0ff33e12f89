"""A front-end that never stops talking of its IOMMU: bounded, and nobody else's affair."""

import random
import threading
import time

import pytest
from server_kit.serving import Serving
from server_kit.translated import BLOCK, PAGE, SECTORS, SIZE, attach, blocks, table, write_all

from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest, wire
from vhostblk.memory.iotlb import Iotlb
from vhostblk.spec.vhost_user import IotlbType

MESSAGES = 300
KEPT = 32
"""Translations that are kept here: far fewer than are told."""


def talk(guest: Guest, stop: threading.Event, sent: list[int]) -> None:
    """Tell and take back ranges of odd places and lengths until it is enough."""
    rng, place = random.Random(5), guest.memory.mappings[0]
    while not stop.is_set() or sent[0] < MESSAGES:
        iova, skip = rng.randrange(1 << 30), rng.randrange(place.region.size - PAGE)
        told = wire.Iotlb(iova, rng.randrange(1, PAGE), place.uva + skip, 3, IotlbType.UPDATE)
        guest.frontend.iotlb(told)
        gone = wire.Iotlb(iova + 1, rng.randrange(1, 3), 0, 0, IotlbType.INVALIDATE)
        guest.frontend.iotlb(gone)
        sent[0] += 2


def test_flood_is_bounded_and_stops_no_other_device(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message cuts translations into more; what is kept does not grow past its bound."""
    monkeypatch.setattr(Iotlb.__init__, "__defaults__", (KEPT, 1 << 10))
    path = server.add(Memory(SIZE))
    with attach(server) as hostile, Guest.connect(path) as other:
        data = blocks(4)
        write_all(other, data)
        stop, sent = threading.Event(), [0]
        thread = threading.Thread(target=talk, args=(hostile, stop, sent))
        thread.start()
        slowest = 0.0
        try:
            for turn in range(40):
                before = time.monotonic()
                assert other.read(SECTORS * (turn % 4), BLOCK) == data[turn % 4]
                slowest = max(slowest, time.monotonic() - before)
        finally:
            stop.set()
            thread.join()
        assert sent[0] >= MESSAGES
        assert slowest < 1.0
        fronts = [one.attached for one in server.devices if one.attached is not None]
        kept = [len(one.iommu.iotlb) for one in fronts if one.iommu.counters.updates]
        assert 0 < max(kept) <= KEPT
        assert table(hostile).refused == 0
