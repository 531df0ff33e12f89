"""Chains a driver might lay down, honest, odd and hostile, as plain values."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from engine.driver import GPA, HEAP, INDIRECT, MEMORY, NEXT, WRITE, Entry, Lane
from engine.harness import SECTORS
from hypothesis import strategies as st

from vhostblk.spec.virtio_blk import TYPE_BARRIER, RequestType

SLOT = 512
LONGEST = 8 << 10
"""Bytes of the longest honest buffer."""


@dataclass(frozen=True)
class Link:
    """
    A descriptor.

    Args:
        at: Guest address.
        length: Bytes, as the descriptor says.
        flags: But for NEXT, which is added to all but the last.
        content: What the driver puts at *at*.
        next: In place of the right one.
    """

    at: int
    length: int
    flags: int = 0
    content: bytes = b""
    next: int | None = None

    def __repr__(self) -> str:
        where = f"{self.at:#x}+{self.length} flags {self.flags} next {self.next}"
        return f"<{where}: {self.content[:32].hex()}>"


@dataclass(frozen=True)
class Plan:
    """
    A chain.

    Args:
        links: In order.
        direct: How many of them come before an indirect table with the others; None: all, if the
            ring is long enough.
        table_at: Guest address of the table.
        spoil: Fields of the descriptor that names the table, to replace.
        head: In place of the right one.
    """

    links: tuple[Link, ...]
    direct: int | None = None
    table_at: int = 0
    spoil: tuple[tuple[str, int], ...] = ()
    head: int | None = None


def lay(lane: Lane, plan: Plan, *, careful: bool) -> int | None:
    """
    Write a chain into the memory of *lane*.

    Args:
        lane: Whose.
        plan: The chain.
        careful: Only if there is room in the ring.

    Returns:
        Its name; None where it was not written.
    """
    room = lane.ring.room() if careful else lane.size
    if room < 1:
        return None
    for link in plan.links:
        if link.at not in HOSTILE:
            lane.memory.write(link.at, link.content)
    n_direct = plan.direct
    if len(plan.links[:n_direct]) + (n_direct is not None) > room:
        n_direct = 0
    direct = plan.links[:n_direct]
    if n_direct is not None:
        inside = plan.links[n_direct:]
        lane.ring.lay_table(plan.table_at, _entries(inside))
        table = Link(plan.table_at, 16 * len(inside), INDIRECT)
        direct = (*direct, _spoil(table, plan.spoil))
    return lane.ring.lay(_entries(direct), plan.head)


def _spoil(link: Link, values: Iterable[tuple[str, int]]) -> Link:
    return replace(link, **dict(values))  # type: ignore[arg-type]  # content is not among them


def _entries(links: Sequence[Link]) -> list[Entry]:
    last = len(links) - 1
    return [
        (link.at, link.length, link.flags ^ (NEXT * (i < last)), link.next)
        for i, link in enumerate(links)
    ]


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    """Cut *data* at *cuts*, those that fall outside left out."""
    at = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[start:end] for start, end in pairwise(at)]


# ---- what a driver might ask -------------------------------------------------------------

KINDS = (
    *(RequestType.IN, RequestType.OUT, RequestType.FLUSH, RequestType.GET_ID) * 3,
    *(RequestType.DISCARD, RequestType.WRITE_ZEROES) * 2,
    RequestType.IN | TYPE_BARRIER,
    0x7777,
)
LENGTHS = (*(512, 1024, 4096) * 4, 0, 1, 511, 513, LONGEST - 512)
PLACES = (*(0, 8, 16, 24) * 3, 1, 9, SECTORS - 1, SECTORS, 1 << 40, (1 << 64) - 1)
HOSTILE = (
    *(0, GPA - 1, GPA, GPA + 256, GPA + HEAP - 1, GPA + HEAP),
    *(GPA + MEMORY - 1, GPA + MEMORY, (1 << 64) - 512, (1 << 64) - 1),
)
"""Addresses no honest driver uses: the ring's, borders, holes, the end of everything."""

