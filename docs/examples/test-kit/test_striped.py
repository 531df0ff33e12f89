"""The disk, driven through real virtqueues without any virtual machine: run ``pytest`` here."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from striped import STRIPE, Striped

from vhostblk.guest.conformance.suite import *  # noqa: F403 - the tests for any back-end
from vhostblk.guest.history import ConcurrentLoad, History, check
from vhostblk.guest.strategies import Limits, chains, requests
from vhostblk.spec.virtio_blk import RequestType

SIZE = 1 << 20


@pytest.fixture
def vhostblk_socket(vhostblk_serve, tmp_path: Path) -> Path:
    """Serve the disk: the kit's tests and fixtures use this one."""
    return vhostblk_serve(Striped(str(tmp_path / "a"), str(tmp_path / "b"), SIZE))


@pytest.fixture
def vhostblk_destroy() -> None:
    """Let tests write: it is nobody's disk."""


def test_stripes_lie_in_turns(vhostblk_guest, tmp_path):
    """The second stripe is the first of the other file."""
    vhostblk_guest.write(STRIPE // 512, b"x" * 512)
    assert (tmp_path / "b").read_bytes()[:512] == b"x" * 512


def test_requests_of_every_kind(vhostblk_guest):
    """Whatever is asked, and however it is cut, the disk is an array of bytes."""
    model, limits = bytearray(SIZE), Limits.of(vhostblk_guest)

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.data())
    def run(data):
        request = data.draw(requests(limits, longest=300))
        done = vhostblk_guest.run(request, framing=data.draw(chains(request)))
        assert done.status == 0
        at = request.sector * 512
        if request.type == RequestType.IN:
            assert done.data == model[at : at + request.in_length]
        elif request.type == RequestType.OUT:
            model[at : at + len(request.out)] = request.out
        elif request.type == RequestType.WRITE_ZEROES:
            for part in request.ranges:
                end = (part.sector + part.num_sectors) * 512
                model[part.sector * 512 : end] = bytes(part.num_sectors * 512)

    run()


@pytest.mark.vhostblk(queues=4)
def test_concurrent_requests_can_be_explained(vhostblk_guest):
    """Every sector that is read is what some order of the requests under way leaves there."""
    history = History()
    load = ConcurrentLoad(vhostblk_guest, history, sectors=512, longest=16, tag=0x646F6373)
    load.fill()
    load.run(1000)
    load.read_all()
    check(history)


def test_a_server_that_is_killed_loses_nothing_that_was_flushed(
    vhostblk_spawn, vhost_user_guest, tmp_path
):
    """The next one has it."""
    disk = f"python:striped:Striped,first={tmp_path}/a,second={tmp_path}/b,size=1M"
    with vhostblk_spawn(disk, cwd=Path(__file__).parent) as server:
        guest = vhost_user_guest(server.socket)
        guest.write(200, b"y" * 512)
        guest.flush()
        server.kill()
    with vhostblk_spawn(disk, cwd=Path(__file__).parent) as server:
        assert vhost_user_guest(server.socket).read(200, 512) == b"y" * 512
