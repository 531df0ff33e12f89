"""
A sweep: states one after the other, as many at once as there are slots, and the first bad one.

The master image goes from moment to moment under one lock, by whichever thread takes the next
state; checkers run without it.
"""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vhostblk.disk.loss import Fate
from vhostblk.disk.power import Piece
from vhostblk.errors import VhostBlkError
from vhostblk.sweep.checker import Said
from vhostblk.sweep.history import Moment, walk
from vhostblk.sweep.image import Slot, first
from vhostblk.sweep.plan import Numbers, Plan, State, count, states
from vhostblk.trace.reader import Segment


@dataclass(frozen=True, slots=True)
class Subject:
    """
    What is swept.

    Args:
        segment: The recording.
        image: What was on the disk before; None: zeroes.
        size: Bytes of the disk.
    """

    segment: Segment
    image: Path | None
    size: int


class Checks(Protocol):
    """What judges states, several at once; see `vhostblk.sweep.checker.Checker`."""

    def run(self, image: Path, environ: Mapping[str, str]) -> Said | None:
        """Judge an image; None: it was stopped."""
        ...

    def stop(self) -> None:
        """End all that run; no other begins."""
        ...


@dataclass(frozen=True, slots=True)
class Failure:
    """A state that its checker found bad."""

    state: State
    said: Said


@dataclass(slots=True)
class Progress:
    """
    How far a sweep is.

    Args:
        numbers: What the recording has.
        checked: States that were.
        request: The moment of the latest.
        failures: Bad ones, in the order of the states.
    """

    numbers: Numbers
    checked: int = 0
    request: int = 0
    failures: list[Failure] = field(default_factory=list)


class Sweep:
    """
    Goes through the states of a recording.

    Args:
        subject: The recording.
        plan: Which states.
        work: A directory for images.
        jobs: Checkers at once.
        fresh: Copy the whole image for each state.

    Raises:
        VhostBlkError: The recording lacks what it takes, or what the plan names.
    """

    def __init__(
        self, subject: Subject, plan: Plan, work: Path, *, jobs: int = 1, fresh: bool = False
    ) -> None:
        self._subject = subject
        self._plan = plan
        self.progress = Progress(count(walk(subject.segment), plan))
        self._lock = threading.Lock()
        self._master = first(work / "master", subject.size, subject.image)
        self._slots = [
            Slot(work / f"disk{number}.img", subject.size, fresh=fresh) for number in range(jobs)
        ]
        self._states = states(walk(subject.segment), plan, self.progress.numbers)
        self._over = False

    def run(self, checker: Checks, *, go_on: bool = False) -> None:
        """
        Check states until one is bad, or all; what came of it is in `progress`.

        Args:
            checker: What checks.
            go_on: Behind a bad one, too.

        Raises:
            VhostBlkError: The checker cannot be run.
            OSError: No space for the images, say.
        """
        with ThreadPoolExecutor(len(self._slots)) as pool:
            try:
                work = [pool.submit(self._work, slot, checker, go_on=go_on) for slot in self._slots]
                for one in work:
                    one.result()
            except BaseException:
                self._over = True
                checker.stop()
                raise
            finally:
                self.progress.failures.sort(key=lambda failure: failure.state.index)

    def close(self) -> None:
        """Remove the images."""
        self._master.close()
        for slot in self._slots:
            slot.close()

    def _work(self, slot: Slot, checker: Checks, *, go_on: bool) -> None:
        while (state := self._next(slot)) is not None:
            said = checker.run(slot.path, environ(state))
            if said is None:
                return
            with self._lock:
                self.progress.checked += 1
                if not said.good:
                    self.progress.failures.append(Failure(state, said))
                    self._over = self._over or not go_on

    def _next(self, slot: Slot) -> State | None:
        """Go on to the next state, and have a slot hold it."""
        with self._lock:
            if self._over:
                return None
            for step in self._states:
                if isinstance(step, Moment):
                    self._store(step.stable)
                    continue
                slot.become(self._master, step.cut.pieces)
                self.progress.request = step.moment.number
                return step
            return None

    def _store(self, pieces: tuple[Piece, ...]) -> None:
        ranges = self._master.store(pieces)
        for slot in self._slots:
            slot.master_went_on(ranges)


def environ(state: State) -> dict[str, str]:
    """Return what a checker is told of a state."""
    return {
        "VHOSTBLK_REQUEST": str(state.moment.number),
        "VHOSTBLK_SEED": str(state.cut.seed),
    }


def listed(subject: Subject, plan: Plan) -> Iterator[State]:
    """Go through the states without images."""
    numbers = count(walk(subject.segment), plan)
    for step in states(walk(subject.segment), plan, numbers):
        if isinstance(step, State):
            yield step


def build(subject: Subject, plan: Plan, path: Path) -> State:
    """
    Write the first state of a plan to a file.

    Args:
        subject: The recording.
        plan: Which.
        path: The file; replaced.

    Returns:
        Which it is.
    """
    numbers = count(walk(subject.segment), plan)
    master = first(path, subject.size, subject.image)
    for step in states(walk(subject.segment), plan, numbers):
        if isinstance(step, State):
            master.store(step.cut.pieces)
            master.keep()
            return step
        master.store(step.stable)
    master.close()
    raise VhostBlkError("there is no such state")


def told(state: State) -> str:
    """Say in a line which state it is, and how much was lost."""
    cut, moment = state.cut, state.moment
    counts = ", ".join(f"{cut.count(fate)} {fate}" for fate in Fate)
    return f"request {moment.number} ({moment.op}), seed {cut.seed}: {counts}"
