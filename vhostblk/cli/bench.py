"""``vhostblk bench``: put a load on any vhost-user-blk back-end, and say what it did."""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol, get_args

import click

from vhostblk.cli import bench_shown, options, progress
from vhostblk.cli.report import Status
from vhostblk.cli.seconds import Seconds, timeout_option
from vhostblk.errors import VhostBlkError
from vhostblk.guest import GuestError
from vhostblk.guest.load import Load, Op, Order, Wait

MAX_DEPTH = 1 << 15
DEFAULT_WARM_UP = 0.1
"""Of the time that is measured."""


class Run(Protocol):
    """What `vhostblk.guest.load_run.LoadRun` is, without importing what may not be built."""

    def stop(self, *, at_once: bool = False) -> None:
        """End it."""


def put(socket: Path, load: Load, tell: Callable[[str], None]) -> bench_shown.Document:
    """
    Put a load on a back-end.

    Args:
        socket: Where it listens.
        load: What to do.
        tell: Told a line every second.

    Returns:
        What came of it.

    Raises:
        VhostBlkError: It cannot be done, or the back-end did wrong.
    """
    try:
        # By name: where there was no compiler the module's own import fails.
        module = importlib.import_module("vhostblk.guest.load_run")
    except ImportError as error:
        raise VhostBlkError(
            f"this installation has no compiled load generator ({error}): install a wheel, or "
            "build with a C compiler and liburing-dev"
        ) from error
    try:
        with module.LoadRun.connect(socket, load) as run, _interruptible(run):
            report = run.run(lambda progress: tell(bench_shown.progress(progress)))
    except GuestError as error:
        raise VhostBlkError(str(error)) from error
    return bench_shown.document(report)


@contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """Have SIGINT end a run early, and a second one at once."""
    signals = 0

    def interrupt(*_: object) -> None:
        nonlocal signals
        signals += 1
        run.stop(at_once=signals > 1)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@click.command("bench", short_help="Put a load on any vhost-user-blk back-end.")
