"""
A real Linux guest under QEMU, on a vhost-user-blk socket.

The demonstration and the tests boot the same guest: a distribution's kernel, an initramfs made
on the spot (:mod:`vhostblk.cli.initramfs`) and one script in it.  What the script says on the
console as ``@@ NAME VALUE`` is the result.  Emulation only: it runs wherever QEMU does, and a
kernel of this size boots in two seconds.
"""

import os
import re
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from vhostblk.cli import initramfs, qemu_args, qmp
from vhostblk.errors import VhostBlkError

VIRTIO_MODULES = ("virtio_pci", "virtio_blk", "ext4")
PROGRAMS = ("mke2fs", "e2fsck", "blkdiscard", "fallocate")
# Without the ciphers' tests of themselves: half a second of an emulated CPU.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 mitigations=off cryptomgr.notests=1"
_CHUNK = 65536
_TERMINAL = re.compile(r"\x1b(c|\[[0-9;?]*[A-Za-z])")
_MARK = re.compile(r"@@ (\S+) ?(.*)")


class GuestError(VhostBlkError):
    """The guest did not do what it was started for; carries the end of its console."""


@dataclass(frozen=True, slots=True)
class Tools:
    """
    What a guest is made of.

    Args:
        qemu: qemu-system-x86_64.
        kernel: A bzImage.
        modules: The kernel's module directory, /lib/modules/RELEASE.
        busybox: A statically linked busybox.
    """

    qemu: Path
    kernel: Path
    modules: Path
    busybox: Path


def find_tools(environ: Mapping[str, str]) -> Tools:
    """
    Find QEMU, a kernel and busybox.

    Args:
        environ: VHOSTBLK_QEMU, VHOSTBLK_KERNEL, VHOSTBLK_MODULES and VHOSTBLK_BUSYBOX say where;
            without them, QEMU and busybox are looked for in PATH, and the kernel is the one that
            runs here, with its modules.

    Raises:
        VhostBlkError: One is missing; the text names it and its variable.
    """
    release = os.uname().release
    guesses = {
        "QEMU": shutil.which("qemu-system-x86_64") or "qemu-system-x86_64",
        "KERNEL": f"/boot/vmlinuz-{release}",
        "MODULES": f"/lib/modules/{release}",
        "BUSYBOX": shutil.which("busybox") or "busybox",
    }
    found = {}
    for name, guess in guesses.items():
        path = Path(environ.get(f"VHOSTBLK_{name}") or guess)
        if not path.exists():
            raise VhostBlkError(f"no {path} for the guest: set VHOSTBLK_{name}")
        found[name.lower()] = path
    return Tools(**found)


