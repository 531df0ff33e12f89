"""A cow whose host crashes, or whose process is killed, between any two writes of its own."""

import asyncio
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.crashes import Event, Recorded, RecordedDisk, crashed
from layer_kit.disks import SECTOR, Plain
from layer_kit.model import BASE, SECTORS, Request, apply, ask, content, requests

from vhostblk.disk import cow_open, cow_scratch
from vhostblk.disk.call import Calls, run
from vhostblk.disk.cow import Cow
from vhostblk.disk.store import Store

BLOCK = 4096
PARTS = 4
"""Of all the cuts, which one test has a share of."""
Step = Request | str
"""A request, or "commit", "discard_all", "larger", "smaller"."""


@dataclass(frozen=True, slots=True)
class Moment:
    """
    A step, and what it did.

    Args:
        step: What.
        begin: How many events there were before.
        end: And behind.
        content: What the disk has then.
    """

    step: Step
    begin: int
    end: int
    content: bytes = field(repr=False)


class Run:
    """A cow that does some steps, with all its events."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[Event] = []
        self.moments = [Moment("begin", 0, 0, BASE)]
        self.disk = RecordedDisk(BASE, self.events)

    def open_store(self, path: str) -> Store:
        """Open the scratch file, recorded."""
        store = Recorded(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), path)
        store.events = self.events
        return store

    async def do(self, steps: Sequence[Step]) -> None:
        """Carry the steps out."""
        cow = Cow(self.disk, scratch=self.path, block=BLOCK)
        calls, model, base = Calls(cow), bytearray(BASE), BASE
        await run(calls.open)
        self.moments.append(Moment("open", 0, len(self.events), BASE))
        for step in steps:
            begin = len(self.events)
            if isinstance(step, Request):
                if step.first + step.count <= len(model) // SECTOR:
                    await ask(calls, step)
                    apply(model, step)
            elif step == "commit":
                await cow.commit()
                base = bytes(model)
            elif step == "discard_all":
                cow.discard_all()
                model[:] = base[: len(model)].ljust(len(model), b"\0")
            else:
                size = len(model) + (9 if step == "larger" else -9) * SECTOR
                if size > 0:
                    await run(calls.resize, size)
                    del model[size:]
                    model.extend(bytes(size - len(model)))
            self.moments.append(Moment(step, begin, len(self.events), bytes(model)))
        await run(calls.close)


def acceptable(moments: Sequence[Moment], cut: int) -> tuple[bytes, list[bytes], Moment]:
    """
    Return what a disk may have when it ends behind *cut* events.

    Returns:
        What was flushed last; what it had since; and the step that was under way.
    """
    flushed, since = BASE, [BASE]
    for moment in moments:
        stable = moment.step in {"commit", "discard_all", "larger", "smaller"} or (
            isinstance(moment.step, Request) and moment.step.op in {"flush", "fua"}
        )
        if moment.end <= cut:
            since.append(moment.content)
            if stable:
                flushed, since = moment.content, [moment.content]
        else:
            return flushed, [*since, moment.content], moment
    return flushed, since, moments[-1]


def set_boot(patch: pytest.MonkeyPatch, number: int) -> None:
    """Have this be a run of the kernel."""
    for module in (cow_open, cow_scratch):
        patch.setattr(module, "boot_id", lambda: bytes([number]) * 16)


def record(path: Path, steps: Sequence[Step]) -> Run:
    """Do some steps."""
    one = Run(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cow_open, "open_store", one.open_store)
        set_boot(patch, 1)
        asyncio.run(one.do(steps))
    return one


async def look(path: Path, below: bytearray) -> tuple[bytes, bytes]:
    """Open what is left; return what it is, and what the disk below is after a commit."""
    disk = Plain(bytes(below))
    cow = Cow(disk, scratch=path, block=BLOCK)
    calls = Calls(cow)
    await run(calls.open)
    found = await content(calls)
    await cow.commit()
    assert await content(calls) == found
    await run(calls.close)
    return found, bytes(disk.data)


def check(one: Run, cut: int, rng: random.Random | None) -> None:
    """Compare what is left at a cut with what may be."""
    events = one.events[:cut]
    with TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "s"
        path.write_bytes(crashed(events, "scratch", b"", rng))
        below = crashed(events, "below", BASE, rng)
        found, committed = asyncio.run(look(path, below))
    same = committed == found
    flushed, since, under_way = acceptable(one.moments, cut)
    if rng is None:
        since = since[-2:] if under_way.end > cut else since[-1:]
    else:
        since = [flushed, *since]
    why = f"cut at {cut} of {len(one.events)}, in {under_way}"
    assert same, why
    assert len(found) in {len(one) for one in since}, why
    wrong = [
        at // SECTOR
        for at in range(0, len(found), SECTOR)
        if found[at : at + SECTOR] not in {one[at : at + SECTOR] for one in since}
    ]
    assert not wrong, why
    if under_way.step == "discard_all" and len(set(since)) <= 2:
        whole = found in since
        assert whole, f"{why}: a part is forgotten"


STEPS: Sequence[Step] = (
    Request("write", 3, 20, 1),
    Request("write", 60, 1, 2),
    Request("flush"),
    Request("write", 4, 3, 3),
    Request("discard", 10, 30),
    Request("fua", 100, 2, 4),
    "commit",
    Request("write", 5, 40, 5),
    Request("flush"),
    Request("discard", 0, 9),
    "smaller",
    "larger",
    Request("write", 190, 10, 6),
    Request("flush"),
    "commit",
    Request("write", 16, 8, 7),
    Request("write", 90, 1, 8),
    Request("flush"),
    "discard_all",
    Request("write", 92, 1, 9),
    Request("flush"),
)


@pytest.fixture(scope="module")
def one() -> Iterator[Run]:
    """Return a run of all kinds of steps."""
    with TemporaryDirectory(dir="/dev/shm") as directory:
        yield record(Path(directory) / "s", STEPS)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_flushed_is_there_after_a_crash(
    one: Run, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """At every event in turn, whatever of the rest is lost, and a commit then can be done."""
    rng = random.Random(part)
    set_boot(monkeypatch, 2)
    assert len(one.events) > 80
    for cut in range(part, len(one.events) + 1, PARTS):
        check(one, cut, rng)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_was_written_is_there_after_a_kill(
    one: Run, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """Of a process that dies nothing is lost, flushed or not: the guest may go on living."""
    set_boot(monkeypatch, 1)
    for cut in range(part, len(one.events) + 1, PARTS):
        check(one, cut, None)


def test_what_a_killed_process_has_written_is_flushed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that nobody flushed, a kill, a flush by the next process, a crash: it is there."""
    set_boot(monkeypatch, 1)
    write, events = Request("write", 8, 8, 1), list[Event]()

    def open_store(path: str) -> Store:
        store = Recorded(os.open(path, os.O_RDWR), path)
        store.events = events
        return store

    with TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "s"
        one = record(path, [write])
        killed = path.read_bytes()
        monkeypatch.setattr(cow_open, "open_store", open_store)

        async def flush() -> None:
            calls = Calls(Cow(Plain(BASE), scratch=path))
            await run(calls.open)
            await run(calls.flush)
            await run(calls.close)

        asyncio.run(flush())
        monkeypatch.undo()
        set_boot(monkeypatch, 2)
        for seed in range(8):
            path.write_bytes(crashed(events, "scratch", killed, random.Random(seed)))
            found, _ = asyncio.run(look(path, bytearray(BASE)))
            same = found == one.moments[-1].content
            assert same


@pytest.mark.slow
@given(
    steps=st.lists(
        st.one_of(
            requests(SECTORS - 60),
            requests(SECTORS - 60),
            requests(SECTORS - 60),
            st.sampled_from(("commit", "discard_all", "larger", "smaller")),
        ),
        min_size=3,
        max_size=15,
    ),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_any_steps_survive_any_crash(steps: Sequence[Step], seed: int) -> None:
    """The same of steps that nobody has thought of."""
    rng = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(dir="/dev/shm") as directory:
        one = record(Path(directory) / "s", steps)
        for boot, chance in ((1, None), (2, rng)):
            set_boot(patch, boot)
            for cut in range(len(one.events) + 1):
                check(one, cut, chance)
