"""What it costs to serve a disk in Python: calls into the core, and objects left behind."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from engine.conftest import make_rig
from engine.harness import Rig
from server_kit.disks import Ram

pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)

from vhostblk.disk.call import Calls
from vhostblk.engine.api import Job
from vhostblk.engine.native import core, mailbox, table, tell
from vhostblk.server.log import Log, Told
from vhostblk.server.served import Served


class Counted:
    """The core, with every call of a function counted."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        self.calls[name] += 1
        return getattr(core.lib, name)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = make_rig("native-split")
    yield made
    made.close()


def served(rig: Rig, disk: Ram) -> Served:
    loop: Any = None  # the disk has no async method
    log = Log("vhostblk.test", "bench")
    box = rig.lanes[0].mailbox
    return Served(
        box, Calls(disk), loop, log=log, told=Told(log), keep=lambda _: None, clock=lambda: 0.0
    )


@pytest.mark.parametrize("size", [1, 5, 15])
def test_a_batch_costs_three_calls(rig: Rig, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes it, one that ends it, one that finds nothing more, whatever its size."""
    lane, counted = rig.lane(size=64), Counted()
    monkeypatch.setattr(mailbox, "lib", counted)
    one = served(rig, Ram())
    for _ in range(3):
        asked = [lane.read(sector) for sector in range(size)]
        rig.step()
        counted.calls.clear()
        assert not one.work(1.0)
        assert counted.calls == {"vhb_mailbox_take": 2, "vhb_mailbox_complete_many": 1}
        rig.step()
        assert [each.status for each in asked] == [0] * size


def test_words_are_those_of_the_structs() -> None:
    """Rows are read and written by offset: the formats have the sizes that the header gives."""
    assert mailbox.JOB.size == core.ffi.sizeof("struct vhb_job")
    assert mailbox._PIECE.size == core.ffi.sizeof("struct vhb_piece")
    assert table._ROW.size == core.ffi.sizeof("struct vhb_segment")
    assert tell._SAMPLE.size == core.ffi.sizeof("struct vhb_sample")
    assert core.ffi.sizeof("struct vhb_ended") == 16


def test_nothing_is_left_of_a_request(rig: Rig) -> None:
    """Jobs leave by counting references: no cycle waits for the collector with guest memory."""

    def jobs() -> int:
        return sum(isinstance(each, Job) for each in gc.get_objects())

    lane, one = rig.lane(size=64), served(rig, Ram())
    gc.collect()
    before = jobs()  # of a test whose disk never returned
    gc.disable()
    try:
        for _ in range(20):
            lane.read()
            lane.write()
        rig.step()
        assert not one.work(1.0)
        assert jobs() <= before
    finally:
        gc.enable()
