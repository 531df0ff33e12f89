"""
What is behind a device: a disk, the thread that runs it and the data plane's share for it.

A device can get another one while it is served; queues belong to the one they were made for.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeAlias, TypeVar

from vhostblk.disk import carry
from vhostblk.disk.api import DiskInfo, NativeMemory
from vhostblk.disk.call import Calls, marked, run
from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.layer import Stack, take_apart
from vhostblk.disk.stage import StageLayer, split
from vhostblk.engine.api import DeviceEngine, Engine, Queue, Ways
from vhostblk.server.layers import Done, Layers, Order, written
from vhostblk.server.log import Log
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.pump import Opened, Pump

_T = TypeVar("_T")
_A = TypeVar("_A")
Before: TypeAlias = Callable[[Stack], Coroutine[object, object, None]]
"""Done with a disk, and its layers, before it is opened."""


class Backing:
    """
    An open disk.  Made by `open_backing`.

    Args:
        engine: The data plane.
        pump: The disk and its thread.
        opened: What it has said of itself.
        source: The disk as it was written; None: a program's own object.
        stack: It and its layers, as they were made.
    """

    def __init__(
        self, engine: Engine, pump: Pump, opened: Opened, source: DiskSpec | None, stack: Stack
    ) -> None:
        self.opened = opened
        self.source = source
        self.stack = stack
        self.layers = Layers(stack.layers, pump.on_thread)
        self._engine = engine
        self._pump = pump
        self._share: DeviceEngine = engine.device(pump.calls.disk)

    @property
    def disk(self) -> object:
        """The disk itself."""
        return self._pump.calls.disk

    @property
    def name(self) -> str:
        """The disk as a person may write it; of a program's own object its class."""
        if self.source is not None:
            return str(self.source)
        layers = [layer.name for layer in self.stack.layers]
        return "|".join([*layers, type(self.stack.disk).__name__])

    # ---- queues ---------------------------------------------------------------------------

    def make_queue(self, index: int, *, on_broken: Callable[[], None]) -> Queue:
        """Make queue *index*, served from the start if it is Python that serves it."""
        queue = self._share.queue(index, on_broken=on_broken)
        if queue.mailbox is not None:
            self._pump.serve(queue.mailbox)
        return queue

    async def drop_queue(self, queue: Queue, *, seconds: float) -> None:
        """Close a drained queue; *seconds*: of patience with a disk that is stuck."""
        if queue.mailbox is not None:
            await self._pump.forget(queue.mailbox, seconds=seconds)
        await queue.close()

    def revoke(self, queue: Queue) -> None:
        """
        Take guest memory from requests of *queue* that were given up: it is the guest's again.

        What a kernel still reads into it cannot be stopped; see "bounded" in the architecture.
        """
        if queue.mailbox is not None:
            self._pump.revoke(queue.mailbox)

    def ways(self) -> Ways | None:
        """Return which way the data plane takes to a file; None for any other disk."""
        return self._share.ways()

    def dead(self) -> int:
        """Return how many requests are over for the guest, but not for the disk."""
        return self._share.dead() + self._pump.kept()

    # ---- for another process that goes on with it -------------------------------------------

    def shared(self) -> tuple[int, ...] | None:
        """
        Return the disk's descriptors, which stay its own; None: it is put down instead.

        Raises:
            VhostBlkError: It cannot be carried over.
        """
        return carry.shared(self.stack)

    async def put_down(self, *, seconds: float) -> bytes:
        """Have the disk save what it holds, and close; `take_up` undoes that."""
        calls = self._pump.calls

        async def put_down() -> bytes:
            saved = await carry.save(self.stack)
            await run(calls.close)
            return saved

        return await asyncio.wait_for(self._pump.on_thread(put_down()), seconds)

    async def take_up(self, saved: bytes) -> None:
        """Open a disk that was put down, with what it has saved."""
        calls = self._pump.calls

        async def take_up() -> None:
            await carry.restore(self.stack, data=saved)
            await run(calls.open)

        await self._pump.on_thread(take_up())

    async def end(self) -> None:
        """Let go of a disk that was put down."""
        await self._share.close()
        await self._pump.end()

    # ---- the layers -----------------------------------------------------------------------

    async def order(self, order: Order) -> Done:
        """
        Change a layer, and how the disk is written; see `Layers.order`.

        Raises:
            VhostBlkError: It cannot; what was set stays set where it is the command that fails.
            OSError: The command fails with it.
        """
        done = await self.layers.order(order)
        if self.source is not None:
            layer = self.stack.layers[done.index]
            self.source = written(self.source, done.index, layer, done.values)
        if done.error is not None:
            raise done.error
        return done

    # ---- the disk -------------------------------------------------------------------------

    async def lock(self) -> None:
        """Take a disk that is locked while running; raises what it does."""
        await self._pump.lock()

    async def unlock(self) -> None:
        """Let others have such a disk."""
        await self._pump.unlock()

    async def mark(self, number: int) -> None:
        """Say that requests of an inflight region may be under way, as far as it can be said."""
        if (disk := marked(self.disk)) is not None:
            await self._pump.on_thread(_called(disk.mark, number))

    def unmark(self, number: int) -> None:
        """Say that none is; takes its turn behind every `mark` before."""
        if (disk := marked(self.disk)) is not None:
            work = _called(disk.unmark, number)
            try:
                self._pump.on_thread(work)
            except RuntimeError:  # the thread has ended: the disk is closed
                work.close()

    async def marked_by_others(self, number: int) -> bool:
        """Whether somebody else's may be; False: or it cannot be told."""
        disk = marked(self.disk)
        if disk is None:
            return False
        return await self._pump.on_thread(_called(disk.marked_by_others, number))

    async def flush(self, *, seconds: float) -> None:
        """
        Make every completed write stable.

        Raises:
            OSError: The disk could not, or not in time.
        """
        await self._pump.flush(seconds=seconds)

    @property
    def may_hold_back(self) -> bool:
        """Whether a layer may have what was written, and the disk not yet."""
        return any(not isinstance(one, StageLayer) for one in self.stack.layers)

    async def keeps_size(self) -> bool:
        """Tell whether the layers leave the disk its size."""

        async def sizes() -> bool:
            return self._pump.calls.info().size == Calls(self.stack.disk).info().size

        return await self._pump.on_thread(sizes())

    @property
    def moves(self) -> bool:
        """Whether the data plane must let go of the disk before its size changes."""
        native = getattr(split(self.disk)[1], "native", None)
        return native is not None and isinstance(native(), NativeMemory)

    def renew(self) -> DeviceEngine:
        """
        Take another share of the data plane for the disk, which has moved.

        Returns:
            The one before it, to be closed when its queues are.
        """
        old, self._share = self._share, self._engine.device(self._pump.calls.disk)
        return old

    async def look(self) -> DiskInfo:
        """
        Ask the disk what it is now.

        Raises:
            VhostBlkError: Its numbers cannot be a disk's.
        """
        return await self._pump.look()

    async def inherit(self, before: "Backing") -> DiskInfo:
        """
        Have the disk take over from one of older code, which nothing uses any more.

        Returns:
            What it is then.
        """
        return await self._pump.inherit(before.disk)

    async def resize(self, size: int) -> DiskInfo:
        """
        Have the disk become larger or smaller; of what goes, no request is under way.

        Returns:
            What it is then.

        Raises:
            VhostBlkError: It cannot; it is as it was.
            OSError: The same, in the kernel's words.
        """
        before = await self.layers.options()
        info = await self._pump.resize(size)
        for index, options in enumerate(await self.layers.options()):
            new = {key: text for key, text in options.items() if before[index].get(key) != text}
            if new and self.source is not None:  # or the next process has it as it was
                self.source = written(self.source, index, self.stack.layers[index], new)
        return info

    async def close(self, *, seconds: float) -> None:
        """Close the disk; every queue was closed before, and what layers do ends first."""
        await self.layers.end(seconds=seconds)
        await self._share.close()
        await self._pump.close(seconds=seconds)


async def _called(method: Callable[[_A], _T], argument: _A) -> _T:
    return method(argument)


async def open_backing(  # noqa: PLR0913 - as `open_device`
    disk: object,
    engine: Engine,
    options: DeviceOptions,
    source: DiskSpec | None,
    log: Log,
    *,
    before: Before | None = None,
) -> Backing:
    """
    Open a disk.

    Args:
        disk: Any object that meets the `Disk` contract.
        engine: The data plane.
        options: Of the device it is for.
        source: The disk as it was written, if it was.
        log: The device's.
        before: Done with the disk before it is opened, on its thread.

    Raises:
        VhostBlkError: The disk cannot be had.
    """
    stack = take_apart(disk)
    driven = engine.drive(disk)
    pump = Pump(disk, log=log, name=options.name, driven=driven)
    opened = await pump.open(None if before is None else before(stack))
    try:
        backing = Backing(engine, pump, opened, source, stack)
    except BaseException:
        await pump.close(seconds=options.drain_seconds)
        raise
    await backing.layers.look()
    return backing
