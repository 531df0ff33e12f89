"""
Lines of the bench: who takes turns on what, and the turns themselves.

A line is measured in one go: A B C, A B C, …  Whoever is not at work is halted.  A run that others
have disturbed is repeated, as often as the line has turns; then the least disturbed one counts,
and says so.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import load as client_load
from bench import machine, raw
from bench.figures import contenders
from bench.progress import Progress
from bench.sample import Load, Sample, Samples
from bench.servers import Running, Server, Work, serving

PARTING_SECONDS = 0.02
"""For a server to see that its client has gone, in its own turn."""
PILOT_TURNS = 2
PILOT_WITHIN = 0.9
"""A rival that does not reach so much of the best one in the pilot takes no turns."""


@dataclass(frozen=True, slots=True)
class Tools:
    """
    What was built for this run, and where it takes place.

    Args:
        client: The load client.
        machine: The program that measures the machine.
        scratch: For sockets; short.
        server_core: CPU of servers, of fio and of memcpy.
        client_core: CPU of the client.
        report: Where progress is told.
    """

    client: Path
    machine: Path
    scratch: Path
    server_core: int
    client_core: int
    report: Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """
    One who takes turns: a server, fio's *engine* on the file, or a *probe* of the machine.

    Args:
        name: In the results.
        load: What is asked of it.
        work: On what.
        server: Which, if it is one.
        engine: Of fio.
        probe: ``wake`` or ``memcpy``.
        rival: Of these only the best takes turns with the others; "": always does.
    """

    name: str
    load: Load
    work: Work
    server: Server | None = None
    engine: str = ""
    probe: str = ""
    rival: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """
    A line of the bench.

    Args:
        name: Of the work and the load.
        entries: Who takes turns, in this order.
    """

    name: str
    entries: Sequence[Entry]

    @property
    def rivals(self) -> dict[str, list[str]]:
        """Those of whom only the best takes turns, by what they are rivals for."""
        found: dict[str, list[str]] = {}
        for entry in self.entries:
            if entry.rival:
                found.setdefault(entry.rival, []).append(entry.name)
        return {rival: names for rival, names in found.items() if len(names) > 1}

    def runs(self, turns: int) -> int:
        """Return how many runs it takes, if there is one winner among each kind of rivals."""
        rivals = sum(map(len, self.rivals.values()))
        return (len(self.entries) - rivals + len(self.rivals)) * turns + rivals * PILOT_TURNS


@dataclass(frozen=True, slots=True)
class Measured:
    """
    What a line gave.

    Args:
        line: Which.
        samples: By name of the entry, one for each turn; rivals that lost have none.
        pilot: Samples by which rivals were chosen.
        commands: By name, what was started.
        repeats: Runs that were thrown away as disturbed.
    """

    line: Line
    samples: Samples
    pilot: Samples
    commands: dict[str, list[str]] = field(default_factory=dict)
    repeats: int = 0

    @property
    def disturbed(self) -> int:
        """How many runs count although they were disturbed."""
        return sum(sample.disturbed for runs in self.samples.values() for sample in runs)


Run = Callable[[], Sample]


def measure(line: Line, tools: Tools, turns: int) -> Measured:
    """Start everybody, choose among rivals, let them take turns."""
    with ExitStack() as stack:
        running = _start(line, tools, stack)
        processes = list({server.pid: server for server in running.values()}.values())
        runs = {
            entry.name: _run(entry, running.get(entry.name), tools, processes)
            for entry in line.entries
        }
        pilot, names = _choose(line, runs, tools, turns)
        samples, repeats = alternate({name: runs[name] for name in names}, turns, tools.report)
        commands = {name: list(server.words) for name, server in running.items()}
        return Measured(line, samples, pilot, commands, repeats)


def alternate(
    runs: dict[str, Run], turns: int, report: Progress
) -> tuple[dict[str, list[Sample]], int]:
    """
    Let everybody take a turn, *turns* times.

    Returns:
        Samples by name, and how many were taken again because others were at work.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    repeats = 0
    for turn in range(1, turns + 1):
        for name, run in runs.items():
            report.run(name, f"turn {turn} of {turns}")
            sample = run()
            while sample.disturbed and repeats < turns:
                repeats += 1
                report.run(name, f"turn {turn} of {turns}, once more: it was disturbed")
                sample = min(sample, run(), key=lambda one: one.other + one.stolen)
            samples[name].append(sample)
            report.done()
    return samples, repeats


def _choose(
    line: Line, runs: dict[str, Run], tools: Tools, turns: int
) -> tuple[Samples, list[str]]:
    """Return the samples of the pilot, and who takes turns in the end."""
    names = [entry.name for entry in line.entries]
    rivals = line.rivals
    if turns <= PILOT_TURNS:
        return {}, names
    pilot, _ = alternate(
        {name: runs[name] for group in rivals.values() for name in group}, PILOT_TURNS, tools.report
    )
    for group in rivals.values():
        left = contenders(pilot, group, within=PILOT_WITHIN)
        names = [name for name in names if name not in group or name in left]
    return pilot, names


def _start(line: Line, tools: Tools, stack: ExitStack) -> dict[str, Running]:
    """Start the servers of a line, halted; entries with one server share its process."""
    running: dict[str, Running] = {}
    started: dict[tuple[str, Work], Running] = {}
    for entry in line.entries:
        if entry.server is None:
            continue
        key = entry.server.name, entry.work
        if key not in started:
            tools.report.run(entry.server.name, "starting")
            server = stack.enter_context(
                serving(entry.server, entry.work, tools.scratch, tools.server_core)
            )
            if entry.work.name == "memory":
                server.go_on()
                client_load.fill(tools.client, server, entry.work.size, tools.client_core)
                server.halt()
            started[key] = server
        running[entry.name] = started[key]
    return running


def _run(entry: Entry, server: Running | None, tools: Tools, servers: list[Running]) -> Run:
    """Return what takes one sample of an entry."""
    if server is not None:
        return lambda: machine.watched(lambda: _drive(entry, server, tools), servers)
    if entry.engine:
        return lambda: machine.watched(lambda: _fio(entry, tools), servers)
    return lambda: machine.watched(lambda: _probe(entry, tools), servers)


def _drive(entry: Entry, server: Running, tools: Tools) -> Sample:
    server.go_on()
    try:
        return client_load.run(tools.client, server, entry.load, tools.client_core)
    finally:
        time.sleep(PARTING_SECONDS)
        server.halt()


def _fio(entry: Entry, tools: Tools) -> Sample:
    path, direct = entry.work.path, entry.work.name == "direct"
    if path is None:
        raise ValueError(f"{entry.name}: fio needs a file")
    return raw.run(entry.engine, path, entry.load, tools.server_core, direct=direct)


def _probe(entry: Entry, tools: Tools) -> Sample:
    seconds = min(entry.load.seconds, 0.3)
    if entry.probe == "wake":
        cores = tools.server_core, tools.client_core
        return machine.sample(tools.machine, "wake", *cores, seconds)
    words = tools.server_core, entry.load.bytes, entry.work.size, seconds
    return machine.sample(tools.machine, "memcpy", *words)
