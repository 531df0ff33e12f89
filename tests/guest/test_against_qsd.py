"""
The fake guest against qemu-storage-daemon: the proof that it is right.

A fake guest and a back-end by the same hands could agree on the same mistake; this back-end is
nobody's here, and the bytes are compared with the image file.
"""

import random

import pytest
from guest_peers.qsd import SECTORS, SIZE, Connect, Daemon, exchange, noise

from vhostblk.guest import (
    DEFAULT_FEATURES,
    DEFAULT_PROTOCOL_FEATURES,
    Framing,
    GuestMemory,
    Range,
    Region,
    Request,
    StatusError,
    pc_layout,
    slots_layout,
)
from vhostblk.guest.blk import place
from vhostblk.guest.layout import MIB, PAGE
from vhostblk.spec import virtio_ring as vr
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import CONFIG_WRITEBACK_OFFSET, Status

BARE = DEFAULT_FEATURES & ~(vr.F_INDIRECT_DESC | vr.F_EVENT_IDX)


def test_config_is_understood(connect: Connect) -> None:
    """
    The config space holds what the daemon was told.

    Spec: virtio 1.3, 5.2.4.
    """
    guest = connect(queues=1)
    config = guest.config()
    assert guest.capacity == SECTORS
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
