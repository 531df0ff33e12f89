"""A real guest under load whose server is killed and comes back, again and again."""

import random
from pathlib import Path

import pytest
from guest_boot import verified
from guest_boot.restarts import Server
from guest_boot.verified import NEW, QEMUS, RINGS, Maker, Qemu

pytestmark = pytest.mark.guest

ROUNDS = 20


def rounds(tmp_path: Path, n: int, qemu: Qemu, ring: str) -> None:
    """Kill the server *n* times under one guest, at instants of a seed; then judge the disk."""
    instants = random.Random(n)
    maker = Maker(qemu, tmp_path, ring)
    image = verified.image_in(tmp_path)
    options = ("--num-queues", str(maker.queues))
    # Past the page cache: in it every write is over at once, and in order.
    disk = f"file:{image},cache=none"
    with Server(tmp_path / "s", disk, tmp_path / "server.log", options) as server:
        with maker.vm(server.socket, tmp_path) as vm:
            verified.wait_for_beats(vm)
            for _ in range(n):
                server.kill()
                server.start()
                verified.wait_for_beats(vm)
                verified.pause(instants.random() * 0.2)
            verified.end(vm, image)
        server.stop()
        verified.check_ring(server.log, ring)


@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("qemu", QEMUS)
def test_guest_loses_nothing_when_its_server_is_killed(
    tmp_path: Path, qemu: Qemu, ring: str
) -> None:
    """
    The guest goes on with a new process: nothing is lost, nothing written over by an older write.

    Spec: vhost-user, "Inflight I/O tracking".
    """
    rounds(tmp_path, 2, qemu, ring)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("ring", RINGS)
def test_guest_loses_nothing_in_twenty_rounds(tmp_path: Path, ring: str) -> None:
    """Twenty times killed (SIGKILL) under load, one guest: its disk is what it wrote."""
    rounds(tmp_path, ROUNDS, NEW, ring)
