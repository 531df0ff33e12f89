"""
Changes of a device while it is served: another size, another disk, another worker.

The front-end's rings, or the one that is moved, stand still for as long as it takes, its messages
wait, and no other front-end comes.  Whatever fails leaves the device as it was.
"""

import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from vhostblk.blk.device import BlkDevice
from vhostblk.disk.file import File
from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.layer import take_apart
from vhostblk.engine.api import Queue
from vhostblk.errors import VhostBlkError
from vhostblk.protocol.state import RingState
from vhostblk.server.attached import Attached
from vhostblk.server.backing import Backing, open_backing
from vhostblk.server.device import Device
from vhostblk.server.layers import Order
from vhostblk.server.promise import keep, promise, resized
from vhostblk.server.ring import Ring
from vhostblk.spec.virtio_blk import SECTOR_SIZE

STILL_SECONDS = 2.0
"""How long requests of a queue that is moved may take."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


# ---- size ---------------------------------------------------------------------------------


async def resize(device: Device, size: int | None) -> int:
    """
    Give a device another size, or look at that of its disk again.

    Args:
        device: Which; nobody else changes it meanwhile.
        size: Bytes; None: what the disk says it has now.

    Returns:
        Its size then, in bytes.

    Raises:
        VhostBlkError: It cannot have that; it is as it was.
    """
    old = device.blk
    if size is None:
        new = resized(old, (await _asked(device.backing.look(), "info")).size)
        if new != old:
            await _limit(device, new)
    else:
        new = resized(old, size)
        if old.read_only and new != old:
            raise VhostBlkError("it is read-only, and so is its size: name none to look at it")
        if new != old:
            changing = object()
            device.tenure.want(changing)  # a guest that stops meanwhile leaves it to nobody else
            try:
                new = await _change_size(device, new)
            finally:
                await device.tenure.leave(changing)
    if new != old:
        _tell(device, old, new)
    return new.capacity_sectors * SECTOR_SIZE


async def _change_size(device: Device, new: BlkDevice) -> BlkDevice:
    old, size = device.blk, new.capacity_sectors * SECTOR_SIZE
    if not device.tenure.held:
        raise VhostBlkError("its disk is locked while running, and no guest runs here now")
    if not device.backing.opened.can.resize:
        raise VhostBlkError(f"{device.backing.name} has no method resize: it has the size it has")
    if device.backing.moves:
        return await _move(device, size)
    if new.capacity_sectors > old.capacity_sectors:
        info = await _asked(device.backing.resize(size), "resize")
    else:
        # First the guest loses it, then the disk: what is under way there has ended.
        await _limit(device, new)
        try:
            info = await _asked(device.backing.resize(size), "resize")
        except BaseException:
            await _limit(device, old)
            raise
    if resized(old, info.size) != device.blk:
        await _limit(device, resized(old, info.size))
    return device.blk


async def _limit(device: Device, blk: BlkDevice) -> None:
    """Check requests against another size from now on; none is under way behind the new end."""
    shorter = blk.capacity_sectors < device.blk.capacity_sectors
    async with _at_rest(device, drain=shorter) as front:
        if shorter:
            _check_dead(device)
        device.blk = blk
        if front is not None:
            front.set_blk()


async def _move(device: Device, size: int) -> BlkDevice:
    """Resize a disk that may be elsewhere afterwards: with new queues."""
    backing = device.backing
    async with _at_rest(device, drain=True) as front:
        _check_dead(device)
        info = await _asked(backing.resize(size), "resize")
        device.blk = resized(device.blk, info.size)
        share = backing.renew()
        try:
            dropped = [] if front is None else await front.exchange(backing)
        except BaseException:
            # The old queues would use memory that is not there any more.
            if front is not None:
                front.retire()
            device.hang_up()
            device.config.device = device.blk
            raise
        for queue in dropped:
            await device.drop_queue(queue, backing)
        await share.close()
    return device.blk


# ---- disk ---------------------------------------------------------------------------------


async def replace(
    device: Device,
    disk: object,
    source: DiskSpec | None,
    *,
    inherit: bool = False,
    last: Order | None = None,
) -> None:
    """
    Serve another disk behind the same device.

    Requests that were taken end on the old one, which is then flushed; those behind them begin on
    the new one, and what errors hold begins anew there.  It promises what the old one did; its size
    may be another.

    Args:
        device: Which; nobody else changes it meanwhile.
        disk: Any object that meets the `Disk` contract; closed where it cannot be served.
        source: The disk as it was written, if it was.
        inherit: It is the old one with other code, and takes over what that has in memory.
        last: What a layer of the old one is to do when no request comes to it any more.

    Raises:
        VhostBlkError: It cannot be served, or *last* not be done; the old one goes on.
    """
    old, before = device.backing, device.blk
    file, old_file = take_apart(disk).disk, old.stack.disk
    if isinstance(file, File) and isinstance(old_file, File):
        file.follow(old_file)
    new = await _open(device, disk, source)
    try:
        blk = keep(before, promise(new.opened, device.options))
        dropped = await _exchange(device, new, blk, inherit=inherit, last=last)
    except BaseException:
        await new.close(seconds=device.options.drain_seconds)
        raise
    device.replaced = device.replaced or not inherit
    device.log.info("%s in place of %s", new.name, old.name)
    for queue in dropped:
        await device.drop_queue(queue, old)
    await old.close(seconds=device.options.drain_seconds)
    if device.blk != before:
        _tell(device, before, device.blk)


async def _open(device: Device, disk: object, source: DiskSpec | None) -> Backing:
    async def opened() -> Backing:
        return await open_backing(disk, device.engine, device.options, source, device.log)

    return await _asked(opened(), "open")


async def _exchange(
    device: Device, new: Backing, blk: BlkDevice, *, inherit: bool, last: Order | None
) -> list[Queue]:
    async with _at_rest(device, drain=True, hold=True) as front:
        if last is not None:
            await _asked(device.backing.order(last), last.command)
            blk = resized(blk, (await _asked(new.look(), "info")).size)
        with device.backing.layers.left_alone():
            _check_dead(device)
            if front is not None and front.turn.left:
                raise VhostBlkError(
                    "what another process had in flight for this guest is still under way on the "
                    "disk: try again later"
                )
            return await _give_over(device, front, new, blk, inherit=inherit)


async def _give_over(
    device: Device, front: Attached | None, new: Backing, blk: BlkDevice, *, inherit: bool
) -> list[Queue]:
    """Flush the old disk, and go on with the new one, at rest."""
    try:
        await device.flush()
    except OSError as error:
        raise VhostBlkError(
            f"{device.backing.name} cannot be flushed ({error.strerror}), so it goes on"
        ) from error
    if inherit:
        blk = resized(blk, (await _asked(new.inherit(device.backing), "inherit")).size)
    old, device.blk = device.blk, blk
    async with device.tenure.succession(new, needed=new.opened.lock_while_running):
        try:
            dropped = [] if front is None else await front.exchange(new)
        except BaseException:
            device.blk = old
            raise
    former, device.backing = device.backing, new
    for queue in [one for one in dropped if one.stall() is not None]:
        dropped.remove(queue)
        await _forsake(device, queue, former)
    return dropped


async def _forsake(device: Device, queue: Queue, backing: Backing) -> None:
    """Drop a queue with what it holds, before the one that takes that again runs."""
    held = queue.counters().held
    device.log.info("%d requests that the old disk has failed begin anew", held)
    queue.set_err(None)
    queue.condemn("another one has taken its place")  # so nothing of it is given back
    await device.drop_queue(queue, backing)


# ---- worker -------------------------------------------------------------------------------


async def move(device: Device, index: int, worker: int | None) -> int:
    """
    Have another worker of the data plane serve a queue, while its driver uses it.

    Args:
        device: Whose; nobody else changes it meanwhile.
        index: Number of the queue.
        worker: Number of the worker; None: one that has less to do, where there is one.

    Returns:
        The number of the worker that serves it then.

    Raises:
        VhostBlkError: It cannot; it is served as it was.
    """
    front = device.attached
    if front is None:
        raise VhostBlkError("no front-end is connected: queues are placed when one comes")
    async with front.lock:
        ring = front.rings[index] if 0 <= index < len(front.rings) else None
        if ring is None or not ring.keeper.made or device.attached is not front:
            raise VhostBlkError(f"the front-end has set up no queue {index}")
        async with _still(ring):
            if ring.counters().dead:
                raise VhostBlkError(f"the disk still has requests of queue {index}: try later")
            return await device.engine.move(ring.queue, worker)


@asynccontextmanager
async def _still(ring: Ring) -> AsyncIterator[None]:
    """Keep a ring from its worker, with nothing in flight; what takes long is not given up."""
    if not ring.running:
        await ring.keeper.take_back(drain=True)
        yield
        return
    enabled = ring.state is RingState.STARTED
    if not await ring.keeper.quiet(enabled=enabled, seconds=STILL_SECONDS):
        raise VhostBlkError(f"requests take longer than {STILL_SECONDS:g} s now: try again later")
    try:
        yield
    finally:
        await ring.keeper.go_on(enabled=enabled)


# ---- both ---------------------------------------------------------------------------------


@asynccontextmanager
async def _at_rest(
    device: Device, *, drain: bool, hold: bool = False
) -> AsyncIterator[Attached | None]:
    """Keep a device from being used; *drain*, *hold*: see `Attached.pause`."""
    async with device.changing:
        while True:
            front = device.attached
            for one in tuple(device.holders):
                if one is not front:  # gone, and waits for what it has in flight
                    await one.gone.wait()
            if front is None:
                break
            async with front.lock:
                if device.attached is not front:  # it has gone while we waited
                    continue
                await front.pause(drain=drain, hold=hold)
                try:
                    yield front
                finally:
                    front.go_on()
                return
        yield None


def _check_dead(device: Device) -> None:
    if dead := device.dead():
        raise VhostBlkError(
            f"{dead} requests were given up that the disk still has, and may carry out: "
            "try again later"
        )


async def _asked(work: Awaitable[_T], method: str) -> _T:
    """Have the disk do something; what is raised there is no bug of ours."""
    try:
        return await work
    except VhostBlkError:
        raise
    except OSError as error:
        raise VhostBlkError(f"the disk cannot {method}: {error.strerror or error}") from error
    except Exception as error:
        _log.exception("the disk raised in %s", method)
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise VhostBlkError(f"the disk raised in {method}: {what}") from error


def _tell(device: Device, old: BlkDevice, new: BlkDevice) -> None:
    """Let the driver know of a new capacity, and the log."""
    device.config.device = new
    sizes = old.capacity_sectors * SECTOR_SIZE, new.capacity_sectors * SECTOR_SIZE
    if old.capacity_sectors == new.capacity_sectors:
        return
    if device.attached is None:
        device.log.info("%d bytes became %d: the next front-end sees them", *sizes)
    elif device.attached.tell_config():
        device.log.info("%d bytes became %d, and the front-end was told", *sizes)
    else:
        device.log.warning(
            "%d bytes became %d, and this front-end cannot be told: have it look, "
            "with QEMU by the monitor's command device-sync-config",
            *sizes,
        )
