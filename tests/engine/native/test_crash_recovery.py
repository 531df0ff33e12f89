"""
Wherever the process dies: nothing is lost, nothing comes back twice or is done again behind that.

What this does not prove: that the kernel is done with what a dead process had asked of it; the
image lock tells that (docs/explanation/crash-recovery.md).
"""

import ctypes
import mmap
import os
import struct
from collections.abc import Awaitable
from dataclasses import dataclass, field

import pytest
from engine.crashing import Crashing
from engine.driver import GPA, HEAP, NEXT, WRITE, Entry
from engine.driver_split import SplitDriver
from engine.harness import BLK, FEATURES, LANE, Nowhere, Rig, SteppedEngine
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from vhostblk.engine.api import Job, Op
from vhostblk.engine.reference.engine import ReferenceEngine
from vhostblk.spec.virtio_blk import RequestType, Status
from vhostblk.spec.virtio_ring import F_IN_ORDER

SLOTS, CHAIN = 4, 4
SIZE = SLOTS * CHAIN
"""Requests under way at most, and descriptors that one may have."""
PLACE = 2048
"""Bytes of guest memory for a slot: header, status, data."""
PACKED_BASE = 0x8000_8000
"""Of a ring that was never used."""

Copy = tuple[bytes, bytes, bytes]


def _reference() -> SteppedEngine:
    return ReferenceEngine(threaded=False)


@dataclass
class Asked:
    """A request: its place in guest memory, how often it was done, and was when it came back."""

    slot: int
    done: int = 0
    when_back: int | None = None


