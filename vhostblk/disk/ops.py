"""The kinds of requests, as they are written in options of layers."""

from collections.abc import Collection
from enum import StrEnum

from vhostblk.errors import VhostBlkError


class Op(StrEnum):
    """A kind of request; in the order of the core's ``enum vhb_op``."""

    READ = "read"
    WRITE = "write"
    FLUSH = "flush"
    DISCARD = "discard"
    WRITE_ZEROES = "write-zeroes"


ALL = frozenset(Op)


def parse_ops(text: str) -> frozenset[Op]:
    """
    Read kinds of requests: ``read+write``, ``all``.

    Raises:
        VhostBlkError: There is no such kind.
    """
    return ALL if text == "all" else ops_of(text.split("+"))


def ops_of(names: Collection[str]) -> frozenset[Op]:
    """
    Return kinds of requests by their names.

    Raises:
        VhostBlkError: There is no such kind, or none is named.
    """
    some = {op for op in Op if op in names}
    if some and some.issuperset(names):
        return frozenset(some)
    written = "+".join(map(str, names))
    raise VhostBlkError(f"ops={written}: write some of {', '.join(Op)}, with + between them")


def ops_text(ops: Collection[Op]) -> str:
    """Return kinds of requests as `parse_ops` reads them."""
    return "all" if set(ops) == ALL else "+".join(op for op in Op if op in ops)
