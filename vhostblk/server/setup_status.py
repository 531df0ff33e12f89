"""
How a device is set up: its disk, who is connected, what was agreed on, and where the rings stand.

A part of the status document; see `vhostblk.server.status`.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TypedDict

from vhostblk.disk.layer import Value
from vhostblk.engine.api import Way, Ways
from vhostblk.memory.ranges import Range
from vhostblk.memory.regions import Region
from vhostblk.server.attached import Attached
from vhostblk.server.device import Device
from vhostblk.server.ring import Ring
from vhostblk.spec.vhost_user import ProtocolFeature
from vhostblk.spec.virtio_blk import SECTOR_SIZE

MAX_RANGES = 16
"""Ranges that are listed; all are counted."""


class ShownRange(TypedDict):
    """A range of guest physical memory; hexadecimal, as JSON's numbers are not exact up there."""

    gpa: str
    bytes: int


class FileIoStatus(TypedDict):
    """Which way reads and writes of a file take; paused: all take the ring for a while."""

    read_way: str
    write_way: str
    reads_paused: bool
    writes_paused: bool


class LayerStatus(TypedDict):
    """A layer in front of the disk; see `vhostblk.server.layers.LayerRow`."""

    name: str
    settings: Mapping[str, Value]


class SetupStatus(TypedDict):
    """The device and its front-end."""

    disk: str
    layers: list[LayerStatus]
    size: int
    read_only: bool
    file_io: FileIoStatus | None
    disk_held: bool
    write_cache: bool
    front_end_pid: int | None
    front_end_uid: int | None
    front_end_since: str | None
    acked_protocol_features: list[str]
    inflight_region: bool
    dirty_log: bool
    memory_bytes: int
    memory_regions: list[ShownRange]


class RingStatus(TypedDict):
    """A ring, as its front-end has set it up."""

    state: str
    owner: str
    format: str
    ring_size: int
    base: int | None
    avail_index: int | None
    used_index: int | None
    kick: bool
    call: bool
    err: bool


def setup_status(device: Device) -> SetupStatus:
    """
    Say how a device is set up, as of now.

    Args:
        device: Which.
    """
    front = device.attached
    peer = None if front is None else front.peer
    regions = [] if front is None else front.space.table.regions
    return {
        "disk": device.backing.name,
        "layers": [
            {"name": one["name"], "settings": one["settings"]} for one in device.backing.layers.seen
        ],
        "size": device.blk.capacity_sectors * SECTOR_SIZE,
        "read_only": device.blk.read_only,
        "file_io": _file_io(device.backing.ways()),
        "disk_held": device.tenure.held,
        "write_cache": device.config.writeback,
        "front_end_pid": None if peer is None or not peer.pid else peer.pid,
        "front_end_uid": None if peer is None else peer.uid,
        "front_end_since": None if peer is None else _time(peer.since),
        "acked_protocol_features": _protocol_features(front),
        "inflight_region": front is not None and front.tracks,
        "dirty_log": front is not None and front.logs,
        "memory_bytes": sum(region.place.size for region in regions),
        "memory_regions": shown([_range(region) for region in regions]),
    }


def _file_io(ways: Ways | None) -> FileIoStatus | None:
    if ways is None:
        return None
    return {
        "read_way": ways.reads.value,
        "write_way": ways.writes.value,
        "reads_paused": ways.reads is not Way.RING and not ways.reads_open,
        "writes_paused": ways.writes is not Way.RING and not ways.writes_open,
    }


def ring_status(ring: Ring, *, running: bool) -> RingStatus:
    """
    Say how a ring is set up.

    Args:
        ring: Which.
        running: Its worker has it.
    """
    fds = ring.keeper.eventfds()
    stood = ring.stood if ring.base is None else ring.base
    avail, used = _places(ring)
    return {
        "state": ring.state.value,
        "owner": "worker" if running else "control",
        "format": "packed" if ring.place.packed else "split",
        "ring_size": ring.place.num,
        "base": None if ring.running else stood,
        "avail_index": avail if ring.running else None,
        "used_index": used if ring.running else None,
        "kick": "kick" in fds,
        "call": "call" in fds,
        "err": "err" in fds,
    }


def _places(ring: Ring) -> tuple[int, int]:
    """Say where a ring stood at its worker's last look; in a packed one, in either round."""
    now, size = ring.counters(), ring.place.num
    if ring.place.packed and size:
        return now.next_avail % size, now.next_used % size
    return now.next_avail, now.next_used


def shown(ranges: Sequence[Range]) -> list[ShownRange]:
    """Show the first of several ranges."""
    return [{"gpa": f"{gpa:#x}", "bytes": length} for gpa, length in ranges[:MAX_RANGES]]


def _range(region: Region) -> Range:
    return region.place.gpa, region.place.size


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _protocol_features(front: Attached | None) -> list[str]:
    acked = ProtocolFeature(0) if front is None else front.protocol_features
    return [str(one.name) for one in ProtocolFeature if one in acked]
