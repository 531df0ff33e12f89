"""
The verdict on a history: which reads nothing explains.

Every sector is judged by itself, as a disk is atomic by the sector and not by the request.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.history.record import History, Operation, sector_steps
from vhostblk.guest.history.register import Clash, Step
from vhostblk.guest.history.sector import Sector, make_eras
from vhostblk.guest.history.words import Names

SHOWN = 5
"""Findings in the text of an error."""


@dataclass(frozen=True, slots=True)
class Finding:
    """
    A sector that holds, or held, what it cannot.

    Args:
        sector: Which.
        why: What is wrong, in a few words.
        read: The read that shows it; ``None``: a power cut did, or a write.
        found: What it returned, in words.
        candidates: The writes one of which it could have returned; none: its first contents only.
        evidence: The requests that contradict each other, in the order of their begin.
    """

    sector: int
    why: str
    read: Operation | None
    found: str
    candidates: tuple[Operation, ...]
    evidence: tuple[str, ...]

    def __str__(self) -> str:
        could = [f"    {one}" for one in self.candidates] or ["    what was there at first"]
        lines = [
            f"sector {self.sector}: {self.why}: {self.found}",
            "  could be what was written by one of" if self.candidates else "  could be",
            *could,
            "  as these cannot all be true:",
            *(f"    {line}" for line in self.evidence),
        ]
        return "\n".join(lines)


class UnexplainedError(GuestError):
    """
    A disk answered what no order of the requests explains.

    Args:
        findings: What, a sector each.
    """

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        shown = "\n".join(map(str, findings[:SHOWN]))
        more = len(findings) - SHOWN
        rest = f"\n… and {more} more sectors" if more > 0 else ""
        super().__init__(f"{len(findings)} sectors are wrong\n{shown}{rest}")
        self.findings = findings


def check(history: History) -> None:
    """
    Check that the writes explain all reads.

    Args:
        history: Nothing is added to it meanwhile.

    Raises:
        UnexplainedError: They do not; its text names sector, read and writes.
    """
    if found := tuple(find(history)):
        raise UnexplainedError(found)


def find(history: History) -> Iterator[Finding]:
    """Yield what is wrong, at most one finding for each sector, in the order of the sectors."""
    operations = list(history.operations)
    eras = make_eras(history.cuts, operations, through=history.write_through)
    sectors: dict[int, Sector] = {}
    zeroes = history.initially == "zeroes"
    for number, one, value in sector_steps(operations):
        if number not in sectors:
            sectors[number] = Sector(eras, zeroes=zeroes, discarded=history.discarded)
        sectors[number].add(one, bisect_right(history.cuts, one.begin), value)
    names = Names(operations)
    for number in sorted(sectors):
        if clash := sectors[number].find_clash():
            yield _finding(number, clash, names)


def _finding(sector: int, clash: Clash, names: Names) -> Finding:
    culprit = clash.culprit
    steps = sorted({culprit, *clash.others}, key=lambda step: (step.begin, step.end))
    return Finding(
        sector=sector,
        why=clash.why,
        read=culprit.name if isinstance(culprit.name, Operation) else None,
        found=f"{culprit.name} found {names.describe(sector, culprit.value)}",
        candidates=tuple(names.candidates(sector, culprit)),
        evidence=tuple(_lines(sector, steps, names)),
    )


def _lines(sector: int, steps: Iterable[Step], names: Names) -> Iterator[str]:
    for step in steps:
        yield f"{step.name}: {names.describe(sector, step.value)}"
