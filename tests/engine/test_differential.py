"""
The engine in C against the one in Python, whatever a driver and a front-end do.

What this does not prove: anything about threads (both engines are stepped by hand), EVENT_IDX,
which the reference engine does not have, and vanishing memory, which ends a Python process.
"""

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from engine.chains import PIECES, Plan, hostile_plans, lay, long_plan, one_plan, plans
from engine.conftest import ENGINES
from engine.driver import GPA, HEAP, MEMORY, Lane
from engine.harness import BLK, FEATURES
from engine.side import KEEP, Side
from engine.twins import Twins
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from vhostblk.blk.device import BlkDevice
from vhostblk.engine.api import OnError
from vhostblk.memory.space import Segment
from vhostblk.spec.virtio_blk import RequestType
from vhostblk.spec.virtio_ring import F_IN_ORDER, F_RING_PACKED, F_VERSION_1

QUEUES = 2
KIB = 1 << 10


def _front(lane: Lane) -> list[Segment]:
    """Return the rings' memory; a device must not be made to write into its own used ring."""
    segment, used, data = lane.memory.segment, lane.ring.shared()[0], GPA + HEAP
    front = [segment(GPA, used - GPA)] if used > GPA else []
    return [*front, segment(used, data - used, 1)]


def _whole(lane: Lane) -> list[Segment]:
    return [*_front(lane), lane.memory.segment(GPA + HEAP, MEMORY - HEAP)]


def _holes(lane: Lane) -> list[Segment]:
    """Return neighbours that share a border within a sector, rights of every kind, a hole."""
    data, segment = GPA + HEAP, lane.memory.segment
    return [
        *_front(lane),
        segment(data, 300),
        segment(data + 300, 512 * KIB - 300),
        segment(data + 512 * KIB, 128 * KIB, 1),
        segment(data + 640 * KIB, 64 * KIB, 2),
        segment(data + 704 * KIB, 64 * KIB, 0),
        segment(data + 832 * KIB, 192 * KIB),
    ]


def _fenced(lane: Lane) -> list[Segment]:
    """Return memory that is noted in places, and fatal in one."""
    data, segment = GPA + HEAP, lane.memory.segment
    return [
        *_front(lane),
        segment(data, 32 * KIB),
        segment(data + 32 * KIB, 16 * KIB, 8),
        segment(data + 48 * KIB, 208 * KIB),
        segment(data + 256 * KIB, 256 * KIB, 7),
        segment(data + 512 * KIB, 128 * KIB, 5),
        segment(data + 640 * KIB, 384 * KIB),
    ]


def _shards(lane: Lane) -> list[Segment]:
    """Return memory in pieces of 1,000 bytes."""
    data, segment = GPA + HEAP, lane.memory.segment
    return [
        *_front(lane),
        *(segment(data + at, 1000) for at in range(0, MEMORY - HEAP - 999, 1000)),
    ]


LAYOUTS = (_whole, _whole, _holes, _shards, _fenced, _fenced)
DEVICES = (
    BLK,
    BLK,
    replace(BLK, block_size=4096),
    replace(BLK, read_only=True),
    replace(BLK, discard=False, max_discard=0, may_unmap=False, serial=b"x" * 20),
)
Change = Callable[[Side], object]
Layout = Callable[[Lane], list[Segment]]


def _enable(*, enabled: bool) -> Change:
    return lambda side: side.lane.queue.set_enabled(enabled=enabled)


def _features(features: int) -> Change:
    """Set *features*, but what makes the format stays."""
    form = F_RING_PACKED | F_IN_ORDER
    return lambda side: side.lane.queue.set_features(features | side.lane.acked & form)


def _space(layout: Layout) -> Change:
    return lambda side: side.set_space(layout(side.lane))


def _device(device: BlkDevice, writethrough: bool) -> Change:  # noqa: FBT001 - hypothesis calls it
    return lambda side: side.lane.queue.set_blk(device, writethrough=writethrough)


def _ask(*, asks: bool) -> Change:
    return lambda side: side.set_ask(asks=asks)


def _on_error(policy: OnError) -> Change:
    return lambda side: side.set_on_error(policy)


def _sampling(first: int, every: int) -> Change:
    return lambda side: side.set_sampling(first, every)


