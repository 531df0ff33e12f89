"""What a `vhostblk.disk.cut.Cut` is told, as text and as values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from vhostblk.disk.given import check_number, check_switch
from vhostblk.disk.grammar import MAX_SIZE, parse_size, parse_switch
from vhostblk.disk.loss import MAX_SEED, Lose, parse_lose
from vhostblk.disk.numbers import MAX_NUMBER
from vhostblk.disk.ops import ALL, Op
from vhostblk.errors import VhostBlkError

OPTIONS = frozenset({"seed", "at", "lose", "tear", "grain", "limit", "then", "power"})
FORM = (
    "cut[:seed=N][,at=[OP:]N][,lose=HOW][,tear=off][,grain=SIZE][,limit=SIZE][,then=eio|exit]"
    "[,power=off]"
)


class Then(StrEnum):
    """What comes behind a cut."""

    EIO = "eio"
    """Every request fails until the power is on again."""
    EXIT = "exit"
    """That, and this process is told to end (SIGTERM)."""


@dataclass(frozen=True, slots=True)
class At:
    """
    A request.

    Args:
        count: Which, from 1.
        op: Of those of one kind; empty: of all.
    """

    count: int
    op: str = ""

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.op}:{self.count}" if self.op else str(self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Switches:
    """What a layer is set to; see `vhostblk.disk.cut.Cut`."""

    seed: int = 0
    at: At | None = None
    lose: Lose = Lose.ANY
    tear: bool = True
    grain: int = 0
    limit: int = 64 << 20
    then: Then = Then.EIO
    power: bool = True

    def __post_init__(self) -> None:
        """
        Look at what a program gave; text was looked at.

        Raises:
            VhostBlkError: A value is none.
        """
        check_number(self.seed, "seed", most=MAX_SEED)
        check_switch(self.tear, "tear")
        if self.grain:
            check_grain(self.grain)
        check_number(self.limit, "limit", most=MAX_SIZE)
        check_switch(self.power, "power")

    def told(self) -> dict[str, str | int]:
        """Return them as an operator reads them."""
        return {
            "seed": self.seed,
            "at": str(self.at or ""),
            "lose": self.lose.value,
            "tear": "on" if self.tear else "off",
            "grain": self.grain,
            "limit": self.limit,
            "then": self.then.value,
            "power": "on" if self.power else "off",
        }

    def changed(self, values: Mapping[str, str]) -> "Switches":
        """
        Return them otherwise.

        Raises:
            VhostBlkError: No such option, or a value that is none.
        """
        new = self
        for key, text in values.items():
            new = _changed(new, key, text)
        return new


def parse(options: Mapping[str, str]) -> Switches:
    """
    Read what was written in front of a disk.

    Raises:
        VhostBlkError: As `Switches.changed`.
    """
    return Switches().changed(options)


def parse_seed(text: str) -> int:
    """
    Read a seed.

    Raises:
        VhostBlkError: It is none.
    """
    if not text.isascii() or not text.isdecimal() or int(text) > MAX_SEED:
        raise VhostBlkError(f"seed={text}: write a whole number from 0 to {MAX_SEED}")
    return int(text)


def parse_at(text: str) -> At | None:
    """
    Read which request: ``120`` is the 120th of all, ``flush:3`` the third flush; empty: none.

    Raises:
        VhostBlkError: It is no request.
    """
    if not text:
        return None
    op, colon, number = text.rpartition(":")
    good = op in ALL if colon else not op
    if not good or not number.isascii() or not number.isdecimal() or not int(number):
        raise VhostBlkError(
            f"at={text}: write a number from 1, or {', '.join(Op)} with one behind a colon: "
            "at=120, at=flush:3"
        )
    return At(int(number), op)


def parse_grain(text: str) -> int:
    """
    Read what is never torn.

    Raises:
        VhostBlkError: It is none.
    """
    return check_grain(parse_size(text, "grain"))


def check_grain(grain: int) -> int:
    """
    Return what is never torn, if it can be.

    Raises:
        VhostBlkError: It cannot.
    """
    check_number(grain, "grain", least=-MAX_NUMBER)
    if grain < 512 or grain & (grain - 1):  # noqa: PLR2004 - the least there is
        raise VhostBlkError(f"grain={grain}: write a power of two from 512 on")
    return grain


def _changed(old: Switches, key: str, text: str) -> Switches:
    match key:
        case "seed":
            new = replace(old, seed=parse_seed(text))
        case "at":
            new = replace(old, at=parse_at(text))
        case "lose":
            new = replace(old, lose=parse_lose(text))
        case "tear":
            new = replace(old, tear=parse_switch(text, "tear"))
        case "grain":
            new = replace(old, grain=parse_grain(text))
        case "limit":
            new = replace(old, limit=parse_size(text, "limit"))
        case "then":
            new = replace(old, then=parse_then(text))
        case "power":
            new = replace(old, power=parse_switch(text, "power"))
        case _:
            some = ", ".join(sorted(OPTIONS))
            raise VhostBlkError(f"cut: no option {key!r} (there are {some})")
    return new


def parse_then(text: str) -> Then:
    """
    Read what comes behind a cut.

    Raises:
        VhostBlkError: It is none.
    """
    if text not in set(Then):
        raise VhostBlkError(f"then={text}: write then=eio or then=exit")
    return Then(text)
