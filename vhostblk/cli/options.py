"""
Option values that need more than click's own types.

Each parser takes what was typed and returns the value, or raises `click.BadParameter` with what
to type instead; `option` makes a click callback of it.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar, get_args

import click

from vhostblk.disk.file import LockWhen
from vhostblk.disk.grammar import parse, parse_size
from vhostblk.disk.make import recorded
from vhostblk.engine.cpus import parse_cpus
from vhostblk.engine.poll import Poll
from vhostblk.errors import VhostBlkError
from vhostblk.server import takeover
from vhostblk.server.activation import expected
from vhostblk.server.policy import parse_shared_ranges
from vhostblk.server.settings import parse_mode, parse_owner

MAX_QUEUES = 64
MAX_WORKERS = 256
Engine: TypeAlias = Literal["auto", "native", "reference"]
Confidential: TypeAlias = Literal["off", "auto", "require"]
OnViolation: TypeAlias = Literal["warn", "fail", "break"]
Iommu: TypeAlias = Literal["off", "auto", "on"]
OnError: TypeAlias = Literal["report", "stop", "enospc"]
Owner: TypeAlias = tuple[int | None, int | None]
"""User and group by number; None: stays as it is."""

_PLACES = {"socket_path": "--socket-path PATH", "connect": "--connect PATH", "fd": "--fd FDNUM"}

_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., object])


def parsed(
    parse: Callable[[str], _T],
) -> Callable[[click.Context, click.Parameter, str | None], _T | None]:
    """Make a click callback of a parser; an option that was not given stays None."""

    def callback(_context: click.Context, _param: click.Parameter, text: str | None) -> _T | None:
        return None if text is None else parse(text)

    return callback


def reader(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """Make a parser for `parsed` of one that raises `VhostBlkError`."""

    def read(text: str) -> _T:
        try:
            return parse(text)
        except VhostBlkError as error:
            raise click.BadParameter(f"{error}.") from error

    return read


def checker(parse: Callable[[str], object]) -> Callable[[str], str]:
    """Make a parser that makes sure that a text can be read; it goes on as it is."""
    read = reader(parse)

    def check(text: str) -> str:
        read(text)
        return text

    return check


mode = reader(parse_mode)
"""Reads permission bits in octal, as chmod takes them."""
owner = reader(parse_owner)
"""Reads USER, USER:GROUP or :GROUP, by name or number, as chown takes them."""
size = reader(parse_size)
"""Reads bytes, with K, M, G, T, P or E behind them."""
cpus = reader(parse_cpus)
"""Reads a list of CPUs."""
shared_ranges = checker(parse_shared_ranges)
"""Makes sure that shared ranges can be read."""


record = checker(lambda text: recorded(parse("null:512"), text))
"""Makes sure that it can be said where requests are recorded."""


def qemu_size(text: str) -> str:
    """
    Read a size the way QEMU takes it; it goes there as it is.

    Raises:
        click.BadParameter: It is not a whole number with K, M, G or T behind it.
    """
    if not re.fullmatch(r"[1-9][0-9]*[KMGT]", text.upper()):
        raise click.BadParameter(f"{text!r} is not a size; give a whole number and a unit: 512M.")
    return text.upper()


def qemu_id(text: str) -> str:
    """
    Read a name for QEMU's objects.

    Raises:
        click.BadParameter: QEMU would refuse it.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text):
        raise click.BadParameter(
            f"{text!r} is not an id; begin with a letter, go on with letters, digits, '-._'."
        )
    return text


def libvirt_target(text: str) -> str:
    """
    Read a name for libvirt's disk.

    Raises:
        click.BadParameter: A virtio disk cannot have it.
    """
    if not re.fullmatch(r"vd[a-z]+", text):
        raise click.BadParameter(f"{text!r} is not a virtio disk's name; give vda, vdb or so.")
    return text


def switch(name: str, text: str, *, default: bool) -> Callable[[_F], _F]:
    """
    Give a command an option that is ``on`` or ``off``.

    Args:
        name: With ``--``.
        text: Of the help.
        default: Unless somebody says otherwise.
    """
    return click.option(
        name,
        type=click.Choice(["on", "off"]),
        default="on" if default else "off",
        show_default=True,
        callback=parsed(lambda word: word == "on"),
        help=text,
    )


def guest_queues(command: _F) -> _F:
    """Give a command ``--num-queues``, of whoever uses what is served."""
    return click.option(
        "--num-queues",
        type=click.IntRange(1, MAX_QUEUES),
        default=1,
        show_default=True,
        help="Virtqueues; at most what `vhostblk serve --num-queues` says.",
    )(command)


def socket(command: _F) -> _F:
    """Give a command ``--socket-path`` and ``--fd``; see `one_place`."""
    path = click.option(
        "--socket-path",
        metavar="PATH",
        type=click.Path(readable=False, path_type=Path),  # a socket in the way has a better error
        help="Listen here; a socket that a dead process left behind is replaced.",
    )
    fd = click.option(
        "--fd",
        metavar="FDNUM",
        type=click.IntRange(min=0),
        help="Take over this open socket instead, listening or connected.",
    )
    return path(fd(command))


def connect(command: _F) -> _F:
    """Give a command ``--connect``, one more way to say where; see `one_place`."""
    return click.option(
        "--connect",
        metavar="PATH",
        type=click.Path(readable=False, path_type=Path),
        help="Connect to a front-end that listens here (QEMU's server=on), whenever it does.",
    )(command)