def make_initramfs(
    tools: Tools, script: str, modules: Sequence[str] = (), programs: Sequence[Path] = ()
) -> bytes:
    """
    Make a guest's user space that runs *script* on /dev/vda and powers off.

    Args:
        tools: Where the kernel's modules and busybox are.
        script: Shell (busybox), run with -e and -u.  ``say NAME VALUE`` reports.  mke2fs, e2fsck,
            blkdiscard and fallocate are in /sbin: busybox prefers its own applets to PATH.
        modules: Kernel modules that are loaded before the disk's.
        programs: More programs for /sbin.

    Raises:
        VhostBlkError: The kernel has no such module, or a program is missing.
    """
    return initramfs.build(
        busybox=tools.busybox,
        modules=tools.modules,
        wanted=(*modules, *VIRTIO_MODULES),
        programs=(*PROGRAMS, *map(str, programs)),
        script=script,
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """
    A guest to boot.

    Args:
        socket_path: Where the back-end listens, or QEMU does.
        queues: Virtqueues, and as many CPUs (Linux uses a queue per CPU).
        memory_mib: The guest's memory; None: *arguments* set it up, and name the machine.
        chardev_options: More of the socket's properties: "reconnect-ms=100".
        device_options: More of the device's properties: "serial=x" is the back-end's business,
            "packed=on" is QEMU's.
        arguments: More of QEMU's arguments.
        platform: Arguments in front of the disk: what it stands behind, an IOMMU.
        kernel_options: More of the kernel's command line.
        modules: Kernel modules that are loaded before the disk's.
        programs: More programs of the guest's, in its /sbin.
        reboots: A reset boots again; otherwise it ends QEMU.
    """

    socket_path: Path
    queues: int = 1
    memory_mib: int | None = 256
    chardev_options: tuple[str, ...] = ()
    device_options: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    platform: tuple[str, ...] = ()
    kernel_options: str = ""
    modules: tuple[str, ...] = ()
    programs: tuple[Path, ...] = ()
    reboots: bool = False
    listens: bool = False
    """QEMU listens, and waits for the back-end before it boots."""


def qemu_command(tools: Tools, machine: Machine, initrd: Path, monitor: Path) -> list[str]:
    """
    Say how QEMU is started.

    Args:
        tools: QEMU and the kernel.
        machine: The guest.
        initrd: The initramfs as a file.
        monitor: Where QEMU listens for QMP.

    Returns:
        The command and its arguments; the guest's console is its standard output.
    """
    disk = qemu_args.Attachment(
        socket_path=machine.socket_path,
        num_queues=machine.queues,
        memory=None if machine.memory_mib is None else f"{machine.memory_mib}M",
        machine="q35",
        id="disk",
        chardev_options=machine.chardev_options,
        device_options=machine.device_options,
        listens=machine.listens,
    )
    # One thread for all CPUs: with one each, QEMU 10.0 aborted once in 100 boots while Linux set up
    # PCI (msix_table_mmio_write, at an offset no access of a guest has), and CPUs that wait for
    # each other burn what a busy host has left.
    return [
        *(str(tools.qemu), "-accel", "tcg,thread=single", "-cpu", "max"),
        *("-smp", str(machine.queues), "-nographic", "-nodefaults", "-serial", "stdio"),
        *("-kernel", str(tools.kernel), "-initrd", str(initrd)),
        *("-append", f"{KERNEL_OPTIONS} {machine.kernel_options}"),
        *("-qmp", f"unix:{_option(monitor)},server=on,wait=off"),
        *machine.platform,
        *qemu_args.arguments(disk),
        *([] if machine.reboots else ["-no-reboot"]),
        *machine.arguments,
    ]


def _option(value: Path) -> str:
    """Double the commas, as QEMU's options want them."""
    return str(value).replace(",", ",,")


def _text(raw: bytes) -> str:
    """Decode a line of the console without the firmware's cursor movements."""
    return _TERMINAL.sub("", raw.decode(errors="replace")).rstrip("\r")


class Vm:
    """
    One run of QEMU, to be used in a ``with`` statement; leaving it ends QEMU if it still runs.

    Args:
        tools: What the guest is made of.
        machine: The guest.
        script: What it runs, see :func:`make_initramfs`.
        directory: For the initramfs and the monitor's socket; its path must be short.
        on_line: Told every line of the console as it comes.
    """

    def __init__(
        self,
        tools: Tools,
        machine: Machine,
        script: str,
        directory: Path,
        on_line: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self.monitor = directory / "qmp"
        """Where QEMU listens for QMP, see :func:`vhostblk.cli.qmp.run`."""
        initrd = directory / "initrd"
        initrd.write_bytes(make_initramfs(tools, script, machine.modules, machine.programs))
        self._command = qemu_command(tools, machine, initrd, self.monitor)
        self._on_line = on_line
        self._partial = b""
        self._read = 0
        self.console: list[str] = []
        """Every complete line so far, QEMU's own complaints among them."""

    def __enter__(self) -> Self:
        """Start QEMU."""
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End QEMU."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    @property
    def marks(self) -> dict[str, str]:
        """What the guest has said so far; of a name said twice, the later value."""
        return dict(self.said())

    def said(self) -> Iterator[tuple[str, str]]:
        """Go through what the guest has said, in order, with repetitions."""
        for line in self.console:
            if found := _MARK.search(line):
                yield found[1], found[2].strip()

    def wait_for(self, name: str, timeout_s: float) -> str:
        """
        Read the console until the guest says *name* once more.

        Returns:
            The value it said.

        Raises:
            GuestError: QEMU ended first, or the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while (line := self._next_line(deadline)) is not None:
            found = _MARK.search(line)
            if found and found[1] == name:
                return found[2].strip()
        raise self._error(f"QEMU ended and the guest never said {name!r}")

    def wait(self, timeout_s: float) -> dict[str, str]:
        """
        Read the console until the guest powers off.

        Returns:
            What the guest said.

        Raises:
            GuestError: The script failed, the guest ended without finishing it, or the time is up.
        """
        deadline = time.monotonic() + timeout_s
        while self._next_line(deadline) is not None:
            pass
        status = self._process.wait()
        if status or self.marks.get("exit") != "0":
            raise self._error(f"the guest failed (QEMU's exit status {status})")
        return self.marks

    def reset(self) -> None:
        """Press the guest's reset button."""
        qmp.run(self.monitor, "system_reset")

    def _next_line(self, deadline: float) -> str | None:
        """Return the first line nobody has waited for yet, or None once QEMU has ended."""
        while self._read == len(self.console):
            chunk = self._chunk(deadline)
            if not chunk:
                return None
            *lines, self._partial = (self._partial + chunk).split(b"\n")
            for line in map(_text, lines):
                self.console.append(line)
                self._on_line(line)
        self._read += 1
        return self.console[self._read - 1]

    def _chunk(self, deadline: float) -> bytes:
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - a pipe, by our own __enter__
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise self._error("the guest takes too long")
        return os.read(stdout.fileno(), _CHUNK)

    def _error(self, what: str) -> GuestError:
        tail = "\n".join(f"    {line}" for line in self.console[-25:])
        return GuestError(f"{what}; its console ends with\n{tail}")
