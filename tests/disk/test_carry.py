import asyncio
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from vhostblk.disk import carry
from vhostblk.disk.api import DiskInfo
from vhostblk.disk.file import CacheMode, File, LockWhen
from vhostblk.disk.layer import Layer, take_apart
from vhostblk.disk.memory import Memory
from vhostblk.disk.null import Null
from vhostblk.errors import VhostBlkError

SIZE = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image file of 1 MiB."""
    path = tmp_path / "image"
    path.write_bytes(b"x" * 512 + bytes(SIZE - 512))
    return path


def test_a_file_is_shared_with_its_lock(image: Path) -> None:
    """
    The next one has the same open file: it needs no lock, and nobody else gets one meanwhile.

    Source: fcntl(2), "Open file description locks".
    """
    one, two = File(image), File(image)
    one.open()
    two.adopt([os.dup(fd) for fd in one.share()])
    two.open()
    one.close()
    with pytest.raises(VhostBlkError, match="in use"):
        File(image).open()
    data = bytearray(512)
    two.read(0, [memoryview(data)])
    assert data == b"x" * 512
    assert two.info().size == SIZE
    two.close()
    File(image).open()


@pytest.mark.parametrize("when", LockWhen)
def test_a_file_that_was_taken_over_can_be_opened_otherwise(image: Path, when: LockWhen) -> None:
    """The lock that has come with it is as much its own as one that it took itself."""
    one, two, three = File(image, lock=when), File(image, lock=when), File(image, lock=when)
    one.open()
    if when is LockWhen.WHILE_RUNNING:
        one.lock()
    two.adopt([os.dup(fd) for fd in one.share()])
    two.open()
    one.close()
    three.follow(two)
    three.open()
    if when is LockWhen.WHILE_RUNNING:
        three.lock()
        two.unlock()
    two.close()
    with pytest.raises(VhostBlkError, match="in use"):
        File(image).open()
    three.close()


def test_a_file_that_moved_is_the_same_disk(image: Path) -> None:
    """Whatever has its name by now, the guest's data is where it was."""
    one, two = File(image), File(image)
    one.open()
    image.rename(image.with_name("moved"))
    image.write_bytes(bytes(SIZE))
    two.adopt([os.dup(fd) for fd in one.share()])
    two.open()
    one.close()
    data = bytearray(512)
    two.read(0, [memoryview(data)])
    assert data == b"x" * 512
    two.close()


@pytest.mark.parametrize(
    "other",
    [{"read_only": True}, {"cache": CacheMode.NONE}],
    ids=["read-only", "direct"],
)
def test_a_file_that_is_open_in_another_way_is_not_adopted(
    image: Path, other: dict[str, object]
) -> None:
    """A descriptor says how it can be used: what was asked for must be the same."""
    one = File(image)
    one.open()
    two = File(image, **other)  # type: ignore[arg-type]
    with pytest.raises(VhostBlkError, match="open in another way than cache and read-only ask"):
        two.adopt(one.share())
    assert fcntl.fcntl(one.share()[0], fcntl.F_GETFL) & os.O_RDWR
    one.close()


def test_what_shares_nothing_is_nothing() -> None:
    """A null disk has no descriptor and goes on anywhere."""
    assert carry.shared(take_apart(Null(SIZE))) == ()
    asyncio.run(carry.adopt(take_apart(Null(SIZE)), fds=()))


def test_private_memory_is_not_carried() -> None:
    """It would be empty on the other side: the error names what would not."""
    with pytest.raises(VhostBlkError, match="serve memory:SIZE,memfd=on to carry it over"):
        carry.shared(take_apart(Memory(SIZE)))


class Plain:
    """Saves and restores."""

    def __init__(self) -> None:
        self.data = b""

    def save(self) -> bytearray:
        return bytearray(self.data)

    def restore(self, data: bytes) -> None:
        self.data = data


