"""Resets of all kinds, memory that comes and goes, and features that change, under load."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from server_kit.serving import Serving, serving

from vhostblk.disk.memory import Memory
from vhostblk.engine.choose import EngineName
from vhostblk.guest import (
    DEFAULT_FEATURES,
    Guest,
    Ledger,
    NackError,
    QueueOptions,
    Region,
    Request,
)
from vhostblk.guest.errors import BrokenQueueError
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import VHOST_F_LOG_ALL
from vhostblk.spec.vhost_user import Request as Message
from vhostblk.spec.virtio_blk import F_FLUSH

Connect = Callable[..., Guest]
SIZE = 1 << 20
BARE = DEFAULT_FEATURES & ~(vr.F_INDIRECT_DESC | vr.F_EVENT_IDX)
PACKED, IN_ORDER = vr.F_RING_PACKED, vr.F_IN_ORDER


WAYS: list[tuple[EngineName, bool]] = [("native", False), ("native", True), ("reference", False)]


@pytest.fixture(params=WAYS, ids=["native-split", "native-packed", "reference-split"])
def guest(request: pytest.FixtureRequest, vhost_user_guest: Connect) -> Iterator[Guest]:
    """A guest with two queues, of every data plane and format that is offered."""
    engine, packed = request.param
    with serving(engine) as server:
        path = server.add(Memory(SIZE), num_queues=2)
        guest = vhost_user_guest(path, queues=2, queue_size=64, packed=packed)
        yield guest
        guest.close()


def status(guest: Guest) -> None:
    guest.frontend.set_status(0)


def device(guest: Guest) -> None:
    for _ in range(3):
        guest.frontend.reset_device()


@pytest.mark.parametrize("reset", [status, device])
def test_a_reset_under_load_touches_nothing_more(
    reset: Callable[[Guest], None], guest: Guest
) -> None:
    """
    After SET_STATUS 0, or RESET_DEVICE three times, with requests in flight nothing is written.

    Then the device starts anew, with the memory it was told of before.

    Spec: vhost-user, "VHOST_USER_RESET_DEVICE".
    """
    for turn in range(4):
        for i in range(40):
            guest.submit(Request.read(8 * i, 8192), queue=i % 2)
        reset(guest)
        guest.frontend.get_features()  # it is done now
        mapping = guest.memory.mappings[0]
        after = bytes(mapping.data)
        for queue in guest.queues:
            queue.notify()
        guest.frontend.get_features()
        guest.frontend.get_features()
        assert bytes(mapping.data) == after
        guest.reboot()
        guest.write(8 * turn, bytes([turn + 1]) * 4096)
        assert guest.read(8 * turn, 4096, queue=1) == bytes([turn + 1]) * 4096


def test_reset_owner_takes_no_memory(guest: Guest) -> None:
    """The message is deprecated, QEMU never sends it; who does can go on by a start."""
    guest.write(0, b"x" * 4096)
    guest.frontend.reset_owner()
    guest.reboot()
    assert guest.read(0, 4096, queue=1) == b"x" * 4096


@dataclass(frozen=True, slots=True)
class Driver:
    """What a driver acknowledges, and the size of its rings."""

    features: int
    size: int


DRIVERS = (
    Driver(BARE & ~F_FLUSH, 4),
    Driver(DEFAULT_FEATURES | PACKED, 100),
    Driver(DEFAULT_FEATURES | IN_ORDER, 256),
    Driver(BARE | PACKED | IN_ORDER, 3),
    Driver(DEFAULT_FEATURES, 128),
    Driver(vr.F_VERSION_1, 8),
)
"""One after the other; SeaBIOS, Linux and whoever comes then know different things."""


def test_each_driver_has_features_and_rings_of_its_own(
    server: Serving, vhost_user_guest: Connect
) -> None:
    """Nothing of a start is kept for the next one."""
    guest = vhost_user_guest(server.add(Memory(SIZE), num_queues=2), queues=2)
    for turn, driver in enumerate(DRIVERS * 2):
        if missing := driver.features & ~guest.agreement.offered & PACKED:
            assert missing == PACKED
            continue  # of what is not offered a driver makes nothing
        guest.reboot(features=driver.features, queue_options=QueueOptions(size=driver.size))
        assert guest.queues[0].ring.shape.packed == bool(driver.features & PACKED)
        data = bytes([turn + 1]) * 4096
        for i in range(max(16, 2 * driver.size)):
            guest.write(8 * (i % 16), data, queue=i % 2)
        assert guest.read(0, 16 * 4096) == 16 * data


def test_features_change_while_it_runs_by_the_log_only(guest: Guest) -> None:
    """
    LOG_ALL comes and goes with load; anything else is refused, and the rings go on.

    Spec: vhost-user, "Migration".
    """
    ledger = Ledger(guest, seed=1)
    can_log = guest.agreement.offered & VHOST_F_LOG_ALL
    for _ in range(10):
        ledger.fill(24)
        for changed in (vr.F_EVENT_IDX, vr.F_INDIRECT_DESC, vr.F_RING_PACKED):
            other = (guest.features ^ changed).to_bytes(8, "little")
            with pytest.raises(NackError):
                guest.frontend.acknowledged(Message.SET_FEATURES, other)
        if can_log:
            guest.frontend.set_features(guest.features | VHOST_F_LOG_ALL)
            ledger.fill(24)
            guest.frontend.set_features(guest.features)
        ledger.settle()
    ledger.verify()


def test_memory_comes_and_goes_under_load(guest: Guest) -> None:
    """Plugged while requests run, used by them, unplugged while others run."""
    ledger = Ledger(guest, seed=2)
    plugged = Region(1 << 32, 1 << 20)
    for _ in range(6):
        ledger.fill(24)
        guest.add_region(plugged)
        for _ in range(4):
            ledger.fill(24)
            ledger.settle()
        guest.memory.set_offline(plugged.gpa)
        ledger.settle_all()
        ledger.fill(24)  # these use other memory
        guest.remove_region(plugged.gpa)
    ledger.verify()


def test_a_region_in_use_is_waited_for(guest: Guest) -> None:
    """
    REM_MEM_REG is acknowledged when no request uses the region any more, whoever erred.

    What the device had not taken by then lies in memory that is gone: its queue breaks.
    """
    plugged = Region(1 << 32, 1 << 20)
    guest.add_region(plugged)
    mapping = next(m for m in guest.memory.mappings if m.region == plugged)
    tickets = [guest.submit(Request.read(8 * i, 16384), queue=i % 2) for i in range(24)]
    guest.frontend.rem_mem_reg(mapping)
    before = bytes(mapping.data)
    guest.frontend.get_features()
    assert bytes(mapping.data) == before
    guest.frontend.add_mem_reg(mapping)
    with suppress(BrokenQueueError):
        assert {guest.wait(ticket).status for ticket in tickets} <= {0, 1}
    guest.reboot()
    assert guest.read(0, 4096) == bytes(4096)
