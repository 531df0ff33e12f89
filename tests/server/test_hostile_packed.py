"""Packed rings that are none, against a real server."""

from collections.abc import Callable, Iterator

import pytest
from server_kit.disks import Ram
from server_kit.serving import serving

from vhostblk.guest import Guest
from vhostblk.guest.hostile import REQUEST_CASES, Case, Outcome, attempt
from vhostblk.guest.hostile_packed import LAP, PACKED_CASES, descriptor, read_chain
from vhostblk.guest.shape import Buffer

Connect = Callable[..., Guest]
SIZE = 1 << 20


@pytest.fixture
def guest(vhost_user_guest: Connect) -> Iterator[Guest]:
    """
    A guest with two packed queues of a size that is no power of two.

    Its disk is in Python, which never answers a request before the next of a batch is taken: what
    is given back at once may be made available again under the same id.
    """
    with serving("native") as server:  # the other engine offers none
        path = server.add(Ram(SIZE), num_queues=2)
        guest = vhost_user_guest(path, queues=2, queue_size=11, packed=True)
        yield guest
        guest.close()


@pytest.mark.parametrize("case", PACKED_CASES + REQUEST_CASES, ids=lambda case: case.name)
def test_one_queue_is_broken_and_others_serve(case: Case, guest: Guest) -> None:
    """Each rule that is broken has the outcome it should; a reboot makes the queue whole."""
    assert attempt(guest.queues[0], case, timeout=5) is case.expected
    guest.write(0, b"x" * 4096, queue=1)
    if case.expected is Outcome.BROKEN:
        guest.reboot()
    assert guest.read(0, 4096) == b"x" * 4096


@pytest.mark.parametrize("lie", [LAP, 0x80, 0x8000])
def test_what_is_not_available_is_not_taken(lie: int, guest: Guest) -> None:
    """
    A descriptor with the flags of another lap, or of a used one, is nobody's, kicked or not.

    Spec: virtio 1.3, 2.8.1.
    """
    queue = guest.queues[0]
    ring = queue.packed
    head = ring.take([descriptor(Buffer(0x1000, 1))] * 3)
    chain = read_chain(queue, head)
    at = ring.addresses.desc + 16 * ring.avail.index + 14
    honest = chain[0].flags | ring.avail.available
    ring.write(chain, lie=lie)
    ticket = queue.adopt(head)
    ring._order[head] = None
    queue.notify()
    guest.write(0, b"y" * 512, queue=1)
    assert guest.memory.load_u16(at) == honest ^ lie
    assert not queue.is_broken()
    guest.memory.store_u16(at, honest)
    queue.notify()
    queue.wait([ticket], timeout=5)
    assert ticket.used_length == 513
