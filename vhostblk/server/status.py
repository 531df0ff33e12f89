"""
What can be said of a device and its guest at a glance: the status document.

One JSON document for each device, the same wherever it is asked for: numbers and names, never a
byte of a request.  Each field is described in docs/reference/status.md.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TypedDict

from vhostblk.blk.features import names
from vhostblk.engine.api import Counters, WorkerStatus
from vhostblk.memory.regions import Region
from vhostblk.memory.window import ISLAND_GAP, Use, Window
from vhostblk.server.attached import Attached
from vhostblk.server.device import Device
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.iommu import IommuCounters
from vhostblk.server.latency import LatencyStatus, latency_status
from vhostblk.server.log import STATUS, Log
from vhostblk.server.ring import Ring
from vhostblk.server.setup_status import (
    RingStatus,
    SetupStatus,
    ShownRange,
    ring_status,
    setup_status,
    shown,
)
from vhostblk.server.troubles import text
from vhostblk.spec.virtio_ring import F_ACCESS_PLATFORM

_BLOCK = 512
"""Bytes of a block of st_blocks; stat(3)."""


class SharedWindow(TypedDict):
    """Where a start's requests went."""

    known: bool
    span: int
    bytes: int
    islands: int
    ranges: list[ShownRange]
    rings: list[ShownRange]


class QueueStatus(RingStatus):
    """A queue."""

    queue: int
    worker: int | None
    running: bool
    translated: bool
    fault: str | None
    stalled: str | None
    latency: dict[str, LatencyStatus]
    counters: dict[str, int]


class BounceStatus(TypedDict):
    """What of a bounce pool is used, and how."""

    bounce_slots_inflight: int
    bounce_slots_high_water: int
    segments_max_bytes: int


class IotlbStatus(TypedDict):
    """What happened with the front-end's IOMMU."""

    iotlb_hits: int
    iotlb_misses: int
    iotlb_updates: int
    iotlb_invalidates: int
    iotlb_late: int
    iotlb_timeouts: int
    iotlb_entries: int


class TotalStatus(TypedDict):
    """What was noticed since the device was opened, whatever front-end it was."""

    requests_outside_shared_total: int
    ring_looks_encrypted_total: int
    zero_ring_kicks_total: int
    cbit_address_total: int
    guest_mem_faults_total: int


class Status(SetupStatus, BounceStatus, IotlbStatus, TotalStatus):
    """The document."""

    name: str
    mode: str
    on_error: str
    front_end_connected: bool
    acked_features: list[str]
    access_platform_offered: bool
    starts: int
    translation: str | None
    guest_dma: str
    requests_scored: int
    shared_window: SharedWindow
    memfd_resident_bytes: int
    workers: list[dict[str, int | None]]
    queues: list[QueueStatus]


def status(device: Device) -> Status:
    """
    Return the status document of a device, as of now.

    Args:
        device: Which, with a front-end or without.
    """
    front = device.attached
    if front is not None:
        front.observer.look()
    window = Window() if front is None else front.observer.window
    rings = [] if front is None else front.rings
    counters = [ring.counters() for ring in rings]
    return {
        "name": device.options.name,
        "mode": str(device.options.confidential),
        "on_error": str(device.options.on_error),
        "front_end_connected": front is not None,
        **setup_status(device),
        "acked_features": [] if front is None else names(front.features),
        "access_platform_offered": bool(device.features & F_ACCESS_PLATFORM),
        "starts": 0 if front is None else front.observer.starts,
        "translation": _translation(front),
        "guest_dma": str(window.guest_dma),
        "requests_scored": window.scored,
        "shared_window": _shared(window),
        **_bounce(counters),
        **_totals(device.guest, counters),
        **_iotlb(front),
        "memfd_resident_bytes": 0 if front is None else resident(front.space.table.regions),
        "workers": [_worker(one) for one in device.engine.workers()],
        "queues": [_queue(*one) for one in zip(rings, counters, strict=True)],
    }


async def look(device: Device) -> Status:
    """Return the same, with what the layers say of themselves now."""
    await device.backing.layers.look()
    return status(device)


def log_status(device: Device, *, asked: bool) -> None:
    """
    Log the document, on one line.

    Args:
        device: Whose.
        asked: Somebody wants to see it now, so neither ``-q`` nor the device's allowance for
            starts keeps it back.  Its layers are as they were when they were last asked.
    """
    if not asked and not device.starts_told.take():
        return
    log = Log(STATUS, device.options.name) if asked else device.log
    log.info("status: %s", json.dumps(status(device), separators=(",", ":")))


def resident(regions: Iterable[Region]) -> int:
    """
    Return how much host memory the files behind guest memory hold.

    A file on a disk has blocks of another kind and is left out.

    Args:
        regions: Several may be parts of one file, which counts once.
    """
    mappings = [region.mapping for region in regions if region.mapping.in_memory]
    files = {one.file: one for one in mappings}
    return sum(os.fstat(one.fileno()).st_blocks * _BLOCK for one in files.values())


def _translation(front: Attached | None) -> str | None:
    if front is None or not front.observer.starts:
        return None
    return "iotlb" if front.observer.window.translated else "uva"


def _shared(window: Window) -> SharedWindow:
    shared = window.shared()
    islands = shared.islands(ISLAND_GAP)
    return {
        "known": window.is_window(shared),
        "span": shared.span,
        "bytes": shared.size,
        "islands": len(islands),
        "ranges": shown(islands),
        "rings": shown(window.pages[Use.RING].islands()),
    }


def _bounce(counters: Sequence[Counters]) -> BounceStatus:
    return {
        "bounce_slots_inflight": sum(one.slots for one in counters),
        "bounce_slots_high_water": sum(one.slots_high for one in counters),
        "segments_max_bytes": max((one.segment_max for one in counters), default=0),
    }


def _totals(gone: GuestCounters, counters: Sequence[Counters]) -> TotalStatus:
    return {
        "requests_outside_shared_total": gone.outside + sum(one.outside for one in counters),
        "ring_looks_encrypted_total": gone.ring_looks_encrypted,
        "zero_ring_kicks_total": gone.zero_ring_kicks,
        "cbit_address_total": gone.cbit_address,
        "guest_mem_faults_total": gone.faults + sum(one.faults for one in counters),
    }


def _iotlb(front: Attached | None) -> IotlbStatus:
    counted = IommuCounters() if front is None else front.iommu.counters
    return {
        "iotlb_hits": 0 if front is None else front.observer.hits(),
        "iotlb_misses": counted.misses,
        "iotlb_updates": counted.updates,
        "iotlb_invalidates": counted.invalidates,
        "iotlb_late": counted.late,
        "iotlb_timeouts": counted.expired,
        "iotlb_entries": 0 if front is None else len(front.iommu.iotlb),
    }


def _worker(one: WorkerStatus) -> dict[str, int | None]:
    place = {"thread": one.thread, "cpu": one.cpu, "queue_count": one.queue_count}
    return {**place, **asdict(one.counters)}


def _queue(ring: Ring, counters: Counters) -> QueueStatus:
    fault, stall = ring.fault(), ring.stall()
    running = ring.running and fault is None and not ring.keeper.waits
    return {
        "queue": ring.index,
        "worker": ring.keeper.worker,
        "running": running,
        **ring_status(ring, running=running),
        "translated": ring.translated,
        "fault": None if fault is None else fault.reason,
        "stalled": None if stall is None else text(stall),
        "latency": latency_status(ring.latency()),
        "counters": asdict(counters),
    }