class DiskLike(Plain):
    """The same, as a disk."""

    def info(self) -> DiskInfo:
        return DiskInfo(size=SIZE)

    def read(self, offset: int, views: object) -> None:
        """Read nothing."""


class Late(Plain):
    """The same, in its own time."""

    async def save(self) -> bytearray:  # type: ignore[override]
        await asyncio.sleep(0)
        return bytearray(self.data)

    async def restore(self, data: bytes) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        self.data = data


@pytest.mark.parametrize("kind", [Plain, Late])
def test_what_is_saved_is_restored(kind: type[Plain]) -> None:
    """By plain methods and by ``async`` ones; anything like bytes will do."""
    one, two = kind(), kind()
    one.data = b"abc"
    assert carry.shared(take_apart(one)) is None

    async def move() -> None:
        await carry.restore(take_apart(two), data=await carry.save(take_apart(one)))

    asyncio.run(move())
    assert two.data == b"abc"


def test_what_saves_no_bytes_is_told() -> None:
    """A disk that returns something else has a bug, which must not cost its data."""

    class Bad(Plain):
        def save(self) -> None:  # type: ignore[override]
            return None

    with pytest.raises(VhostBlkError, match=r"Bad.save\(\) returns None, not bytes"):
        asyncio.run(carry.save(take_apart(Bad())))


class Keeping(Layer):
    """Keeps something, which it saves."""

    kept = b""

    def save(self) -> bytes:
        return self.kept

    def restore(self, data: bytes) -> None:
        self.kept = data


class Opened(Layer):
    """Keeps something in a file, which stays open."""

    def share(self) -> tuple[int, ...]:
        return (7, *self.below.share())  # type: ignore[attr-defined]

    def adopt(self, fds: Sequence[int]) -> None:
        self.below.adopt(fds[1:])  # type: ignore[attr-defined]


class Either(Keeping, Opened):
    """Both."""


def test_a_stack_is_carried_in_the_way_of_its_disk() -> None:
    """What the layers share is beside what the disk does; what cannot go that way is refused."""
    saving = DiskLike()
    for disk, layer, carried in (
        (Null(SIZE), Layer, ()),
        (Null(SIZE), Opened, (7,)),
        (Null(SIZE), Either, (7,)),
        (saving, Layer, None),
        (saving, Keeping, None),
    ):
        assert carry.shared(take_apart(Layer(layer(disk)))) == carried
    for disk, layer, why in (
        (Null(SIZE), Keeping, "as a Null disk is handed over open"),
        (saving, Opened, "as a DiskLike disk is closed and opened anew"),
    ):
        with pytest.raises(VhostBlkError, match=f"what the layer layer keeps, {why}: stop and"):
            carry.shared(take_apart(Layer(layer(disk))))


def test_what_layers_save_is_restored_to_each() -> None:
    """Whatever bytes it is, and nothing among them."""
    one, two = DiskLike(), DiskLike()
    one.data = b"7\n"
    before, after = Keeping(Layer(Keeping(Keeping(one)))), Keeping(Layer(Keeping(Keeping(two))))
    kept = [b"\n", b"", b"[1, 2]"]
    for layer, data in zip(filter(carry.keeps, take_apart(before).layers), kept, strict=True):
        layer.kept = data  # type: ignore[attr-defined]

    async def move() -> None:
        await carry.restore(take_apart(after), data=await carry.save(take_apart(before)))

    asyncio.run(move())
    layers = filter(carry.keeps, take_apart(after).layers)
    assert [layer.kept for layer in layers] == kept
    assert two.data == b"7\n"


def test_a_disk_of_another_kind_is_told() -> None:
    """Where one shared and the next one does not, the descriptors fit nothing."""
    with pytest.raises(VhostBlkError, match=r"a Plain disk has no adopt\(\): it was another"):
        asyncio.run(carry.adopt(take_apart(Plain()), fds=(1,)))
