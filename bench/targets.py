"""
What the project promises about speed: the lines that measure it, and the targets.

``python -m bench --targets`` measures all of it in one run; docs/reference/bench.md says why each
line is measured as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from bench import verdicts, works
from bench.sample import Load
from bench.servers import Work, vhostblk
from bench.turns import Entry, Line
from bench.verdicts import Target
from bench.works import FIO, NBDKIT, OURS, QSD, RESPONDER, RESPONDER_STATUS

RATES = {1: 4.0, 8: 4.0, 32: 3.0, 128: 3.0}
"""How much faster than qemu-storage-daemon a null disk is, by depth."""
FILE_RATES = {
    "tmpfs": {1: 2.5, 8: 2.5, 32: 2.5, 128: 2.0},
    "file": {1: 2.0, 8: 2.0, 32: 2.0, 128: 2.0},
}
DEEP = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What is measured, and what of it is promised.

    Args:
        lines: In this order.
        targets: Each names its line.
    """

    lines: Sequence[Line]
    targets: Sequence[Target]

    def only(self, text: str) -> "Plan":
        """Return what has *text* in the name of its line."""
        lines = [line for line in self.lines if text in line.name]
        return Plan(lines, [target for target in self.targets if text in target.line])

    def __add__(self, other: "Plan") -> "Plan":
        """Return both, this first."""
        return Plan([*self.lines, *other.lines], [*self.targets, *other.targets])


def plan(base: Load, directory: Path, shm: Path) -> Plan:
    """
    Return all of it.

    Args:
        base: ``op`` and ``seconds`` of every load.
        directory: On a disk file system, for files.
        shm: On tmpfs.
    """
    found = works.make_works(works.WORKS, directory, shm)
    return (
        null(found["null"], base)
        + polled(found["bare"], base)
        + memory(found, base)
        + python(found["python"], base)
        + files(found["tmpfs"], base)
        + files(found["file"], base)
        + direct(found["direct"], base)
        + sequential([found[name] for name in ("tmpfs", "file", "direct")], base)
    )


def null(work: Work, base: Load) -> Plan:
    """Both zero what they read; the client sleeps; default settings."""
    lines, targets = [], []
    for depth, rate in RATES.items():
        load = replace(base, depth=depth)
        name = f"null {load}"
        lines.append(Line(name, [*works.ours(work, load), *works.qsds(work, load)]))
        targets.append(_ratio(name, "qsd null-co", QSD, rate))
        if depth >= DEEP:
            less = Target(
                work=name,
                against="qsd null-co",
                line=name,
                values=verdicts.cpu_ratio(OURS, QSD),
                bound=1 / 3,
                least=False,
                name="CPU/IO",
            )
            targets.append(less)
    return Plan(lines, targets)


def polled(work: Work, base: Load) -> Plan:
    """Nothing is zeroed, both sides poll: against the client's ceiling."""
    lines, targets = [], []
    for depth in RATES:
        load = replace(base, depth=depth, wait="poll")
        name = f"bare {load}"
        ours = works.ours(work, load, poll="always")
        lines.append(Line(name, [*ours, *works.responders(work, load)]))
        if depth in {1, DEEP}:
            targets += [_ratio(name, kind, kind, 0.9) for kind in (RESPONDER, RESPONDER_STATUS)]
        if depth == DEEP:
            cpu = Target(
                work=name,
                against="-",
                line=name,
                values=verdicts.cpu(OURS),
                bound=0.30,
                least=False,
                unit="us",
                name="CPU/IO",
            )
            targets.append(cpu)
    return Plan(lines, targets)


