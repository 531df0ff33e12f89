"""A layer that makes a disk slow; run by the C core."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vhostblk.disk.api import Disk
from vhostblk.disk.given import check_number
from vhostblk.disk.grammar import parse_time
from vhostblk.disk.layer import Layer, Value
from vhostblk.disk.numbers import parse_number
from vhostblk.disk.ops import Op
from vhostblk.disk.stage import StageLayer
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"all", "seed", *Op})
FORM = (
    "delay[:all=TIME][,read=TIME][,write=TIME][,flush=TIME][,discard=TIME][,write-zeroes=TIME]"
    "[,seed=N]"
)

_SPAN = re.compile(r"(.+?)(\.\.|\+)(.+)")


@dataclass(frozen=True, slots=True)
class Wait:
    """
    How long requests wait.

    Args:
        least_ns: Nanoseconds that all wait.
        more_ns: Nanoseconds that some wait longer: up to so many, or so many on average.
        exponential: On average, as spans between chance events are; else evenly up to so many.
    """

    least_ns: int = 0
    more_ns: int = 0
    exponential: bool = False


@dataclass(frozen=True, slots=True)
class DelayStage:
    """
    What the core is to do.

    Args:
        waits: By kind of request, in the order of `Op`.
        seed: Of the numbers that are drawn.
    """

    waits: tuple[Wait, ...] = (Wait(),) * len(Op)
    seed: int = 0

    def with_text(self, options: Mapping[str, str]) -> "DelayStage":
        """Return what this is with options written anew; one kind goes before all."""
        waits, seed = dict(zip(Op, self.waits, strict=True)), self.seed
        if "all" in options:
            waits = dict.fromkeys(Op, parse_wait(options["all"], "all"))
        for key, text in options.items():
            match key:
                case "all":
                    pass
                case "seed":
                    seed = parse_number(text, key)
                case _:
                    waits[_op(key)] = parse_wait(text, key)
        return DelayStage(tuple(waits.values()), seed)


class Delay(StageLayer):
    """
    Has requests wait before *below* gets them.

    Args:
        below: Any disk.
        seed: Of the numbers that are drawn where a time is a range.
        **times: How long, as text: by kind of request (``read``, ``write``, ``flush``, ``discard``,
            ``write_zeroes``) or for ``all`` of them; ``2ms``, ``1ms..5ms``, ``1ms+4ms``.

    Raises:
        VhostBlkError: There is no such kind, or a time or *seed* is none.
    """

    name: ClassVar[str] = "delay"

    def __init__(self, below: object, *, seed: int = 0, **times: str) -> None:
        super().__init__(below)
        options = {key.replace("_", "-"): str(text) for key, text in times.items()}
        self._stage = DelayStage(seed=check_number(seed, "seed")).with_text(options)

    def stage(self) -> DelayStage:
        """Return how long each kind waits."""
        return self._stage

    def settings(self) -> Mapping[str, Value]:
        """Return how long each kind waits, and how many had to."""
        waits = zip(Op, self._stage.waits, strict=True)
        return {
            **{op: wait_text(wait) for op, wait in waits},
            "seed": self._stage.seed,
            **self.counted(),
        }

    def change(self, values: Mapping[str, str]) -> None:
        """Set any option; what waits already waits as long as it was to."""
        stage = self._stage.with_text(values)
        if self.bound is not None:
            self.bound.set(stage)
        self._stage = stage


def build(below: Disk, options: Mapping[str, str]) -> Layer:
    """Make one of text; see `vhostblk.disk.layers`."""
    stage = DelayStage().with_text(options)
    made = Delay(below, seed=stage.seed)
    made.change(options)
    return made


def parse_wait(text: str, what: str) -> Wait:
    """
    Read how long requests wait: ``2ms``; ``1ms..5ms``; ``1ms+4ms``.

    Args:
        text: A time; two times, between which all are as likely; or a time and how much longer it
            is on average, exponentially distributed.
        what: Its name in the error.

    Raises:
        VhostBlkError: None of these.
    """
    span = _SPAN.fullmatch(text)
    if span is None:
        return Wait(parse_time(text, what))
    least, more = parse_time(span[1], what), parse_time(span[3], what)
    if span[2] == "+":
        return Wait(least, more, exponential=True)
    if more < least:
        raise VhostBlkError(f"{what}={text}: ends before it begins: write {span[3]}..{span[1]}")
    return Wait(least, more - least)


def wait_text(wait: Wait) -> str:
    """Return text that `parse_wait` reads as this."""
    if not wait.more_ns:
        return _time_text(wait.least_ns)
    if wait.exponential:
        return f"{_time_text(wait.least_ns)}+{_time_text(wait.more_ns)}"
    return f"{_time_text(wait.least_ns)}..{_time_text(wait.least_ns + wait.more_ns)}"


def _time_text(ns: int) -> str:
    for unit, size in (("s", 10**9), ("ms", 10**6), ("us", 10**3)):
        if ns and ns % size == 0:
            return f"{ns // size}{unit}"
    return f"{ns}ns" if ns else "0"


def _op(key: str) -> Op:
    try:
        return Op(key)
    except ValueError:
        some = ", ".join(["all", *Op, "seed"])
        raise VhostBlkError(f"no option {key!r} (there are {some})") from None
