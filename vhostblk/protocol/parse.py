"""
From a payload and its descriptors to a message.

One row of `PARSERS` for one message number.  Sizes and descriptor counts are checked here,
exactly; what a number means for this device is the handlers' business.

Spec: vhost-user, "Message Specification".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from vhostblk.errors import ProtocolError
from vhostblk.protocol import foreign, messages, wire
from vhostblk.protocol.fd import Fd
from vhostblk.protocol.messages import MemoryRegion, Message
from vhostblk.protocol.wire import Layout
from vhostblk.spec.vhost_user import (
    MAX_CONFIG_SIZE,
    MEM_TABLE_REGIONS,
    VRING_INDEX_MASK,
    VRING_NOFD,
    ProtocolFeature,
    Request,
    VringAddrFlag,
)

UUID_SIZE = 16


@dataclass(frozen=True, slots=True)
class Body:
    """
    What came with a message number.

    Args:
        payload: Its bytes.
        fds: Its descriptors; they stay the caller's when parsing fails.
        need_reply: An ack was asked for, and REPLY_ACK is in force.
    """

    payload: bytes
    fds: tuple[Fd, ...]
    need_reply: bool


Parser: TypeAlias = Callable[[Body], Message]
"""Raises ProtocolError for a wrong size or descriptor count."""


def _numbers(layout: Layout, payload: bytes) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes, expected {layout.size}")
    return layout.unpack(payload)


def _expect_fds(body: Body, count: int) -> None:
    if len(body.fds) != count:
        raise ProtocolError(f"{len(body.fds)} file descriptors, expected {count}")


def _empty(make: Callable[[Body], Message]) -> Parser:
    def parse(body: Body) -> Message:
        if body.payload:
            raise ProtocolError(f"a payload of {len(body.payload)} bytes, expected none")
        _expect_fds(body, 0)
        return make(body)

    return parse


def _fd_alone(make: Callable[[Fd, Body], Message]) -> Parser:
    def parse(body: Body) -> Message:
        if body.payload:
            raise ProtocolError(f"a payload of {len(body.payload)} bytes, expected none")
        _expect_fds(body, 1)
        return make(body.fds[0], body)

    return parse


def _u64(make: Callable[[int, Body], Message]) -> Parser:
    def parse(body: Body) -> Message:
        (value,) = _numbers(wire.U64, body.payload)
        _expect_fds(body, 0)
        return make(value, body)

    return parse


def _vring_state(make: Callable[[int, int, Body], Message]) -> Parser:
    def parse(body: Body) -> Message:
        index, num = _numbers(wire.VRING_STATE, body.payload)
        _expect_fds(body, 0)
        return make(index, num, body)

    return parse


def _vring_fd(make: Callable[[int, Fd | None, Body], Message]) -> Parser:
    def parse(body: Body) -> Message:
        (value,) = _numbers(wire.U64, body.payload)
        # NOFD is the only word on it: a descriptor that is merely missing is an error.
        _expect_fds(body, 0 if value & VRING_NOFD else 1)
        return make(value & VRING_INDEX_MASK, body.fds[0] if body.fds else None, body)

    return parse


def _vring_enable(body: Body) -> Message:
    index, num = _numbers(wire.VRING_STATE, body.payload)
    _expect_fds(body, 0)
    if num not in (0, 1):
        raise ProtocolError(f"neither enables nor disables: {num}")
    return messages.SetVringEnable(index=index, enable=num == 1, need_reply=body.need_reply)


def _vring_addr(body: Body) -> Message:
    index, flags, desc, used, avail, log = _numbers(wire.VRING_ADDR, body.payload)
    _expect_fds(body, 0)
    return messages.SetVringAddr(
        index=index,
        flags=VringAddrFlag(flags),
        desc=desc,
        used=used,
        avail=avail,
        log=log,
        need_reply=body.need_reply,
    )


def _region(numbers: tuple[int, ...], fd: Fd | None) -> MemoryRegion:
    gpa, size, uva, mmap_offset = numbers
    return MemoryRegion(gpa=gpa, size=size, uva=uva, mmap_offset=mmap_offset, fd=fd)


def _mem_table(body: Body) -> Message:
    head, rest = body.payload[: wire.REGION_COUNT.size], body.payload[wire.REGION_COUNT.size :]
    (count,) = _numbers(wire.REGION_COUNT, head)
    if count > MEM_TABLE_REGIONS:
        raise ProtocolError(f"{count} regions, at most {MEM_TABLE_REGIONS} fit a table")
    step = wire.REGION.size
    if len(rest) != count * step:
        raise ProtocolError(f"{len(rest)} bytes of regions, expected {count} of {step}")
    _expect_fds(body, count)
    rows = [wire.REGION.unpack(rest[at : at + step]) for at in range(0, len(rest), step)]
    regions = tuple(_region(row, fd) for row, fd in zip(rows, body.fds, strict=True))
    return messages.SetMemTable(regions=regions, need_reply=body.need_reply)


def _add_mem_reg(body: Body) -> Message:
    numbers = _numbers(wire.SINGLE_REGION, body.payload)
    _expect_fds(body, 1)
    return messages.AddMemReg(region=_region(numbers, body.fds[0]), need_reply=body.need_reply)


def _rem_mem_reg(body: Body) -> Message:
    numbers = _numbers(wire.SINGLE_REGION, body.payload)
    # Some front-ends send the descriptor again; it says nothing and is closed by the session.
    _expect_fds(body, 1 if body.fds else 0)
    region = _region(numbers, body.fds[0] if body.fds else None)
    return messages.RemMemReg(region=region, need_reply=body.need_reply)


def _log_base(body: Body) -> Message:
    _expect_fds(body, 1 if body.fds else 0)
    if len(body.payload) == wire.U64.size and not body.fds:
        # Without LOG_SHMFD it is an address that means nothing in this process.
        size, offset = 0, *wire.U64.unpack(body.payload)
    else:
        size, offset = _numbers(wire.LOG_BASE, body.payload)
    fd = body.fds[0] if body.fds else None
    return messages.SetLogBase(
        mmap_size=size, mmap_offset=offset, fd=fd, need_reply=body.need_reply
    )


def _config(body: Body) -> tuple[int, int, bytes]:
    data = body.payload[wire.CONFIG.size :]
    offset, size, flags = _numbers(wire.CONFIG, body.payload[: wire.CONFIG.size])
    _expect_fds(body, 0)
    if size != len(data):
        raise ProtocolError(f"{len(data)} bytes of config space, said to be {size}")
    if not 0 < size <= MAX_CONFIG_SIZE or offset > MAX_CONFIG_SIZE - size:
        raise ProtocolError(f"{size} bytes at {offset} are outside the config space")
    return offset, flags, data


def _get_config(body: Body) -> Message:
    offset, flags, data = _config(body)
    return messages.GetConfig(
        offset=offset, size=len(data), flags=flags, need_reply=body.need_reply
    )


def _set_config(body: Body) -> Message:
    offset, flags, data = _config(body)
    return messages.SetConfig(offset=offset, flags=flags, data=data, need_reply=body.need_reply)


def _iotlb(body: Body) -> Message:
    iova, size, uaddr, perm, kind = _numbers(wire.IOTLB, body.payload)
    _expect_fds(body, 0)
    return messages.IotlbMsg(
        iova=iova, size=size, uaddr=uaddr, perm=perm, kind=kind, need_reply=body.need_reply
    )


def _get_inflight(body: Body) -> Message:
    _, _, queues, queue_size = _numbers(wire.INFLIGHT, body.payload)
    _expect_fds(body, 0)
    return messages.GetInflightFd(
        num_queues=queues, queue_size=queue_size, need_reply=body.need_reply
    )


def _set_inflight(body: Body) -> Message:
    size, offset, queues, queue_size = _numbers(wire.INFLIGHT, body.payload)
    _expect_fds(body, 1)
    return messages.SetInflightFd(
        mmap_size=size,
        mmap_offset=offset,
        num_queues=queues,
        queue_size=queue_size,
        fd=body.fds[0],
        need_reply=body.need_reply,
    )


def _crypto_session(body: Body) -> Message:
    _expect_fds(body, 0)
    return foreign.CreateCryptoSession(payload=body.payload, need_reply=body.need_reply)


def _shared_object(body: Body) -> Message:
    if len(body.payload) != UUID_SIZE:
        raise ProtocolError(f"a payload of {len(body.payload)} bytes, expected {UUID_SIZE}")
    _expect_fds(body, 0)
    return foreign.GetSharedObject(uuid=body.payload, need_reply=body.need_reply)


def _device_state_fd(body: Body) -> Message:
    direction, phase = _numbers(wire.DEVICE_STATE, body.payload)
    _expect_fds(body, 1)
    return foreign.SetDeviceStateFd(
        direction=direction, phase=phase, fd=body.fds[0], need_reply=body.need_reply
    )


PARSERS: dict[Request, Parser] = {
    Request.GET_FEATURES: _empty(lambda b: messages.GetFeatures(need_reply=b.need_reply)),
    Request.SET_FEATURES: _u64(
        lambda v, b: messages.SetFeatures(features=v, need_reply=b.need_reply)
    ),
    Request.SET_OWNER: _empty(lambda b: messages.SetOwner(need_reply=b.need_reply)),
    Request.RESET_OWNER: _empty(lambda b: messages.ResetOwner(need_reply=b.need_reply)),
    Request.SET_MEM_TABLE: _mem_table,
    Request.SET_LOG_BASE: _log_base,
    Request.SET_LOG_FD: _fd_alone(lambda fd, b: messages.SetLogFd(fd=fd, need_reply=b.need_reply)),
    Request.SET_VRING_NUM: _vring_state(
        lambda i, num, b: messages.SetVringNum(index=i, num=num, need_reply=b.need_reply)
    ),
    Request.SET_VRING_ADDR: _vring_addr,
    Request.SET_VRING_BASE: _vring_state(
        lambda i, num, b: messages.SetVringBase(index=i, base=num, need_reply=b.need_reply)
    ),
    Request.GET_VRING_BASE: _vring_state(
        lambda i, _, b: messages.GetVringBase(index=i, need_reply=b.need_reply)
    ),
    Request.SET_VRING_KICK: _vring_fd(
        lambda i, fd, b: messages.SetVringKick(index=i, fd=fd, need_reply=b.need_reply)
    ),
    Request.SET_VRING_CALL: _vring_fd(
        lambda i, fd, b: messages.SetVringCall(index=i, fd=fd, need_reply=b.need_reply)
    ),
    Request.SET_VRING_ERR: _vring_fd(
        lambda i, fd, b: messages.SetVringErr(index=i, fd=fd, need_reply=b.need_reply)
    ),
    Request.GET_PROTOCOL_FEATURES: _empty(
        lambda b: messages.GetProtocolFeatures(need_reply=b.need_reply)
    ),
    Request.SET_PROTOCOL_FEATURES: _u64(
        lambda v, b: messages.SetProtocolFeatures(
            features=ProtocolFeature(v), need_reply=b.need_reply
        )
    ),
    Request.GET_QUEUE_NUM: _empty(lambda b: messages.GetQueueNum(need_reply=b.need_reply)),
    Request.SET_VRING_ENABLE: _vring_enable,
    Request.SEND_RARP: _u64(lambda v, b: foreign.SendRarp(mac=v, need_reply=b.need_reply)),
    Request.NET_SET_MTU: _u64(lambda v, b: foreign.NetSetMtu(mtu=v, need_reply=b.need_reply)),
    Request.SET_BACKEND_REQ_FD: _fd_alone(
        lambda fd, b: messages.SetBackendReqFd(fd=fd, need_reply=b.need_reply)
    ),
    Request.IOTLB_MSG: _iotlb,
    Request.SET_VRING_ENDIAN: _vring_state(
        lambda i, num, b: foreign.SetVringEndian(index=i, num=num, need_reply=b.need_reply)
    ),
    Request.GET_CONFIG: _get_config,
    Request.SET_CONFIG: _set_config,
    Request.CREATE_CRYPTO_SESSION: _crypto_session,
    Request.CLOSE_CRYPTO_SESSION: _u64(
        lambda v, b: foreign.CloseCryptoSession(session=v, need_reply=b.need_reply)
    ),
    Request.POSTCOPY_ADVISE: _empty(lambda b: foreign.PostcopyAdvise(need_reply=b.need_reply)),
    Request.POSTCOPY_LISTEN: _empty(lambda b: foreign.PostcopyListen(need_reply=b.need_reply)),
    Request.POSTCOPY_END: _empty(lambda b: foreign.PostcopyEnd(need_reply=b.need_reply)),
    Request.GET_INFLIGHT_FD: _get_inflight,
    Request.SET_INFLIGHT_FD: _set_inflight,
    Request.GPU_SET_SOCKET: _fd_alone(
        lambda fd, b: foreign.GpuSetSocket(fd=fd, need_reply=b.need_reply)
    ),
    Request.RESET_DEVICE: _empty(lambda b: messages.ResetDevice(need_reply=b.need_reply)),
    Request.VRING_KICK: _vring_state(
        lambda i, _, b: foreign.VringKick(index=i, need_reply=b.need_reply)
    ),
    Request.GET_MAX_MEM_SLOTS: _empty(lambda b: messages.GetMaxMemSlots(need_reply=b.need_reply)),
    Request.ADD_MEM_REG: _add_mem_reg,
    Request.REM_MEM_REG: _rem_mem_reg,
    Request.SET_STATUS: _u64(lambda v, b: messages.SetStatus(status=v, need_reply=b.need_reply)),
    Request.GET_STATUS: _empty(lambda b: messages.GetStatus(need_reply=b.need_reply)),
    Request.GET_SHARED_OBJECT: _shared_object,
    Request.SET_DEVICE_STATE_FD: _device_state_fd,
    Request.CHECK_DEVICE_STATE: _empty(lambda b: foreign.CheckDeviceState(need_reply=b.need_reply)),
}
