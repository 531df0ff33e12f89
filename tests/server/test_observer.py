"""What is inferred of a guest: by samples that a test makes up, and of whole fake guests."""

import asyncio
import logging
import random
from collections.abc import Callable

import pytest
import uvloop
from server_kit.engine import FakeQueue
from server_kit.iommu import iommu
from server_kit.serving import Serving, until
from server_kit.wire import QUIET, REGION_SIZE, Wire, region, wired

from vhostblk.disk.memory import Memory
from vhostblk.engine.api import Counters
from vhostblk.guest.blk import Framing, Request
from vhostblk.guest.bounce import Bounced, SwiotlbOptions
from vhostblk.guest.confidential import Confidential, Kind
from vhostblk.guest.guest import Guest
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.window import SCORED
from vhostblk.server import observer
from vhostblk.server.observer import EVERY, FIRST
from vhostblk.server.policy import Confidential as Mode
from vhostblk.server.status import Status, status

Connect = Callable[..., Guest]
SIZE = 4 << 20
PAGE = 4096
KINDS = ["bounced", pytest.param("sev", marks=pytest.mark.slow), "snp", "tdx"]
"""Encrypting is slow."""


def bounced(number: int) -> list[Sample]:
    """The samples of a request in a pool at 0x40000."""
    at = 0x4_0000 + number * 4 * PAGE % 0xB_0000
    return [
        Sample(number, at, 16, Role.READABLE, outside=False),
        Sample(number, at + PAGE, 512, Role.WRITABLE, outside=False),
        Sample(number, at + 2048, 1, Role.WRITABLE, outside=False),
    ]


def sample(queue: FakeQueue, *numbers: int) -> None:
    """Have a queue sample bounced requests, and tell."""
    queue.seen += [one for number in numbers for one in bounced(number)]
    assert queue.on_samples is not None
    queue.on_samples()


def observed(work: Callable[[Wire], object], **options: object) -> Status:
    """The status when *work* was done with a ring that runs."""

    async def run() -> Status:
        async with wired(**options) as wire:  # type: ignore[arg-type]
            await wire.start()
            work(wire)
            return status(wire.device)

    return uvloop.run(run())


def test_ring_is_sampled_from_its_start() -> None:
    """The first requests whole, and a few of those after them; not with mode off."""

    async def starts() -> tuple[object, object]:
        found: list[object] = []
        for mode in (Mode.AUTO, Mode.OFF):
            async with wired(confidential=mode) as wire:
                await wire.start()
                found.append(wire.queue.sampling)
        return found[0], found[1]

    assert uvloop.run(starts()) == ((FIRST, EVERY), None)


def test_guest_is_known_at_once_when_it_can_be() -> None:
    """While it is being found out, samples are taken whenever the queue tells of them."""

    def work(wire: Wire) -> None:
        for number in range(FIRST):
            sample(wire.queue, number)
            assert wire.queue.seen == []

    found = observed(work)
    assert found["guest_dma"] == "bounced"
    assert found["requests_scored"] == SCORED
    window = found["shared_window"]
    assert window["known"]
    assert window["ranges"] == [{"gpa": "0x40000", "bytes": (FIRST * 4 - 2) * PAGE}]
    assert window["bytes"] == FIRST * 2 * PAGE


