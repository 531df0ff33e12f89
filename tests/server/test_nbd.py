"""A guest on a disk of a real NBD server, by both data planes."""

import random
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nbd_servers import nbdkit, qemu_nbd
from server_kit.serving import Serving

from vhostblk.guest import Guest
from vhostblk.guest.blk import Range, Request
from vhostblk.guest.errors import StatusError
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
MIB = 1 << 20


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name, for a socket."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory)


@pytest.fixture
def stored(place: Path) -> Path:
    """4 MiB of noise."""
    path = place / "disk.img"
    path.write_bytes(random.Random(7).randbytes(4 * MIB))
    return path


def test_what_the_guest_does_is_done_to_the_file_behind_the_server(
    server: Serving, vhost_user_guest: Connect, place: Path, stored: Path
) -> None:
    """Reads, writes, flush, discard and zeroes; every byte of the file is compared."""
    model = bytearray(stored.read_bytes())
    with nbdkit(place, "file", str(stored)) as nbd:
        guest = vhost_user_guest(server.add_written(f"nbd:unix:{nbd.socket}"))
        assert guest.capacity * 512 == len(model)
        assert guest.read(5, 300 * 512) == model[5 * 512 : 305 * 512]
        data = random.Random(8).randbytes(MIB)
        guest.write(3, data)
        model[3 * 512 : 3 * 512 + MIB] = data
        guest.write_zeroes([Range(2 * MIB // 512, 128)])
        model[2 * MIB : 2 * MIB + (64 << 10)] = bytes(64 << 10)
        guest.discard([Range(3 * MIB // 512, 128)])
        model[3 * MIB : 3 * MIB + (1 << 16)] = bytes(1 << 16)  # a hole of that file
        guest.flush()
        assert guest.read(0, MIB) == model[:MIB]
        server.stop()
    assert stored.read_bytes() == model


def test_a_qcow2_image_is_served_through_qemu_nbd(
    server: Serving, vhost_user_guest: Connect, place: Path, stored: Path
) -> None:
    """An overlay with a backing file: read through, written over, and sound behind it."""
    image = place / "disk.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", stored, "-F", "raw", image], check=True
    )
    model = bytearray(stored.read_bytes())
    with qemu_nbd(place, image, "-f", "qcow2", "-x", "one") as nbd:
        uri = f"nbd+unix:///one?socket={nbd.socket}"
        guest = vhost_user_guest(server.add_written(uri))
        data = random.Random(9).randbytes(192 << 10)
        guest.write(1, data)
        model[512 : 512 + len(data)] = data
        guest.flush()
        assert guest.read(0, MIB) == model[:MIB]
        server.stop()
    subprocess.run(["qemu-img", "check", "-q", image], check=True)
    raw = place / "raw.img"
    subprocess.run(["qemu-img", "convert", "-O", "raw", image, raw], check=True)
    assert raw.read_bytes() == model


def test_requests_wait_for_a_server_that_was_killed(
    server: Serving, vhost_user_guest: Connect, place: Path, stored: Path
) -> None:
    """What had no answer is asked again of the new one, and the guest sees nothing of it."""
    model = bytearray(stored.read_bytes())
    # Each answer takes a while, so that all are under way when the server dies.
    with nbdkit(place, "--filter=delay", "file", str(stored), "wdelay=5", "rdelay=5") as nbd:
        guest = vhost_user_guest(server.add_written(f"nbd:unix:{nbd.socket}"))
        rng = random.Random(10)
        tickets = []
        for i in range(16):
            data = rng.randbytes(4096)
            tickets.append(guest.submit(Request.write(i * 16, data)))
            model[i * 8192 : i * 8192 + 4096] = data
        nbd.kill()
        with nbdkit(place, "file", str(stored)):
            for ticket in tickets:
                assert guest.wait(ticket).status == Status.OK
            assert guest.read(0, 256 << 10) == model[: 256 << 10]
            guest.flush()
            server.stop()
    assert stored.read_bytes() == model


def test_a_server_that_stays_away_is_an_error_in_time(
    server: Serving, vhost_user_guest: Connect, place: Path
) -> None:
    """Behind *timeout* a request fails; when the server is back all is well again."""
    with nbdkit(place, "memory", "1M") as nbd:
        guest = vhost_user_guest(server.add_written(f"nbd:unix:{nbd.socket},timeout=50ms"))
        guest.write(0, b"x" * 512)
        nbd.kill()
        with pytest.raises(StatusError):
            guest.read(0, 512)
        nbd.start()
        for _ in range(500):
            try:
                # Another server's memory: what was never flushed was written there again.
                assert guest.read(0, 512) == b"x" * 512
                break
            except StatusError:
                continue
        else:
            raise AssertionError("the disk does not come back")
        server.stop()


def test_an_error_of_the_server_is_the_guests(
    server: Serving, vhost_user_guest: Connect, place: Path
) -> None:
    """Only that request fails, and the connection stays."""
    arguments = ("--filter=error", "memory", "1M", "error-pread=ENOSPC", "error-pread-rate=100%")
    with nbdkit(place, *arguments) as nbd:
        guest = vhost_user_guest(server.add_written(f"nbd:unix:{nbd.socket}"))
        with pytest.raises(StatusError):
            guest.read(0, 512)
        guest.write(0, b"y" * 512)
        server.stop()


def test_the_limits_of_a_server_are_the_devices(
    server: Serving, vhost_user_guest: Connect, place: Path
) -> None:
    """Blocks of 4096 bytes, and no more than 64 KiB at once, of a server that insists."""
    policy = ("blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536")
    strict = "blocksize-error-policy=error"
    with nbdkit(place, "--filter=blocksize-policy", "memory", "4M", *policy, strict) as nbd:
        guest = vhost_user_guest(server.add_written(f"nbd:unix:{nbd.socket}"))
        assert guest.config().blk_size == 4096
        data = random.Random(11).randbytes(512 << 10)
        guest.write(8, data)
        assert guest.read(8, len(data)) == data
        guest.write_zeroes([Range(0, 128)])
        assert guest.read(0, 64 << 10) == bytes(64 << 10)
        server.stop()