slots = st.integers(1, (MEMORY - HEAP - 2 * LONGEST) // SLOT).map(lambda n: GPA + HEAP + n * SLOT)
gaps = st.sampled_from((0, 0, 1, 16, 500))
ranges = st.builds(
    struct.Struct("<QII").pack,
    st.sampled_from(PLACES),
    st.sampled_from((8, 8, 16, 8, 1, 0, SECTORS, 1 << 31)),
    st.sampled_from((0, 0, 0, 0, 1, 2)),
)


@st.composite
def _payloads(draw: st.DrawFn, kind: int) -> bytes:
    if kind == RequestType.OUT:
        return draw(st.sampled_from(b"abcdefgh")).to_bytes() * draw(st.sampled_from(LENGTHS))
    if kind in {RequestType.DISCARD, RequestType.WRITE_ZEROES}:
        payload = b"".join(draw(st.lists(ranges, max_size=17)))
        return payload + draw(st.sampled_from((b"", b"", b"", b"", b"", b"x")))
    return b""


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Return whole requests in any framing, most of them honest but for their values."""
    kind = draw(st.sampled_from(KINDS))
    header = struct.pack("<IIQ", kind, 0, draw(st.sampled_from(PLACES)))
    cuts = st.lists(st.integers(1, 600), max_size=2)
    readable = split(header + draw(_payloads(kind)), draw(cuts))
    room = draw(st.sampled_from(LENGTHS)) if kind & 1 == 0 else 0
    writable = split(b"\xee" * (room + 1), draw(cuts))
    parts = [(part, 0) for part in readable] + [(part, WRITE) for part in writable]
    links = []
    at = draw(slots)
    for part, flags in parts:
        links.append(Link(at, len(part), flags, part))
        at += len(part) + draw(gaps)
    direct = draw(st.none() | st.integers(0, len(links) - 1))
    return Plan(tuple(links), direct, at)


_values = {
    "at": st.sampled_from(HOSTILE),
    "length": st.sampled_from((0, 1, 15, 16, 1 << 20, (1 << 32) - 1)),
    "flags": st.integers(0, 7),
    "next": st.sampled_from((0, 1, 2, 16, 64, 0xFFFF)),
}
_spoilt = st.sampled_from(sorted(_values)).flatmap(
    lambda name: st.tuples(st.just(name), _values[name])
)


@st.composite
def hostile_plans(draw: st.DrawFn) -> Plan:
    """Return requests with a field or two that no honest driver would write."""
    plan = draw(plans())
    links = list(plan.links)
    for name, value in draw(st.lists(_spoilt, max_size=2)):
        at = draw(st.integers(0, len(links) - 1))
        links[at] = _spoil(links[at], [(name, value)])
    if draw(st.booleans()):
        links = draw(st.permutations(links))
    spoil = tuple(draw(st.lists(_spoilt, max_size=1)))
    head = draw(st.sampled_from((None, None, None, 0, 1, 16, 0xFFFF)))
    return replace(plan, links=tuple(links), spoil=spoil, head=head)


PIECES = (131, 512, 1536, 2045, 2046, 2047, 3000)
"""Of a transfer that needs more room than a request has of its own, or more than there is."""


def one_plan(kind: int, at: int) -> Plan:
    """Return a request for 512 bytes, all of it from *at* on."""
    header = Link(at, 16, 0, struct.pack("<IIQ", kind, 0, 0))
    return Plan((header, Link(at + 16, 513, WRITE, b"\xee" * 513)))


def long_plan(kind: int, pieces: int) -> Plan:
    """Return a request with so many bytes of data, each in a descriptor of its own."""
    at, table_at = GPA + HEAP + (128 << 10), GPA + HEAP
    header = struct.pack("<IIQ", kind, 0, 0)
    flags = WRITE if kind == RequestType.IN else 0
    data = [Link(at + 64 + i, 1, flags, b"d") for i in range(pieces)]
    links = (Link(at, 16, 0, header), *data, Link(at + 32, 1, WRITE, b"\xee"))
    return Plan(links, 0, table_at)
