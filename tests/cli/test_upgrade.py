import os
import random
import re
import socket
import struct
import sys
import threading
from pathlib import Path

import activated
import pytest
import running
from upgrading import Upgraded, served

from vhostblk.guest import BrokenQueueError, Guest
from vhostblk.guest.blk import Request
from vhostblk.guest.bounce import SwiotlbOptions
from vhostblk.guest.confidential import Confidential as Machine
from vhostblk.guest.ring import SplitRing

MIB = 1 << 20
LEARN = 160
POOL = SwiotlbOptions(nslabs=512)
"""So many requests use all of such a pool."""
X = b"x" * 4096
BLOCK = 4096
BLOCKS = 8 * MIB // BLOCK
ENGINES = ["native", "reference"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return an image file of 8 MiB."""
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(8 * MIB))
    return path


class Load:
    """
    Writes of a guest with their readings back, queue after queue.

    Args:
        guest: Who does it.
        queues: On so many.
    """

    def __init__(self, guest: Guest, queues: int, seed: int = 1) -> None:
        self._guest = guest
        self._queues = queues
        self._random = random.Random(seed)
        self.expected: dict[int, bytes] = {}
        self.rounds = 0

    def round(self) -> None:
        """Write on every queue at once, several blocks each, and read back on another."""
        blocks = self._random.sample(range(BLOCKS), 4 * self._queues)
        tickets = []
        for at, block in enumerate(blocks):
            data = self._random.randbytes(BLOCK)
            self.expected[block] = data
            request = Request.write(8 * block, data)
            tickets.append(self._guest.submit(request, queue=at % self._queues))
        for ticket in tickets:
            assert self._guest.wait(ticket).status == 0
        for at, block in enumerate(blocks):
            queue = (at + 1) % self._queues
            assert self._guest.read(8 * block, BLOCK, queue=queue) == self.expected[block]
        self.rounds += 1

    def during(self, server: Upgraded, times: int) -> None:
        """Go on while a server is upgraded, so many times; then check all there is."""
        failures: list[BaseException] = []

        def upgrade() -> None:
            try:
                for _ in range(times):
                    server.upgrade()
            except BaseException as error:  # noqa: BLE001 - raised again below
                failures.append(error)

        upgrading = threading.Thread(target=upgrade)
        upgrading.start()
        while upgrading.is_alive():
            self.round()
        upgrading.join()
        if failures:
            raise failures[0]
        for block, data in self.expected.items():
            assert self._guest.read(8 * block, BLOCK) == data


def skip_without(engine: str) -> None:
    if engine == "native":
        pytest.importorskip("vhostblk._native", reason="no compiled core", exc_type=ImportError)


def check_image(image: Path, load: Load) -> None:
    data = image.read_bytes()
    for block, expected in load.expected.items():
        assert data[block * BLOCK :][:BLOCK] == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_guest_does_not_notice(image: Path, engine: str, packed: bool) -> None:  # noqa: FBT001
    """
    Two upgrades under load: every byte is where it belongs, on the connection there was.

    The image is locked by its open file all the time: nobody else gets it, before or behind.
    """
    skip_without(engine)
    path = image.with_name("s")
    words = ("--engine", engine, "--num-queues", "2", "--socket-path", path, image)
    with served(*words, cwd=image.parent) as server:
        with Guest.connect(path, queues=2, packed=packed) as guest:
            load = Load(guest, 2)
            load.during(server, 2)
        status, line = running.outcome(
            *("-m", "vhostblk", "serve", "-q", "--socket-path", "t", image), cwd=image.parent
        )
        assert status == 1
        assert f"(pid {server.pid}) writes to it" in line
        log = server.end()
    check_image(image, load)
    assert log.count("a front-end has connected") == log.count("the front-end is gone") == 1
    assert "WARNING" not in log
    assert "ERROR" not in log
    assert not path.exists()
    assert max(server.pauses) < 1000


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_upgrades_leave_nothing(image: Path, engine: str) -> None:
    """Ten in a row under load: the last process has as many descriptors as the second one."""
    skip_without(engine)
    path = image.with_name("s")
    words = ("--engine", engine, "--num-queues", "4", "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path, queues=4) as guest,
    ):
        load = Load(guest, 4)
        load.during(server, 1)
        before = server.open_fds
        load.during(server, 9)
        assert server.open_fds == before
        server.end()
    check_image(image, load)


def test_nobody_connected_is_upgraded_too(image: Path) -> None:
    """The socket listens all the time: who connects meanwhile is served by the next process."""
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with served(*words, cwd=image.parent) as server:
        inode = path.stat().st_ino
        server.upgrade()
        assert path.stat().st_ino == inode
        with Guest.connect(path) as guest:
            load = Load(guest, 1)
            load.round()
        server.upgrade()
        with Guest.connect(path) as guest:
            assert guest.read(0, BLOCK) == image.read_bytes()[:BLOCK]
        server.end()
    assert not path.exists()


def test_a_message_in_halves_is_put_together(image: Path) -> None:
    """
    A front-end in the middle of negotiating, and of a message, is not asked to begin again.

    What has come of the message, a descriptor among it, is handed over with the rest.
    """
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with served(*words, cwd=image.parent) as server:
        with Guest.connect(path, start=False) as guest:
            whole = struct.pack("=IIIQ", 13, 1, 8, 0)  # SET_VRING_CALL of ring 0
            sock = socket.socket(fileno=os.dup(guest.frontend.connection.fileno()))
            with sock:
                for split in (5, 15):  # within the header, and behind it
                    socket.send_fds(sock, [whole[:split]], [guest.queues[0].call])
                    server.upgrade()
                    sock.send(whole[split:])
            guest.start()
            Load(guest, 1).round()
        assert "in the middle" not in server.end()


def test_the_write_cache_switch_is_as_it_was(image: Path) -> None:
    """What the guest has set of the config space, and the status, it finds again."""
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path) as guest,
    ):
        guest.write_config(32, b"\0")
        before = guest.config(), guest.frontend.get_status(), guest.frontend.get_features()
        server.upgrade()
        after = guest.config(), guest.frontend.get_status(), guest.frontend.get_features()
        assert before == after
        assert after[0].writeback == 0
        server.end()


def test_a_guest_behind_an_iommu_goes_on(image: Path) -> None:
    """What was known of its IOMMU, and the channel to ask for more, are handed over."""
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path, iommu="page", queue_size=64) as guest,
    ):
        load = Load(guest, 1)
        load.round()
        server.upgrade()
        load.round()
        server.upgrade()
        load.round()
        server.end()
    check_image(image, load)


def test_memory_plugged_and_pulled_around_upgrades(image: Path) -> None:
    """The table is the same in the next process: it can be added to and removed from."""
    from vhostblk.guest.layout import Region  # noqa: PLC0415

    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path) as guest,
    ):
        guest.add_region(Region(1 << 32, MIB))
        server.upgrade()
        guest.add_region(Region(1 << 33, MIB))
        guest.remove_region(1 << 32)
        Load(guest, 1).round()
        server.upgrade()
        guest.remove_region(1 << 33)
        Load(guest, 1).round()
        server.end()


def test_memory_in_a_memfd_is_carried(tmp_path: Path) -> None:
    """memfd=on keeps what was written; a disk in private memory is not given up, and says so."""
    path = tmp_path / "s"
    words = ("--engine", "reference", "--socket-path", path)
    with (
        served(*words, "memory:8M,memfd=on", cwd=tmp_path) as server,
        Guest.connect(path) as guest,
    ):
        load = Load(guest, 1)
        load.round()
        load.during(server, 1)
        server.end()
    with (
        served(*words, "memory:8M", cwd=tmp_path) as server,
        Guest.connect(path) as guest,
    ):
        guest.write(0, b"x" * 512)
        server.ask()
        server.wait_for(
            re.compile(
                r"ERROR +upgrade: not done, serving on: s: a Memory disk would lose what it holds "
                r"in memory: serve memory:SIZE,memfd=on"
            )
        )
        assert guest.read(0, 512) == b"x" * 512
        server.end()


def test_a_front_end_that_listens_is_kept(image: Path) -> None:
    """With --connect the connection goes on, and the next process connects again afterwards."""
    path = image.with_name("q")
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.bind(str(path))
        qemu.listen(1)
        words = ("--engine", "reference", "--connect", path, image)
        with served(*words, cwd=image.parent) as server:
            from vhostblk.guest import FrontEnd  # noqa: PLC0415

            with Guest(FrontEnd.over(qemu.accept()[0])) as guest:
                guest.start()
                load = Load(guest, 1)
                load.during(server, 1)
            with Guest(FrontEnd.over(qemu.accept()[0])) as guest:
                guest.start()
                assert guest.read(0, BLOCK) == image.read_bytes()[:BLOCK]
                server.upgrade()
            log = server.end()
    assert log.count("connected to") >= 2  # it may have come back once more before the end


def test_systemd_is_told_who_serves(image: Path) -> None:
    """
    The socket of a socket unit is handed over, name and all; MAINPID= comes before READY=1.

    Source: sd_notify(3).
    """
    path, told = image.with_name("s"), image.with_name("n")
    with (
        socket.socket(socket.AF_UNIX) as unit,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        unit.bind(str(path))
        unit.listen()
        manager.bind(str(told))
        manager.settimeout(running.TIMEOUT_S)
        serve = ("-m", "vhostblk", "serve", "--engine", "reference", image)
        process = running.start(
            *(activated.__file__, f"{unit.fileno()}:vm0", "--", sys.executable, *serve),
            cwd=image.parent,
            pass_fds=(unit.fileno(),),
            environ={"NOTIFY_SOCKET": str(told)},
        )
        server = Upgraded(process)
        try:
            first = server.pid
            assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"
            with Guest.connect(path) as guest:
                Load(guest, 1).during(server, 1)
            said = manager.recv(200).decode().split("\n")
            assert said[0] == "RELOADING=1"
            assert said[1].startswith("MONOTONIC_USEC=")
            assert manager.recv(100).decode() == f"MAINPID={server.pid}"
            assert manager.recv(100) == b"READY=1\nSTATUS=serving vm0"
            assert server.pid != first
            server.end()
            assert manager.recv(100).startswith(b"STOPPING=1")
        finally:
            server.kill()
    assert path.exists()


def test_told_to_stop_ends_an_upgrade_too(image: Path) -> None:
    """SIGTERM behind SIGUSR2 ends the server, and no process is left of the other."""
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with served(*words, cwd=image.parent) as server:
        server.ask()
        server.wait_for(re.compile("upgrade: starting"))
        log = server.end()  # reads until no process has the pipe
        assert "upgrade: not done, serving on: told to stop" in log
    assert not path.exists()


def test_one_upgrade_at_a_time(image: Path) -> None:
    """A second SIGUSR2 while one is under way is a warning, not a second process."""
    path = image.with_name("s")
    words = ("--engine", "reference", "--socket-path", path, image)
    with served(*words, cwd=image.parent) as server:
        server.ask()
        server.wait_for(re.compile("upgrade: starting"))
        server.upgrade()
        log = server.end()
    assert log.count("upgrade: starting") == 1
    assert "WARNING upgrade: one is under way already" in log


@pytest.mark.parametrize("engine", ENGINES)
def test_rings_that_do_not_run_stay_as_they_are(image: Path, engine: str) -> None:
    """
    Stopped, disabled and broken ones: each goes on when the guest says so, from where it was.

    Spec: vhost-user, "Ring states".
    """
    skip_without(engine)
    path = image.with_name("s")
    words = ("--engine", engine, "--num-queues", "2", "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path, queues=2) as guest,
    ):
        guest.write(0, X)
        guest.stop()
        server.upgrade()
        guest.start()
        assert guest.read(0, BLOCK) == X
        guest.session.enable(enable=False)
        ticket = guest.submit(Request.write(8, X))
        server.upgrade()
        guest.session.enable(enable=True)
        assert guest.wait(ticket).status == 0
        ring = guest.queues[1].ring
        assert isinstance(ring, SplitRing)
        ring.set_avail_idx(0x7FFF)  # far more than there can be
        with pytest.raises(BrokenQueueError):
            guest.read(0, BLOCK, queue=1)
        server.upgrade()
        assert guest.read(8, BLOCK) == X
        guest.reboot()
        assert guest.read(8, BLOCK, queue=1) == X
        log = server.end()
    assert log.count("queue 1 is broken") >= 1


def test_a_migration_goes_on(image: Path) -> None:
    """
    Both ends are replaced while the guest migrates: no page is left unmarked, no byte is lost.

    The image is locked by the end that runs, and by no other; the lock goes over, too.

    Spec: vhost-user, "Migration".
    """
    skip_without("native")
    one, two = image.with_name("one"), image.with_name("two")
    disk = f"file:{image},lock=while-running"
    with (
        served("--socket-path", one, disk, cwd=image.parent) as source,
        served("--socket-path", two, disk, cwd=image.parent) as destination,
        Guest.connect(one) as guest,
    ):
        load = Load(guest, 1)
        load.round()
        ends = [source, destination, source]

        def meanwhile() -> None:
            ends.pop().upgrade()
            load.round()

        guest.migrate_to(two, passes=3, meanwhile=meanwhile)
        load.during(destination, 1)
        source.end()
        destination.end()
    check_image(image, load)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_learned_is_not_learned_again(image: Path, engine: str) -> None:
    """A guest that begins to go elsewhere behind an upgrade is held to what was learned before."""
    skip_without(engine)
    path = image.with_name("s")
    limits = ("--confidential", "require", "--shared-ranges", f"learn={LEARN}")
    words = ("--engine", engine, *limits, "--socket-path", path, image)
    with (
        served(*words, cwd=image.parent) as server,
        Guest.connect(path, confidential=Machine(kind="bounced", swiotlb=POOL)) as guest,
    ):
        for sector in range(LEARN + 1):
            guest.write(sector, X[:512])
        server.wait_for(re.compile(f"learned from {LEARN} requests"))
        server.upgrade()
        for sector in range(LEARN + 1):
            assert guest.read(sector, 512) == X[:512]
        log = server.end()
    assert log.count("learned from") == 1
