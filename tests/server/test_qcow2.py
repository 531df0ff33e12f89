"""A guest on a qcow2 image, and on a server that was started for its disk."""

import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.serving import Serving

from vhostblk.errors import VhostBlkError
from vhostblk.guest import Guest

Connect = Callable[..., Guest]
MIB = 1 << 20

pytestmark = pytest.mark.skipif(
    not (shutil.which("qemu-nbd") and shutil.which("nbdkit")),
    reason="qemu-nbd or nbdkit is not installed (.ci/setup packages)",
)


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An image of 4 MiB over a raw one of noise, ``base.img``."""
    base, image = tmp_path / "base.img", tmp_path / "a,b.qcow2"
    base.write_bytes(random.Random(3).randbytes(4 * MIB))
    command = ("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
    subprocess.run(command, check=True)
    return image


def written(image: Path) -> str:
    return f"qcow2:{str(image).replace(',', ',,')}"


def test_an_image_is_served_and_sound_behind_it(
    server: Serving, vhost_user_guest: Connect, overlay: Path, tmp_path: Path
) -> None:
    """Every byte, by another reader of the format; the base is as it was."""
    base = tmp_path / "base.img"
    model = bytearray(base.read_bytes())
    before = bytes(model)
    guest = vhost_user_guest(server.add_written(written(overlay)))
    data = random.Random(4).randbytes(200 << 10)
    guest.write(3, data)
    model[3 * 512 : 3 * 512 + len(data)] = data
    guest.flush()
    assert guest.read(0, MIB) == model[:MIB]
    server.stop()  # the server of the image has ended, too: it would hold the lock
    subprocess.run(["qemu-img", "check", "-q", overlay], check=True)
    raw = tmp_path / "raw.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", overlay, raw], check=True)
    assert raw.read_bytes() == model
    assert base.read_bytes() == before


def test_an_image_can_be_read_only(
    server: Serving, vhost_user_guest: Connect, overlay: Path, tmp_path: Path
) -> None:
    """Two disks may have the same one then."""
    data = (tmp_path / "base.img").read_bytes()[:512]
    for _ in range(2):
        path = server.add_written(f"{written(overlay)},read-only=on")
        assert vhost_user_guest(path).read(0, 512) == data


def test_a_command_is_the_server(server: Serving, vhost_user_guest: Connect) -> None:
    """Any that takes its socket as systemd gives it."""
    guest = vhost_user_guest(server.add_written("nbd+exec:nbdkit pattern 1M"))
    data = guest.read(8, 4096)
    assert data == b"".join(at.to_bytes(8, "big") for at in range(4096, 8192, 8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qcow2:{}/no.qcow2", "no.qcow2: no such file"),
        ("qcow2:{}/base.img", "base.img: "),
        ("nbd+exec:no-such-program x", "there is no program no-such-program"),
        ("nbd+exec:false", "nbd.exec:false: "),
        ("nbd+exec: ", "no command"),
        ("nbd+exec:a 'b", "not a command as a shell has it"),
    ],
)
def test_what_is_no_server_is_one_line(
    server: Serving, overlay: Path, text: str, message: str
) -> None:
    """And leaves no process behind."""
    with pytest.raises(VhostBlkError, match=message) as caught:
        server.add_written(text.format(overlay.parent))
    assert "\n" not in str(caught.value)


def own_children(name: str) -> list[int]:
    """Return the processes of that name that this one has started."""
    tasks = Path("/proc/self/task").glob("*/children")
    children = [int(word) for task in tasks for word in task.read_text().split()]
    return [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == name]


def test_a_server_that_dies_is_started_again(
    server: Serving, vhost_user_guest: Connect, overlay: Path
) -> None:
    """The guest sees nothing of it, and the next one gets the image's lock."""
    guest = vhost_user_guest(server.add_written(written(overlay)))
    guest.write(0, b"1" * 512)
    (first,) = own_children("qemu-nbd")
    os.kill(first, signal.SIGKILL)
    guest.write(1, b"2" * 512)
    assert guest.read(0, 1024) == b"1" * 512 + b"2" * 512
    (second,) = own_children("qemu-nbd")
    assert second != first
    server.stop()
    assert own_children("qemu-nbd") == []
