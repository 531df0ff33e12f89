"""
``vhostblk demo``: the whole way once, told step by step.

The server is ``vhostblk serve`` as anybody would start it, in a process of its own.
"""

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO

import click

from vhostblk.cli import fake_demo, guest_demo, options, report
from vhostblk.cli.guest_vm import Tools, find_tools
from vhostblk.cli.seconds import timeout_option
from vhostblk.errors import VhostBlkError

IMAGE_SIZE = 256 << 20
SERIAL = "vhostblk-demo"
_START_TIMEOUT_S = 20.0
_STOP_TIMEOUT_S = 20.0
_ENDS = (signal.SIGTERM, signal.SIGHUP)
_EXT4_MAGIC_OFFSET = 1024 + 56
_EXT4_MAGIC = b"\x53\xef"

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """
    What to show.

    Args:
        tools: What the real guest is made of; None: the fake one.
        num_queues: Virtqueues.
        engine: As in ``vhostblk serve``.
        timeout_s: How long the guest may take.
    """

    tools: Tools | None
    num_queues: int
    engine: str
    timeout_s: float


def show(demo: Demo, directory: Path, tell: Tell) -> None:
    """
    Serve an image, let a guest use it, look at what is in the image then.

    Args:
        demo: What to show.
        directory: For the image and the socket; its path must be short.
        tell: Told one line per step, as it happens.

    Raises:
        VhostBlkError: Something did not work.
    """
    image, socket_path = directory / "disk.img", directory / "vm0.sock"
    with image.open("wb") as file:
        file.truncate(IMAGE_SIZE)
    with served(demo, image, socket_path, tell):
        expected = _drive(demo, socket_path, tell)
    offset, data = expected
    with image.open("rb") as file:
        file.seek(offset)
        if file.read(len(data)) != data:
            raise VhostBlkError(f"{image} does not hold what the guest wrote at byte {offset}")
    allocated = image.stat().st_blocks * 512 >> 20
    tell(f"host     the image holds what the guest wrote; {allocated} MiB of it are allocated")


def _drive(demo: Demo, socket_path: Path, tell: Tell) -> tuple[int, bytes]:
    """Let the guest run; return an offset and what the image must hold there."""
    queues, timeout_s = demo.num_queues, demo.timeout_s
    if demo.tools is None:
        return 0, fake_demo.run(socket_path, queues=queues, timeout_s=timeout_s, tell=tell)
    guest_demo.run(demo.tools, socket_path, queues=queues, timeout_s=timeout_s, tell=tell)
    return _EXT4_MAGIC_OFFSET, _EXT4_MAGIC


@contextmanager
def served(demo: Demo, image: Path, socket_path: Path, tell: Tell) -> Iterator[None]:
    """
    Run ``vhostblk serve`` around something, and stop it by SIGTERM.

    Raises:
        VhostBlkError: It did not start, or did not end with status 0.
    """
    words = ["serve", "--socket-path", str(socket_path), "--serial", SERIAL]
    words += ["--num-queues", str(demo.num_queues), "--engine", demo.engine, str(image)]
    tell(f"server   $ {shlex.join(['vhostblk', *words])}")
    command = [sys.executable, "-m", "vhostblk", *words]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        ready: SimpleQueue[bool] = SimpleQueue()
        relay = threading.Thread(target=_relay, args=(process.stderr, tell, ready))
        relay.start()
        try:
            _wait_until_ready(process, ready)
            yield
            process.send_signal(signal.SIGTERM)
            status = process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise VhostBlkError("the server did not end on SIGTERM") from None
        finally:
            process.kill()
            relay.join()
    if status:
        raise VhostBlkError(f"the server ended with status {status}; its own words are above")
    tell("server   ended on SIGTERM with status 0")


def _relay(lines: IO[str] | None, tell: Tell, ready: "SimpleQueue[bool]") -> None:
    """Tell what the server logs; put True when it is ready, False when it has ended."""
    for line in lines or ():
        with suppress(BrokenPipeError):  # nobody reads on; the server's pipe must not fill up
            tell(f"server   {_brief(line.rstrip())}")
        if line.rstrip().endswith(report.READY):
            ready.put(item=True)
    ready.put(item=False)


def _brief(line: str) -> str:
    """Leave the status document out, which the end of a start logs: it is for programs."""
    text, status, _ = line.partition(" status: {")
    return f"{text} status: {{…}}, see docs/reference/status.md" if status else line


def _wait_until_ready(process: subprocess.Popen[str], ready: "SimpleQueue[bool]") -> None:
    try:
        is_ready = ready.get(timeout=_START_TIMEOUT_S)
    except Empty:
        raise VhostBlkError("the server does not get ready") from None
    if not is_ready:
        status = process.wait(_STOP_TIMEOUT_S)
        raise VhostBlkError(f"the server ended with status {status}; its own words are above")


@contextmanager
def interrupted_by(*numbers: signal.Signals) -> Iterator[None]:
    """Make signals that end a process at once like Ctrl-C: no server, no guest stays behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = [(number, signal.signal(number, interrupt)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def choose_guest(choice: str, tell: Tell) -> Tools | None:
    """
    Decide who is the guest, and say it.

    Args:
        choice: "auto", "qemu" or "fake".
        tell: Told the choice and its reason.

    Returns:
        What a real guest is made of; None: the fake one.

    Raises:
        VhostBlkError: QEMU was asked for and cannot be used.
    """
    if choice == "fake":
        tell("guest    is the built-in fake guest, as asked for")
        return None
    try:
        tools = find_tools(os.environ)
    except VhostBlkError as error:
        if choice == "qemu":
            raise
        tell(f"guest    is the built-in fake guest, not a real one: {error}")
        return None
    tell(f"guest    is a real one: Linux in QEMU ({tools.qemu})")
    return tools


@click.command("demo", short_help="Serve a disk to a guest and verify it.")
@click.option(
    "--guest",
    type=click.Choice(["auto", "qemu", "fake"]),
    default="auto",
    show_default=True,
    help="auto is a real guest where QEMU and a kernel are found.",
)
@click.option(
    "--num-queues",
    type=click.IntRange(1, options.MAX_QUEUES),
    default=2,
    show_default=True,
    help="Virtqueues, and the guest's CPUs.",
)
@options.engine
@timeout_option(120.0, "How long the guest may take.")
def demo(*, guest: str, num_queues: int, engine: str, timeout: float) -> None:
    """
    Serve an image file, let a guest use it, and say what happened.

    A real guest formats the disk, mounts it, writes files, drops its caches,
    reads the files back and compares. Where QEMU or a kernel is missing, the
    built-in fake guest does what it can instead. `make demo` in the source tree
    sets up everything for the real one.

    \b
    Examples:
      vhostblk demo
      vhostblk demo --guest fake --engine reference

    \b
    Where the real guest's parts are, unless in their usual places:
      VHOSTBLK_QEMU     qemu-system-x86_64
      VHOSTBLK_KERNEL   a kernel image
      VHOSTBLK_MODULES  its modules, like /lib/modules/RELEASE
      VHOSTBLK_BUSYBOX  a statically linked busybox
    """  # noqa: D301 - \b keeps click from joining lines
    begun = time.monotonic()
    tools = choose_guest(guest, click.echo)
    plan = Demo(tools=tools, num_queues=num_queues, engine=engine, timeout_s=timeout)
    with interrupted_by(*_ENDS), tempfile.TemporaryDirectory(prefix="vhostblk-") as directory:
        show(plan, Path(directory), click.echo)
    click.echo(f"done     in {time.monotonic() - begun:.1f} s: all of it worked")
