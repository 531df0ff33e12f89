"""
The fake guest against qemu-storage-daemon: the proof that it is right.

A fake guest and a back-end by the same hands could agree on the same mistake; this back-end is
nobody's here, and the bytes are compared with the image file.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from guest_peers.qsd import Daemon, storage_daemon

from vhostblk.guest import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    DisconnectedError,
    Framing,
    Guest,
    GuestError,
    GuestMemory,
    QueueOptions,
    Range,
    Region,
    Request,
    StatusError,
    pc_layout,
    slots_layout,
)
from vhostblk.guest.blk import place
from vhostblk.guest.memory import MIB, PAGE
from vhostblk.spec import vhost_user as vu
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import CONFIG_WRITEBACK_OFFSET, RequestType, Status

SIZE = 4 * MIB
SECTORS = SIZE // 512
BARE = DEFAULT_FEATURES & ~(vr.F_INDIRECT_DESC | vr.F_EVENT_IDX)

Connect = Callable[..., Guest]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with storage_daemon(tmp_path, SIZE) as running:
        yield running


@pytest.fixture
def connect(daemon: Daemon, vhost_user_guest: Connect) -> Connect:
    return lambda **options: vhost_user_guest(daemon.path, **options)


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def exchange(guest: Guest, daemon: Daemon, rounds: int = 8) -> None:
    """Write through every queue, read back through another one, compare with the file."""
    queues = len(guest.queues)
    for i in range(rounds):
        data = noise(4096 * (1 + i % 3), seed=i)
        guest.write(64 * i, data, queue=i % queues)
        assert guest.read(64 * i, len(data), queue=(i + 1) % queues) == data
        assert daemon.image.read_bytes()[64 * i * 512 :][: len(data)] == data


def test_config_is_understood(connect: Connect) -> None:
    """
    The config space holds what the daemon was told.

    Spec: virtio 1.3, 5.2.4.
    """
    config = connect(queues=1).config()
    assert (config.capacity, config.blk_size, config.num_queues) == (SECTORS, 512, 4)
    assert config.max_write_zeroes_seg == 1


def test_config_write_arrives(connect: Connect) -> None:
    """Writing the writeback field changes what is read."""
    guest = connect()
    for value in (1, 0):
        guest.write_config(CONFIG_WRITEBACK_OFFSET, bytes([value]))
        assert guest.config().writeback == value


def test_get_id_ends_at_the_nul(connect: Connect) -> None:
    """The serial is the daemon's default, without what lies behind its NUL."""
    assert connect().get_id() == b"vhost_user_blk"


@pytest.mark.parametrize("size", [4, 8, 128, 256, 1024])
@pytest.mark.parametrize("features", [DEFAULT_FEATURES, BARE], ids=["indirect+event", "bare"])
def test_exchange(connect: Connect, daemon: Daemon, size: int, features: int) -> None:
    """What is written is read back and is in the file, for every ring size and ring feature."""
    exchange(connect(queues=2, queue_size=size, features=features), daemon)


@pytest.mark.parametrize("size", [1, 2])
def test_exchange_on_a_tiny_ring(connect: Connect, daemon: Daemon, size: int) -> None:
    """A ring of one descriptor carries any request in an indirect table."""
    exchange(connect(queue_size=size), daemon)


def test_exchange_on_two_descriptors_without_indirect(connect: Connect, daemon: Daemon) -> None:
    """A ring of two descriptors carries requests with one descriptor each way."""
    exchange(connect(queue_size=2, features=BARE), daemon)


@pytest.mark.parametrize("feature", [vr.F_INDIRECT_DESC, vr.F_EVENT_IDX])
def test_exchange_with_one_ring_feature(connect: Connect, daemon: Daemon, feature: int) -> None:
    """INDIRECT_DESC and EVENT_IDX work each without the other."""
    exchange(connect(features=BARE | feature), daemon)


def test_exchange_on_all_queues(connect: Connect, daemon: Daemon) -> None:
    """Four queues serve the same disk."""
    exchange(connect(queues=4), daemon, rounds=16)


@pytest.mark.parametrize("features", [DEFAULT_FEATURES, BARE], ids=["indirect+event", "bare"])
def test_indices_wrap(connect: Connect, daemon: Daemon, features: int) -> None:
    """
    Rings that begin at 65533 go on past 65535, and the base says so.

    Spec: virtio 1.3, 2.7.6: "Queue size value is always a power of 2", indices run freely.
    """
    guest = connect(base=65533, queue_size=16, features=features)
    exchange(guest, daemon, rounds=8)
    assert guest.stop() == {0: (65533 + 16) % 65536}


