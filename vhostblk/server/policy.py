"""
What an operator asks for about confidential guests, and how shared ranges are written.

::

    ranges = word *( "," word )
    word   = range | "slack=" size | "learn=" number | ( "rings=" | "firmware=" ) where
    where  = "any" | "inside"
    range  = address "-" address | address "+" size | a line of the guest's kernel log

The kernel's line is ``software IO TLB: mapped [mem 0x0000000078000000-0x000000007c000000]
(64MB)``.  It prints the pool's first address and its first address plus its bytes
(swiotlb_print_info and swiotlb_init_io_tlb_pool of kernel/dma/swiotlb.c): the end is the first
byte behind the pool.  Here, too.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from vhostblk.disk.grammar import parse_size
from vhostblk.errors import VhostBlkError
from vhostblk.memory.ranges import PAGE, TOP, Limit, OnViolation, Range, Ranges

MIN_LEARN = 32
MAX_LEARN = 65535
"""Requests that can be learned from: as many as decide what a guest is, to as many as the engines'
numbers of samples have bits for."""
MAX_RANGES = 64
_NUMBER = re.compile(r"0x[0-9a-f]{1,16}|[0-9]+[kmgtpe]?", re.IGNORECASE | re.ASCII)
_LOG_LINE = re.compile(r".*\[mem ([^\s\]-]+)-([^\s\]-]+)\].*", re.ASCII)
_PAIR = re.compile(r"([^\s+-]+)([+-])([^\s+-]+)", re.ASCII)
_E = TypeVar("_E", bound=StrEnum)


class Confidential(StrEnum):
    """How a device treats a guest whose memory may be its own."""

    OFF = "off"
    """Infers nothing and hints at nothing."""
    AUTO = "auto"
    """Infers, shows and warns; a valid request is served as ever."""
    REQUIRE = "require"
    """Serves requests in shared memory only."""


class IommuMode(StrEnum):
    """When a driver's addresses go through the front-end's IOMMU."""

    OFF = "off"
    """Never."""
    AUTO = "auto"
    """When it is acked, can be asked, and the ring is at none of the front-end's addresses."""
    ON = "on"
    """When it is acked and can be asked, wherever the ring is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRanges:
    """
    Which of a guest's memory is shared with its devices.

    Args:
        ranges: Guest physical addresses, whole pages.
        slack: Bytes more on both sides of each.
        learn: Requests of each start that are served wherever they lie, and whose pages count as
            shared from then on; 0: none.
        rings_inside: Rings must lie in *ranges*, too; else they may be anywhere.
        firmware_inside: Firmware is held to them, too; else it may use any memory.

    Raises:
        VhostBlkError: They make no sense together.
    """

    ranges: Ranges = field(default_factory=Ranges)
    slack: int = 0
    learn: int = 0
    rings_inside: bool = False
    firmware_inside: bool = False

    def __post_init__(self) -> None:
        if not self.ranges and (self.slack or self.rings_inside):
            raise VhostBlkError("shared ranges: slack= and rings=inside need a range beside them")
        if self.learn and self.rings_inside:
            raise VhostBlkError("shared ranges: say learn= or rings=inside, rings are not learned")

    def __bool__(self) -> bool:
        """Whether anything can be told from this."""
        return bool(self.ranges) or self.learn > 0

    def limit(self, on_violation: OnViolation) -> Limit:
        """Return where a device may go, as far as it is said beforehand."""
        return Limit(self.ranges.widened(self.slack), on_violation, self.rings_inside)


def chosen(kind: type[_E], what: str, text: str) -> _E:
    """
    Read one of a few words.

    Args:
        kind: Which there are.
        what: The option's name.
        text: What was given.

    Raises:
        VhostBlkError: It is none of them.
    """
    try:
        return kind(text)
    except ValueError:
        raise VhostBlkError(f"{what} is {', '.join(kind)}; not {text!r}") from None


def parse_shared_ranges(text: str) -> SharedRanges:
    """
    Read what ``--shared-ranges`` takes.

    Args:
        text: As in this file's first paragraph; empty: nothing.

    Raises:
        VhostBlkError: It is not of that form; one line that says what to write.
    """
    ranges: list[Range] = []
    options: dict[str, int] = {}
    for word in filter(None, map(str.strip, text.split(","))):
        key, equals, value = word.partition("=")
        if equals and key in {"slack", "learn", "rings", "firmware"}:
            if key in options:
                raise VhostBlkError(f"shared ranges: {key}= is given twice: say it once")
            options[key] = _option(key, value)
        else:
            ranges.append(_range(word))
    if len(ranges) > MAX_RANGES:
        raise VhostBlkError(f"shared ranges: {len(ranges)} are too many, {MAX_RANGES} can be given")
    return SharedRanges(
        ranges=Ranges.of(ranges),
        slack=options.get("slack", 0),
        learn=options.get("learn", 0),
        rings_inside=bool(options.get("rings")),
        firmware_inside=bool(options.get("firmware")),
    )


def _option(key: str, value: str) -> int:
    match key:
        case "slack":
            slack = parse_size(value, "slack")
            if slack % PAGE:
                raise VhostBlkError(f"slack={value}: give a multiple of {PAGE} bytes")
            return slack
        case "learn":
            number = int(value) if re.fullmatch("[0-9]{1,5}", value, re.ASCII) else 0
            if not MIN_LEARN <= number <= MAX_LEARN:
                raise VhostBlkError(
                    f"learn={value}: give a number of requests, {MIN_LEARN} to {MAX_LEARN}"
                )
            return number
        case _:
            if value not in {"any", "inside"}:
                raise VhostBlkError(f"{key}={value}: write {key}=any or {key}=inside")
            return value == "inside"


def _range(word: str) -> Range:
    line = _LOG_LINE.fullmatch(word)
    if line is not None:
        return _checked(word, _number(line[1], word), _number(line[2], word))
    pair = _PAIR.fullmatch(word)
    if pair is None:
        raise _no_range(word)
    start, other = _number(pair[1], word), _number(pair[3], word)
    return _checked(word, start, other if pair[2] == "-" else start + other)


def _checked(word: str, start: int, end: int) -> Range:
    """Return [start, end) if it can be shared memory."""
    if end <= start:
        raise VhostBlkError(f"shared range {word!r} ends before it begins: write start-end")
    if end > TOP:
        raise VhostBlkError(f"shared range {word!r} ends beyond 64 bits: give it a smaller size")
    if start % PAGE:
        raise VhostBlkError(
            f"shared range {word!r} begins within a page: pages of {PAGE} bytes are shared, "
            f"{start - start % PAGE:#x} begins one"
        )
    if end % PAGE:
        raise VhostBlkError(
            f"shared range {word!r} ends within a page: the end is the first byte behind the "
            f"range, {end + -end % PAGE:#x}"
        )
    return start, end - start


def _number(text: str, word: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise _no_range(word)
    if text[:2].lower() == "0x":
        return int(text, 16)
    return parse_size(text, "address")


def _no_range(word: str) -> VhostBlkError:
    return VhostBlkError(
        f"shared range {word!r}: write start-end, start+size or the line of the guest's dmesg, "
        "'software IO TLB: mapped [mem 0x78000000-0x7c000000] (64MB)'"
    )
