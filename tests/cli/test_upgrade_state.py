"""What of a guest's state the next process has: all of it, as it was."""

import os
import re
import socket
import struct
from pathlib import Path

import pytest
from upgrading import BLOCK, MIB, Load, check_image, image_served

from vhostblk.guest import BrokenQueueError, Guest
from vhostblk.guest.blk import Request
from vhostblk.guest.bounce import SwiotlbOptions
from vhostblk.guest.confidential import Confidential as Machine
from vhostblk.guest.ring import SplitRing

LEARN = 160
POOL = SwiotlbOptions(nslabs=512)
"""So many requests use all of such a pool."""
X = b"x" * 4096
ENGINES = ["native", pytest.param("reference", marks=pytest.mark.slow)]
"""Each test starts several processes."""


def test_a_message_in_halves_is_put_together(image: Path) -> None:
    """
    A front-end in the middle of negotiating, and of a message, is not asked to begin again.

    What has come of the message, a descriptor among it, is handed over with the rest.
    """
    with image_served(image) as (server, path):
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
    with (
        image_served(image) as (server, path),
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
    with (
        image_served(image) as (server, path),
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

    with (
        image_served(image) as (server, path),
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


@pytest.mark.parametrize("engine", ENGINES)
def test_rings_that_do_not_run_stay_as_they_are(image: Path, engine: str) -> None:
    """
    Stopped, disabled and broken ones: each goes on when the guest says so, from where it was.

    Spec: vhost-user, "Ring states".
    """
    with (
        image_served(image, "--num-queues", "2", engine=engine) as (server, path),
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


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_learned_is_not_learned_again(image: Path, engine: str) -> None:
    """A guest that begins to go elsewhere behind an upgrade is held to what was learned before."""
    limits = ("--confidential", "require", "--shared-ranges", f"learn={LEARN}")
    with (
        image_served(image, *limits, engine=engine) as (server, path),
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
