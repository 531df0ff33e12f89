"""``vhostblk powercut``: cut the power everywhere in a recording, and have each state checked."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import click

from vhostblk.cli import options
from vhostblk.cli.powercut_shown import Asked, report, shown
from vhostblk.cli.report import Status
from vhostblk.cli.seconds import timeout_option
from vhostblk.disk.cut_options import parse_grain
from vhostblk.disk.loss import MAX_SEED, SECTOR, Lose, Losing
from vhostblk.sweep.checker import Checker
from vhostblk.sweep.plan import Plan, State
from vhostblk.sweep.sweep import Sweep, build, listed, told

FOUND = 3
"""Exit status: a state is bad."""


def parse_at(text: str) -> frozenset[int]:
    """
    Read request numbers: ``12``, ``12,40``, ``end``.

    Raises:
        click.BadParameter: One is none.
    """
    words = text.split(",")
    if not all(word == "end" or (word.isascii() and word.isdecimal()) for word in words):
        raise click.BadParameter(f"{text!r}: write request numbers, or 'end': 12,40,end.")
    numbers = {0 if word == "end" else int(word) for word in words}
    if 0 in numbers and "end" not in words:
        raise click.BadParameter("requests are counted from 1.")
    return frozenset(numbers)


def parse_ok(text: str) -> tuple[int, ...]:
    """
    Read exit statuses: ``0,1``.

    Raises:
        click.BadParameter: One is none.
    """
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise click.BadParameter(f"{text!r}: write exit statuses: 0,1.")
    return tuple(map(int, words))


@click.command("powercut", short_help="Cut the power everywhere in a recording; check each state.")
@click.argument("recording", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--check",
    metavar="COMMAND",
    help="Run by the shell on each state, {} being the image's path; status 0 is good.",
)
@click.option(
    "--image",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What was on the disk before the recording; read only.  [default: zeroes]",
)
@click.option(
    "--size",
    metavar="SIZE",
    callback=options.parsed(options.size),
    help="Of the disk.  [default: as recorded]",
)
@click.option(
    "--segment",
    type=click.IntRange(min=1),
    metavar="N",
    help="Which session of a recording that has several.",
)
@click.option(
    "--at",
    metavar="N[,N...]",
    callback=options.parsed(parse_at),
    help="Cut at these requests only, counted from 1, or at the 'end'.",
)
@click.option("--from", "first", type=click.IntRange(min=1), default=1, help="The first request.")
@click.option("--to", "last", type=click.IntRange(min=1), help="The last one.  [default: the end]")
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="One in so many."
)
@click.option("--flushes", is_flag=True, help="At flushes, where most is not flushed, only.")
@click.option(
    "--random",
    type=click.IntRange(min=0),
    default=0,
    metavar="COUNT",
    help="So many requests drawn from those, a seed for each.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="For each request.  [default: 4; 1 with --seed and --at]",
)
@click.option("--seed", type=click.IntRange(0, MAX_SEED), help="The first one.  [default: 1]")
@click.option(
    "--lose",
    type=click.Choice([lose.value for lose in Lose]),
    default=Lose.ANY.value,
    show_default=True,
    help="What is lost of what is not flushed; any is one of the others, by the seed.",
)
@click.option("--tear/--no-tear", default=True, show_default=True, help="Some is there in part.")
@click.option(
    "--grain",
    default=str(SECTOR),
    show_default=True,
    metavar="SIZE",
    callback=options.parsed(options.reader(parse_grain)),
    help="Bytes that are never torn.",
)
@click.option("--list", "listing", is_flag=True, help="Print the states, and check nothing.")
@click.option(
    "--keep",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the first bad state there; without --check, the first state.",
)
@click.option("--all", "go_on", is_flag=True, help="Go on behind a bad state.")
@click.option(
    "--ok",
    default="0",
    show_default=True,
    metavar="STATUS[,STATUS...]",
    callback=options.parsed(parse_ok),
    help="Exit statuses of the check that are good.",
)
@timeout_option(60.0, "Of a check; one that takes longer has found something.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Checks at once.  [default: one for each CPU]",
)
@click.option(
    "--work",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where images are made: --jobs and one more, sparse.  [default: /dev/shm, or TMPDIR]",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Copy the whole image for each state, as for a check that writes by mmap.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@click.pass_context
def powercut(
    context: click.Context,
    *,
    recording: Path,
    check: str | None,
    image: Path | None,
    size: int | None,
    segment: int | None,
    at: frozenset[int] | None,
    first: int,
    last: int | None,
    every: int,
    flushes: bool,
    random: int,
    seeds: int | None,
    seed: int | None,
    lose: str,
    tear: bool,
    grain: int,
    listing: bool,
    keep: Path | None,
    go_on: bool,
    ok: tuple[int, ...],
    timeout: float,
    jobs: int | None,
    work: Path | None,
    fresh: bool,
    quiet: bool,
) -> int:
    """
    Build what the disk may hold if the power goes at any request of RECORDING, and check it.

    RECORDING is one of `vhostblk serve --record FILE,payload=full`.  For each request and seed an
    image is made: what was flushed is there, of the rest some is, chosen by the seed.  COMMAND is
    told VHOSTBLK_REQUEST and VHOSTBLK_SEED by its environment, and may write to the image.  The
    first bad state ends it; what was lost is said, and how to see it again.

    \b
    Exit status:
      0    all states are good
      3    one is bad
      1    it could not be done
      2    it was asked for in the wrong way
      130  interrupted

    \b
    Examples:
      vhostblk powercut disk.trace --image start.img --check 'e2fsck -fn {}'
      vhostblk powercut disk.trace --flushes --seeds 20 --check './check.py {}'
      vhostblk powercut disk.trace --at 812 --seed 3 --keep bad.img
    """  # noqa: D301 - \b keeps click from joining the lines of the examples
    options.keep_apart(keep, "--keep", recording, image)
    one = at is not None and seed is not None
    plan = Plan(
        at=at or frozenset(),
        first=first,
        last=last,
        every=every,
        flushes=flushes,
        random=random,
        seed=1 if seed is None else seed,
        seeds=seeds or (1 if one else 4),
        losing=Losing(Lose(lose), tear, grain),
    )
    asked = Asked(
        recording=recording,
        image=image,
        size=size,
        segment=segment,
        check=check,
        ok=ok,
        timeout=timeout,
        jobs=jobs or len(os.sched_getaffinity(0)),
        work=work,
        fresh=fresh,
        keep=keep,
        go_on=go_on,
    )
    if listing:
        return _list(asked, plan)
    if check is not None:
        return _sweep(asked, plan, quiet=quiet)
    if keep is None:
        raise click.UsageError("Give --check COMMAND, or --keep FILE, or --list.", context)
    click.echo(f"{keep}: {told(build(asked.subject(), plan, keep))}")
    return Status.DONE


def _list(asked: Asked, plan: Plan) -> int:
    several = len(plan.at) != 1 or plan.seeds > 1
    for state in listed(asked.subject(), plan):
        click.echo(told(state))
        for verdict in () if several else state.cut.verdicts:
            click.echo(f"  {verdict}")
    return Status.DONE


def _sweep(asked: Asked, plan: Plan, *, quiet: bool) -> int:
    checker = Checker(asked.check or "", good=asked.ok, seconds=asked.timeout)
    with _work(asked.work) as directory, _terminated(), ExitStack() as stack:
        sweep = Sweep(asked.subject(), plan, directory, jobs=asked.jobs, fresh=asked.fresh)
        stack.callback(sweep.close)
        with nullcontext() if quiet else shown(sweep.progress):
            interrupted = _interrupted(lambda: sweep.run(checker, go_on=asked.go_on))
    progress = sweep.progress
    bad_ones = progress.failures if asked.go_on else progress.failures[:1]
    for failure in bad_ones:
        report(asked, plan.losing, failure)
    if bad_ones and asked.keep is not None:
        state = bad_ones[0].state
        build(asked.subject(), _only(plan, state), asked.keep)
        click.echo(f"the state is in {asked.keep}")
    bad = f"{len(bad_ones)} bad" if bad_ones else "none is bad"
    at = f"interrupted at request {progress.request}; " if interrupted else ""
    click.echo(f"{at}{progress.checked} states of {progress.numbers.requests} requests, {bad}")
    if interrupted:
        return Status.INTERRUPTED
    return FOUND if bad_ones else Status.DONE


def _interrupted(work: Callable[[], None]) -> bool:
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def _only(plan: Plan, state: State) -> Plan:
    return replace(
        plan, at=frozenset({state.moment.number}), seed=state.cut.seed, seeds=1, random=0
    )


@contextmanager
def _work(directory: Path | None) -> Iterator[Path]:
    """Make a directory for images, and remove it."""
    shm = Path("/dev/shm")  # noqa: S108 - a directory of our own in it
    if directory is None and os.access(shm, os.W_OK):
        directory = shm
    with tempfile.TemporaryDirectory(prefix="vhostblk-powercut-", dir=directory) as made:
        yield Path(made)


@contextmanager
def _terminated() -> Iterator[None]:
    """Have SIGTERM end it as Ctrl-C does: images are large."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
