"""
What one process tells another that serves on in its place: the state document.

Values only; how they become JSON and come back is `vhostblk.server.document`.  Descriptors travel
beside it: where the document names one, it is by its place among them.

A document of another version is refused.  Within a version, fields are only added, with a default,
so that an older document is read; one with fields we do not know is of a newer process and is
refused, as what they say would be lost.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

VERSION = 1
"""Of the document; a newer process may read several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceState:
    """
    Where front-ends come from.

    Args:
        kind: ``listening`` on *fd*; ``connecting`` to *path*; ``connected``: the one there was.
        path: The socket file, which whoever serves removes in the end; None: somebody else's.
        fd: Of the listening socket.
    """

    kind: Literal["listening", "connecting", "connected"]
    path: str | None = None
    fd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionState:
    """A region of guest memory; see `vhostblk.memory.regions.Wanted`."""

    gpa: int
    size: int
    uva: int
    mmap_offset: int
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RingState:
    """
    A ring; see `vhostblk.server.place.Place`.

    Args:
        state: Name of a `vhostblk.protocol.state.RingState`.
        num: Size; 0: not said yet.
        packed: Its format.
        desc: Address; None, with the others: not said yet.
        avail: Address.
        used: Address.
        base: As on the wire; None: that of a new ring.  Of a ring that runs it comes last.
        stood: Where it stood before a reset.
        used_log: Where its used ring is in the dirty log.
        kick: Descriptor.
        call: Descriptor.
        err: Descriptor.
        broken: Why it is, if it is.
    """

    state: str
    num: int = 0
    packed: bool = False
    desc: int | None = None
    avail: int | None = None
    used: int | None = None
    base: int | None = None
    stood: int | None = None
    used_log: int | None = None
    kick: int | None = None
    call: int | None = None
    err: int | None = None
    broken: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """
    A message of which a part has come.

    Args:
        data: Its bytes so far, as hexadecimal digits.
        fds: Descriptors that came with them.
    """

    data: str = ""
    fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TranslationState:
    """A translation of the front-end's IOMMU."""

    iova: int
    size: int
    uaddr: int
    perm: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeState:
    """A range of guest physical memory; the end is the first byte behind it."""

    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelState:
    """
    The back-end's own channel.

    Args:
        fd: Its socket.
        waiting: Numbers of our requests whose acks are still to come, in order.
        partial: Of an ack.
    """

    fd: int
    waiting: tuple[int, ...] = ()
    partial: Partial = Partial()


@dataclass(frozen=True, slots=True, kw_only=True)
class AreaState:
    """
    A part of a file that the front-end and the device share.

    Args:
        fd: The file.
        offset: Where it begins, bytes.
        size: Bytes.
        num_queues: Of an inflight region; see `vhostblk.server.inflight.Area`.
        queue_size: The same.
    """

    fd: int
    offset: int
    size: int
    num_queues: int = 0
    queue_size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontEndState:
    """
    What a front-end has of a device.

    Args:
        fd: Its socket.
        since: When it connected, seconds since 1970.
        phase: Name of a `vhostblk.protocol.state.Phase`.
        features: Acked by the driver.
        protocol_features: Acked by the front-end.
        status: Of the device.
        regions: Guest memory.
        rings: All of them.
        channel: None: there is none.
        translations: Of its IOMMU.
        inflight: Region in use.
        inflight_asked: A region was made for this connection.
        left: Numbers of such regions of which others may have requests under way.
        dirty_log: In use.
        learned: Guest memory that ``confidential require`` has learned; None: not (yet).
        partial: Of the next message.
    """

    fd: int
    since: float
    phase: str
    features: int
    protocol_features: int
    status: int
    regions: tuple[RegionState, ...]
    rings: tuple[RingState, ...]
    channel: ChannelState | None = None
    translations: tuple[TranslationState, ...] = ()
    inflight: AreaState | None = None
    inflight_asked: bool = False
    left: tuple[int, ...] = ()
    dirty_log: AreaState | None = None
    learned: tuple[RangeState, ...] | None = None
    partial: Partial = Partial()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """
    A device.

    Args:
        name: What it is called.
        source: Where its front-ends come from.
        config: What its driver was told, as hexadecimal digits of the config space.
        writeback: The write cache switch.
        served: A driver has begun with it.
        locked: The disk's lock is held, though only while rings run.
        disk: Descriptors of its disk; None: it is closed here, and opened by who takes over.
        spec: The disk as it was written, or changed to since; None: a program's own object.
        front_end: Who is connected.
        added: The table by which an operator has added it; None: who takes over knows of it.
        promised: Fields of the `vhostblk.blk.device.BlkDevice` that the disk before the one there
            is has promised; None: it is the first one.
    """

    name: str
    source: SourceState
    config: str
    writeback: bool
    served: bool
    locked: bool
    disk: tuple[int, ...] | None
    spec: str | None = None
    front_end: FrontEndState | None = None
    added: Mapping[str, object] | None = None
    promised: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """
    All that is served; sent while it is.

    Args:
        program: Version of vhostblk that writes it.
        devices: In order.
        control: The control socket.
    """

    program: str
    devices: tuple[DeviceState, ...]
    control: SourceState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RingBase:
    """Where the ring of this number goes on, as on the wire."""

    index: int
    base: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """
    The rest of a device: what is known once nothing is in flight.

    Args:
        name: Of the device.
        bases: Of its rings that run.
        saved: What its disk has saved, as a descriptor of a file; None: nothing.
    """

    name: str
    bases: tuple[RingBase, ...] = ()
    saved: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Last:
    """
    The rest of all devices.

    Args:
        since: When the first queue stopped, by CLOCK_MONOTONIC.
        devices: In order.
    """

    since: float
    devices: tuple[Rest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """
    What a new process says first.

    Args:
        versions: Of the document, that it reads.
        program: Its version of vhostblk.
        pid: Its id; None: it does not say.
    """

    versions: tuple[int, ...]
    program: str
    pid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What a new process says then.

    Args:
        refused: Why it cannot take over; None: it can.
    """

    refused: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """
    What it says last, for who waits to hear it.

    Args:
        paused_seconds: From when the first queue had stopped until the last one ran.
    """

    paused_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """How long requests took; see `vhostblk.engine.latency.Latency`."""

    op: str
    sum_ns: int
    max_ns: int
    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RingTotals:
    """
    What a ring has counted.

    Args:
        index: Its number.
        counters: Fields of a `vhostblk.engine.told.Counters`.
        took: How long its requests took, by kind.
    """

    index: int
    counters: Mapping[str, object]
    took: tuple[Took, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTotals:
    """
    What a layer has counted.

    Args:
        name: Of its kind.
        counted: See `vhostblk.disk.layer.Layer.counted`; what is zero is left out.
    """

    name: str
    counted: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotals:
    """
    What a device has counted.

    Args:
        name: Of the device.
        guest: Fields of a `vhostblk.server.guest_counters.GuestCounters`.
        iommu: Fields of a `vhostblk.server.iommu.IommuCounters`, for the front-end there is.
        hits: Descriptors walked behind its IOMMU.
        rings: Those that it uses.
        layers: Of its disk, the outermost first.
    """

    name: str
    guest: Mapping[str, object]
    iommu: Mapping[str, object]
    hits: int = 0
    rings: tuple[RingTotals, ...] = ()
    layers: tuple[LayerTotals, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """
    What all devices have counted: what the old process says last, when the new one serves.

    Args:
        devices: In order.
    """

    devices: tuple[DeviceTotals, ...]
