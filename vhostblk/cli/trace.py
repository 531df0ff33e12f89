"""``vhostblk trace``: look at a recording, do it again, draw it, write it as other tools do."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import click

from vhostblk.cli import options, trace_target
from vhostblk.cli.report import Status
from vhostblk.cli.seconds import timeout_option
from vhostblk.disk.grammar import parse_time
from vhostblk.errors import VhostBlkError
from vhostblk.trace import export as exports
from vhostblk.trace import lines
from vhostblk.trace.format import Op, Payload
from vhostblk.trace.plot import plot as draw
from vhostblk.trace.reader import Request, Segment, choose, read
from vhostblk.trace.summary import summary

_OPS = {name: op for op, name in lines.NAMES.items()}
_F = TypeVar("_F", bound=Callable[..., object])


def _recording(command: _F) -> _F:
    """Give a command the two arguments that name a segment."""
    number = click.option(
        "--segment",
        type=click.IntRange(min=1),
        metavar="N",
        help="Which session of a recording that has several.",
    )
    name = click.argument("recording", type=click.Path(exists=True, dir_okay=False, path_type=Path))
    return name(number(command))


def _chosen(recording: Path, segment: int | None) -> Segment:
    """Return a segment; say what is wrong with the recording, as that is missing here."""
    damage = read(recording).damage
    if damage is not None:
        click.echo(f"{recording}: {damage}", err=True)
    return choose(recording, segment)


@click.group("trace", short_help="Look at a recording, do it again, draw it, export it.")
def trace() -> None:
    """
    Work with what `vhostblk serve --record FILE` has recorded.

    \b
    Examples:
      vhostblk trace show vm0.trace
      vhostblk trace replay vm0.trace --disk 'delay:read=2ms|memory:1G' --speed 1
      vhostblk trace export vm0.trace --to fio --name /dev/sdx -o vm0.iolog
      vhostblk trace plot vm0.trace vm0.png
    """  # noqa: D301 - \b keeps click from joining the lines of the examples


# ---- show ---------------------------------------------------------------------------------------


@trace.command(short_help="Say what a recording has.")
@_recording
@click.option("--requests", is_flag=True, help="A line for each request, not a summary.")
@click.option("--op", "ops", type=click.Choice(list(_OPS)), multiple=True, help="Of these only.")
@click.option("--queue", type=click.IntRange(min=0), help="Of this queue only.")
@click.option("--errors", is_flag=True, help="Those only that failed, or are not over.")
@click.option("--slow", metavar="TIME", help="Those only that took so long and longer: 10ms.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, an object a line.")
def show(
    recording: Path,
    *,
    segment: int | None,
    requests: bool,
    ops: tuple[str, ...],
    queue: int | None,
    errors: bool,
    slow: str | None,
    as_json: bool,
) -> None:
    """Say what RECORDING has: its sessions, and requests by kind; or one by one."""
    least = 0 if slow is None else parse_time(slow, "--slow")
    wanted = {_OPS[name] for name in ops} or set(Op)

    def is_wanted(one: Request) -> bool:
        failed = one.completed is None or bool(one.completed.error)
        return (
            one.submitted.op in wanted
            and (queue is None or one.submitted.queue == queue)
            and (failed or not errors)
            and (not least or (one.latency or 0) >= least)
        )

    found = read(recording)
    if found.damage is not None:
        click.echo(f"{recording}: {found.damage}", err=True)
    chosen = found.segments if segment is None else (choose(recording, segment),)
    for number, one in enumerate(chosen, segment or 1):
        if requests:
            for request in filter(is_wanted, one.requests()):
                click.echo(_as_json(request) if as_json else _line(one, request))
        else:
            _summarize(number, one, is_wanted, as_json=as_json)


def _line(segment: Segment, request: Request) -> str:
    return lines.line(request.submitted, request.completed, started=segment.header.started)


def _as_json(request: Request) -> str:
    submitted, completed = request.submitted, request.completed
    return json.dumps(
        {
            "seq": submitted.seq,
            "time_ns": submitted.time,
            "queue": submitted.queue,
            "op": lines.NAMES[submitted.op],
            "offset": submitted.offset,
            "length": submitted.length,
            "fua": submitted.fua,
            "unmap": submitted.unmap,
            "over_seq": None if completed is None else completed.seq,
            "latency_ns": request.latency,
            "error": None if completed is None else completed.error,
        }
    )


def _summarize(
    number: int, segment: Segment, is_wanted: Callable[[Request], bool], *, as_json: bool
) -> None:
    found = summary(filter(is_wanted, segment.requests()))
    header = segment.header
    if as_json:
        about = {
            "segment": number,
            "started_ns": header.started,
            "size": header.size,
            "payload": header.payload.value,
            "ended": segment.ended,
            "lost_words": segment.lost,
            "queues": found.queues,
            "seconds": found.end / 1e9,
            "requests": found.rows(),
        }
        click.echo(json.dumps(about))
        return
    end = "" if segment.ended else ", not ended in order"
    lost = f", {segment.lost * 8} bytes of it lost" if segment.lost else ""
    click.echo(
        f"session {number}: {lines.moment(header.started)}, {header.size} bytes, "
        f"payload={header.payload}, {found.end / 1e9:.3f} s, queues: {found.queues}{end}{lost}"
    )
    click.echo(
        f"  {'':12} {'requests':>10} {'bytes':>14} {'errors':>7} {'p50':>9} {'p99':>9} {'max':>9}"
    )
    for op, kind in sorted(found.kinds.items()):
        times = [kind.latency(share) for share in (50, 99, 100)]
        shown = ["-" if one is None else lines.duration(one) for one in times]
        click.echo(
            f"  {lines.NAMES[op]:12} {kind.requests:>10} {kind.bytes:>14} {kind.errors:>7} "
            + " ".join(f"{one:>9}" for one in shown)
            + (f"  {kind.unfinished} not over" if kind.unfinished else "")
        )


# ---- export -------------------------------------------------------------------------------------


@trace.command(short_help="Write a recording as fio or blkparse do.")
@_recording
@click.option(
    "--to",
    "form",
    type=click.Choice(["fio", "blktrace"]),
    required=True,
    help="fio: an iolog of version 3; blktrace: text as blkparse prints it.",
)
@click.option(
    "--name",
    default="disk",
    show_default=True,
    metavar="FILE",
    help="Of the file or device that fio is to use.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write there.  [default: standard output]",
)
def export(
    recording: Path, *, segment: int | None, form: str, name: str, output: Path | None
) -> None:
    """Write RECORDING as other tools write and read it."""
    if not name or any(letter.isspace() for letter in name):
        raise VhostBlkError(f"--name {name!r}: an iolog has no blanks in names: write another")
    options.keep_apart(output, "--output", recording)
    chosen = _chosen(recording, segment)
    out = exports.fio(chosen, name) if form == "fio" else exports.blktrace(chosen)
    with contextlib.ExitStack() as stack:
        to = sys.stdout if output is None else stack.enter_context(output.open("w"))
        to.writelines(f"{line}\n" for line in out)


# ---- plot ---------------------------------------------------------------------------------------


@trace.command(short_help="Draw a recording.")
@_recording
@click.argument("picture", type=click.Path(dir_okay=False, path_type=Path))
def plot(recording: Path, picture: Path, *, segment: int | None) -> None:
    """
    Draw RECORDING as PICTURE, a .png or .svg.

    Where requests went over time, how long they took, and how large they were.  Drawn by
    matplotlib: `pip install vhostblk[plot]`.
    """
    options.keep_apart(picture, "PICTURE", recording)
    requests = list(_chosen(recording, segment).requests())
    if not requests:
        raise VhostBlkError(f"{recording} has no requests: there is nothing to draw")
    draw(requests, picture, recording.name)
    click.echo(f"{picture}: {len(requests)} requests")


# ---- replay -------------------------------------------------------------------------------------


@trace.command(short_help="Do again what a recording says, on a disk or a socket.")
@_recording
@click.option(
    "--disk", metavar="DISK", help="Serve this disk, as for `vhostblk serve`, and use it."
)
@click.option(
    "--socket-path",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Use the back-end that listens there, whosever it is.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="FACTOR",
    help="1: at the times that were recorded; 2: twice as fast.  [default: as fast as it goes]",
)
@click.option("--packed", is_flag=True, help="By packed rings.")
@click.option(
    "--compare/--no-compare",
    default=None,
    help="Whether reads bring what they brought then.  [default: if all of it was recorded]",
)
@timeout_option(30.0, "Of one request.")
def replay(
    recording: Path,
    *,
    segment: int | None,
    disk: str | None,
    socket_path: Path | None,
    speed: float,
    packed: bool,
    compare: bool | None,
    timeout: float,
) -> int:
    """
    Do again what RECORDING says: ALL IT WRITES IS WRITTEN to the disk that is named.

    A request is made when those are over that were over when it was recorded, on as many queues as
    there were, if the device has them.  What was not recorded of writes is made up.

    Exit status 1: requests failed that had not failed then, or reads brought other bytes.
    """
    if (disk is None) == (socket_path is None):
        raise click.UsageError("Give one of --disk and --socket-path.")
    chosen = _chosen(recording, segment)
    requests = sorted(chosen.requests(), key=lambda one: one.submitted.seq)
    if not requests:
        raise VhostBlkError(f"{recording} has no requests")
    full = chosen.header.payload is Payload.FULL
    job = trace_target.Job(
        requests=requests,
        size=chosen.header.size,
        speed=speed,
        packed=packed,
        compare=full if compare is None else compare,
        timeout=timeout,
    )
    with _target(disk, socket_path) as path:
        done = job.run(path)
    rate = done.requests / done.seconds if done.seconds else 0
    click.echo(f"{done.requests} requests in {done.seconds:.3f} s, {rate:.0f}/s")
    click.echo(f"{done.errors} failed that had not then")
    if job.compare:
        click.echo(f"{done.compared} reads compared, {done.differ} differ")
    if speed:
        click.echo(f"{done.late} were late")
    return Status.FAILED if done.errors or done.differ else Status.DONE


@contextlib.contextmanager
def _target(disk: str | None, socket_path: Path | None) -> Iterator[Path]:
    if socket_path is not None:
        yield socket_path
    else:
        with trace_target.served(str(disk)) as path:
            yield path
