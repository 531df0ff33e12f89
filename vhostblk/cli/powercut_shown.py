"""What a sweep was asked for, and what a person is shown of it."""

import shlex
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import click

from vhostblk.cli import progress as progress_line
from vhostblk.disk.loss import SECTOR, Fate, Lose, Losing
from vhostblk.sweep.plan import State
from vhostblk.sweep.sweep import Failure, Progress, Subject, told
from vhostblk.trace.reader import choose, read

SHOWN = 40
"""Lines of a checker's output, and changes of a cut, that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was given besides the plan."""

    recording: Path
    image: Path | None
    size: int | None
    segment: int | None
    check: str | None
    ok: tuple[int, ...]
    timeout: float
    jobs: int
    work: Path | None
    fresh: bool
    keep: Path | None
    go_on: bool

    def subject(self) -> Subject:
        """Read the recording; raises `VhostBlkError`."""
        damage = read(self.recording).damage
        if damage is not None:
            click.echo(f"{self.recording}: {damage}; what is in front of it is swept", err=True)
        segment = choose(self.recording, self.segment)
        return Subject(segment, self.image, self.size or segment.header.size)

    def again(self, state: State, losing: Losing) -> str:
        """Return the command that checks one state, and no other."""
        words = ["vhostblk", "powercut", str(self.recording)]
        for name, value in (
            ("--segment", self.segment),
            ("--image", self.image),
            ("--size", self.size),
            ("--at", state.moment.number),
            ("--seed", state.cut.seed),
            ("--lose", None if losing.lose is Lose.ANY else losing.lose.value),
            ("--grain", None if losing.grain == SECTOR else losing.grain),
        ):
            words += [] if value is None else [name, str(value)]
        words += [] if losing.tear else ["--no-tear"]
        words += [] if self.ok == (0,) else ["--ok", ",".join(map(str, self.ok))]
        words += [] if self.check is None else ["--check", self.check]
        return shlex.join(words)


def report(asked: Asked, losing: Losing, failure: Failure) -> None:
    """Say what is bad, what was lost, and how to see it again."""
    state, said = failure.state, failure.said
    click.echo(f"BAD: {told(state)}")
    lines = [str(v) for v in state.cut.verdicts if v.fate is not Fate.KEPT]
    if not lines:
        click.echo("  nothing: the check does not like the disk without a power cut either")
    for line in lines[:SHOWN]:
        click.echo(f"  {line}")
    if len(lines) > SHOWN:
        click.echo(f"  and {len(lines) - SHOWN} more: --list --at … --seed … has all of them")
    click.echo(f"the check {said.how}" + (":" if said.output else ", and said nothing"))
    for line in said.output.splitlines()[-SHOWN:]:
        click.echo(f"  {line}")
    click.echo(f"again: {asked.again(state, losing)}")


def shown(progress: Progress) -> AbstractContextManager[None]:
    """Show how far it is, and how fast it goes."""
    begin = time.monotonic()

    def look() -> str:
        rate = progress.checked / (time.monotonic() - begin)
        return (
            f"request {progress.request} of {progress.numbers.requests}: "
            f"{progress.checked} states checked, {rate:.0f}/s"
        )

    return progress_line.shown(look)
