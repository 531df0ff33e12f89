"""The disks of the bench and who serves them: vhostblk, its peers, and no virtio at all."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from bench.figures import AGAIN
from bench.sample import Load
from bench.servers import Server, Work, nbdkit, qsd, responder, vhostblk
from bench.turns import Entry, Line

SIZE = 1 << 30
OPS = ("read", "write")
WORKS = ("null", "bare", "memory", "python", "tmpfs", "file", "direct")
MATRIX = ("null", "memory", "tmpfs", "file", "direct")
"""Those of the whole matrix: what is of use to somebody."""
OURS = "vhostblk"
QSD, FIO = "qsd", "fio"
"""Rivals: of each only the best way takes turns."""
NBDKIT = "nbdkit + qsd"
PYTHON_SIZE = 64 << 20
RESPONDER, RESPONDER_STATUS = "responder", "responder+status"
QSD_WAYS = {
    "null": ("none",),
    "bare": ("none",),
    "memory": (),
    "python": (),
    # Native aio works without the page cache only, which tmpfs has anyway and a file should have.
    "tmpfs": ("threads", "io_uring", "native"),
    "file": ("threads", "io_uring"),
    "direct": ("threads", "io_uring", "native"),
}
FIO_ENGINES = {"tmpfs": ("psync",), "file": ("psync",), "direct": ("io_uring",)}


def filled(path: Path, *, cached: bool) -> Path:
    """Write every byte of a file of SIZE; then have it in the page cache, or not."""
    if not path.exists() or path.stat().st_size != SIZE:
        chunk = os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(chunk)
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        if not cached:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while cached and file.read(1 << 20):
            pass
    return path


@dataclass(frozen=True, slots=True)
class Shape:
    """
    A line of the matrix.

    Args:
        work: Name of the disk.
        load: On each of its devices.
        devices: Of one server process.
    """

    work: str
    load: Load
    devices: int = 1


def whole(base: Load) -> Iterator[Shape]:
    """Yield the whole matrix, *base* saying how long a run is."""
    for work, op, depth in product(MATRIX, OPS, (1, 8, 32, 128)):
        yield Shape(work, replace(base, op=op, depth=depth))
    for work, op, size in product(MATRIX, OPS, (64 << 10, 128 << 10, 1 << 20)):
        yield Shape(work, replace(base, op=op, bytes=size, depth=8, order="seq"))
    for work, queues, devices in product(("null", "tmpfs"), (1, 4), (1, 8, 64)):
        if queues * devices > 1:
            yield Shape(work, replace(base, op="read", depth=8, queues=queues), devices)


def make_works(names: Iterable[str], directory: Path, shm: Path) -> dict[str, Work]:
    """
    Make the disks asked for, one device with one queue each, their files filled.

    Args:
        names: Of `WORKS`.
        directory: On a disk file system.
        shm: On tmpfs.
    """
    paths = {
        "tmpfs": shm / "disk.img",
        "file": directory / "disk.img",
        "direct": directory / "direct.img",
    }
    found = {}
    for name in names:
        if name not in WORKS:
            raise SystemExit(f"--work {name}: give one of {', '.join(WORKS)}")
        path = paths.get(name)
        if path is not None:
            filled(path, cached=name != "direct")
        found[name] = Work(name=name, size=PYTHON_SIZE if name == "python" else SIZE, path=path)
    return found


def shaped(work: Work, *, queues: int, devices: int) -> Work:
    """Return *work* with so many devices of so many queues; memory is shared among them."""
    share = devices if work.name == "memory" else 1
    size = max(work.size // share >> 20, 1) << 20
    return replace(work, queues=queues, devices=devices, size=size)


def ours(work: Work, load: Load, *, poll: str | None = None) -> list[Entry]:
    """Return vhostblk and, for the A/A run, vhostblk again."""
    return [
        Entry(name=name, load=load, work=work, server=vhostblk(name, poll=poll))
        for name in (OURS, OURS + AGAIN)
    ]


def qsds(work: Work, load: Load) -> list[Entry]:
    """Return qemu-storage-daemon's ways, rivals of each other."""
    found = [qsd(aio) for aio in QSD_WAYS[work.name]]
    return [Entry(name=one.name, load=load, work=work, server=one, rival=QSD) for one in found]


def fios(work: Work, load: Load, *engines: str) -> list[Entry]:
    """Return fio's *engines* on the file, rivals of each other."""
    return [
        Entry(name=f"{FIO} {engine}", load=load, work=work, engine=engine, rival=FIO)
        for engine in engines
    ]


def nbdkits(work: Work, load: Load) -> list[Entry]:
    """Return a disk in Python as somebody has it without vhostblk."""
    return [Entry(name=NBDKIT, load=load, work=work, server=nbdkit(NBDKIT))]


def responders(work: Work, load: Load) -> list[Entry]:
    """Return the minimal polled responder: without and with the status bytes of a device."""
    found = responder(RESPONDER), responder(RESPONDER_STATUS, "--status")
    return [Entry(name=one.name, load=load, work=work, server=one) for one in found]


def line(disk: Work, shape: Shape, peers: Sequence[Server]) -> Line:
    """Return a line of the matrix: ours, the peers that can, the raw file."""
    load = shape.load
    work = shaped(disk, queues=load.queues, devices=shape.devices)
    poll = "always" if work.name == "bare" and load.wait == "poll" else None
    alone = work.devices == 1
    entries = [*ours(work, load, poll=poll), *qsds(work, load)]
    if poll and alone and load.queues == 1:
        entries += responders(work, load)
    if work.name == "python" and alone and load.queues == 1:
        entries += nbdkits(work, load)
    if alone:
        entries += [Entry(name=one.name, load=load, work=work, server=one) for one in peers]
        entries += fios(work, load, *FIO_ENGINES.get(work.name, ()))
    many = "" if alone else f" {work.devices} devices"
    return Line(f"{work.name} {load}{many}", entries)