@dataclass
class World:
    """
    A guest with one queue and its inflight region, and one process after the other.

    Args:
        crashing: The core; the first process, and every other one if *mixed*.
        packed: The ring is.
        in_order: Requests go back as they came.
        mixed: The processes in between are of the reference engine, which dies between two turns.
    """

    crashing: Crashing
    packed: bool
    in_order: bool
    mixed: bool = False
    asked: list[Asked] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.features = FEATURES | F_IN_ORDER * self.in_order
        self.rig = Rig(self.crashing.make, packed=self.packed)
        self.lane = self.rig.lane(size=SIZE, features=self.features, run=False)
        self.under_way: dict[int, Asked] = {}  # by what the ring calls them
        self._seen = 0
        self._stopped_at = PACKED_BASE
        self._region = mmap.mmap(-1, mmap.PAGESIZE)
        self._anchor = ctypes.c_char.from_buffer(self._region)
        self._run()

    # ---- the driver -----------------------------------------------------------------------

    def ask(self, pieces: int) -> None:
        """Ask for a write, all overlap, with its data in so many pieces; if there is room."""
        taken = {asked.slot for asked in self.under_way.values()}
        if len(taken) == SLOTS:
            return
        asked = Asked(min(set(range(SLOTS)) - taken))
        at, write = GPA + HEAP + PLACE * asked.slot, self.rig.memory.write
        write(at, struct.pack("<IIQ", RequestType.OUT, 0, 0))
        write(at + 16, b"\xee")
        write(at + 512, struct.pack("<I", len(self.asked)))
        length = 512 // pieces
        data: list[Entry] = [(at + 512 + length * i, length, NEXT, None) for i in range(pieces)]
        name = self._lay(asked, [(at, 16, NEXT, None), *data, (at + 16, 1, WRITE, None)])
        self.asked.append(asked)
        self.under_way[name] = asked
        self.lane.offer(name)

    def _lay(self, asked: Asked, entries: list[Entry]) -> int:
        ring = self.lane.ring
        if not isinstance(ring, SplitDriver):
            return ring.lay(entries)
        first = CHAIN * asked.slot  # its own descriptors: nobody else uses them
        for index, (at, length, flags, _) in enumerate(entries, first):
            ring.put(index, (at, length, flags, index + 1))
        return first

    def look(self) -> None:
        """Take what came back."""
        history = self.lane.used()
        for name, _ in history[self._seen :]:
            asked = self.under_way.pop(name)  # else: nobody asked, or it came back before
            asked.when_back = asked.done
            assert asked.done
            assert self.rig.memory.read(GPA + HEAP + PLACE * asked.slot + 16, 1)[0] == Status.OK
        self._seen = len(history)
        assert not self.lane.broken

    # ---- the process ----------------------------------------------------------------------

    def turn(self) -> None:
        """Let it work for a moment."""
        self.rig.turn()
        self.look()
        self.jobs += [job for job in self.lane.mailbox.take() if job.op is not Op.CANCEL]

    def finish(self, index: int) -> None:
        """Have the disk do one of its jobs."""
        job = self.jobs.pop(index)
        asked = self.asked[struct.unpack("<I", job.views[0][:4])[0]]
        assert asked.when_back is None  # else something newer may be overwritten
        asked.done += 1
        assert job.release()
        self.lane.mailbox.complete([(job.tag, 0)])

    def during(self, awaitable: Awaitable[int | None]) -> None:
        """Do all there is to do until something is over."""
        task = self.rig.start(awaitable)
        for _ in range(200):
            if task.done():
                task.result()
                return
            self.turn()
            while self.jobs:
                self.finish(-1)
        raise AssertionError("it never ends")

    def die(self, number: int) -> None:
        """Die at the *number*-th place that is passed, or where there are not so many later on."""
        copies: list[Copy] = []
        with self.crashing.at(number, lambda _: copies.append(self._copy())):
            for _ in range(3):
                self.rig.turn()
        left = copies[0] if copies else self._copy()
        self._bury()
        if self.mixed:
            self._succeed()
        self._find(left)
        # As QEMU does: it reads the index of a split ring; of a packed one it knows the last stop.
        ring = self.lane.ring
        self.go_on(ring.used_idx() if isinstance(ring, SplitDriver) else self._stopped_at)

    def _copy(self) -> Copy:
        memory = self.rig.memory.bytes
        return memory[:LANE], memory[HEAP : HEAP + SLOTS * PLACE], self._region[:]

    def _find(self, left: Copy) -> None:
        memory = self.rig.memory.bytes
        memory[:LANE], memory[HEAP : HEAP + SLOTS * PLACE], self._region[:] = left

    def _bury(self) -> None:
        """Let the old queue end, whatever it does now: nobody will have seen it."""
        task = self.rig.start(self.lane.queue.close())
        while not task.done():
            for job in self.jobs + self.lane.mailbox.take():
                if job.op is not Op.CANCEL:
                    assert job.release()
                    self.lane.mailbox.complete([(job.tag, 5)])
            self.jobs.clear()
            self.rig.turn()
        task.result()

    def _succeed(self) -> None:
        """The next process is of the other engine."""
        rig, make = self.rig, _reference
        if isinstance(self.rig.engine, ReferenceEngine):
            make = self.crashing.make
        rig.wait(rig.device.close())
        rig.wait(rig.engine.close())
        rig.engine = rig.call(make)
        rig.device = rig.call(lambda: rig.engine.device(Nowhere()))

    def stop(self) -> int:
        """Stop in good order; where it stands."""
        self.during(self.lane.queue.drained(seconds=5))
        self.look()
        assert not self.in_flight()
        assert not self.jobs
        self._stopped_at = self.rig.call(self.lane.queue.base)
        return self._stopped_at

    def go_on(self, base: int) -> None:
        """Serve the ring in a process that knows nothing."""
        lane = self.lane
        make = self.rig.device.queue
        lane.queue = queue = self.rig.call(lambda: make(0, on_broken=self._broken))

        def set_up() -> None:
            queue.set_space([self.rig.memory.segment()])
            queue.set_features(lane.acked)
            queue.set_ring(size=SIZE, **lane.place())
            queue.set_base(base)
            queue.set_kick(os.dup(lane.kick))
            queue.set_call(os.dup(lane.call))
            queue.set_blk(BLK, writethrough=False)
            queue.set_enabled(enabled=True)

        self.rig.call(set_up)
        self._run()

    def _broken(self) -> None:
        self.lane.broken.append(self.lane.queue.fault())

    def _run(self) -> None:
        memory = ctypes.addressof(self._anchor), len(self._region)
        self.rig.call(lambda: self.lane.queue.set_inflight(memory, size=SIZE))
        self.rig.call(self.lane.queue.run)

    def in_flight(self) -> list[int]:
        """Return the entries of the region that say so."""
        entry = 32 if self.packed else 16  # as long as what stands before them
        return [i for i in range(SIZE) if self._region[entry + entry * i]]

    def close(self) -> None:
        """Serve what is left, and see that it is right."""
        for _ in range(50):
            self.turn()
            while self.jobs:
                self.finish(-1)
            if not self.under_way:
                break
        assert all(asked.when_back == asked.done for asked in self.asked)
        assert self.stop() == self.lane.ring.base(len(self.asked))
        self.rig.close()
        del self._anchor
        self._region.close()


