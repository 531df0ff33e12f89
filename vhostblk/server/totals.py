"""
What a device has counted, for another process that goes on with it and adds it to its own.

Sent when the other one serves already: no guest waits for it, and if it is lost nothing else is.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from vhostblk.engine.api import Counters, Latency, Op
from vhostblk.server import handover as h
from vhostblk.server.guest_counters import GuestCounters
from vhostblk.server.iommu import IommuCounters
from vhostblk.server.ring import Ring
from vhostblk.server.service import Service

_T = TypeVar("_T", Counters, GuestCounters, IommuCounters)


def device_totals(service: Service) -> h.DeviceTotals:
    """Return what a device, and the front-end it has, have counted."""
    guest = asdict(service.device.guest)
    if service.session is None:
        return h.DeviceTotals(name=service.name, guest=guest, iommu={})
    attachment = service.session.attachment
    return h.DeviceTotals(
        name=service.name,
        guest=guest,
        iommu=asdict(attachment.iommu.counters),
        hits=attachment.observer.hits(),
        rings=tuple(_ring_totals(ring) for ring in attachment.rings if ring.keeper.made),
    )


def _ring_totals(ring: Ring) -> h.RingTotals:
    took = (
        h.Took(op=op.name, sum_ns=one.sum_ns, max_ns=one.max_ns, buckets=one.buckets)
        for op, one in ring.latency().items()
        if one.count
    )
    return h.RingTotals(index=ring.index, counters=asdict(ring.counters()), took=tuple(took))


async def with_layers(service: Service, totals: h.DeviceTotals) -> h.DeviceTotals:
    """
    Return the same with what the layers of its disk have counted.

    Raises:
        TimeoutError: The disk is stuck.
        Exception: Whatever a layer raised.
    """
    counted = await service.device.backing.layers.counted()
    layers = (
        h.LayerTotals(name=name, counted={key: n for key, n in one.items() if n})
        for name, one in counted
    )
    return replace(totals, layers=tuple(layers))


async def recall_layers(service: Service, told: h.DeviceTotals) -> None:
    """Have the layers of its disk add theirs; raises what `with_layers` does."""
    counted = [
        (one.name, {key: n for key, n in one.counted.items() if type(n) is int})
        for one in told.layers
    ]
    await service.device.backing.layers.recall(counted)


def recall(service: Service, told: h.DeviceTotals) -> None:
    """
    Add what another process has counted.

    Args:
        service: The device, which runs here now.
        told: By that process; what it has counted and we do not know is left out.
    """
    guest = service.device.guest
    for name, count in _known(GuestCounters, told.guest).items():
        setattr(guest, name, getattr(guest, name) + count)
    if service.session is None:
        return
    attachment = service.session.attachment
    counted = attachment.iommu.counters
    for name, count in _known(IommuCounters, told.iommu).items():
        setattr(counted, name, getattr(counted, name) + count)
    walked = {}
    for one in told.rings:
        if one.index >= len(attachment.rings):
            continue
        done = Counters(**_known(Counters, one.counters))
        attachment.rings[one.index].keeper.recall(done, _latency(one))
        walked[one.index] = done.descriptors
    attachment.observer.recall(hits=told.hits, walked=walked)


def _known(kind: type[_T], told: Mapping[str, Any]) -> dict[str, int]:
    names = {one.name for one in fields(kind)}
    return {name: count for name, count in told.items() if name in names and type(count) is int}


def _latency(told: h.RingTotals) -> dict[Op, Latency]:
    rows = {}
    for one in told.took:
        if one.op in Op.__members__ and len(one.buckets) == len(Latency().buckets):
            rows[Op[one.op]] = Latency(sum_ns=one.sum_ns, max_ns=one.max_ns, buckets=one.buckets)
    return rows