def one_place(**said: Path | int | None) -> None:
    """
    Check that a command was told where to serve, once; systemd may have done so.

    Args:
        said: What each option was given, by its name with ``_`` for ``-``; in the help's order.

    Raises:
        click.UsageError: None or several were given.
    """
    given = [value for value in said.values() if value is not None]
    told = expected(os.environ, os.getpid()) or takeover.expected(os.environ)
    if len(given) > 1 or not (given or told):
        *some, last = (_PLACES[name] for name in said)
        raise click.UsageError(
            f"Give {', '.join(some)} or {last}, one of them.", click.get_current_context()
        )


def one_path(*, socket_path: Path | None, connect: Path | None) -> Path:
    """
    Return the one that was given.

    Raises:
        click.UsageError: None or both were.
    """
    path = connect if socket_path is None else socket_path
    if path is None or (socket_path and connect):
        raise click.UsageError(
            "Give --socket-path PATH or --connect PATH, one of them.", click.get_current_context()
        )
    return path


def engine(command: _F) -> _F:
    """Give a command ``--engine``."""
    return click.option(
        "--engine",
        type=click.Choice(get_args(Engine)),
        default="auto",
        show_default=True,
        help="Data plane: native is C, reference is Python, auto is native where it was built.",
    )(command)


def workers(command: _F) -> _F:
    """Give a command ``--workers`` and ``--cpus``; see `vhostblk.serve`."""
    most = click.option(
        "--workers",
        type=click.IntRange(1, MAX_WORKERS),
        metavar="N",
        help="Threads that serve queues at most.  [default: one for each CPU]",
    )
    cpus = click.option(
        "--cpus",
        metavar="LIST",
        default="",
        callback=parsed(checker(parse_cpus)),
        help="CPUs of these threads, one each in this order, like 0-3,8; other threads run on any.",
    )
    return most(cpus(command))


def poll(command: _F) -> _F:
    """Give a command ``--poll``; see `vhostblk.serve`."""
    return click.option(
        "--poll",
        metavar="auto|0|always|Nus",
        default="auto",
        show_default=True,
        callback=parsed(checker(Poll.parse)),
        help="How long a thread looks on for the next request before it sleeps: auto is as long as "
        "it pays, always takes a whole CPU, 50us is 50 microseconds.",
    )(command)


def lock(command: _F) -> _F:
    """Give a command ``--lock``; see `vhostblk.disk.file.LockWhen`."""
    return click.option(
        "--lock",
        type=click.Choice([when.value for when in LockWhen]),
        help="When a file is locked: while-running lets the other end of a migration have it open, "
        "too.  [default: always]",
    )(command)


def on_error(command: _F) -> _F:
    """Give a command ``--on-error``; see `vhostblk.serve`."""
    return click.option(
        "--on-error",
        type=click.Choice(get_args(OnError)),
        default="report",
        show_default=True,
        help="A request that the disk fails: report tells the guest, stop holds it until `vhostblk "
        "ctl resume`, enospc does so for want of space only.  Both want --control.",
    )(command)


_CONFIDENTIAL = (
    switch(
        "--access-platform",
        "Offer VIRTIO_F_ACCESS_PLATFORM, without which no confidential guest starts.",
        default=True,
    ),
    click.option(
        "--iommu",
        type=click.Choice(get_args(Iommu)),
        default="auto",
        show_default=True,
        help="Whether addresses go through the guest's IOMMU; auto goes by where a ring is.",
    ),
    click.option(
        "--on-violation",
        type=click.Choice(get_args(OnViolation)),
        default="fail",
        show_default=True,
        help="With require, a request outside the ranges: warn serves it, break stops its queue.",
    ),
    click.option(
        "--shared-ranges",
        metavar="RANGES",
        default="",
        callback=parsed(shared_ranges),
        help="What the guest shares: START-END, START+SIZE or its dmesg line 'software IO TLB: "
        "mapped [mem ...]', with commas between; slack=SIZE, learn=N, rings=inside, "
        "firmware=inside.",
    ),
    click.option(
        "--confidential",
        type=click.Choice(get_args(Confidential)),
        default="auto",
        show_default=True,
        help="A guest that keeps its memory to itself: auto watches and warns, require serves "
        "requests in --shared-ranges only.",
    ),
)


def confidential(command: _F) -> _F:
    """Give a command what it takes to serve confidential guests; see `vhostblk.serve`."""
    for option in _CONFIDENTIAL:
        command = option(command)
    return command


def verbosity(command: _F) -> _F:
    """Give a command ``-v`` and ``-q``, which it gets as *verbose* and *quiet*."""
    verbose = click.option(
        "-v",
        "--verbose",
        count=True,
        help="Log every protocol message by name; -vv: everything.",
    )
    quiet = click.option("-q", "--quiet", is_flag=True, help="Log warnings and errors only.")
    return quiet(verbose(command))


def keep_apart(output: Path | None, option: str, *inputs: Path | None) -> None:
    """
    See that what is written is none of the files that are read for it: it would be lost.

    Raises:
        click.BadParameter: It is one.
    """
    for one in inputs:
        if output is None or one is None or not (output.exists() and one.exists()):
            continue
        if output.samefile(one):
            raise click.BadParameter(
                f"{output} is what it is made of: name another file.", param_hint=f"'{option}'"
            )
