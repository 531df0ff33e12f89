"""A guest that moves between two servers of ours and back; the C data plane marks the pages."""

import random
from collections.abc import Iterator

import pytest
from server_kit.disks import SIZE, Ram
from server_kit.left import fake_guests, mappings
from server_kit.serving import Serving, serving, until

from vhostblk.guest import Guest, GuestMemory, IommuOptions, Region, Request
from vhostblk.guest.iommu import Flush

PAGE = 4096
SECTORS = 8
MEMORY = 4 << 20
BLOCKS = SIZE // PAGE
FORMATS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
ORDERS = pytest.mark.parametrize("in_order", [False, True], ids=["as-done", "in-order"])


class Store:
    """What both ends reach; whoever locks it has it alone."""

    def __init__(self) -> None:
        self.data = bytearray(random.Random(1).randbytes(SIZE))
        self.user: object = None
        self.users = 0

    def block(self, index: int) -> bytes:
        return bytes(self.data[index * PAGE : (index + 1) * PAGE])


class End(Ram):
    """One end: fails whoever uses it without the lock."""

    lock_while_running = True

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.data = store.data
        self.store = store

    def lock(self) -> None:
        if self.store.user is not None:
            raise BlockingIOError(11, "the other end has it")
        self.store.user = self
        self.store.users += 1

    def unlock(self) -> None:
        if self.store.user is self:
            self.store.user = None

    def _note(self, *call: object) -> None:
        super()._note(*call)
        if call[0] in {"read", "write"} and self.store.user is not self:
            raise AssertionError("two ends use one store")


@pytest.fixture
def server() -> Iterator[Serving]:
    with serving("native") as running:
        yield running


def ends(server: Serving, store: Store, **options: object) -> list[str]:
    return [str(server.add(End(store), num_queues=2, **options)) for _ in range(2)]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """Return a guest's little memory: it is copied at each move."""
    with GuestMemory((Region(0, MEMORY),)) as made:
        yield made


def connect(path: str, memory: GuestMemory, **options: object) -> Guest:
    return Guest.connect(path, queues=2, queue_size=64, memory=memory, **options)  # type: ignore[arg-type]


class Load:
    """Requests that are under way while the guest moves, and what must come of them."""

    def __init__(self, guest: Guest, store: Store, seed: int = 2) -> None:
        self._guest = guest
        self._store = store
        self._rng = random.Random(seed)
        self._asked: list[tuple[object, bytes | None]] = []

    def __call__(self) -> None:
        """Read on one queue, write on the other; each block is written once."""
        for _ in range(4):
            block = self._rng.randrange(BLOCKS // 2)
            ticket = self._guest.submit(Request.read(SECTORS * block, PAGE), queue=0)
            self._asked.append((ticket, self._store.block(block)))
        block = BLOCKS // 2 + len(self._asked) // 5
        data = self._rng.randbytes(PAGE)
        ticket = self._guest.submit(Request.write(SECTORS * block, data), queue=1)
        self._asked.append((ticket, None))

    def check(self) -> None:
        for ticket, data in self._asked:
            done = self._guest.wait(ticket)  # type: ignore[arg-type]
            assert done.status == 0
            assert data is None or done.data == data


@FORMATS
@ORDERS
def test_a_guest_moves_there_and_back_under_load(
    server: Serving, memory: GuestMemory, *, packed: bool, in_order: bool
) -> None:
    """
    Every page that the device wrote is marked, no request is lost, and one end has the store.

    The guest's memory is a copy on the other end, made of what is marked: a page that was written
    and not marked would differ.
    """
    store = Store()
    here, there = ends(server, store)
    with connect(here, memory, packed=packed, in_order=in_order) as guest:
        load = Load(guest, store)
        for path in (there, here):
            report = guest.migrate_to(path, meanwhile=load, passes=3)
            assert set(report.bases) == {0, 1}
        load.check()
        data = b"".join(guest.read(at * 256, 256 * 512) for at in range(SIZE // (256 * 512)))
        assert data == bytes(store.data)
    assert store.users == 3


@pytest.mark.parametrize("flush", ["page", "global"])
def test_a_guest_behind_an_iommu_moves(server: Serving, memory: GuestMemory, flush: Flush) -> None:
    """
    What an IOVA maps to is marked, the used ring among it.

    Source: traces, 7.
    """
    store = Store()
    here, there = ends(server, store)
    options = IommuOptions(flush=flush)
    with connect(here, memory, iommu=options) as guest:
        load = Load(guest, store)
        guest.migrate_to(there, meanwhile=load, passes=2)
        load.check()
        assert guest.read(0, PAGE) == store.block(0)


def test_nothing_is_left_of_a_move(server: Serving, memory: GuestMemory) -> None:
    """Neither end keeps the log, an inflight region or memory of a guest that has gone."""
    regions, others = mappings("vhostblk-inflight"), fake_guests() - 1  # of tests before
    store = Store()
    here, there = ends(server, store)
    with connect(here, memory) as guest:
        guest.migrate_to(there, meanwhile=Load(guest, store), passes=1)
        assert until(lambda: server.devices[0].attached is None)
    assert until(lambda: mappings("vhostblk-inflight") <= regions)
    memory.close()
    assert until(lambda: fake_guests() <= others)
