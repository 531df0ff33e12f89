"""
Requests, framings and broken rings for hypothesis, which is not installed with this package.

``requests`` and ``chains`` are what a driver may do, so a device has to do it right;
``hostile_rings`` is what no driver may do, and a device has to survive.  All of it is for a `Guest`
that is connected: they drive real virtqueues.
"""

from collections.abc import Callable
from dataclasses import dataclass

try:
    from hypothesis import strategies as st
except ImportError as missing:
    raise ImportError(
        "vhostblk.guest.strategies needs hypothesis: install it, `pip install vhostblk[kit]`"
    ) from missing

from vhostblk.guest.blk import Framing, Range, Request
from vhostblk.guest.guest import Guest
from vhostblk.guest.hostile import INDIRECT_CASES, REQUEST_CASES, RING_CASES, Case, Trap, raw_chain
from vhostblk.guest.hostile_packed import PACKED_CASES
from vhostblk.guest.queue import Queue
from vhostblk.guest.ring import Descriptor
from vhostblk.spec import virtio_blk as vb
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.virtio_blk import SECTOR_SIZE, WRITE_ZEROES_F_UNMAP

LONGEST = 16
"""Blocks of the longest request, if nobody says."""
_NEED_A_SLOW_DISK = frozenset({"two chains with one id"})
"""Nothing is wrong where the first chain is over before the second is taken."""
_WORD, _LONG, _SHORT = (1 << 64) - 1, (1 << 32) - 1, (1 << 16) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    What a device takes.

    Args:
        sectors: Of the disk.
        block: Bytes that every request is a multiple of.
        writable: It may be written.
        flush: FLUSH is offered.
        discard: Sectors of the longest discard; 0: it is not offered.
        write_zeroes: The same of WRITE_ZEROES.
    """

    sectors: int
    block: int = SECTOR_SIZE
    writable: bool = True
    flush: bool = True
    discard: int = 0
    write_zeroes: int = 0

    @classmethod
    def of(cls, guest: Guest) -> "Limits":
        """Ask a device; its config space and its features."""
        config, has = guest.config(), guest.features
        return cls(
            sectors=config.capacity,
            block=config.blk_size if has & vb.F_BLK_SIZE else SECTOR_SIZE,
            writable=not has & vb.F_RO,
            flush=bool(has & vb.F_FLUSH),
            discard=config.max_discard_sectors if has & vb.F_DISCARD else 0,
            write_zeroes=config.max_write_zeroes_sectors if has & vb.F_WRITE_ZEROES else 0,
        )


def requests(limits: Limits, *, longest: int = LONGEST) -> st.SearchStrategy[Request]:
    """
    Make requests that a device with these limits does; they shrink to a read of block 0.

    Args:
        limits: Of the device, see `Limits.of`.
        longest: Blocks of the longest.
    """
    places = _places(limits, longest)
    kinds = [places.map(lambda at: Request.read(at[0], at[1] * SECTOR_SIZE))]
    if limits.writable:
        kinds.append(places.flatmap(_write))
    if limits.flush:
        kinds.append(st.just(Request.flush()))
    if limits.writable and limits.discard:
        kinds.append(_ranges(limits, longest, limits.discard).map(lambda r: Request.discard([r])))
    if limits.writable and limits.write_zeroes:
        zeroed = _ranges(limits, longest, limits.write_zeroes, unmap=True)
        kinds.append(zeroed.map(lambda r: Request.write_zeroes([r])))
    kinds.append(st.just(Request.get_id()))
    return st.one_of(kinds)


def chains(
    request: Request, *, indirect: bool = True, most: int = 32
) -> st.SearchStrategy[Framing]:
    """
    Make framings of a request: where it is cut into descriptors, and where the pieces lie.

    None of them means anything to the request (virtio 1.3, 2.7.4): a header in pieces, a status
    beside the data or by itself, unaligned pieces, tables.  They shrink to the usual one.

    Args:
        request: What is cut.
        indirect: Tables may be used; they must have been negotiated.
        most: Descriptors of the longest chain.
    """
    table = st.sampled_from([None, False, True] if indirect else [None])
    cut = st.builds(
        Framing,
        readable=st.none() | _cuts(len(request.readable), most // 2 - 1),
        writable=st.none() | _cuts(request.in_length + 1, most // 2 - 1),
        indirect=table,
        align=st.sampled_from([16, 1, 512, 4096]),
        skew=st.sampled_from([0, 1, 7, 511]),
    )
    return st.just(Framing()) | st.just(Framing.compact()) | cut


def hostile_rings(*, packed: bool = False) -> st.SearchStrategy[Case]:
    """
    Make rings and chains that are none, each with what this project's back-end answers.

    Named cases, and on split rings chains of arbitrary descriptors, of which nothing is expected
    but that the device survives.  `vhostblk.guest.hostile.attempt` runs one; give each a guest of
    its own, as a queue may be broken behind it.

    Args:
        packed: For packed rings.
    """
    if packed:
        return st.sampled_from([one for one in PACKED_CASES if one.name not in _NEED_A_SLOW_DISK])
    named = st.sampled_from([*RING_CASES, *INDIRECT_CASES, *REQUEST_CASES])
    return named | st.lists(_descriptors(), min_size=1, max_size=6).map(_arbitrary)


def _places(limits: Limits, longest: int) -> st.SearchStrategy[tuple[int, int]]:
    """Make pairs of a first sector and a number of sectors, whole blocks on the disk."""
    step = limits.block // SECTOR_SIZE
    total = limits.sectors // step

    def with_length(first: int) -> st.SearchStrategy[tuple[int, int]]:
        return st.integers(1, min(longest, total - first)).map(lambda n: (first * step, n * step))

    return st.integers(0, total - 1).flatmap(with_length)


def _ranges(
    limits: Limits, longest: int, most: int, *, unmap: bool = False
) -> st.SearchStrategy[Range]:
    step = limits.block // SECTOR_SIZE
    places = _places(limits, max(min(longest, most // step), 1))
    flags = st.sampled_from([0, WRITE_ZEROES_F_UNMAP]) if unmap else st.just(0)
    return st.builds(lambda at, bits: Range(at[0], at[1], bits), places, flags)


def _write(at: tuple[int, int]) -> st.SearchStrategy[Request]:
    """Make writes whose sectors tell each other apart, of a few bytes that are drawn."""
    first, sectors = at
    noise = st.binary(min_size=8, max_size=8)
    return noise.map(lambda mark: Request.write(first, _filled(mark, sectors)))


def _filled(mark: bytes, sectors: int) -> bytes:
    words = (mark + n.to_bytes(8, "little") for n in range(sectors))
    return b"".join(word * (SECTOR_SIZE // 16) for word in words)


def _cuts(length: int, most: int) -> st.SearchStrategy[tuple[int, ...]]:
    sizes = st.integers(1, max(length, 1))
    return st.lists(sizes, max_size=most).map(tuple)


def _descriptors() -> st.SearchStrategy[Descriptor]:
    address = st.sampled_from([0, 0x1000, 0x10000, 1 << 40, _WORD - 4095]) | st.integers(0, _WORD)
    length = st.sampled_from([0, 1, 16, 512, 4096, _LONG]) | st.integers(0, _LONG)
    flags = st.integers(0, vr.DESC_F_NEXT | vr.DESC_F_WRITE | vr.DESC_F_INDIRECT)
    following = st.integers(0, 8) | st.integers(0, _SHORT)
    return st.builds(Descriptor, address, length, flags, following)


def _arbitrary(descriptors: list[Descriptor]) -> Case:
    return Case(f"arbitrary descriptors {descriptors}", None, _setting_up(descriptors))


def _setting_up(descriptors: list[Descriptor]) -> Callable[[Queue], Trap]:
    def set_up(queue: Queue) -> Trap:
        return raw_chain(queue, *descriptors)

    return set_up
