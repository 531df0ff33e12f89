"""
A ring and the requests behind it, as its worker sees them: what one visit does.

Everything here is whoever's the ring is: the control plane sets it up, the worker serves.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from vhostblk.engine.api import Counters, Fault, Miss
from vhostblk.engine.reference.chain import Request, open_request
from vhostblk.engine.reference.errors import Errors
from vhostblk.engine.reference.ownership import Ask, News
from vhostblk.engine.reference.record import Trace
from vhostblk.engine.reference.ring import Broken, Ring
from vhostblk.engine.reference.settings import Settings
from vhostblk.engine.reference.work import Work
from vhostblk.errors import Refused
from vhostblk.memory.space import Missing

BUDGET = 32
"""
Requests taken in one visit: a driver that never stops must not keep us from anything else.  As many
as the C core takes: what is done before a ring breaks is given back a visit at a time.
"""


class Service:
    """
    Takes chains, gives them back.

    Args:
        work: The requests under way.
        errors: What the disk could not do.
        news: Who is told.
        on_broken: Called on the control thread when the queue breaks.
    """

    def __init__(
        self, work: Work, errors: Errors, news: News, on_broken: Callable[[], None]
    ) -> None:
        self._work = work
        self._errors = errors
        self._news = news
        self._on_broken = on_broken
        self._base = 0
        self._ring: Ring | None = None
        self._loaded = False  # the ring knows where it stands
        self._anew = False  # what the region says is over
        self._owed = False  # a call, if the driver turns out to want it
        self._pace = 1  # of what is over at once, how many are given back together
        self._places = 0, 0  # where the ring stood
        self.settings = Settings()
        self.fault: Fault | None = None
        self.miss: Miss | None = None
        self.on_miss: Callable[[Miss], None] | None = None

    # ---- the control plane ----------------------------------------------------------------

    def move_ring(self) -> None:
        """
        Have a ring that stands somewhere go on there by the new settings.

        They may make none yet, when another driver's come one by one: `open_ring` asks for all.
        """
        if self._ring is not None:
            with suppress(Refused):
                self._ring.layout = self.settings.layout()

    def begin(self, base: int) -> None:
        """Make a new ring at the next `open_ring`, which is whole."""
        if self._ring is not None and self.notes and not self.fault:
            # The base is the front-end's word for this ring, or for another one, if the driver has
            # reset the queue: then the region's is old.
            self._anew = self._work.is_idle and not self._ring.must_replay()
        self._ring = None
        self._loaded = False
        self._base = base
        self.fault = None
        self.miss = None

    def open_ring(self) -> Ring:
        """
        Return the ring, made now if there is none.

        Raises:
            Refused: The settings make none.
        """
        if self._ring is None:
            self._ring = self.settings.open_ring(self._base)
        else:
            self._ring.layout = self.settings.layout()
        return self._ring

    def counters(self) -> Counters:
        """Return what was counted, and where the ring stands; legal at any time."""
        ring = self._ring
        if ring is not None:
            self._places = ring.places()
        avail, used = self._places
        return replace(self._work.counters(), next_avail=avail, next_used=used)

    def forget_region(self) -> None:
        """Note nothing more of what is taken, until `begin`."""
        self._anew = False
        if self._ring is not None:
            self._ring.forget_region()

    @property
    def notes(self) -> bool:
        """Return whether what is in flight is noted in a region."""
        return self._loaded and self._ring is not None and self._ring.region is not None

    def forget_ring(self) -> None:
        """Let go of the ring, for good."""
        self.counters()  # remembers where it stood
        self._ring = None

    def base(self) -> int:
        """Return where the ring stands, as the front-end says it."""
        return self._base if self._ring is None else self._ring.base()

    def at(self) -> int:
        """Return where the next chain begins."""
        return self._base & 0x7FFF if self._ring is None else self._ring.at()

    # ---- the worker -----------------------------------------------------------------------

    @property
    def restless(self) -> bool:
        """Return whether the ring must be looked at again soon, without an event."""
        settings = self.settings
        polled = settings.kick.fd is None and settings.enabled and not self.fault
        return polled or self._owed or bool(self._work.in_flight)

    def serve(self, ask: Ask) -> int:
        """Do what is *ask*ed; return how much was done."""
        if self._ring is not None:
            self._is_loaded(self._ring)
        if ask is Ask.CANCEL:
            self._work.cancel()
        if ask is Ask.RUN and self.settings.greet:
            self.settings.greet = False
            self._call()
        n = self._pop(ask)
        if self.fault is not None:
            self._work.give_up_held()
        n += self._push()
        if self._work.fault is not None:
            self.give_up(self._work.fault)
            self._work.fault = None
        return n

    def may_take(self, ask: Ask) -> bool:
        """Say whether chains may be popped, when *ask* is asked."""
        ring = self._ring
        if ring is None or self.fault or self.miss or self._errors.held:
            return False
        # A drain takes what a predecessor left, be the queue enabled or not: who disables it means
        # what is new, and where the guest goes the region does not.
        return self.settings.enabled if ask is Ask.RUN else ask is Ask.DRAIN and ring.must_replay()

    def _pop(self, ask: Ask) -> int:
        """Take what the driver made available; return how much."""
        ring = self._ring
        if ring is None or not self.may_take(ask):
            self._pace = 1
            return 0
        n = self._pop_some(ring, ask)
        size, has_room = ring.layout.size, self._work.has_room
        if ask is not Ask.RUN:
            return n
        if n:
            ring.quiet()
        slipped_in = self.may_take(ask) and ring.arm() and has_room(size)
        return n + slipped_in

    def _pop_some(self, ring: Ring, ask: Ask) -> int:
        """Take up to BUDGET, and of those that are over at once as many as go back together."""
        n = over = 0
        limit, size, work = min(self._pace, BUDGET), ring.layout.size, self._work
        while n < BUDGET and over < limit and self.may_take(ask) and work.has_room(size):
            in_flight = work.in_flight
            if not self._pop_one(ring):
                break
            n += 1
            over += work.in_flight == in_flight
        if n == 0:
            self._pace = 1
        elif over == self._pace:
            self._pace *= 2
        return n

    def _is_loaded(self, ring: Ring) -> bool:
        """Let a ring look where it stands, once; return whether it is whole."""
        if not self.fault and not self._loaded:
            self._loaded = True
            if self._anew and ring.region is not None:
                ring.region.forget()
            self._anew = False
            try:
                ring.load()
            except Broken as broken:
                self.give_up(broken.fault)
        return self.fault is None

    def _pop_one(self, ring: Ring) -> bool:
        rules = self.settings.rules
        trace = Trace()
        if rules is None:
            return False
        try:
            chain = ring.pop(self.settings.memory, trace)
            if chain is None:
                return False
            request = open_request(chain, self.settings.memory, rules, trace)
        except Broken as broken:
            self._work.note(trace)
            self.give_up(broken.fault)
            return False
        except Missing as missing:
            self._ask_for(Miss(missing.iova, missing.length, missing.access, ring.at()))
            return False
        ring.take(chain)
        self.settings.memory.denied.clear()
        self._work.note(trace)
        self._work.start(request, trace)
        return True

    def _ask_for(self, miss: Miss) -> None:
        """Worker: the next chain waits, until a setter forgets *miss*."""
        self.miss = miss

        def tell() -> None:
            if self.miss is miss and self.on_miss is not None:
                self.on_miss(miss)

        self._news.post(tell)

    def _push(self) -> int:
        """Publish what is done; a broken ring gets nothing more."""
        if self._owed and self._ring and not self.fault:
            # The driver may have asked for calls between our index and our look.
            self._owed = False
            if self._ring.should_call():
                self._call()
        if self.fault:
            self._work.drop_done()
            return 0
        done = self._work.take_done(in_order=self.settings.in_order)
        if not done:
            return 0
        ring = self.open_ring()
        if self._is_loaded(ring):
            self._publish(ring, done)
        return len(done)

    def _publish(self, ring: Ring, done: list[Request]) -> None:
        ring.push([request.given_back() for request in done])
        if ring.should_call():
            self._call()
        else:
            self._owed = True

    def _call(self) -> None:
        if self.settings.call.write():
            self._work.tally["calls"] += 1

    def give_up(self, fault: Fault) -> None:
        """Worker: the queue cannot go on; the first reason is the one that is told."""
        if self.fault is not None:
            return
        self.fault = fault
        self._owed = False
        self.settings.err.write()
        self._news.post(self._on_broken)