changes = st.one_of(
    st.builds(_sampling, st.sampled_from((0, 1, 5, 1000)), st.sampled_from((0, 1, 3))),
    st.builds(_sampling, st.sampled_from((0, 1, 5, 1000)), st.sampled_from((0, 1, 3))),
    st.builds(_on_error, st.sampled_from(list(OnError))),
    st.builds(_enable, enabled=st.booleans()),
    st.builds(_features, st.sampled_from((FEATURES, FEATURES, F_VERSION_1))),
    st.builds(_space, st.sampled_from(LAYOUTS)),
    st.builds(_device, st.sampled_from(DEVICES), st.booleans()),
    st.builds(_ask, asks=st.booleans()),
    st.just(Side.deny),
    st.just(Side.set_call),
    st.just(Side.condemn),
)
RESULTS = (*(0,) * 12, errno.EIO, errno.ENOSPC, 9999, KEEP)
FAILURES = (0, 0, errno.EIO, errno.ENOSPC, 9999, KEEP)
Ends = list[tuple[int, int]]
transfers = st.sampled_from((RequestType.IN, RequestType.OUT))
ends = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(RESULTS)), max_size=9)
failures = st.lists(st.tuples(st.integers(0, 9), st.sampled_from(FAILURES)), max_size=9)
jumps = st.sampled_from((0, 0, -1, 1, 2, 65, 0x8000))
queues = st.integers(0, QUEUES - 1)
LARGEST = 64
sizes = st.sampled_from((16, LARGEST, 8, 2, 1))
indexes = st.sampled_from((0, 1, 7, 0x7FFF, 0xFFF8, 0xFFFF))


ODD = {64: 33, 8: 7}
"""Sizes that only packed rings have."""


def _offer(lane: Lane, plan: Plan, *, careful: bool) -> None:
    name = lay(lane, plan, careful=careful)
    if name is not None:
        lane.offer(name)


class Both(RuleBasedStateMachine):
    """One life of two engines."""

    packed = False
    in_order = 0
    tracked = False

    def __init__(self) -> None:
        super().__init__()
        self.twins: Twins
        self.largest: list[int] = []
        self.long: set[int] = set()

    @initialize(
        largest=st.lists(sizes, min_size=QUEUES, max_size=QUEUES),
        layout=st.sampled_from(LAYOUTS),
        asks=st.booleans(),
    )
    def begin(self, *, largest: list[int], layout: Layout, asks: bool) -> None:
        self.largest = [self.fit(size) for size in largest]
        self.twins = Twins(
            [ENGINES["native"], ENGINES["reference"]],
            self.largest,
            packed=self.packed,
            features=FEATURES | self.in_order,
            tracked=self.tracked,
        )
        for n in range(QUEUES):
            self.change(n, _ask(asks=asks), then_run=False)
            self.change(n, _sampling(5, 3), then_run=False)
            self.change(n, _space(layout), then_run=True)

    def fit(self, size: int) -> int:
        """Return a size of this format."""
        return ODD.get(size, size) if self.packed else size

    def teardown(self) -> None:
        if self.largest:
            self.twins.close()

    # ---- the driver --------------------------------------------------------------------

    @rule(n=queues, requests=st.lists(plans(), min_size=1, max_size=5), ends=ends)
    def ask(self, n: int, requests: list[Plan], ends: Ends) -> None:
        """Make requests available, on a ring that is whole and served."""
        if self.twins.broken(n):
            self.restart(n, self.largest[n], 0, 0)
        if self.twins.ours[n]:
            self.change(n, _enable(enabled=True), then_run=True)
        if self.twins.waits(n):
            self.change(n, _space(_whole), then_run=True)
        self.resume(n)
        self.offer(n, requests, careful=True)
        self.end_jobs(n, ends)

    def offer(self, n: int, requests: list[Plan], *, careful: bool) -> None:
        act = self.twins.driver if careful else self.twins.break_rules
        for plan in requests:
            act(n, partial(_offer, plan=plan, careful=careful))
        self.twins.compare()

    @rule(n=queues, requests=st.lists(plans() | hostile_plans(), min_size=1, max_size=3))
    def ask_badly(self, n: int, requests: list[Plan]) -> None:
        """Ask what no honest driver asks, of names in use too: see `break_rules`."""
        if n not in self.long:
            self.offer(n, requests, careful=False)

    @rule(n=queues, kind=transfers, pieces=st.sampled_from(PIECES))
    def ask_at_length(self, n: int, kind: int, pieces: int) -> None:
        """Ask for more than fits; the C core lends room for four, the others wait."""
        if not any(self.twins.open(i) or self.twins.in_flight(i) for i in range(QUEUES)):
            self.ask(n, [long_plan(kind, pieces)], [])
            self.long.add(n)

    @rule(n=queues, heads=st.lists(st.integers(0, 20), max_size=20), by=jumps)
    def break_rules(self, n: int, heads: list[int], by: int) -> None:
        """
        Make heads available that may be under way, and entries that were never written.

        Not where one may be a long chain's: of five of those the C core makes one wait.
        """
        if n in self.long:
            return
        for head in heads:
            self.twins.break_rules(n, partial(Lane.offer, name=head))
        self.twins.break_rules(n, lambda lane: lane.ring.jump(by))
        self.twins.compare()

    @rule(n=queues, quiet=st.booleans())
    def want_calls(self, n: int, quiet: bool) -> None:  # noqa: FBT001 - hypothesis names it
        self.twins.driver(n, lambda lane: lane.ring.no_interrupt(quiet=quiet))
        self.twins.compare()

    # ---- the disk ------------------------------------------------------------------------

    @rule(n=queues, ends=ends)
    def end_jobs(self, n: int, ends: Ends) -> None:
        """Let the disk return, in any order, with any result."""
        for pick, error in ends:
            if self.twins.open(n):
                self.twins.end(n, pick % self.twins.open(n), error)
        self.twins.compare()

    @rule(n=queues, requests=st.lists(plans(), min_size=1, max_size=5), ends=failures)
    def stop(self, n: int, requests: list[Plan], ends: Ends) -> None:
        """Ask a disk that fails, and hold what it fails; if the queue is whole."""
        if not self.twins.broken(n):
            self.change(n, _on_error(OnError.STOP), then_run=True)
            self.ask(n, requests, ends)

    @rule(n=queues)
    def resume(self, n: int) -> None:
        """Try again what failed and is held, if anything is."""
        self.twins.resume(n)
        self.twins.compare()

    # ---- the control plane -----------------------------------------------------------------

    @rule(n=queues, change=changes, then_run=st.booleans())
    def change(self, n: int, change: Change, then_run: bool) -> None:  # noqa: FBT001 - as above
        self.twins.ask(n, lambda queue: queue.parked())
        self.twins.compare()
        self.twins.control(n, change)
        if then_run:
            self.twins.run(n)
        self.twins.compare()

    @rule(n=queues, wait=st.booleans())
    def drain(self, n: int, wait: bool) -> None:  # noqa: FBT001 - as above
        """
        Drain; *wait*: if nothing is under way, for nobody would end it.

        Not where a driver that is lost goes on and several come back in any order.
        """
        if self.twins.in_flight(n) <= (0 if wait else 1 if self.twins.lost(n) else LARGEST):
            self._drain(n, wait=wait)

    def _drain(self, n: int, *, wait: bool) -> None:
        self.twins.ask(n, lambda queue: queue.drained(seconds=60 * wait))
        self.twins.compare(sort=True)

    @rule(n=queues, size=sizes, base=indexes, used=indexes)
    def restart(self, n: int, size: int, base: int, used: int) -> None:
        self._drain(n, wait=False)
        self.long.discard(n)
        self.twins.restart(n, min(self.fit(size), self.largest[n]), base, used)
        self.twins.run(n)
        self.twins.compare()


