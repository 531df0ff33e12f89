"""What a queue of the core tells, as values of `vhostblk.engine.api`, and is told."""

from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any, TypeAlias

from vhostblk.engine.api import Latency, Op, Piece, Slow, Stall
from vhostblk.engine.native.core import check, ffi, lib
from vhostblk.memory.sample import Role, Sample

Take: TypeAlias = Callable[[Any, Any], int]
"""``vhb_queue_stall`` or ``vhb_queue_failure``."""
ROOM = 64
"""Slow requests that are looked for at first."""
TAKE_SAMPLES = 512
"""Samples taken from a queue at once."""
TAKES = 2 * lib.VHB_SAMPLES // TAKE_SAMPLES
"""Times that is done in a row at most: a guest may store faster than we take."""
_SAMPLE = Struct("=QIHH")
"""``struct vhb_sample``."""
_ROLES = tuple(Role)


def take_note(handle: Any, take: Take) -> Stall | None:
    """Return what *take* tells of a queue; None: nothing."""
    out = ffi.new("struct vhb_stall *")
    if not take(handle, out):
        return None
    return Stall(op=Op(out.op), offset=out.offset, length=out.len, errno=out.error)


def latency(handle: Any) -> dict[Op, Latency]:
    """Return how long requests of a queue took, by kind."""
    out = ffi.new("struct vhb_latency *")
    found: dict[Op, Latency] = {}
    for op in Op:
        if op is not Op.CANCEL:
            check(lib.vhb_queue_latency(handle, op, out), "latency")
            found[op] = Latency(sum_ns=out.sum_ns, max_ns=out.max_ns, buckets=tuple(out.buckets))
    return found


def slow(handle: Any, seconds: float) -> list[Slow]:
    """Return the requests of a queue that have been under way for so long."""
    age = int(seconds * 1e9)
    table = ffi.new("struct vhb_slow[]", ROOM)
    n = lib.vhb_queue_slow(handle, age, table, ROOM)
    if n > ROOM:
        table = ffi.new("struct vhb_slow[]", n)
        n = min(n, lib.vhb_queue_slow(handle, age, table, n))
    return [
        Slow(
            op=Op(one.op),
            offset=one.offset,
            length=one.len,
            age=one.age_ns / 1e9,
            tag=one.tag,
            since_ns=one.since_ns,
        )
        for one in table[0:n]
    ]


def take_samples(handle: Any) -> list[Sample]:
    """Return the samples there are in a queue, and forget them."""
    taken: list[Sample] = []
    table = ffi.new("struct vhb_sample[]", TAKE_SAMPLES)
    words = memoryview(ffi.buffer(table))
    for _ in range(TAKES):
        n = lib.vhb_queue_take_samples(handle, table, TAKE_SAMPLES)
        if n == 0:
            break
        taken += [_sample(row) for row in _SAMPLE.iter_unpack(words[: n * _SAMPLE.size])]
    return taken


def _sample(row: tuple[int, ...]) -> Sample:
    iova, length, role, chain = row
    outside = role & lib.VHB_ROLE_OUTSIDE != 0
    return Sample(chain, iova, length, _ROLES[role & ~lib.VHB_ROLE_OUTSIDE], outside)


def pieces_table(pieces: Sequence[Piece]) -> Any:
    """Return pieces as the core takes them."""
    rows = [(ffi.cast("void *", host), length) for host, length in pieces]
    return ffi.new("struct vhb_piece[]", rows)