LAYOUTS = {
    "one": [Region(0, MIB)],
    "not at 0": [Region(1 << 40, MIB)],
    "pc": pc_layout(MIB, MIB),
    "adjacent": slots_layout(4, 256 << 10),
    "holes": slots_layout(4, 256 << 10, gap=PAGE),
    "eight": slots_layout(8, 64 << 10, gap=1 << 30),
}


@pytest.mark.parametrize("own_memfds", [False, True], ids=["one memfd", "own memfds"])
@pytest.mark.parametrize("slots", [True, False], ids=["ADD_MEM_REG", "SET_MEM_TABLE"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exchange_with_regions(
    connect: Connect, daemon: Daemon, layout: str, *, slots: bool, own_memfds: bool
) -> None:
    """Pieces of a request that lie in different regions all arrive, however regions are sent."""
    protocol = DEFAULT_PROTOCOL_FEATURES
    if not slots:
        protocol &= ~ProtocolFeature.CONFIGURE_MEM_SLOTS
    with GuestMemory(LAYOUTS[layout], own_memfds=own_memfds) as memory:
        exchange(connect(memory=memory, protocol_features=protocol), daemon, rounds=8)


def test_exchange_with_509_regions(connect: Connect, daemon: Daemon) -> None:
    """As many regions as the daemon has slots."""
    with GuestMemory(slots_layout(509, 2 * PAGE, gap=PAGE)) as memory:
        guest = connect(memory=memory, queue_size=16)
        assert guest.agreement.max_mem_slots == 509
        for i in range(64):
            guest.write(8 * i, noise(4096, i))
        assert guest.read(0, 4096) == noise(4096, 0)
        assert daemon.image.read_bytes()[: 64 * 4096] == b"".join(noise(4096, i) for i in range(64))


def test_buffer_over_a_border(connect: Connect, daemon: Daemon) -> None:
    """A buffer that begins in one region and ends in the adjacent one is one buffer."""
    # Not in an indirect table: there the daemon counts a buffer in two pieces as two descriptors
    # and takes the chain for a loop.
    with GuestMemory(slots_layout(2, MIB), own_memfds=True) as memory:
        border = memory.mappings[1].region.gpa
        at = [memory.allocate(16), memory.reserve(border - 1000, 4096), memory.allocate(1)]
        guest = connect(memory=memory)
        guest.write(8, noise(4096), framing=Framing(at=at, indirect=False))
        assert daemon.image.read_bytes()[4096:8192] == noise(4096)
        memory.write(border - 1000, bytes(4096))
        assert guest.read(8, 4096, framing=Framing(at=at, indirect=False)) == noise(4096)


def test_regions_come_and_go_while_running(connect: Connect, daemon: Daemon) -> None:
    """A region that is plugged in is usable at once, and gone when it is unplugged."""
    with GuestMemory([Region(0, MIB)]) as memory:
        guest = connect(memory=memory)
        guest.add_region(Region(1 << 32, MIB))
        data = memory.reserve(1 << 32, 4096)
        at = [memory.reserve(0x8000, 16), data, memory.reserve(0x9000, 1)]
        guest.write(0, noise(4096), framing=Framing(at=at))
        assert daemon.image.read_bytes()[:4096] == noise(4096)
        memory.free(data)
        guest.remove_region(1 << 32)
        assert guest.read(0, 4096) == noise(4096)
        assert [m.region for m in memory.mappings] == [Region(0, MIB)]


FRAMINGS = {
    "usual": Framing(),
    "compact": Framing.compact(),
    "header in two": Framing(readable=(7, 9)),
    "header and data together": Framing(readable=(16 + 100,)),
    "header byte by byte": Framing(readable=(1,) * 16),
    "data in odd pieces": Framing(readable=(16, 1, 510, 513), writable=(1, 510, 513)),
    "data and status together": Framing(writable=(512,)),
    "misaligned": Framing(skew=3),
}


@pytest.mark.parametrize("features", [DEFAULT_FEATURES, BARE], ids=["indirect+event", "bare"])
@pytest.mark.parametrize("name", FRAMINGS)
def test_framing(connect: Connect, daemon: Daemon, name: str, features: int) -> None:
    """
    Where requests are cut into descriptors makes no difference to what they do.

    Spec: virtio 1.3, 2.7.4.
    """
    framing = FRAMINGS[name]
    guest = connect(features=features)
    guest.write(3, noise(2048), framing=framing)
    assert daemon.image.read_bytes()[3 * 512 :][:2048] == noise(2048)
    assert guest.read(3, 2048, framing=framing) == noise(2048)


def test_used_length_counts_data_and_status(connect: Connect) -> None:
    """
    The device says how much it wrote: the data and the status.

    Spec: virtio 1.3, 2.7.8.2.
    """
    completion = connect().run(Request.read(0, 4096))
    assert completion.used_length == 4097
    assert completion.status == Status.OK


def test_discard_frees_the_file(connect: Connect, daemon: Daemon) -> None:
    """Discarded ranges read as zeros and are holes in the file; their neighbours stay."""
    guest = connect()
    guest.write(0, noise(MIB))
    guest.flush()
    before = daemon.image.stat().st_blocks
    guest.discard([Range(256, 1024)])
    expected = noise(MIB)[: 256 * 512] + bytes(1024 * 512) + noise(MIB)[1280 * 512 :]
    assert guest.read(0, MIB) == expected
    assert daemon.image.read_bytes()[:MIB] == expected
    assert daemon.image.stat().st_blocks == before - 1024


@pytest.mark.parametrize("flags", [0, 1], ids=["keep", "unmap"])
def test_write_zeroes(connect: Connect, daemon: Daemon, flags: int) -> None:
    """Zeroed ranges read as zeros; their neighbours stay."""
    guest = connect()
    guest.write(0, noise(64 << 10))
    guest.write_zeroes([Range(9, 30, flags)])
    expected = noise(64 << 10)[: 9 * 512] + bytes(30 * 512) + noise(64 << 10)[39 * 512 :]
    assert guest.read(0, 64 << 10) == expected
    assert daemon.image.read_bytes()[: 64 << 10] == expected


def test_flush_succeeds_on_every_queue(connect: Connect) -> None:
    """FLUSH is answered OK wherever it is sent."""
    guest = connect(queues=4)
    for queue in range(4):
        guest.flush(queue=queue)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (Request.read(SECTORS, 512), Status.IOERR),
        (Request.write(SECTORS - 1, bytes(1024)), Status.IOERR),
        (Request.read(2**64 - 1, 512), Status.IOERR),
        (Request.read(0, 511), Status.IOERR),
        (Request(type=0x7777), Status.UNSUPP),
    ],
    ids=str,
)
def test_run_returns_bad_statuses(connect: Connect, request_: Request, status: Status) -> None:
    """A request the device refuses ends with its status, and the queue goes on."""
    guest = connect()
    assert guest.run(request_).status == status
    assert guest.read(0, 512) == bytes(512)