def test_busy_guest_does_not_keep_us_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later samples are taken some time later, and not all of them are looked at."""
    monkeypatch.setattr(observer, "SECONDS", QUIET)
    monkeypatch.setattr(observer, "BATCH", 6)

    async def busy() -> None:
        async with wired() as wire:
            await wire.start()
            sample(wire.queue, *range(FIRST))
            sample(wire.queue, *range(FIRST, FIRST + 8))
            sample(wire.queue)
            assert len(wire.queue.seen) == 3 * 8
            await asyncio.sleep(3 * QUIET)
            assert wire.queue.seen == []
            window = status(wire.device)["shared_window"]
            assert window["bytes"] == 2 * PAGE * (FIRST + 2)

    uvloop.run(busy())


def test_start_is_seen_to_its_end() -> None:
    """At a stop the last request is complete; what is seen stays until the next start."""

    async def stops() -> tuple[Status, Status]:
        async with wired() as wire:
            await wire.start()
            wire.queue.seen += [one for number in range(SCORED) for one in bounced(number)]
            assert status(wire.device)["guest_dma"] == "unknown"
            await wire.ask(11, bytes(8))
            ended = status(wire.device)
            await wire.set_up()
            return ended, status(wire.device)

    ended, again = uvloop.run(stops())
    assert (ended["guest_dma"], ended["starts"]) == ("bounced", 1)
    assert (again["guest_dma"], again["starts"]) == ("unknown", 2)
    assert again["shared_window"]["bytes"] == 0


def test_memory_that_moves_begins_a_new_count(caplog: pytest.LogCaptureFixture) -> None:
    """Sampling begins anew with the new memory; a request cut in two by that is not judged."""
    caplog.set_level(logging.INFO)

    async def moves() -> Status:
        async with wired() as wire:
            await wire.start()
            await wire.plug(2 * REGION_SIZE)
            sample(wire.queue, *range(SCORED - 1))
            wire.queue.seen += bounced(SCORED)[:2]
            wire.queue.sampling = None
            assert await wire.acked(38, region(2 * REGION_SIZE)) == 0
            assert wire.queue.sampling == (FIRST, EVERY)
            assert f'"requests_scored":{SCORED - 1},' in caplog.text
            return status(wire.device)

    found = uvloop.run(moves())
    assert (found["starts"], found["requests_scored"]) == (2, 0)


def test_address_outside_of_memory_is_no_page() -> None:
    """What no region holds is not shown, whether the queue has denied it or not yet."""
    far = Sample(0, REGION_SIZE - PAGE, 4 * PAGE, Role.READABLE, outside=False)
    gone = Sample(0, 0x1000, 512, Role.READABLE, outside=True)

    def work(wire: Wire) -> None:
        wire.queue.seen += [far, gone]

    window = observed(work)["shared_window"]
    assert window["ranges"] == [{"gpa": hex(REGION_SIZE - PAGE), "bytes": PAGE}]


def test_descriptors_of_translated_queues_are_hits() -> None:
    """Of all starts together, from what the queue had walked before."""

    async def walks() -> list[int]:
        found: list[int] = []
        async with iommu() as front:
            queue = await front.up()
            queue.done = Counters(descriptors=7)
            found.append(status(front.device)["iotlb_hits"])
            await front.ask(11, bytes(8))
            found.append(status(front.device)["iotlb_hits"])
            await front.set_up()  # by front-end addresses: not translated
            queue.done = Counters(descriptors=9)
            found.append(status(front.device)["iotlb_hits"])
        return found

    assert uvloop.run(walks()) == [7, 7, 7]


def test_hits_of_another_process_are_added_and_its_descriptors_are_none() -> None:
    """What its queues had walked counts for ours from then on, and is not walked again."""

    async def goes_on() -> int:
        async with iommu() as front:
            queue = await front.up()
            queue.done = Counters(descriptors=7)
            attached = front.device.attached
            assert attached is not None
            attached.rings[0].keeper.recall(Counters(descriptors=50), {})
            attached.observer.recall(hits=40, walked={0: 50, 1: 3})
            return status(front.device)["iotlb_hits"]

    assert uvloop.run(goes_on()) == 47


def test_slots_and_segments_are_added_up() -> None:
    """Slots of all queues, their marks, the longest segment of any; outside ones, gone or not."""

    async def look() -> tuple[Status, Status]:
        async with wired() as wire:
            await wire.start(0)
            await wire.set_up(1)
            counts = {"slots": 3, "slots_high": 10, "segment_max": 512, "outside": 2}
            for factor, queue in enumerate(wire.engine.queues, start=1):
                queue.done = Counters(**{name: n * factor for name, n in counts.items()})
            up = status(wire.device)
            wire.sock.close()
            await wire.closed()
            return up, status(wire.device)

    up, gone = uvloop.run(look())
    assert (up["bounce_slots_inflight"], up["bounce_slots_high_water"]) == (9, 30)
    assert up["segments_max_bytes"] == 1024
    assert up["requests_outside_shared_total"] == gone["requests_outside_shared_total"] == 6


# ---- whole guests -------------------------------------------------------------------------


def use(guest: Guest, requests: int = SCORED + 1) -> None:
    """Read and write a little, on all of its queues."""
    for number in range(requests):
        queue = number % len(guest.queues)
        framing = Framing(indirect=bool(number % 3))
        if number % 2:
            guest.write(8 * number, bytes([number % 256]) * 4096, queue=queue, framing=framing)
        else:
            guest.read(8 * number, 512 << number % 5, queue=queue, framing=framing)


def seen(server: Serving) -> Status:
    """The status of the first device."""
    return server.ask(lambda: status(server.devices[0]))


def known(server: Serving, kind: str) -> Status:
    """The same as soon as the guest is known to be of this kind."""
    assert until(lambda: seen(server)["guest_dma"] == kind), seen(server)
    return seen(server)


def test_ordinary_guest_is_direct(server: Serving, vhost_user_guest: Connect) -> None:
    """Its buffers are where the driver has them."""
    use(vhost_user_guest(server.add(Memory(SIZE))))
    found = known(server, "direct")
    assert not found["shared_window"]["known"]
    assert found["translation"] == "uva"
    assert found["queues"][0]["counters"]["reads"] > 10


@pytest.mark.parametrize("kind", KINDS)
def test_confidential_guest_bounces_in_its_pool(
    kind: Kind, server: Serving, vhost_user_guest: Connect
) -> None:
    """Every page that was seen is in the pool, the rings are apart from it."""
    guest = vhost_user_guest(server.add(Memory(SIZE), num_queues=2), queues=2, confidential=kind)
    use(guest, SCORED + 4)
    found = known(server, "bounced")
    window = found["shared_window"]
    assert window["known"]
    assert isinstance(guest.dma, Bounced)
    (pool,) = guest.dma.pools
    (only,) = window["ranges"]
    assert pool.start <= int(only["gpa"], 16) < int(only["gpa"], 16) + only["bytes"] <= pool.stop
    assert window["span"] == only["bytes"] >= window["bytes"] > 8 * PAGE
    rings = [int(one["gpa"], 16) for one in window["rings"]]
    assert {queue.ring.addresses.desc // PAGE * PAGE for queue in guest.queues} >= {*rings[:1]}
    assert not any(gpa in pool for gpa in rings)
    assert found["bounce_slots_inflight"] == 0
    assert found["bounce_slots_high_water"] >= 5
    assert found["segments_max_bytes"] == 8192


def test_longest_bounced_segment(server: Serving, vhost_user_guest: Connect) -> None:
    """256 KiB, in 128 slots; with those of header, status and table that is the high water."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="bounced")
    guest.read(0, 1 << 20)
    found = seen(server)
    assert found["segments_max_bytes"] == 256 << 10
    assert isinstance(guest.dma, Bounced)
    assert found["bounce_slots_high_water"] == guest.dma.high_water