@click.argument("socket", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--op",
    type=click.Choice(get_args(Op)),
    default="read",
    show_default=True,
    help="What requests do; rw is both.  What writes wants --destroy-data.",
)
@click.option(
    "--mix",
    type=click.IntRange(0, 100),
    default=70,
    show_default=True,
    metavar="PERCENT",
    help="Of rw, how many of the requests read.",
)
@click.option(
    "--bytes",
    "block",
    default="4K",
    show_default=True,
    metavar="SIZE",
    callback=options.parsed(options.size),
    help="Of a request.",
)
@click.option(
    "--depth",
    type=click.IntRange(1, MAX_DEPTH),
    default=32,
    show_default=True,
    help="Requests in flight on each queue.",
)
@click.option(
    "--queues",
    type=click.IntRange(1, options.MAX_QUEUES),
    default=1,
    show_default=True,
    help="Virtqueues; each has a thread, and a part of the disk.",
)
@click.option(
    "--seconds",
    type=Seconds(),
    default=5.0,
    show_default=True,
    help="How long to measure.",
)
@click.option(
    "--warm-up",
    type=Seconds(zero=True),
    metavar="SECONDS",
    help="Before that, not counted.  [default: a tenth of it]",
)
@click.option(
    "--order",
    type=click.Choice(get_args(Order)),
    default="rand",
    show_default=True,
    help="Blocks at random, or one behind the other.",
)
@click.option(
    "--wait",
    type=click.Choice(get_args(Wait)),
    default="block",
    show_default=True,
    help="How answers are waited for: block sleeps until it is called, as guests do; poll looks at "
    "the ring and takes a whole CPU.",
)
@click.option("--packed", is_flag=True, help="Packed rings.  [default: split]")
@click.option(
    "--event-idx/--no-event-idx",
    default=True,
    show_default=True,
    help="Notifications by index, where the back-end has them.",
)
@click.option(
    "--indirect/--no-indirect",
    default=True,
    show_default=True,
    help="Indirect descriptors, where the back-end has them.",
)
@click.option(
    "--queue-size",
    type=click.IntRange(1, MAX_DEPTH),
    metavar="DESCRIPTORS",
    help="Of each queue.  [default: 256, or what --depth needs]",
)
@click.option(
    "--size",
    metavar="SIZE",
    callback=options.parsed(options.size),
    help="Use no more than the first SIZE bytes of the disk.  [default: all]",
)
@click.option(
    "--seed",
    type=click.IntRange(1, (1 << 63) - 1),
    default=1,
    show_default=True,
    help="Of the random order; the same one gives the same order.",
)
@click.option(
    "--cpus",
    "where",
    default="",
    metavar="LIST",
    callback=options.parsed(options.cpus),
    help="CPUs for the queues' threads, in turn: 1 or 0,2-3.  [default: any]",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Write all blocks first, check all that is read, read all blocks in the end.",
)
@click.option(
    "--destroy-data",
    is_flag=True,
    help="Yes, what is on the disk may be overwritten: --op write, --op rw, --verify.",
)
@timeout_option(10.0, "How long the back-end may be silent with requests in flight.")
@click.option(
    "--json",
    "file",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=str),
    metavar="FILE",
    help="Write the figures there as JSON, too; -: to stdout, in place of the table.",
)
@click.option("--requests", type=click.IntRange(min=1), hidden=True)
@click.pass_context
def bench(
    context: click.Context,
    *,
    socket: Path,
    op: Op,
    mix: int,
    block: int,
    depth: int,
    queues: int,
    seconds: float,
    warm_up: float | None,
    order: Order,
    wait: Wait,
    packed: bool,
    event_idx: bool,
    indirect: bool,
    queue_size: int | None,
    size: int | None,
    seed: int,
    where: tuple[int, ...],
    verify: bool,
    destroy_data: bool,
    timeout: float,
    file: str | None,
    requests: int | None,
) -> int:
    """
    Put a load on the vhost-user-blk back-end that listens at SOCKET.

    Any back-end will do: this one, qemu-storage-daemon, SPDK.  It is the only front-end while this
    runs, so no guest may use the disk.  SIGINT (Ctrl-C) ends it early, with what was measured.

    \b
    Examples:
      vhostblk bench /run/vm0.sock
      vhostblk bench /run/vm0.sock --packed --depth 1 --wait poll
      vhostblk bench /run/vm0.sock --op rw --verify --size 1G --destroy-data
    """  # noqa: D301 - \b keeps click from joining the lines of the examples
    load = Load(
        op=op,
        mix=mix,
        bytes=block,
        depth=depth,
        queues=queues,
        seconds=seconds,
        warm_up=seconds * DEFAULT_WARM_UP if warm_up is None else warm_up,
        requests=requests,
        order=order,
        wait=wait,
        packed=packed,
        event_idx=event_idx,
        indirect=indirect,
        queue_size=queue_size,
        size=size,
        seed=seed,
        cpus=where,
        verify=verify,
        tag=int.from_bytes(os.urandom(4)),
        timeout=timeout,
    )
    if load.writes and not destroy_data:
        what = "--verify" if op == "read" else f"--op {op}"
        raise click.UsageError(
            f"{what} overwrites what is on the disk: add --destroy-data if that may be lost.",
            context,
        )
    terminal = sys.stderr.isatty()
    with progress.one_line() if terminal else nullcontext(lambda _line: None) as tell:
        document = put(socket, load, tell)
    if file is not None:
        _write(file, json.dumps(document, indent=2) + "\n")
    if file != "-":
        click.echo(bench_shown.table(document))
    return _outcome(document)


def _write(file: str, text: str) -> None:
    with click.open_file(file, "w", encoding="utf-8") as stream:
        stream.write(text)


def _outcome(document: bench_shown.Document) -> Status:
    failed = sum(document["failed"].values())
    if failed:
        raise VhostBlkError(f"{failed} requests failed")
    return Status.INTERRUPTED if document["interrupted"] else Status.DONE