PIECES = st.sampled_from((1, 2))
JOB = st.integers(0, SLOTS - 1)
BRIEFLY = st.sampled_from((1, 0, 2))
"""Turns that the process has."""


class Machine(RuleBasedStateMachine):
    """What can happen, in any order."""

    crashing: Crashing
    packed: bool
    in_order: bool
    mixed: bool

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.crashing, self.packed, self.in_order, self.mixed)

    @rule(pieces=st.lists(PIECES, min_size=1, max_size=SLOTS), turns=BRIEFLY)
    def ask(self, pieces: list[int], turns: int) -> None:
        for n in pieces:
            self.world.ask(n)
        self._turn(turns)

    @rule(jobs=st.lists(JOB, min_size=1, max_size=SLOTS), turns=BRIEFLY)
    def finish(self, jobs: list[int], turns: int) -> None:
        self._finish(jobs)
        self._turn(turns)

    @rule(
        pieces=st.lists(PIECES, max_size=2),
        jobs=st.lists(JOB, max_size=SLOTS),
        number=st.integers(1, 30),
        turns=BRIEFLY,
    )
    def die(self, pieces: list[int], jobs: list[int], number: int, turns: int) -> None:
        for n in pieces:
            self.world.ask(n)
        self._finish(jobs)
        self.world.die(number)
        self._turn(turns)

    def _finish(self, jobs: list[int]) -> None:
        for index in jobs[: len(self.world.jobs)]:
            self.world.finish(index % len(self.world.jobs))

    @rule(how=st.sampled_from(("go on", "end", *["neither"] * 6)))
    def stop(self, how: str) -> None:
        if how == "neither":
            return
        base = self.world.stop()
        if how == "end":
            self.world.during(self.world.lane.queue.close())
            self.world.go_on(base)
        else:
            self.world.rig.call(lambda: self.world.lane.queue.set_base(base))
            self.world.rig.call(self.world.lane.queue.run)

    def _turn(self, turns: int) -> None:
        for _ in range(turns):
            self.world.turn()

    def teardown(self) -> None:
        self.world.close()


def machine(crashing: Crashing, *, packed: bool, in_order: bool, mixed: bool) -> type[Machine]:
    """Return it for one kind of ring."""
    what = {"crashing": crashing, "packed": packed, "in_order": in_order, "mixed": mixed}
    return type("Ring", (Machine,), what)


RINGS = pytest.mark.parametrize(
    ("packed", "in_order"),
    [(False, False), (True, False), (False, True), (True, True)],
    ids=["split", "packed", "split-in-order", "packed-in-order"],
)


@RINGS
def test_nothing_is_lost_or_done_again(crashing: Crashing, *, packed: bool, in_order: bool) -> None:
    """
    A few lives, and the deaths between them.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    run_state_machine_as_test(
        machine(crashing, packed=packed, in_order=in_order, mixed=False),
        settings=settings(max_examples=8, stateful_step_count=12),
    )


@pytest.mark.slow
@RINGS
def test_nothing_is_lost_or_done_again_for_long(
    crashing: Crashing, *, packed: bool, in_order: bool
) -> None:
    """
    Many of them.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    run_state_machine_as_test(
        machine(crashing, packed=packed, in_order=in_order, mixed=False),
        settings=settings(max_examples=150, stateful_step_count=50),
    )


@pytest.mark.slow
@RINGS
def test_the_engines_succeed_each_other(
    crashing: Crashing, *, packed: bool, in_order: bool
) -> None:
    """
    What the core leaves the reference engine finds, and the other way round.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    run_state_machine_as_test(
        machine(crashing, packed=packed, in_order=in_order, mixed=True),
        settings=settings(max_examples=60, stateful_step_count=30),
    )


def test_places_are_known_by_their_names(crashing: Crashing) -> None:
    """There are some for each format, and one where a status is written."""
    names = crashing.places()
    assert "status" in names
    assert {name.split("_")[0] for name in names} == {"split", "packed", "status"}
