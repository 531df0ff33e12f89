"""
Notice a guest whose memory, addresses or driver are not what a device can work with.

Everything here happens on the error path or in the first minutes of a start, and only ever ends in
a line of the log and a counter: nothing is repaired.  Rings are looked at as `glance` does, which
touches no page of the guest.

The letters E, Z, N and H are those of the detectors in the design; each speaks once for every
start of a queue.
"""

import asyncio
import logging
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

from vhostblk.engine.api import Counters, Fault
from vhostblk.engine.reason import Reason
from vhostblk.memory.regions import RegionTable
from vhostblk.memory.sample import Role, Sample
from vhostblk.memory.symptoms import looks_encrypted, stray_bits
from vhostblk.protocol.fd import Fd
from vhostblk.server import hints
from vhostblk.server.glance import Glance, glance
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.log import Log
from vhostblk.server.place import Addresses
from vhostblk.server.ring import Ring
from vhostblk.server.terms import Terms

LOOKS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds from each look at the rings that have not asked for anything to the next, from a start
on.  After the last one an idle device costs nothing."""
DRIVER_SECONDS = 30.0
"""How long after the front-end has read the config space a driver is waited for."""
FIRST_REQUESTS = 32
"""What a driver asks for first shows whether it is one."""

_ROLE = {Role.READABLE: "buffer", Role.WRITABLE: "buffer", Role.TABLE: "indirect table"}
_ADDRESS_OF = {
    Reason.TABLE_ADDRESS.text: "indirect table",
    Reason.STATUS_ADDRESS.text: "status byte",
}


class Detector:
    """
    Watches the rings of one front-end.

    Args:
        rings: All of them.
        terms: What they run by, now.
        log: For what an operator should know.
        counters: What was noticed of the device's guests; counted up here.
        hints: False: the operator wants none; nothing is looked at.
    """

    def __init__(
        self,
        rings: Sequence[Ring],
        terms: Callable[[], Terms],
        log: Log,
        *,
        counters: GuestCounters,
        hints: bool,
    ) -> None:
        self._counters = counters
        self._hints = hints
        self._rings = rings
        self._terms = terms
        self._log = log
        self._said: dict[tuple[str, int], int] = {}
        self._stray: dict[int, tuple[int, int, bool]] = {}
        self._settled: dict[int, int] = {}
        self._greetings: dict[int, int] = {}
        self._starts = 0
        self._looks: Iterator[float] = iter(())
        self._look_timer: asyncio.TimerHandle | None = None
        self._driver_timer: asyncio.TimerHandle | None = None
        self._set_up = False

    def close(self) -> None:
        """Look no more."""
        self._set_up = True
        for timer in (self._look_timer, self._driver_timer):
            if timer is not None:
                timer.cancel()

    def _say(self, level: int, text: str, ring: Ring, **facts: object) -> None:
        """Log *text*, once for each start of a ring."""
        if self._said.get((text, ring.index)) != ring.starts:
            self._said[text, ring.index] = ring.starts
            self._log.log(level, "%s", text.format(queue=ring.index, **facts))

    # ---- E: a queue that broke ------------------------------------------------------------

    def broken(self, ring: Ring, fault: Fault) -> None:
        """
        Find out whether a queue broke because its memory is encrypted, or an address has a C-bit.

        A broken ring is nobody's until its next start, so it may be looked at where it is.
        """
        if not self._hints or fault.reason == Reason.MEMORY_GONE.text:
            return
        if fault.reason in _ADDRESS_OF and self.outside(
            ring, fault.value, what=_ADDRESS_OF[fault.reason], sampled=False
        ):
            return
        seen = self._look_at(ring, self._terms())
        if seen is None or not looks_encrypted(seen.whole):
            return
        self._counters.ring_looks_encrypted += 1
        facts = {"zeroes": seen.whole.count(0), "total": len(seen.whole)}
        self._say(logging.ERROR, hints.ENCRYPTED, ring, gpa=seen.gpa, idx=seen.idx, **facts)

    @staticmethod
    def _look_at(ring: Ring, terms: Terms) -> Glance | None:
        space = terms.translated if ring.translated and terms.translated else terms.space
        return glance(ring.lies_in(space), terms.space.table)

    def saw(self, ring: Ring, samples: Sequence[Sample]) -> None:
        """
        Look at what a queue has sampled; while its driver is new, also at what it was served.

        Args:
            ring: Whose.
            samples: As the queue gave them.
        """
        for one in samples:
            if one.outside:
                self.outside(ring, one.iova, what=_ROLE[one.role], sampled=True)
        if self._hints and self._waits(ring) and self._makes_sense(ring):
            self._settled[ring.index] = ring.starts

    def outside(self, ring: Ring, address: int, *, what: str, sampled: bool) -> bool:
        """
        Look at an address that is outside guest memory: has it a bit too many?

        One that breaks its queue comes twice, in a sample and in the fault; it counts once.

        Args:
            ring: Whose it is; behind an IOMMU its addresses say nothing.
            address: As the guest wrote it.
            what: In words what should be there.
            sampled: It is of a sample; else of the fault.

        Returns:
            Whether it has.
        """
        if ring.translated or not self._hints:
            return False
        if not self._judge(ring, address, lambda at: self._table.at_gpa(at) is not None, what=what):
            return False
        twin = ring.starts, address, not sampled
        self._counters.cbit_address += self._stray.get(ring.index) != twin
        self._stray[ring.index] = ring.starts, address, sampled
        return True

    def _judge(self, ring: Ring, address: int, inside: Callable[[int], bool], *, what: str) -> bool:
        stray = stray_bits(address, inside)
        if not stray:
            return False
        plain = address & ~sum(1 << bit for bit in stray)
        facts = {"what": what, "plain": plain, "bits": hints.bits(stray)}
        self._say(logging.ERROR, hints.ADDRESS_BIT, ring, address=address, **facts)
        return True

    # ---- N: no driver ---------------------------------------------------------------------

    def config_read(self) -> None:
        """
        Heed that the front-end has read the config space: a driver should come.

        Only the first one is waited for: after a reset none may come because the guest is paused.
        """
        if self._hints and not self._set_up and self._driver_timer is None:
            loop = asyncio.get_running_loop()
            self._driver_timer = loop.call_later(DRIVER_SECONDS, self._no_driver)

    def set_up(self, ring: Ring, addresses: Addresses) -> None:
        """
        Heed that a ring was given its place: there is a driver.

        Args:
            ring: Which.
            addresses: The front-end's, or behind an IOMMU.
        """
        self._set_up = True
        if self._driver_timer is not None:
            self._driver_timer.cancel()
        for address in (addresses.desc, addresses.avail, addresses.used) if self._hints else ():
            self._counters.cbit_address += self._judge(
                ring, address, lambda at: self._table.at_uva(at) is not None, what="ring"
            )

    @property
    def _table(self) -> RegionTable:
        return self._terms().space.table

    def _no_driver(self) -> None:
        self._log.info("%s", hints.NO_DRIVER.format(seconds=DRIVER_SECONDS))

    # ---- Z and H: what a start asks for first ---------------------------------------------

    def armed(self, ring: Ring, kick: Fd | None) -> None:
        """
        Heed the descriptor a ring will be kicked by.

        QEMU's are signalled when they come, at each start and for each queue, asked or not.
        """
        self._greetings[ring.index] = int(kick is not None and _is_signalled(kick.fileno()))

    def started(self) -> None:
        """Heed that a ring may have started."""
        starts = sum(ring.starts for ring in self._rings)
        if not self._hints or starts == self._starts:
            return
        self._starts = starts
        if self._look_timer is not None:
            self._look_timer.cancel()
        self._looks = iter(LOOKS)
        self._next_look()

    def _waits(self, ring: Ring) -> bool:
        """Whether nothing is known yet of this start of a ring."""
        return ring.running and not ring.broken and self._settled.get(ring.index) != ring.starts

    def _next_look(self) -> None:
        seconds = next(self._looks, None)
        self._look_timer = None
        if seconds is not None:
            loop = asyncio.get_running_loop()
            self._look_timer = loop.call_later(seconds, self._look)

    def _look(self) -> None:
        terms = self._terms()
        # One ring that is served shows that what the guest writes is seen.
        seen = any(_good(_done(ring)) for ring in self._rings if ring.running)
        for ring in filter(self._waits, self._rings):
            if self._makes_sense(ring) or (not seen and self._is_silent(ring, terms)):
                self._settled[ring.index] = ring.starts
        if any(map(self._waits, self._rings)):
            self._next_look()
        else:
            self._look_timer = None

    def _makes_sense(self, ring: Ring) -> bool:
        """Whether requests have shown what the driver is; say so if it is none."""
        done = _done(ring)
        good = _good(done)
        nonsense = done.unsupported + done.malformed
        bad = nonsense + done.errors
        # Errors alone may be the disk's.
        if good or bad < FIRST_REQUESTS or nonsense * 2 < bad:
            return bool(good)
        facts = {
            "unsupported": done.unsupported,
            "malformed": done.malformed,
            "errors": done.errors,
        }
        self._say(logging.ERROR, hints.NONSENSE, ring, requests=bad, **facts)
        return True

    def _is_silent(self, ring: Ring, terms: Terms) -> bool:
        """
        Whether a ring was kicked and reads as zeroes; say so.

        One kick of the driver's is enough: it kicks when it has asked for something, and what it
        wrote before a kick that we have seen is there to be read.  There may never be another:
        Linux waits for its first block without a limit, and so does firmware.
        """
        kicks = _done(ring).kicks - self._greetings.get(ring.index, 0)
        seen = self._look_at(ring, terms) if kicks > 0 else None
        if seen is None or not seen.blank:
            return False
        self._counters.zero_ring_kicks += kicks
        self._say(logging.WARNING, hints.ZEROES, ring, times=hints.times(kicks), gpa=seen.gpa)
        return True


def _is_signalled(fd: int) -> bool:
    """Whether an eventfd has a count; anything else is not asked, as its answer may take long."""
    if Path(f"/proc/self/fd/{fd}").readlink().name != "anon_inode:[eventfd]":
        return False
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _done(ring: Ring) -> Counters:
    """Return what a ring's queue has done since its last start."""
    before, now = ring.before, ring.counters()
    names = [field.name for field in fields(Counters)]
    return Counters(**{name: getattr(now, name) - getattr(before, name) for name in names})


def _good(done: Counters) -> int:
    """Return how many requests were served well."""
    good = done.reads + done.writes + done.flushes + done.discards + done.write_zeroes
    return good + done.get_ids
