"""Every layer, and stacks of them at random, against a byte array, through a real virtqueue."""

import errno
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from layer_kit.disks import SECTOR, Late, Plain
from layer_kit.model import BASE, OPS, SECTORS, SIZE, apart, apply
from layer_kit.model import Request as Asked
from server_kit.serving import Serving, serving

from vhostblk.disk.grammar import parse
from vhostblk.disk.layers import LAYERS, stack
from vhostblk.disk.make import make as made
from vhostblk.engine.choose import EngineName
from vhostblk.guest import Guest, Request
from vhostblk.guest.blk import Range
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
ENGINES: Sequence[EngineName] = ("native", "reference")

FORMS = {
    "cache": ("cache:size=1M", "cache:mode=writeback,block=8K", "cache:mode=writeback,block=512"),
    "cow": ("cow:block=4K", "cow", "cow:scratch={scratch},block=8K"),
    "cut": ("cut:limit=16K", "cut"),
    "delay": ("delay:write=20us", "delay:all=1us"),
    "error": ("error:state=off",),
    "limit": ("limit:iops=1M",),
    "log": ("log:file={scratch}", "log:state=off"),
    "offset": ("offset:start=0",),
    "pause": ("pause",),
    "record": ("record:path={scratch}",),
    "stats": ("stats",),
    "truncate": ("truncate:round-down=512",),
    "verify": ("verify", "verify:file={scratch}"),
    "zeroes": ("zeroes", "zeroes:unmap=on"),
}
"""How each layer is written that leaves a disk what it is."""
KNOWN = [name for name in FORMS if name in LAYERS]
OF_THE_CORE = {"delay", "error", "limit", "log", "offset", "record", "stats", "truncate"}
"""Of these, those that the reference engine has not."""
SERVED = [
    (name, engine)
    for name in KNOWN
    for engine in ENGINES
    if engine == "native" or name not in OF_THE_CORE
]


def engine_for(names: Sequence[str], dice: random.Random) -> EngineName:
    """Choose an engine that has these layers."""
    return "native" if OF_THE_CORE & {*names} else dice.choice(ENGINES)


def forms(name: str, directory: Path) -> list[str]:
    """Return how a layer may be written, with files of its own."""
    number = len(list(directory.iterdir()))
    made = []
    for i, form in enumerate(FORMS[name]):
        scratch = directory / f"{name}{number}{i}"
        made.append(form.format(scratch=scratch))
        scratch.with_suffix(".name").touch()  # so that the next one has another
    return made


def make(forms: Sequence[str], below: object) -> object:
    """Put layers in front of a disk, as a command line does."""
    return stack(parse("|".join([*forms, "null:1M"])).layers, below)  # type: ignore[arg-type]


def drawn(dice: random.Random, count: int) -> list[Asked]:
    """Draw requests."""
    asked = []
    for _ in range(count):
        first = dice.randrange(SECTORS)
        length = min(dice.choice((1, 1, 2, 5, 8, 9, 30)), SECTORS - first)
        asked.append(Asked(dice.choice(OPS), first, length, dice.randrange(1, 256)))
    return asked


def spoken(asked: Asked) -> Request:
    """Return what a driver sends."""
    match asked.op:
        case "read":
            return Request.read(asked.first, asked.length)
        case "flush":
            return Request.flush()
        case "write" | "fua":
            return Request.write(asked.first, asked.data())
        case "discard":
            return Request.discard([Range(asked.first, asked.count)])
        case _:
            return Request.write_zeroes([Range(asked.first, asked.count, asked.op == "unmap")])


def drive(guest: Guest, dice: random.Random, model: bytearray) -> None:
    """Send requests, some at once, and compare what is read."""
    for _ in range(12):
        together = apart(drawn(dice, 4))
        tickets = [guest.submit(spoken(asked)) for asked in together]
        for asked, ticket in zip(together, tickets, strict=True):
            done = guest.wait(ticket)
            assert done.status == Status.OK, asked
            if asked.op == "read":
                assert done.data == model[asked.offset : asked.offset + asked.length], asked
        for asked in together:
            apply(model, asked)
    assert guest.read(0, SIZE) == model
    guest.flush()


def check(  # noqa: PLR0913 - what it works with
    written: Sequence[str],
    below: Plain | Late,
    seed: int,
    engine: EngineName,
    connect: Connect,
    *,
    packed: bool,
) -> None:
    """Serve a stack, drive it, and look at the disk below when all has ended."""
    model, disk = bytearray(BASE), make(written, below)
    with serving(engine) as server:
        run(server, connect, disk, random.Random(seed), model, packed=packed)
    cow = any(form.startswith("cow") for form in written)
    assert below.data == (BASE if cow else model)


def run(  # noqa: PLR0913 - what it works with
    server: Serving,
    connect: Connect,
    disk: object,
    dice: random.Random,
    model: bytearray,
    *,
    packed: bool,
) -> None:
    """Connect a guest and drive the disk."""
    guest = connect(server.add(disk), packed=packed)
    assert guest.config().capacity == SECTORS
    drive(guest, dice, model)
    guest.close()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(("name", "engine"), SERVED)
def test_a_layer_is_the_disk_below(
    name: str, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path, *, packed: bool
) -> None:
    """In each way it can be written, a guest reads what it wrote, and the disk below has it."""
    for i, form in enumerate(forms(name, tmp_path)):
        below = Late(BASE, i) if (i + packed) % 2 else Plain(BASE)
        check([form], below, i, engine, vhost_user_guest, packed=packed)