class BothTracked(Both):
    """One life, and death, and life."""

    tracked = True

    @rule()
    def die(self) -> None:
        """Die with whatever is under way; each goes on from what the other has left."""
        self.twins.die(_whole)


def _kind(base: type[Both], *, packed: bool, in_order: bool) -> type[Both]:
    fields = {"packed": packed, "in_order": F_IN_ORDER * in_order}
    return type(base.__name__, (base,), fields)


LIVES = {
    f"{form}{order}{noted}": _kind(base, packed=form == "packed", in_order=bool(order))
    for form in ("split", "packed")
    for order in ("", "-in-order")
    for noted, base in (("", Both), ("-tracked", BothTracked))
}


def live(kind: str, lives: int, steps: int, *phases: Phase) -> None:
    """Live many lives; the same at every run."""
    run_state_machine_as_test(
        LIVES[kind],
        settings=settings(
            max_examples=lives,
            stateful_step_count=steps,
            phases=(Phase.generate, *phases),
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("kind", LIVES)
def test_both_engines_do_the_same(kind: str) -> None:
    """A few short lives; to shrink one that fails takes longer than a test may."""
    live(kind, 2 if "tracked" in kind else 4, 12)


def test_what_is_over_at_once_goes_back_in_the_same_batches() -> None:
    """Two that fail at once, between two that the disk has: where those are noted tells when."""
    life = LIVES["packed-tracked"]()
    life.begin(largest=[16, 16], layout=_whole, asks=False)
    places = [GPA + HEAP + 8192 * i for i in range(5)]
    kinds = (RequestType.IN, RequestType.IN, 99, 99, RequestType.IN)
    asked = [one_plan(kind, at) for kind, at in zip(kinds, places, strict=True)]
    try:
        life.ask(n=0, requests=asked[:1], ends=[])
        life.ask(n=0, requests=asked[1:], ends=[])
    finally:
        life.teardown()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", LIVES)
def test_both_engines_do_the_same_for_long(kind: str) -> None:
    """Many long lives."""
    live(kind, 150, 50, Phase.shrink)
