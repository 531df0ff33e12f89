"""
Layers of the core below a layer in Python, called from the thread of their disk.

`Driven` takes the place of the disk below such a layer.  What is over at once costs one call of the
core; what is not is a future, which ends when the core is done with the views: they are held until
then, and a request that is cancelled is waited for all the same.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

from vhostblk.disk.api import Disk, DiskInfo, Extent
from vhostblk.disk.call import Calls, Pending, run
from vhostblk.disk.layer import layers
from vhostblk.disk.stage import StageLayer, split
from vhostblk.engine.api import Op
from vhostblk.engine.native.core import check, ffi, lib, make
from vhostblk.engine.native.disks import Bottom
from vhostblk.engine.native.mailbox import JOB, NativeMailbox
from vhostblk.engine.native.stages import Layers, bind

SLOTS = 1024
"""Requests under way; more wait for their turn."""
TAKE = 64
"""Requests that are told to be over at once."""
_READ, _WRITE, _FLUSH = int(Op.READ), int(Op.WRITE), int(Op.FLUSH)
_DISCARD, _WRITE_ZEROES = int(Op.DISCARD), int(Op.WRITE_ZEROES)
_FUA: int = lib.VHB_REQ_FUA
_UNMAP: int = lib.VHB_REQ_UNMAP
_ADDRESS = ffi.typeof("uintptr_t")
_BYTES = ffi.typeof("char[]")
_PIECES = ffi.typeof("struct vhb_piece[]")


@dataclass(slots=True)
class _Request:
    """
    What the core is asked.

    Args:
        op: What to do.
        flags: ``VHB_REQ_*``.
        offset: First byte.
        length: Bytes.
        buffers: Views of *length* bytes for what moves data, exported: nobody can release them.
        pieces: Where those are, while the core may look there.
    """

    op: int
    flags: int
    offset: int
    length: int
    buffers: list[Any]
    pieces: Any = None

    def release(self) -> None:
        """Let the views go."""
        for one in self.buffers:
            ffi.release(one)
        self.buffers.clear()


class _Call(asyncio.Future[None]):
    """
    A request that is not over.

    Args:
        request: What is asked.
        give_up: Called when it is cancelled; its end follows all the same.
        loop: The disk's.
    """

    def __init__(
        self,
        request: _Request,
        give_up: Callable[["_Call"], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(loop=loop)
        self.request = request
        self.tag = 0  # until the core has it
        self._give_up = give_up
        self._given_up = False

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002
        """Have it end soon; who awaits it goes on to until then."""
        if self.done():
            return False
        if not self._given_up:
            self._given_up = True
            self._give_up(self)
        return True

    def end(self, code: int) -> None:
        """Tell who awaits it what has become of it."""
        if self._given_up:
            super().cancel()
        elif code:
            self.set_exception(_error(code))
        else:
            self.set_result(None)


class Driven(Disk):
    """
    Stages, and the disk behind them, as a disk for the layer in front of them.

    Args:
        top: The outermost of the stages.
    """

    def __init__(self, top: StageLayer) -> None:
        self._stages, self.below = split(top)
        self._top = Calls(top)
        self.mailbox = None if hasattr(self.below, "native") else NativeMailbox(SLOTS)
        self._caller: Any = None
        self._job = ffi.new("struct vhb_job *")
        self._job_bytes = memoryview(ffi.buffer(self._job))
        self._first = int(ffi.cast(_ADDRESS, ffi.addressof(self._job, "first")))
        self._tag = ffi.new("uint64_t *")
        self._ended = ffi.new("struct vhb_ended[]", TAKE)
        self._calls: dict[int, _Call] = {}  # that the core has, by tag
        self._waiting: deque[_Call] = deque()  # that it has not yet
        self._kept: list[_Request] = []  # whose views are used by the disk below
        self._lent: list[ref[object]] = []  # to what that uses
        self._still = False  # none is begun
        self._due = False  # a turn comes
        self._news = asyncio.Event()  # one is over
        self._revoked: Callable[[], None] | None = None
        self._is_revoked = False

    # ---- life -------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the disk behind the stages, and make these."""
        await run(self._top.open)
        try:
            self._begin()
        except BaseException:
            await run(self._top.close)
            raise

    def _begin(self) -> None:
        stages = bind(self._stages)
        self._bottom = Bottom.of(self.below)
        box = self.mailbox
        disk = self._bottom.disk if self._bottom is not None else box.disk if box else None
        self._layers = Layers(stages, disk)
        self._caller = make("caller", lib.vhb_caller_new, self._layers.disk, SLOTS, 0)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lib.vhb_caller_fd(self._caller), self._turn)

    def _finish(self) -> None:
        """Take apart what `_begin` made; nothing is under way."""
        if self._caller is None:
            return
        self._loop.remove_reader(lib.vhb_caller_fd(self._caller))
        check(lib.vhb_caller_free(self._caller), "caller")
        self._caller = None
        self._layers.free()
        if self._bottom is not None:
            self._bottom.free()

    async def close(self) -> None:
        """Have what is under way end, then close the disk behind the stages."""
        for call in (*self._waiting, *self._calls.values()):
            call.cancel()
        await self._idle()
        self._finish()
        await run(self._top.close)

    async def _idle(self) -> None:
        """Wait until the core has nothing."""
        while self._calls:
            self._news.clear()
            await self._news.wait()

    # ---- the contract -----------------------------------------------------------------------

    def info(self) -> DiskInfo:
        """Return what the outermost stage is."""
        return self._top.info()

    def read(self, offset: int, views: Sequence[memoryview]) -> Pending:
        """Fill *views* through the stages."""
        buffers = [ffi.from_buffer(_BYTES, view, require_writable=True) for view in views]
        return self._ask(_Request(_READ, 0, offset, _length(buffers), buffers))

    def write(self, offset: int, views: Sequence[memoryview], *, fua: bool = False) -> Pending:
        """Store *views* through the stages."""
        buffers = [ffi.from_buffer(_BYTES, view) for view in views]
        flags = _FUA if fua else 0
        return self._ask(_Request(_WRITE, flags, offset, _length(buffers), buffers))

    def flush(self) -> Pending:
        """Make every write that has returned stable, through the stages."""
        return self._ask(_Request(_FLUSH, 0, 0, 0, []))

    def discard(self, offset: int, length: int) -> Pending:
        """Forget a range, through the stages."""
        return self._ask(_Request(_DISCARD, 0, offset, length, []))

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> Pending:
        """Make a range read as zeroes, through the stages."""
        return self._ask(_Request(_WRITE_ZEROES, _UNMAP if unmap else 0, offset, length, []))

    def block_status(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield what the outermost stage says is stored."""
        return self._top.block_status(offset, length)

    async def resize(self, size: int) -> None:
        """Have the outermost stage have *size* bytes; a disk that moves stands still meanwhile."""
        if self._bottom is None or not self._bottom.moves:
            await run(self._top.resize, size)
            return
        self._still = True
        try:
            await self._idle()
            self._finish()
            try:
                await run(self._top.resize, size)
            finally:
                self._begin()
        finally:
            self._still = False
            self._begin_waiting()

    def inherit(self, before: Disk) -> Pending:
        """Hand on to the outermost stage."""
        return self._top.inherit(before)

    # ---- requests ---------------------------------------------------------------------------

    def _ask(self, request: _Request) -> Pending:
        if request.length == 0 and request.op != _FLUSH:
            request.release()
            return None
        if self._still or self._waiting or len(self._calls) == SLOTS:
            call = _Call(request, self._give_up, self._loop)
            self._waiting.append(call)
            return call
        code = self._submit(request)
        if code == 0:
            request.release()
            return None
        if code < 0:
            call = _Call(request, self._give_up, self._loop)
            self._has(call)
            return call
        self._let_go(request, code)
        raise _error(code)

    def _submit(self, request: _Request) -> int:
        """Give a request to the core: 0 or an errno, it is over; -1: it is under way."""
        if self._caller is None:
            return errno.EIO
        self._say(request)
        result: int = lib.vhb_caller_submit(self._caller, self._job, self._tag)
        if result > 0 or self._calls:
            self._turn_soon()
        return -result

    def _say(self, request: _Request) -> None:
        """Write it down for the core."""
        buffers = request.buffers
        n, pieces, host, size = len(buffers), 0, 0, 0
        if n == 1:  # as most have
            pieces, host, size = self._first, int(ffi.cast(_ADDRESS, buffers[0])), request.length
        elif n:
            request.pieces = ffi.new(_PIECES, [(one, len(one)) for one in buffers])
            pieces = int(ffi.cast(_ADDRESS, request.pieces))
        words = request.offset, request.length, request.op, request.flags
        JOB.pack_into(self._job_bytes, 0, 0, *words, n, 0, pieces, host, size)

    def _has(self, call: _Call) -> None:
        """Note that the core has the request it was just given."""
        call.tag = self._tag[0]
        self._calls[call.tag] = call

    def _let_go(self, request: _Request, code: int) -> None:
        """Release the views of a request that is over, unless the disk below goes on with them."""
        if code == lib.VHB_KEPT_VIEW:
            self._kept.append(request)  # so that whoever lent them sees that they are used
            self._returned(None)
        else:
            request.release()

    def _begin_waiting(self) -> None:
        while self._waiting and not self._still and len(self._calls) < SLOTS:
            call = self._waiting.popleft()
            code = self._submit(call.request)
            if code < 0:
                self._has(call)
            else:
                self._over(call, code)

    def _over(self, call: _Call, code: int) -> None:
        self._let_go(call.request, code)
        call.end(code)

    def _give_up(self, call: _Call) -> None:
        if call.tag:
            lib.vhb_caller_cancel(self._caller, call.tag)
            self._turn_soon()
        else:
            self._waiting.remove(call)
            self._over(call, errno.ECANCELED)

    def lent(self, refs: Sequence[ref[object]]) -> None:
        """
        The disk below goes on using memory of a request that is over.

        Args:
            refs: To what it uses.
        """
        kept = [one() for one in refs]
        self._lent += [ref(one, self._returned) for one in kept if one is not None]

    def _returned(self, _: object) -> None:
        if all(one() is None for one in self._lent):
            self._lent.clear()
            while self._kept:
                self._kept.pop().release()

    # ---- turns ------------------------------------------------------------------------------

    def _turn_soon(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._due = False
        if self._caller is None:
            return
        if self._is_revoked and self._revoked is not None:
            self._is_revoked = False
            self._revoked()  # before the core goes on with their memory
        n = TAKE
        while n == TAKE:
            n = lib.vhb_caller_turn(self._caller, self._ended, TAKE)
            for ended in self._ended[0:n]:
                self._over(self._calls.pop(ended.tag), ended.error)
            if n:
                self._news.set()
        self._begin_waiting()

    def on_revoked(self, cancel: Callable[[], None]) -> None:
        """
        Say who cancels what was given up by somebody else.

        Args:
            cancel: Called before the core goes on, behind a `revoke`.
        """
        self._revoked = cancel

    def revoke(self) -> None:
        """Guest memory was taken from some requests; any thread."""
        self._is_revoked = True


def drive(disk: object) -> list[Driven]:
    """
    Have every layer in Python that has a stage below it call a `Driven`.

    Args:
        disk: Not open yet.
    """
    made = []
    for layer in layers(disk):
        if not isinstance(layer, StageLayer) and isinstance(layer.below, StageLayer):
            made.append(Driven(layer.below))
            layer.under = Calls(made[-1])
    return made


def _length(buffers: Sequence[Any]) -> int:
    return len(buffers[0]) if len(buffers) == 1 else sum(len(one) for one in buffers)


def _error(code: int) -> OSError:
    if code == lib.VHB_KEPT_VIEW:
        return OSError(errno.EIO, "the disk below kept the memory of a request")
    return OSError(code, os.strerror(code))
