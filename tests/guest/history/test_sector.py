"""Histories across power cuts, made by a model of a disk with a volatile cache."""

import random
from typing import Any

import pytest

from vhostblk.guest.blk import Range, Request
from vhostblk.guest.errors import GuestError
from vhostblk.guest.history import History, UnexplainedError, check, find, stamps

OK, IOERR = 0, 1


class Model:
    """
    One sector of a disk with a volatile cache; requests have their effect at random times.

    Args:
        seed: Decides what happens.
        through: Writes are stable when they end.
        wrong: What is planted: ``""``, ``flush``, ``stale``, ``late``.
        depth: Requests under way at most.
    """

    def __init__(
        self, seed: int, *, through: bool = False, wrong: str = "", depth: int = 99
    ) -> None:
        self.depth = depth
        self.random = random.Random(seed)
        self.history = History(
            initially=self.random.choice(["unknown", "zeroes"]),
            discarded=self.random.choice(["anything", "old or zeroes"]),
            write_through=through,
        )
        self.through, self.wrong = through, wrong
        self.value = bytes(512)
        self.since = [self.value]  # the last flush: what was there
        self.flying: list[list[Any]] = []
        self.number = 0

    def run(self, steps: int) -> History:
        for request in (Request.write(0, stamps(1, 0, 0, 1)), Request.flush()):
            self.flying.append([request, self.history.begin(request), None])
            while self.flying:
                self.go_on(0)
        for _ in range(steps):
            choice = self.random.random()
            if choice < 0.03:
                self.cut()
            elif not self.flying or (choice < 0.4 and len(self.flying) < self.depth):
                self.begin()
            else:
                self.go_on(self.random.randrange(len(self.flying)))
        return self.history

    def begin(self) -> None:
        self.number += 1
        span = [Range(0, 1)]
        request = self.random.choice(
            [
                *[Request.write(0, stamps(1, self.number, 0, 1))] * 4,
                *[Request.read(0, 512)] * 4,
                Request.flush(),
                *([] if self.wrong else [Request.discard(span), Request.write_zeroes(span)]),
            ]
        )
        self.flying.append([request, self.history.begin(request), None])

    def go_on(self, at: int) -> None:
        """Have an effect, or end."""
        request, begun, result = self.flying[at]
        if result is None:
            self.flying[at][2] = self.effect(request)
        else:
            failed = request.type and self.random.random() < 0.1
            self.history.end(begun, IOERR if failed else OK, result)
            del self.flying[at]

    def effect(self, request: Request) -> bytes:
        if request.in_length:
            stale = self.wrong == "stale" and self.random.random() < 0.1
            return self.since[0] if stale else self.value
        if request.out:
            new = request.out if len(request.out) == 512 else bytes(512)
            if self.random.random() < 0.9 or self.wrong != "late":
                self.value = new
            self.since = [new] if self.through else [*self.since, new]
        elif self.wrong != "flush":
            self.since = [self.value]
        return b""

    def cut(self) -> None:
        self.value = self.random.choice(self.since)
        if self.wrong == "flush":
            self.value = self.since[0]
        self.since = [self.value]
        self.flying.clear()
        self.history.power_cut()


@pytest.mark.parametrize("through", [False, True])
def test_right_model_raises_no_alarm(*, through: bool) -> None:
    """Whatever a right disk does, cuts and failures included, is explained."""
    for seed in range(60):
        check(Model(seed, through=through).run(150))


@pytest.mark.parametrize("wrong", ["flush", "stale", "late"])
def test_wrong_model_is_found(wrong: str) -> None:
    """A flush that does nothing, old contents, and writes that do nothing are found."""
    found = sum(any(find(Model(seed, wrong=wrong, depth=2).run(300))) for seed in range(30))
    assert found > 20


def write(history: History, number: int) -> bytes:
    data = stamps(1, number, 0, 1)
    history.end(history.begin(Request.write(0, data)), OK)
    return data


def read(history: History, data: bytes) -> None:
    history.end(history.begin(Request.read(0, 512)), OK, data)


def flush(history: History) -> None:
    history.end(history.begin(Request.flush()), OK)


def test_what_was_flushed_stays() -> None:
    """Behind a cut older contents than those of the last flush are an error."""
    history = History(initially="zeroes")
    first = write(history, 1)
    write(history, 2)
    flush(history)
    third = write(history, 3)
    history.power_cut()
    history.power_cut()
    kept = list(history.operations)
    read(history, third)
    check(history)
    history.operations = kept
    read(history, first)
    with pytest.raises(UnexplainedError, match="left, as read later found what #1 wrote"):
        check(history)


def test_a_cut_decides_once() -> None:
    """What a cut has left does not change afterwards."""
    history = History(initially="zeroes")
    data = write(history, 1)
    history.power_cut()
    read(history, data)
    read(history, bytes(512))
    with pytest.raises(UnexplainedError, match="what nobody wrote"):
        check(history)


def test_flush_that_failed_promises_nothing() -> None:
    """Only a flush that ended well keeps what was before it."""
    history = History(initially="zeroes")
    write(history, 1)
    history.end(history.begin(Request.flush()), IOERR)
    history.power_cut()
    read(history, bytes(512))
    check(history)


def test_discarded_sector_reads_as_anything_until_it_is_written() -> None:
    """The default is the standard's; a disk can be held to more."""
    for discarded in ("anything", "old or zeroes"):
        history = History(initially="zeroes", discarded=discarded)
        write(history, 1)
        history.end(history.begin(Request.discard([Range(0, 1)])), OK)
        read(history, b"x" * 512)
        assert bool(list(find(history))) is (discarded != "anything")
    data = write(history, 2)
    read(history, data)
    read(history, bytes(512))
    assert len(list(find(history))) == 1


def test_history_wants_whole_sectors() -> None:
    """A request of parts of a sector, and a read of another length, are refused."""
    history = History()
    with pytest.raises(GuestError, match="100 bytes are no whole sectors"):
        history.begin(Request.write(0, bytes(100)))
    begun = history.begin(Request.read(0, 1024))
    with pytest.raises(GuestError, match="returned 512 bytes"):
        history.end(begun, OK, bytes(512))
    assert history.begin(Request(type=99)).spans == ()
