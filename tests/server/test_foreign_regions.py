"""
Inflight regions and dirty logs that others made: of every kind, and when they turn bad or vanish.

The C core's affair, as guest memory that vanishes is.
"""

import os
import struct
from collections.abc import Callable, Iterator

import pytest
from server_kit.disks import SIZE
from server_kit.serving import Serving, serving, until

from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest, Request
from vhostblk.guest.dirty import DirtyLog
from vhostblk.guest.errors import BrokenQueueError
from vhostblk.guest.inflight import Inflight, Maker

X = b"x" * 4096
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
Connect = Callable[..., Guest]


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving("native") as running:
        yield running


def handed(path: object, region: Inflight, **options: object) -> Guest:
    """Start a guest whose front-end has this region already."""
    guest = Guest.connect(str(path), queue_size=64, start=False, **options)  # type: ignore[arg-type]
    guest.keep_inflight(region)
    guest.start()
    return guest


@pytest.mark.parametrize(
    ("maker", "packed"),
    [
        ("libvhost-user", False),
        ("dpdk", False),
        ("yc", False),
        ("libvhost-user", True),
        ("dpdk", True),
    ],
)
def test_a_region_of_any_maker_is_used(server: Serving, maker: Maker, *, packed: bool) -> None:
    """What is taken is noted there and struck out; requests are served as ever."""
    region = Inflight.make(maker, queues=2, queue_size=64, packed=packed, offset=4096)
    path = server.add(Memory(SIZE), num_queues=2)
    with handed(path, region, packed=packed, queues=2) as guest:
        for sector in range(0, 64, 8):
            guest.write(sector, X, queue=sector // 8 % 2)
        assert guest.read(0, 4096 * 8) == X * 8
        assert [region.desc_num(queue) for queue in (0, 1)] == [64, 64]
        assert [region.marked(queue, packed=packed) for queue in (0, 1)] == [[], []]


@FORMATS
def test_a_region_that_vanishes_breaks_its_queue(
    server: Serving, vhost_user_guest: Connect, *, packed: bool
) -> None:
    """A front-end that cuts its file off harms its own queue, and nobody else."""
    region = Inflight.make("dpdk", queues=1, queue_size=64, packed=packed)
    path, other = server.add(Memory(SIZE)), server.add(Memory(SIZE))
    bystander = vhost_user_guest(other)
    with handed(path, region, packed=packed) as guest:
        guest.write(0, X)
        os.ftruncate(region.fd, 0)
        guest.submit(Request.write(8, X))
        guest.queues[0].wait_broken(5)
        bystander.write(0, X)
    assert vhost_user_guest(path).read(0, 4096) == X


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<QHH", 1, 1, 64),
        struct.pack("<QHH", 0, 2, 64),
        struct.pack("<QHH", 0, 1, 0),
        struct.pack("<QHH", 0, 1, 65535),
    ],
    ids=["features", "version", "none", "too-many"],
)
def test_a_region_that_is_none_breaks_its_queue(
    server: Serving, vhost_user_guest: Connect, header: bytes
) -> None:
    """Whatever stands in it, the process goes on; with another region the device serves."""
    region = Inflight.make("dpdk", queues=1, queue_size=64)
    region.write(0, 0, header)
    path = server.add(Memory(SIZE))
    with handed(path, region) as guest, pytest.raises(BrokenQueueError):
        guest.write(0, X)
    guest = vhost_user_guest(path)
    guest.write(0, X)
    assert guest.read(0, 4096) == X


def test_a_log_that_vanishes_breaks_its_queue(
    server: Serving, vhost_user_guest: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    """A front-end that cuts the log off: its queue breaks, as it could not mark what it writes."""
    path, other = server.add(Memory(SIZE)), server.add(Memory(SIZE))
    bystander = vhost_user_guest(other)
    guest = vhost_user_guest(path)
    guest.write(0, X)
    log = DirtyLog(guest.memory)
    guest.session.start_logging(log)
    assert guest.read(0, 4096) == X
    os.ftruncate(log.fd, 0)
    guest.submit(Request.read(0, 4096))
    guest.queues[0].wait_broken(5)
    bystander.write(0, X)
    assert until(lambda: "queue 0 is broken: dirty log vanished" in caplog.text)
    guest.close()
    assert vhost_user_guest(path).read(0, 4096) == X
