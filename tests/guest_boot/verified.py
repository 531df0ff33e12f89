"""
A guest that writes under load and knows what every block must be: `verifier.c`, built and judged.

The host ends the load through the disk itself, by what it writes into block 0 of the image, and
afterwards finds in the image the very numbers the guest believes to have written.
"""

import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

import pytest

from guest_boot import old_tools, tools
from vhostblk.cli.guest_vm import Machine, Tools, Vm

MIB = 1 << 20
BLOCK = 4096
BLOCKS = 8192
DISK_SIZE = BLOCKS * BLOCK
THREADS = 8
BEAT_TIMEOUT_S = 60.0
SOURCE = Path(__file__).with_name("verifier.c")
_COMPILER = ("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")
_U64 = (1 << 64) - 1
_MAGIC = 0x7665726966796D65
_HEAD = struct.Struct("<QQQ")


class More(TypedDict, total=False):
    """Fields of a `Machine` that a test may want otherwise."""

    arguments: tuple[str, ...]
    reboots: bool


def build(directory: Path) -> Path:
    """Compile the verifier, linked statically; skips the test where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed (Debian: gcc, libc6-dev)")
    program = directory / "verifier"
    subprocess.run([*_COMPILER, "-o", program, SOURCE], check=True)
    return program


def script(*, seed: int = 1, device: str = "/dev/vda") -> str:
    """Return what the guest runs until the host says `stop`."""
    return f"/sbin/verifier {device} {BLOCKS} {THREADS} {seed}\n"


def image_in(directory: Path) -> Path:
    """Make an empty image of the size the verifier expects."""
    image = directory / "image"
    with image.open("wb") as file:
        file.truncate(DISK_SIZE)
    return image


def stop(image: Path) -> None:
    """End the load: a word in the host's block of the image, which the guest reads by its disk."""
    with image.open("r+b") as file:
        file.write(b"stop".ljust(BLOCK, b"\0"))


def wait_for_beats(vm: Vm, n: int = 2) -> int:
    """
    Wait until requests are done again, *n* times in a row.

    A beat may have been said before we looked, so the first that counts is behind all that came.

    Returns:
        The longest a request took since the first of them, in microseconds.
    """
    longest = 0
    for _ in range(n):
        before = operations(vm)
        while True:
            vm.wait_for("beat", BEAT_TIMEOUT_S)
            done, took = beats(vm)[-1]
            longest = max(longest, took)
            if done > before:
                break
    return longest


def beats(vm: Vm) -> list[tuple[int, int]]:
    """
    Return what the guest's beats have said so far: operations, and the longest of them.

    A line that QEMU has put its own into tells nothing.
    """
    said = (value.split() for name, value in vm.said() if name == "beat")
    return [(0, 0)] + [
        (int(done), int(took))
        for done, took in (words for words in said if len(words) == 2)
        if done.isdecimal() and took.isdecimal()
    ]


def operations(vm: Vm) -> int:
    """Return how many requests the guest has done, as far as it was read."""
    return beats(vm)[-1][0]


def end(vm: Vm, image: Path, timeout_s: float = 120.0) -> None:
    """Stop the load, and find in the image what the guest found on its disk."""
    stop(image)
    said = vm.wait(timeout_s)
    assert "bad" not in said, said["bad"]
    assert said["table"] == digest(image)


def check_ring(log: str, ring: str) -> None:
    """Find in the server's log that the guest's rings were of the format that was asked for."""
    assert ("VIRTIO_F_RING_PACKED" in log) == (ring == "packed=on")


def digest(image: Path) -> str:
    """Return what the verifier prints as its table, from the image alone."""
    value = 0
    for number in numbers(image):
        value = _mix(value ^ number)
    return f"{value:016x}"


def numbers(image: Path) -> Iterator[int]:
    """Yield the number of each block but the host's; 0 where nothing was written."""
    data = image.read_bytes()
    for block in range(1, BLOCKS):
        magic, place, number = _HEAD.unpack_from(data, block * BLOCK)
        if magic:
            assert (magic, place) == (_MAGIC, block)
        yield number


def _mix(x: int) -> int:
    x ^= x >> 33
    x = x * 0xFF51AFD7ED558CCD & _U64
    x ^= x >> 33
    x = x * 0xC4CEB9FE1A85EC53 & _U64
    return x ^ x >> 33


@dataclass(frozen=True, slots=True)
class Qemu:
    """
    Which QEMU, and how its sockets are told to connect again.

    Args:
        tools: Finds it, or skips the test.
        reconnect: The character device's option.
    """

    tools: Callable[[], Tools]
    reconnect: str


NEW = Qemu(tools, "reconnect-ms=100")
OLD = Qemu(old_tools, "reconnect=1")
QEMUS = (
    pytest.param(NEW, id="qemu"),
    pytest.param(OLD, id="old-qemu", marks=pytest.mark.slow),
)
RINGS = ("packed=off", "packed=on")


class Maker:
    """
    Makes guests with the verifier in them, whose disk tries again when its server was gone.

    Args:
        qemu: Which.
        directory: For the verifier.
        queues: Of the disk.
        device_options: More of the device's properties.
    """

    def __init__(self, qemu: Qemu, directory: Path, *device_options: str, queues: int = 2) -> None:
        self.queues = queues
        self._tools = qemu.tools()
        self._machine = Machine(
            directory,
            queues=queues,
            chardev_options=(qemu.reconnect,),
            device_options=device_options,
            programs=(build(directory),),
        )

    def vm(
        self, socket: Path, directory: Path, *, text: str | None = None, **more: Unpack[More]
    ) -> Vm:
        """
        Return a guest, not yet started.

        Args:
            socket: Where its server listens.
            directory: For its files.
            text: What it runs; None: the verifier.
            more: Other fields of its `Machine`.
        """
        machine = replace(self._machine, socket_path=socket, **more)
        return Vm(self._tools, machine, script() if text is None else text, directory)


def pause(seconds: float) -> None:
    """Let a guest go on for a while."""
    time.sleep(seconds)
