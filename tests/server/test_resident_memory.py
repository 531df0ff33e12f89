"""
What a confidential guest costs the host: its memfd holds the pages it shares, and no other.

A back-end that touches a private page of an SEV-SNP or TDX guest makes a second page beside it,
which nobody gives back: with time, the guest's memory twice.
"""

import os
import random
from collections.abc import Callable

import pytest
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import Guest, Range, Request, SwiotlbOptions, touched_pages
from vhostblk.guest.confidential import Confidential
from vhostblk.guest.layout import PAGE
from vhostblk.guest.swiotlb import SLOT
from vhostblk.spec.virtio_blk import Status

Connect = Callable[..., Guest]
SIZE = 4 << 20
SLOTS = 256
DEPTH = 16


def requests(count: int) -> list[Request]:
    """Make requests of all kinds, the same each time; some of them fail."""
    dice = random.Random(7)
    made = []
    for _ in range(count):
        sector, length = dice.randrange(SIZE // 512 - 64), 512 * dice.randint(1, 24)
        made.append(
            dice.choices(
                [
                    Request.read(sector, length),
                    Request.write(sector, bytes(length)),
                    Request.flush(),
                    Request.discard([Range(sector, 8)]),
                    Request.get_id(),
                    Request.read(1 << 40, length),
                ],
                [50, 40, 3, 3, 2, 2],
            )[0]
        )
    return made


@pytest.mark.parametrize(
    ("count", "kind"),
    [
        (200, "snp"),
        (200, "tdx"),
        pytest.param(
            100_000, "snp", marks=[pytest.mark.slow, pytest.mark.timeout(900)], id="100000-snp"
        ),
    ],
)
def test_the_memfd_holds_the_shared_pages_exactly(
    count: int, kind: str, server: Serving, vhost_user_guest: Connect
) -> None:
    """After any number of requests, in size and page by page; the pool has gone round by then."""
    confidential = Confidential(kind=kind, swiotlb=SwiotlbOptions(nslabs=SLOTS))  # type: ignore[arg-type]
    guest = vhost_user_guest(server.add(Memory(SIZE)), confidential=confidential)
    waiting = []
    failed = 0
    for request in requests(count):
        waiting.append(guest.submit(request))
        if len(waiting) == DEPTH:
            failed += sum(guest.wait(one).status != Status.OK for one in waiting)
            waiting.clear()
    for one in waiting:
        guest.wait(one)
    shared = guest.memory.shared_pages
    assert touched_pages(guest.memory) == shared
    assert len(shared) > SLOTS * SLOT // PAGE
    resident = sum(os.fstat(fd).st_blocks * 512 for fd in {m.fd for m in guest.memory.mappings})
    assert resident == len(shared) * PAGE
    assert failed > 0
