"""The power-cut layer behind a real virtqueue."""

from collections.abc import Callable
from pathlib import Path

import pytest
import running
from hypothesis import given, settings
from hypothesis import strategies as st
from server_kit.disks import Ram
from server_kit.serving import Serving, serving

from vhostblk.disk.cut import At, Cut
from vhostblk.disk.loss import Lose
from vhostblk.engine.choose import EngineName
from vhostblk.guest import DisconnectedError, StatusError
from vhostblk.guest.guest import Guest

Connect = Callable[..., Guest]
SECTOR = 512


@pytest.mark.parametrize("packed", [False, True])
def test_what_was_flushed_is_there_after_a_cut(
    server: Serving, vhost_user_guest: Connect, *, packed: bool
) -> None:
    """The guest gets an error for all it asks behind the cut, and keeps what it has flushed."""
    disk = Ram()
    layer = Cut(disk, at=At(3, "write"), lose=Lose.ALL)
    guest = vhost_user_guest(server.add(layer), packed=packed)
    guest.write(0, b"a" * 4096)
    guest.flush()
    guest.write(8, b"b" * 4096)
    assert guest.read(0, 8192) == b"a" * 4096 + b"b" * 4096
    with pytest.raises(StatusError):
        guest.write(16, b"c" * 4096)
    with pytest.raises(StatusError):
        guest.read(0, 512)
    assert disk.data[:12288] == b"a" * 4096 + bytes(8192)
    assert layer.settings()["power"] == "off"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["native", "reference"])
def test_each_sector_is_one_that_was_written(name: EngineName, *, packed: bool) -> None:
    """
    After any writes and flushes of a guest, a cut leaves in each sector what may be there.

    That is the sector's last flushed content, or one of those written behind it.
    """
    requests = st.lists(
        st.one_of(st.none(), st.tuples(st.integers(0, 12), st.integers(1, 4))), max_size=12
    )

    @settings(max_examples=6, deadline=None)
    @given(requests, st.integers(0, 1 << 40))
    def check(requests: list[tuple[int, int] | None], seed: int) -> None:
        disk = Ram(16 * SECTOR)
        layer = Cut(disk, seed=seed, at=At(1, "read"))
        allowed = [{bytes(SECTOR)} for _ in range(16)]
        last = [bytes(SECTOR)] * 16
        with Guest.connect(server.add(layer), packed=packed) as guest:
            for number, request in enumerate(requests):
                if request is None:
                    guest.flush()
                    allowed = [{content} for content in last]
                    continue
                first, count = request
                guest.write(first, bytes([number + 1]) * SECTOR * count)
                for sector in range(first, first + count):
                    last[sector] = bytes([number + 1]) * SECTOR
                    allowed[sector].add(last[sector])
            with pytest.raises(StatusError):
                guest.read(0, SECTOR)
        data = disk.data
        for sector in range(16):
            assert bytes(data[sector * SECTOR :][:SECTOR]) in allowed[sector]
        assert layer.settings()["power"] == "off"

    with serving(name) as server:
        check()


def test_a_server_ends_behind_a_cut_if_it_is_told_to(tmp_path: Path) -> None:
    """then=exit: the guest's request fails, the server ends in order, what was flushed is there."""
    image, socket = tmp_path / "disk.img", tmp_path / "s"
    image.write_bytes(bytes(1 << 20))
    disk = f"cut:at=write:2,lose=all,then=exit|{image}"
    with running.serving(disk, socket=socket) as process, Guest.connect(socket) as guest:
        guest.write(0, b"a" * 512)
        guest.flush()
        with pytest.raises((StatusError, DisconnectedError)):
            guest.write(0, b"b" * 512)
        assert process.wait(10) == 0
    assert image.read_bytes()[:512] == b"a" * 512
