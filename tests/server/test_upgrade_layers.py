"""A new process takes over what is behind layers, or says why it cannot."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from server_kit import successors
from server_kit.disks import Saving
from server_kit.serving import Serving, serving
from server_kit.taking_over import one_engine, taken_over

from vhostblk.disk.layer import Layer
from vhostblk.disk.make import make
from vhostblk.disk.memfd import Memfd
from vhostblk.disk.memory import Memory
from vhostblk.disk.pause import Pause
from vhostblk.engine.choose import EngineName
from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest, StatusError
from vhostblk.trace.format import Op
from vhostblk.trace.reader import read

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y = b"x" * 4096, b"y" * 4096


class Keeping(Layer):
    """Keeps something that is in no disk."""

    name = "keeping"
    kept = b"a\nb"

    async def save(self) -> bytes:
        return self.kept

    def restore(self, data: bytes) -> None:
        self.kept = data


class Late(Layer):
    """Holds back what is written, until it is flushed."""

    name = "late"

    def __init__(self, below: object) -> None:
        super().__init__(below)
        self.held: list[tuple[int, bytes]] = []

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> None:
        self.held.append((offset, b"".join(views)))
        if fua:
            self.flush()

    def flush(self) -> None:
        for offset, data in self.held:
            self.under.write(offset, [memoryview(data)])
        self.held.clear()
        self.under.flush()


@one_engine
def test_a_file_behind_layers_goes_on_as_they_are_set(
    server: Serving, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """With its lock, in the next process, whose layers are set as an operator has set them here."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    text = f"zeroes|pause|file:{image}"
    guest = vhost_user_guest(server.add_written(text))
    guest.write(0, X)
    server.run(server.operations.layer("s1", "zeroes", {"unmap": True}))
    before = image.stat().st_blocks
    with taken_over(server, engine, f"s1={text}"):
        server.stop()
        assert guest.read(0, 4096) == X
        guest.write(8, Y)
        guest.write(0, bytes(4096))
        guest.flush()
        assert image.stat().st_blocks <= before  # a hole has come, and a block
        guest.close()
    assert image.read_bytes()[:8192] == bytes(4096) + Y


def test_layers_of_the_core_go_on_as_they_are_set(
    vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """By options and by commands, in front of the file that the next process has open."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    text = f"error:state=off,ops=write|offset:start=64K|stats|file:{image}"
    with serving("native") as server:
        guest = vhost_user_guest(server.add_written(text))
        guest.write(0, X)
        server.run(server.operations.layer("s1", "error", {"range": "4K-"}, "on"))
        now = f"error:ops=write,range=4K-,state=on|offset:start=64K|stats|file:{image}"
        assert server.devices[0].backing.name == now
        with taken_over(server, "native", f"s1={text}"):
            server.stop()
            assert guest.read(0, 4096) == X
            guest.write(0, Y)
            with pytest.raises(StatusError):
                guest.write(8, X)
            guest.flush()
            guest.close()
    assert image.read_bytes()[64 << 10 :][:8192] == Y + bytes(4096)


@pytest.mark.parametrize(
    ("layers", "then"),
    [
        ("offset:start=64K,size=64K", "offset:start=64K,size=131072"),
        ("truncate:size=64K", "truncate:size=131072"),
        ("truncate:size=66000,round-down=4K", "truncate:size=131072,round-down=0"),
        ("offset:start=4K|stats|truncate:size=64K", "offset:start=4K|stats|truncate:size=135168"),
    ],
)
def test_a_part_goes_on_with_the_size_it_was_given(
    layers: str, then: str, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """The next process has the part as large as an operator has made it here."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    text = f"{layers}|file:{image}"
    with serving("native") as server:
        guest = vhost_user_guest(server.add_written(text))
        server.run(server.operations.resize("s1", 128 << 10))
        assert server.devices[0].backing.name == f"{then}|file:{image}"
        guest.write(248, X)
        with taken_over(server, "native", f"s1={text}"):
            server.stop()
            assert guest.read(248, 4096) == X
            with pytest.raises(StatusError):
                guest.read(256, 512)
            guest.close()


@one_engine
def test_what_a_layer_holds_back_is_in_the_disk_before_another_process_has_it(
    server: Serving, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """It is flushed when the rings stand still, though the disk stays open."""
    image = tmp_path / "image"
    image.write_bytes(bytes(MIB))
    guest = vhost_user_guest(server.add(Late(make(f"{image}"))))
    guest.write(0, X)
    assert image.read_bytes()[:4096] == bytes(4096)
    with taken_over(server, engine, f"s1={image}"):
        server.stop()
        assert guest.read(0, 4096) == X
        guest.close()


@one_engine
def test_what_layers_and_their_disk_save_goes_with_them(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Each gets its own, here when the new process fails, after all were closed."""
    disk = Saving()
    outer, inner = Keeping(disk), Pause(Keeping(disk))
    stack = Pause(outer)
    outer.below = inner
    guest = vhost_user_guest(server.add(stack))
    guest.write(0, X)
    assert isinstance(inner.below, Keeping)
    inner.below.kept = b""
    with pytest.raises(VhostBlkError, match="cannot take over: of a reason"):
        server.run(server.upgrade.run(successors.command("last:refuse")))
    assert guest.read(0, 4096) == X
    assert (outer.kept, inner.below.kept) == (b"a\nb", b"")
    assert [call[0] for call in disk.calls if call[0] not in {"read", "write"}] == [
        *("open", "flush", "save", "close", "restore", "open"),
    ]


@one_engine
@pytest.mark.parametrize(
    ("make_stack", "says"),
    [
        (lambda: Pause(Memory(MIB)), "a Memory disk would lose what it holds in memory: serve m"),
        (
            lambda: Pause(Keeping(Memfd(MIB))),
            "a new process would not have what the layer keeping keeps, as a Memfd disk is handed",
        ),
    ],
    ids=["memory", "layer"],
)
def test_a_stack_that_cannot_go_on_says_why(
    make_stack: Callable[[], object], says: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """At once, naming what stands in the way; the guest does not notice."""
    guest = vhost_user_guest(server.add(make_stack()))
    with pytest.raises(VhostBlkError, match=f"s1: {says}"):
        server.run(server.upgrade.run(["false"]))
    guest.write(0, X)


def test_a_recording_goes_on_in_the_next_process(vhost_user_guest: Connect, tmp_path: Path) -> None:
    """As a segment of its own in the same file; each has what its process has served."""
    image, trace = tmp_path / "image", tmp_path / "trace"
    image.write_bytes(bytes(MIB))
    text = f"record:path={trace}|file:{image}"
    with serving("native") as server:
        guest = vhost_user_guest(server.add_written(text))
        guest.write(0, X)
        with taken_over(server, "native", f"s1={text}"):
            server.stop()
            guest.write(8, Y)
            guest.close()
    recorded = read(trace)
    assert recorded.damage is None
    assert [
        [
            one.submitted.offset
            for one in segment.requests()
            if one.submitted.op is Op.WRITE and one.completed is not None
        ]
        for segment in recorded.segments
    ] == [[0], [4096]]
    assert [segment.ended for segment in recorded.segments] == [True, True]
