"""
From the state document to what is served.

In two steps: everything that can be made and checked while the other process still serves, and then
what remains: the rings run on.  A process in which any of it fails takes over nothing, and ends.
"""

import socket
from dataclasses import replace
from errno import EINVAL

from vhostblk.blk.device import BlkDevice
from vhostblk.errors import ProtocolError, Refused, VhostBlkError
from vhostblk.memory.iotlb import checked
from vhostblk.memory.mapping import Mapping
from vhostblk.memory.regions import Place as RegionPlace
from vhostblk.memory.regions import RegionTable, Wanted
from vhostblk.memory.space import AddressSpace
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.state import ConnectionState, Phase, RingState
from vhostblk.server import handover as h
from vhostblk.server.attachment import Attachment
from vhostblk.server.device import Device
from vhostblk.server.export import told
from vhostblk.server.handlers_features import protocol_features
from vhostblk.server.peer import peer_of
from vhostblk.server.place import Addresses, Place
from vhostblk.server.promise import DeviceOptions
from vhostblk.server.ring import Ring
from vhostblk.server.session import Session
from vhostblk.server.transport import Transport
from vhostblk.spec.vhost_user import ProtocolFeature


def check_device(device: Device, state: h.DeviceState) -> None:
    """
    Make sure that a driver finds the device it knows.

    Raises:
        VhostBlkError: It would not; says what to do.
    """
    front_end = state.front_end
    if front_end is None:
        return
    if told(device).hex() != state.config:
        raise VhostBlkError(
            f"{state.name}: the disk, or what was asked for it, is not what the guest was told: "
            "undo the change, or stop and start the server"
        )
    if unknown := front_end.features & ~device.features:
        raise VhostBlkError(f"{state.name}: the driver has acked feature bits {unknown:#x}")
    if unknown := front_end.protocol_features & ~int(protocol_features(device)):
        raise VhostBlkError(
            f"{state.name}: the front-end has acked protocol feature bits {unknown:#x}"
        )


def promised(state: h.DeviceState, options: DeviceOptions) -> BlkDevice | None:
    """
    Return what a device has promised whose disk is another one since; None: it is the first.

    Raises:
        VhostBlkError: It cannot be read.
    """
    if state.promised is None:
        return None
    try:
        blk = BlkDevice(**state.promised)  # type: ignore[arg-type]
    except TypeError as error:
        raise VhostBlkError(f"{state.name}: the state document's promise: {error}") from error
    return replace(blk, serial=options.serial.encode(), num_queues=options.num_queues)


def restore(device: Device, state: h.FrontEndState) -> Session:
    """
    Make the session of a front-end, with rings that do not run yet.

    Args:
        device: From `check_device`.
        state: Of the front-end; its descriptors are taken.

    Raises:
        VhostBlkError: It cannot go on here.
    """
    sock = socket.socket(fileno=state.fd)
    attachment = Attachment(device, peer_of(sock, now=state.since))
    session = Session(Transport(sock), attachment, device.log)
    try:
        data = bytes.fromhex(state.partial.data)
        session.connection.go_on(data, state.partial.fds)
        session.connection.state = ConnectionState(
            Phase[state.phase], ProtocolFeature(state.protocol_features)
        )
        attachment.features = state.features
        attachment.protocol_features = ProtocolFeature(state.protocol_features)
        attachment.status = state.status
        _restore_memory(attachment, state)
        _restore_channel(attachment, state)
        _restore_areas(attachment, state)
        if state.learned is not None:
            attachment.enforcement.recall([(one.start, one.end) for one in state.learned])
        _restore_rings(attachment, state)
    except (Refused, ProtocolError, ValueError, KeyError, OSError) as error:
        raise VhostBlkError(f"{device.options.name}: {error}") from error
    return session


def _restore_memory(attachment: Attachment, state: h.FrontEndState) -> None:
    wanted = [
        Wanted(
            place=RegionPlace(gpa=one.gpa, size=one.size, uva=one.uva),
            mmap_offset=one.mmap_offset,
            fd=one.fd,
        )
        for one in state.regions
    ]
    table = RegionTable().replace(wanted).table
    for region in table.regions:
        attachment.device.guard(region.mapping)
    attachment.space = AddressSpace.build(table)


def _restore_channel(attachment: Attachment, state: h.FrontEndState) -> None:
    channel = state.channel
    if channel is not None:
        attachment.iommu.set_channel(channel.fd)
        requests = attachment.iommu.requests
        if requests is not None:
            requests.go_on(channel.waiting, bytes.fromhex(channel.partial.data))
    for one in state.translations:
        new = checked(
            attachment.space.table, iova=one.iova, size=one.size, uaddr=one.uaddr, perm=one.perm
        )
        attachment.iommu.iotlb.update(new)


def _restore_areas(attachment: Attachment, state: h.FrontEndState) -> None:
    attachment.inflight.asked = state.inflight_asked
    attachment.turn.left.update(state.left)
    if (one := state.inflight) is not None:
        area = attachment.inflight.take(
            Fd(one.fd),
            mmap_size=one.size,
            mmap_offset=one.offset,
            num_queues=one.num_queues,
            queue_size=one.queue_size,
        )
        attachment.turn.go_on(area)
    if (log := state.dirty_log) is not None:
        attachment.dirty_log = Mapping(log.fd, offset=log.offset, length=log.size)
        attachment.device.guard(attachment.dirty_log)


def _restore_rings(attachment: Attachment, state: h.FrontEndState) -> None:
    if len(state.rings) != len(attachment.rings):
        raise Refused(EINVAL, f"{len(state.rings)} rings of {len(attachment.rings)}")
    for ring, one in zip(attachment.rings, state.rings, strict=True):
        _restore_ring(ring, one)
    terms = attachment.terms
    for ring in attachment.running:
        ring.check_start(terms)


def _restore_ring(ring: Ring, state: h.RingState) -> None:
    ring.state = RingState[state.state]
    ring.base, ring.stood, ring.used_log = state.base, state.stood, state.used_log
    addresses = None
    if state.desc is not None and state.avail is not None and state.used is not None:
        addresses = Addresses(desc=state.desc, avail=state.avail, used=state.used)
    ring.place = Place(index=ring.index, num=state.num, addresses=addresses, packed=state.packed)
    if state.kick is not None:
        ring.queue.set_kick(state.kick)
    if state.call is not None:
        ring.queue.set_call(state.call)
    if state.err is not None:
        ring.queue.set_err(state.err)
    if ring.running:
        _ = ring.queue  # made now, not while the guest waits


def resume(session: Session, state: h.FrontEndState, rest: h.Rest) -> None:
    """
    Let the rings run on.

    Args:
        session: From `restore`.
        state: The same.
        rest: Where they stand.
    """
    requests = session.attachment.iommu.requests
    if requests is not None:
        requests.let_go()
    terms = session.attachment.terms
    for one in rest.bases:
        ring = session.attachment.rings[one.index]
        ring.resume(one.base, terms, broken=state.rings[one.index].broken)