def test_slots_in_flight_are_those_of_the_pool(server: Serving, vhost_user_guest: Connect) -> None:
    """What the driver has taken out of its pool and not got back."""
    disk = Memory(SIZE)
    guest = vhost_user_guest(server.add(disk), confidential="bounced")
    tickets = [guest.submit(Request.read(0, 65536)) for _ in range(8)]
    assert isinstance(guest.dma, Bounced)
    for ticket in tickets:
        guest.wait(ticket)
    assert seen(server)["bounce_slots_high_water"] <= guest.dma.high_water
    assert seen(server)["bounce_slots_inflight"] == 0


@pytest.mark.parametrize("also", [None, "bounced"])
def test_guest_behind_an_iommu(also: Kind | None, server: Serving) -> None:
    """It is one, bounced or not; what was mapped is shown by GPA, not by IOVA."""
    path = server.add(Memory(SIZE))
    with Guest.connect(path, iommu="page", confidential=also) as guest:
        use(guest)
        found = known(server, "iommu")
        window = found["shared_window"]
        assert found["translation"] == "iotlb"
        assert not window["known"]
        assert found["iotlb_hits"] > 3 * SCORED
        assert found["iotlb_misses"] > 0
        assert found["iotlb_updates"] > 0
        assert found["iotlb_invalidates"] > 0
        assert window["bytes"] > 2 * PAGE
        size = 64 << 20
        assert all(int(one["gpa"], 16) + one["bytes"] <= size for one in window["ranges"])


def test_firmware_is_a_start_of_its_own(server: Serving, vhost_user_guest: Connect) -> None:
    """Islands of the firmware are forgotten when the system starts, and the other way round."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="snp")
    use(guest)
    assert known(server, "bounced")["starts"] == 1
    with guest.firmware_phase():
        guest.read(0, 512)
        first = seen(server)
        assert (first["starts"], first["guest_dma"]) == (2, "unknown")
        assert first["shared_window"]["bytes"] <= 4 * PAGE
    use(guest)
    assert known(server, "bounced")["starts"] == 3


def test_moved_pool_is_a_new_window(server: Serving, vhost_user_guest: Connect) -> None:
    """After a reboot the old places are not in it."""
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential="bounced")
    use(guest)
    before = known(server, "bounced")["shared_window"]["ranges"]
    guest.reboot()
    use(guest)
    after = known(server, "bounced")["shared_window"]["ranges"]
    assert isinstance(guest.dma, Bounced)
    assert after != before
    assert int(after[0]["gpa"], 16) in guest.dma.pools[0]


def test_dynamic_pools_are_islands(server: Serving, vhost_user_guest: Connect) -> None:
    """A pool that grows is still a window."""
    options = SwiotlbOptions(nslabs=128, dynamic=True)
    confidential = Confidential(kind="snp", swiotlb=options)
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=confidential)
    for _ in range(5):
        tickets = [guest.submit(Request.read(0, 65536)) for _ in range(12)]
        for ticket in tickets:
            guest.wait(ticket)
    assert known(server, "bounced")["shared_window"]["known"]


def test_mode_off_infers_nothing(server: Serving, vhost_user_guest: Connect) -> None:
    """The counters count as ever."""
    use(vhost_user_guest(server.add(Memory(SIZE), confidential=Mode.OFF), confidential="bounced"))
    found = seen(server)
    assert (found["guest_dma"], found["requests_scored"]) == ("unknown", 0)
    assert found["shared_window"]["bytes"] == 0
    assert found["shared_window"]["rings"] == []
    assert found["segments_max_bytes"] == 8192


def test_scattered_guest_stays_cheap(server: Serving, vhost_user_guest: Connect) -> None:
    """Requests of many small buffers all over memory are served, and shown as what they are."""
    guest = vhost_user_guest(server.add(Memory(SIZE)))
    rng = random.Random(4)
    for _ in range(FIRST + 1):
        guest.read(rng.randrange(1000), 32 * 512)
    assert known(server, "direct")["shared_window"]["bytes"] > PAGE
