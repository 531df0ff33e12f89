"""
From what is served to the state document.

What is read stays as it is: its descriptors are named, not taken.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from vhostblk.errors import VhostBlkError
from vhostblk.server import handover as h
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device
from vhostblk.server.iommu import Iommu
from vhostblk.server.ring import Ring
from vhostblk.server.service import Service
from vhostblk.server.session import Session
from vhostblk.spec.virtio_blk import CONFIG_SIZE

ASKED = frozenset({"serial", "num_queues"})
"""Fields of a `vhostblk.blk.device.BlkDevice` that say what the operator has asked for."""


def device_state(service: Service) -> h.DeviceState:
    """
    Return the state of a device whose loop is held and whose front-end's lock is ours.

    Raises:
        VhostBlkError: It cannot be handed over now; one line that says why.
    """
    device = service.device
    if dead := device.dead():
        raise VhostBlkError(
            f"{service.name}: {dead} requests that were given up are still with the disk"
        )
    session = service.session
    return h.DeviceState(
        name=service.name,
        source=service.listener.share(),
        config=told(device).hex(),
        writeback=device.config.writeback,
        served=device.served,
        locked=device.tenure.held,
        disk=device.shared(),
        spec=None if device.backing.source is None else str(device.backing.source),
        front_end=None if session is None else front_end_state(session),
        added=service.added,
        promised=promised(device) if device.replaced else None,
    )


def told(device: Device) -> bytes:
    """Return what a driver is told of the device, but for the write cache switch."""
    before, device.config.writeback = device.config.writeback, False
    try:
        return device.config.read(0, CONFIG_SIZE)
    finally:
        device.config.writeback = before


def promised(device: Device) -> Mapping[str, object]:
    """Return what a device promises, but for what is asked of it and not of its disk."""
    fields = asdict(device.blk)
    return {name: value for name, value in fields.items() if name not in ASKED}


def front_end_state(session: Session) -> h.FrontEndState:
    """Return what a front-end has of a device."""
    attachment = session.attachment
    data, fds = session.connection.partial
    learned = attachment.enforcement.learned
    return h.FrontEndState(
        fd=session.fileno(),
        since=0.0 if attachment.peer is None else attachment.peer.since,
        phase=session.connection.state.phase.name,
        features=attachment.features,
        protocol_features=int(attachment.protocol_features),
        status=attachment.status,
        regions=_regions(attachment),
        rings=tuple(ring_state(ring) for ring in attachment.rings),
        channel=_channel(attachment.iommu),
        translations=_translations(attachment.iommu),
        inflight=_inflight(attachment),
        inflight_asked=attachment.inflight.asked,
        left=tuple(attachment.turn.left),
        dirty_log=_dirty_log(attachment),
        learned=None if learned is None else _ranges(learned),
        partial=h.Partial(data=data.hex(), fds=fds),
    )


def _regions(attachment: Attachment) -> tuple[h.RegionState, ...]:
    return tuple(
        h.RegionState(
            gpa=region.place.gpa,
            size=region.place.size,
            uva=region.place.uva,
            mmap_offset=region.mapping.offset,
            fd=region.mapping.fileno(),
        )
        for region in attachment.space.table.regions
    )


def _inflight(attachment: Attachment) -> h.AreaState | None:
    area = attachment.inflight.area
    if area is None:
        return None
    return h.AreaState(
        fd=area.mapping.fileno(),
        offset=area.mapping.offset,
        size=area.mapping.length,
        num_queues=area.num_queues,
        queue_size=area.queue_size,
    )


def _dirty_log(attachment: Attachment) -> h.AreaState | None:
    log = attachment.dirty_log
    if log is None:
        return None
    return h.AreaState(fd=log.fileno(), offset=log.offset, size=log.length)


def ring_state(ring: Ring) -> h.RingState:
    """Return the state of a ring; of one that runs without its base, as that changes."""
    place, fault = ring.place, ring.fault()
    fds = ring.keeper.eventfds()
    at = place.addresses
    return h.RingState(
        state=ring.state.name,
        num=place.num,
        packed=place.packed,
        desc=None if at is None else at.desc,
        avail=None if at is None else at.avail,
        used=None if at is None else at.used,
        base=None if ring.running else ring.base,
        stood=ring.stood,
        used_log=ring.used_log,
        kick=fds.get("kick"),
        call=fds.get("call"),
        err=fds.get("err"),
        broken=None if fault is None else fault.reason,
    )


def _channel(iommu: Iommu) -> h.ChannelState | None:
    requests = iommu.requests
    if requests is None:
        return None
    waiting, data = requests.state
    return h.ChannelState(fd=requests.fileno(), waiting=waiting, partial=h.Partial(data=data.hex()))


def _translations(iommu: Iommu) -> tuple[h.TranslationState, ...]:
    return tuple(
        h.TranslationState(iova=one.iova, size=one.size, uaddr=one.uaddr, perm=int(one.access))
        for one in iommu.iotlb.translations
    )


def _ranges(rows: Sequence[tuple[int, int]]) -> tuple[h.RangeState, ...]:
    return tuple(h.RangeState(start=start, end=end) for start, end in rows)


def bases(service: Service) -> tuple[h.RingBase, ...]:
    """Return where the rings that run stand, now that nothing is in flight."""
    if service.session is None:
        return ()
    rings = service.session.attachment.running
    return tuple(h.RingBase(index=ring.index, base=ring.queue.base()) for ring in rings)