def memory(found: dict[str, Work], base: Load) -> Plan:
    """A disk in memory costs what a null disk and a copy cost."""
    lines, targets = [], []
    for basis, wait in (("null", "block"), ("bare", "poll")):
        load = replace(base, depth=DEEP, wait=wait)
        name = f"memory {load}"
        ours = works.ours(found["memory"], load)
        entries = [
            *ours,
            _server(basis, found[basis], load),
            Entry(name="memcpy", load=load, work=found["memory"], probe="memcpy"),
        ]
        lines.append(Line(name, entries))
        target = Target(
            work=name,
            against=f"{basis} + 1.1 memcpy",
            line=name,
            values=verdicts.copies(basis, OURS, "memcpy"),
            bound=1.0,
            least=False,
            name="time/IO",
        )
        targets.append(target)
    return Plan(lines, targets)


def python(work: Work, base: Load) -> Plan:
    """A disk in Python, against what somebody would do without us."""
    load = replace(base, depth=DEEP)
    name = f"python {load}"
    line = Line(name, [*works.ours(work, load), *works.nbdkits(work, load)])
    return Plan([line], [_ratio(name, NBDKIT, NBDKIT, 3.0)])


def files(work: Work, base: Load) -> Plan:
    """A file in the page cache, by depth; on tmpfs against one thread of fio, too."""
    lines, targets = [], []
    for depth, rate in FILE_RATES[work.name].items():
        load = replace(base, depth=depth)
        name = f"{work.name} {load}"
        entries = [*works.ours(work, load), *works.qsds(work, load)]
        targets.append(_ratio(name, "qsd, best aio", QSD, rate))
        if work.name == "tmpfs" and depth == DEEP:
            entries += works.fios(work, load, "psync")
            targets.append(_ratio(name, "fio psync", FIO, 0.7))
        lines.append(Line(name, entries))
    return Plan(lines, targets)


def direct(work: Work, base: Load) -> Plan:
    """Around the page cache, against fio's io_uring on the same file."""
    many, one = replace(base, depth=DEEP), replace(base, depth=1)
    polling = replace(one, wait="poll")
    deep, shallow = f"direct {many}", f"direct {one}"
    lines = [
        Line(deep, [*works.ours(work, many), *works.fios(work, many, "io_uring")]),
        Line(
            shallow,
            [
                *works.ours(work, one),
                Entry(name="polling client", load=polling, work=work, server=vhostblk()),
                *works.fios(work, one, "io_uring"),
                Entry(name="wake", load=one, work=work, probe="wake"),
            ],
        ),
    ]
    late = Target(
        work=f"{shallow}, p50",
        against="fio io_uring + wake",
        line=shallow,
        values=verdicts.longer(OURS, FIO, "wake"),
        bound=5.0,
        least=False,
        unit="us",
        name="later by",
    )
    early = replace(
        late,
        work=f"direct {polling}, p50",
        against="fio io_uring",
        values=verdicts.longer("polling client", FIO),
        bound=10.0,
    )
    return Plan(lines, [_ratio(deep, "fio io_uring", FIO, 0.97), early, late])


def sequential(found: Sequence[Work], base: Load) -> Plan:
    """Large requests one behind the other: what qemu-storage-daemon and the raw file reach."""
    lines, targets = [], []
    for work, size in product(found, (128 << 10, 1 << 20)):
        load = replace(base, bytes=size, depth=8, order="seq")
        name = f"{work.name} {load}"
        raw = works.fios(work, load, "psync", "io_uring")
        lines.append(Line(name, [*works.ours(work, load), *works.qsds(work, load), *raw]))
        target = Target(
            work=name,
            against="1.2 qsd or 95 % raw",
            line=name,
            values=verdicts.either(OURS),
            bound=1.0,
        )
        targets.append(target)
    return Plan(lines, targets)


def _ratio(line: str, against: str, kind: str, bound: float) -> Target:
    """Promise a ratio of rates."""
    values = verdicts.ratio(OURS, kind)
    return Target(work=line, against=against, line=line, values=values, bound=bound)


def _server(name: str, work: Work, load: Load) -> Entry:
    """Return vhostblk on another disk of the same line."""
    return Entry(name=name, load=load, work=work, server=vhostblk(name))
