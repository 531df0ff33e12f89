"""What another process has counted, added to what this one counts."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.engine.api import Op
from vhostblk.guest.guest import Guest
from vhostblk.server import change
from vhostblk.server import handover as h
from vhostblk.server.document import decode, encode
from vhostblk.server.ring import Ring
from vhostblk.server.service import Service
from vhostblk.server.totals import device_totals, recall

Connect = Callable[..., Guest]
SIZE = 1 << 20
X = b"x" * 4096


@pytest.fixture(autouse=True)
def guests(server: Serving, vhost_user_guest: Connect) -> None:
    """Use two devices: s2 goes on with what s1 has counted."""
    one, two = (vhost_user_guest(server.add(Memory(SIZE))) for _ in range(2))
    for _ in range(3):
        one.write(0, X)
    two.write(0, X[:512])
    two.read(0, 512)


def ring(service: Service) -> Ring:
    assert service.session is not None
    return service.session.attachment.rings[0]


def told(server: Serving) -> h.DeviceTotals:
    """Return what s1 tells, by way of its text."""
    totals = h.Totals(devices=(server.ask(lambda: device_totals(server.services["s1"])),))
    return decode(h.Totals, encode(totals)).devices[0]


def go_on(server: Serving, totals: h.DeviceTotals | None = None) -> None:
    """Have s2 go on with what s1 tells."""
    totals = totals or told(server)
    server.ask(lambda: recall(server.services["s2"], totals))


def test_sums_are_added_and_moments_are_not(server: Serving) -> None:
    """Requests and bytes add up, the longest stays the longest, positions are the ring's own."""
    two = server.services["s2"]
    before = server.ask(ring(two).counters)
    go_on(server)
    after = server.ask(ring(two).counters)
    assert (before.writes, after.writes) == (1, 4)
    assert after.reads == 1
    assert after.bytes_written == 3 * 4096 + 512
    assert after.segment_max == 4096
    assert (after.next_avail, after.next_used) == (before.next_avail, before.next_used)


def test_times_are_added(server: Serving) -> None:
    """Of each kind; those of a disk that is replaced then begin anew, the requests do not."""
    two = server.services["s2"]
    go_on(server)
    took = server.ask(ring(two).latency)
    assert {op: one.count for op, one in took.items() if one.count} == {Op.WRITE: 4, Op.READ: 1}
    server.run(change.replace(two.device, Memory(SIZE), None))
    assert not any(one.count for one in server.ask(ring(two).latency).values())
    assert server.ask(ring(two).counters).writes == 4


def test_what_was_noticed_of_the_guest_is_added(server: Serving) -> None:
    """Whichever front-end it was, and also where there is none."""
    two = server.services["s2"]
    server.services["s1"].device.guest.cbit_address = 5
    two.device.guest.cbit_address = 2
    go_on(server)
    assert two.device.guest.cbit_address == 7


def test_what_we_do_not_know_is_left_out(server: Serving) -> None:
    """A newer process may count what we do not, and in other buckets; nothing fails for it."""
    two, known = server.services["s2"], told(server)
    (one,) = known.rings
    odd = replace(
        known,
        guest={"news": 1},
        rings=(
            h.RingTotals(index=0, counters={"news": 1, "writes": "many", "reads": 2}, took=()),
            replace(one, index=64),
            h.RingTotals(
                index=0,
                counters={},
                took=tuple(
                    h.Took(op=op, sum_ns=1, max_ns=1, buckets=(1,)) for op in ("NEWS", "READ")
                ),
            ),
        ),
    )
    go_on(server, odd)
    after = server.ask(ring(two).counters)
    assert (after.writes, after.reads) == (1, 3)
    assert server.ask(ring(two).latency)[Op.READ].count == 1