@pytest.mark.parametrize("seed", range(12))
def test_layers_in_any_order_are_the_disk_below(
    seed: int, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """Two to four layers at random, in front of plain disks and ``async`` ones."""
    dice = random.Random(seed)
    names = dice.sample(KNOWN, min(dice.choice((2, 2, 3, 4)), len(KNOWN)))
    written = [dice.choice(forms(name, tmp_path)) for name in names]
    below = dice.choice((Plain(BASE), Late(BASE, seed)))
    engine = engine_for(names, dice)
    check(written, below, seed, engine, vhost_user_guest, packed=dice.random() < 0.5)


HEAD, TAIL = 64, 40
"""Sectors in front of a partition and behind it."""


def partitioned(dice: random.Random) -> tuple[bytes, bytes]:
    """Return what is in front of a partition as large as the model, an MBR first, and behind it."""
    entry = bytes((0, 0, 0, 0, 0x83, 0, 0, 0)) + struct.pack("<II", HEAD, SECTORS)
    table = (bytes(446) + entry).ljust(510, b"\0") + b"\x55\xaa"
    return table + dice.randbytes((HEAD - 1) * SECTOR), dice.randbytes(TAIL * SECTOR)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("seed", range(6))
def test_a_partition_is_a_part_of_the_disk_below(
    seed: int, vhost_user_guest: Connect, tmp_path: Path, *, packed: bool
) -> None:
    """With layers in front and behind: it reads as written, and what is around it stays."""
    dice = random.Random(seed)
    head, tail = partitioned(dice)
    below = dice.choice((Plain, Late))(head + BASE + tail)
    front = dice.sample(sorted(OF_THE_CORE - {"offset", "truncate"}), seed % 3)
    behind = dice.sample(sorted(OF_THE_CORE - {"offset", "truncate"}), seed // 3)
    names = [*front, "partition", *behind]
    written = [
        "partition:number=1" if name == "partition" else dice.choice(forms(name, tmp_path))
        for name in names
    ]
    model = bytearray(BASE)
    with serving("native") as server:
        run(server, vhost_user_guest, make(written, below), dice, model, packed=packed)
    assert below.data == head + model + tail


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 250))
def test_many_more_stacks(seed: int, vhost_user_guest: Connect, tmp_path: Path) -> None:
    """The same, for longer; a layer may be there twice."""
    dice = random.Random(seed)
    names = dice.choices(KNOWN, k=dice.choice((2, 3, 4, 5)))
    written = [dice.choice(forms(name, tmp_path)) for name in names]
    below = dice.choice((Plain(BASE), Late(BASE, seed)))
    engine = engine_for(names, dice)
    check(written, below, seed, engine, vhost_user_guest, packed=dice.random() < 0.5)


class Broken(Plain):
    """Has a sector that cannot be read, and one that cannot be written."""

    def read(self, offset: int, views: Sequence[memoryview]) -> None:
        """Read, or fail with a slice in hand."""
        slices = [view[:1] for view in views]
        if offset <= 100 * SECTOR < offset + sum(map(len, views)):
            raise OSError(errno.EIO, f"no medium at {offset} for {len(slices)} views")
        super().read(offset, views)

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write, or fail."""
        if offset <= 50 * SECTOR < offset + sum(map(len, views)):
            raise OSError(errno.EIO, "no medium")
        super().write(offset, views)


class LateBroken(Late):
    """The same, in its own time."""

    def __init__(self, data: bytes, seed: int = 0) -> None:
        super().__init__(data, seed)
        self.plain = Broken(data)


@pytest.mark.parametrize("below", [Broken, LateBroken])
@pytest.mark.parametrize(("name", "engine"), SERVED)
def test_an_error_below_ends_one_request(
    name: str,
    below: type[Plain | Late],
    engine: EngineName,
    vhost_user_guest: Connect,
    tmp_path: Path,
) -> None:
    """The queue goes on: no layer keeps the guest's memory in what is raised."""
    for form in forms(name, tmp_path):
        with serving(engine) as server:
            guest = vhost_user_guest(server.add(make([form], below(BASE))))
            for _ in range(2):
                asked = (
                    guest.submit(Request.read(90, 20 * SECTOR)),
                    guest.submit(Request.read(0, SECTOR)),
                )
                assert [guest.wait(one).status for one in asked] == [Status.IOERR, Status.OK]
            assert guest.read(180, SECTOR) == BASE[180 * SECTOR : 181 * SECTOR]
            guest.write(180, b"x" * SECTOR)
            assert guest.read(180, SECTOR) == b"x" * SECTOR
            guest.close()


@pytest.mark.parametrize("middle", ["", "delay:all=20us|", "stats|zeroes:unmap=on|"])
def test_a_commit_goes_down_a_stack(middle: str, vhost_user_guest: Connect, tmp_path: Path) -> None:
    """Through layers of the core, too, while the guest's requests go on."""
    image = tmp_path / "image"
    image.write_bytes(BASE)
    text = f"cow:scratch={tmp_path}/kept,block=4K|{middle}file:{image}"
    model, dice = bytearray(BASE), random.Random(1)
    with serving("native") as server:
        guest = vhost_user_guest(server.add_from(parse(text), made(text)))
        drive(guest, dice, model)
        assert image.read_bytes() == BASE
        asked = [Asked("write", first, 8, first + 1) for first in range(0, 160, 16)]
        tickets = [guest.submit(spoken(one)) for one in asked]
        server.run(server.operations.layer("s1", "cow", {}, "commit"))
        for one, ticket in zip(asked, tickets, strict=True):
            assert guest.wait(ticket).status == Status.OK
            apply(model, one)
        drive(guest, dice, model)
        server.run(server.operations.layer("s1", "cow", {}, "commit"))
        assert image.read_bytes() == model
        assert guest.read(0, SIZE) == model
        guest.close()
