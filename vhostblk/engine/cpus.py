"""CPUs that workers are pinned to, as a person writes them."""

import re
from collections.abc import Iterable, Iterator, Sequence

from vhostblk.errors import VhostBlkError

MOST = 8192
"""CPUs that Linux can have; NR_CPUS of x86-64, include/linux/threads.h."""
_WORD = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_cpus(text: str, *, workers: int | None = None) -> tuple[int, ...]:
    """
    Read a list like ``0-3,8``; nothing: workers are not pinned.

    Args:
        text: Numbers and ranges of them, with commas between.
        workers: How many there are to be; None: as many as there are CPUs here.

    Returns:
        The CPU of each worker, in their order.

    Raises:
        VhostBlkError: It is no such list, names a CPU twice, or too few for the workers.
    """
    cpus: list[int] = []
    for word in text.split(",") if text else ():
        found = _WORD.fullmatch(word.strip())
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, -1)
        if not first <= last < MOST:
            raise VhostBlkError(f"cpus {text!r} is no list of CPUs: give numbers, like 0-3,8")
        cpus.extend(range(first, last + 1))
    if twice := [cpu for cpu in cpus if cpus.count(cpu) > 1]:
        raise VhostBlkError(f"cpus {text!r} names CPU {twice[0]} twice: give each worker its own")
    if cpus and workers is not None and workers > len(cpus):
        raise VhostBlkError(
            f"{workers} workers are more than the CPUs of cpus {text!r}: give as many CPUs"
        )
    return tuple(cpus)


def check_cpus(cpus: Sequence[int], usable: Iterable[int]) -> None:
    """
    Make sure that workers can be pinned so.

    Args:
        cpus: Of the workers.
        usable: By this process.

    Raises:
        VhostBlkError: One is not there, or not for this process.
    """
    may = sorted(usable)
    lost = next((cpu for cpu in cpus if cpu not in may), None)
    if lost is not None:
        raise VhostBlkError(
            f"CPU {lost} is not there, or not for this process, which may use {format_cpus(may)}"
        )


def format_cpus(cpus: Sequence[int]) -> str:
    """Write sorted CPUs as `parse_cpus` reads them, as short as it goes."""
    return ",".join(f"{a}-{b}" if a < b else str(a) for a, b in _runs(cpus))


def _runs(cpus: Sequence[int]) -> Iterator[tuple[int, int]]:
    begins = [cpu for cpu in cpus if cpu - 1 not in cpus]
    ends = [cpu for cpu in cpus if cpu + 1 not in cpus]
    return zip(begins, ends, strict=True)