def test_read_raises_the_status(connect: Connect) -> None:
    """The convenient calls turn a bad status into an error that names the request."""
    with pytest.raises(StatusError, match=rf"IN at sector {SECTORS} .* status 0x01"):
        connect().read(SECTORS, 512)


def test_many_in_flight_agree_with_a_model(connect: Connect, daemon: Daemon) -> None:
    """Requests kept in flight on four queues leave the disk as a byte array says."""
    guest = connect(queues=4, queue_size=64)
    rng = random.Random(2)
    model = bytearray(SIZE)
    for _ in range(12):
        tickets = []
        for slot in rng.sample(range(SECTORS // 64), 40):
            sector, data = slot * 64 + rng.randrange(32), rng.randbytes(512 * rng.randint(1, 32))
            model[sector * 512 : sector * 512 + len(data)] = data
            tickets.append(guest.submit(Request.write(sector, data), queue=rng.randrange(4)))
        rng.shuffle(tickets)
        assert {guest.wait(ticket).status for ticket in tickets} == {Status.OK}
    assert daemon.image.read_bytes() == model
    assert guest.read(0, MIB) == model[:MIB]


def test_a_batch_is_one_publication(connect: Connect) -> None:
    """Several chains made available with one index are all served."""
    guest = connect()
    queue = guest.queues[0]
    requests = [Request.read(i, 512) for i in range(10)]
    chains = [place(guest.memory, request, Framing())[0] for request in requests]
    tickets = [queue.prepare(buffers) for buffers in chains]
    queue.publish(*tickets)
    queue.wait(tickets, timeout=5)
    assert [ticket.used_length for ticket in tickets] == [513] * 10
    assert queue.counters.kicks == 1


def test_stop_and_start_go_on(connect: Connect, daemon: Daemon) -> None:
    """A device that was stopped goes on at the base it told."""
    guest = connect(queues=2)
    guest.write(0, noise(4096), queue=1)
    assert guest.stop() == {0: 0, 1: 1}
    guest.start()
    exchange(guest, daemon)
    assert guest.stop() == {0: 8, 1: 9}


def test_reboot_with_other_features_and_rings(connect: Connect, daemon: Daemon) -> None:
    """
    The next driver may acknowledge less and have another ring, as firmware and kernel do.

    Spec: virtio 1.3, 3.1.1.
    """
    guest = connect(queues=2, features=BARE & ~vu.VHOST_F_LOG_ALL, queue_size=64)
    exchange(guest, daemon, rounds=4)
    guest.reboot(features=DEFAULT_FEATURES, queue_options=QueueOptions(size=128))
    assert guest.session.event_idx
    assert guest.session.indirect
    exchange(guest, daemon, rounds=4)


def test_one_of_several_queues(connect: Connect) -> None:
    """A driver that sets up one queue of four is served."""
    guest = connect(queues=4, start=False)
    guest.start(queues=[2])
    assert guest.read(0, 512, queue=2) == bytes(512)
    assert guest.stop() == {2: 1}


@pytest.mark.parametrize(
    "protocol",
    [
        ProtocolFeature.CONFIG,
        ProtocolFeature.CONFIG | ProtocolFeature.REPLY_ACK,
        ProtocolFeature.CONFIG | ProtocolFeature.CONFIGURE_MEM_SLOTS,
        ProtocolFeature(0),
    ],
    ids=str,
)
def test_fewer_protocol_features(
    connect: Connect, daemon: Daemon, protocol: ProtocolFeature
) -> None:
    """A front-end that knows less of the protocol is served as well."""
    exchange(connect(protocol_features=protocol), daemon, rounds=4)


def test_without_protocol_features(connect: Connect, daemon: Daemon) -> None:
    """
    Without bit 30 rings are enabled from the start and nothing enables them.

    Spec: vhost-user, "Ring states".
    """
    features = DEFAULT_FEATURES & ~vu.VHOST_USER_F_PROTOCOL_FEATURES
    exchange(connect(features=features), daemon, rounds=4)


def test_too_many_queues_are_an_error(connect: Connect) -> None:
    """Asking for more queues than are served says how many are."""
    with pytest.raises(GuestError, match="serves 4 queues, not 5"):
        connect(queues=5)


def test_honour_notify_loses_nothing(connect: Connect, daemon: Daemon) -> None:
    """Kicking only when asked to works on x86, where an eventfd's lock is a fence."""
    guest = connect(queue_size=64)
    guest.reboot(queue_options=QueueOptions(size=64, honour_notify=True))
    exchange(guest, daemon)


def test_calls_are_not_missed(connect: Connect, daemon: Daemon) -> None:
    """Every wait was ended by a call, not by looking at the ring after a while."""
    guest = connect(queues=2)
    exchange(guest, daemon, rounds=32)
    assert [queue.counters.missed_calls for queue in guest.queues] == [0, 0]


def test_connect_again(connect: Connect, daemon: Daemon) -> None:
    """The daemon serves a second guest after the first one hung up."""
    first = connect()
    first.write(0, noise(4096))
    first.close()
    assert connect().read(0, 4096) == noise(4096)
    assert daemon.image.read_bytes()[:4096] == noise(4096)


def test_death_of_the_backend_is_reported_at_once(connect: Connect, daemon: Daemon) -> None:
    """A back-end that dies ends the wait, long before the deadline."""
    guest = connect(timeout=60)
    daemon.process.kill()
    with pytest.raises(DisconnectedError, match="the back-end is gone"):
        guest.run(Request(type=RequestType.IN, in_length=512))


def test_deadline_names_what_was_waited_for(connect: Connect) -> None:
    """A request on a queue that is not enabled times out, and the error says which queue."""
    guest = connect(queues=2, start=False)
    guest.start(queues=[1])
    ticket = guest.submit(Request.read(0, 512), queue=0)
    with pytest.raises(GuestError, match="timed out waiting for 1 chains on queue 0"):
        guest.wait(ticket, timeout=0.05)
