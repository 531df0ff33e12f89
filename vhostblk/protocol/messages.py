"""
Every message a front-end sends, as a value.

One class for one message number; what no block device answers is in `foreign`.  *need_reply* is
set only when the front-end asked for an ack and REPLY_ACK is in force.  A message owns its
descriptors until a handler takes them; `close_fds` closes the rest.

Spec: vhost-user, "Front-end message types".
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from vhostblk.protocol.fd import Fd
from vhostblk.protocol.foreign import Foreign
from vhostblk.spec.vhost_user import ProtocolFeature, Request, VringAddrFlag


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRegion:
    """
    A stretch of guest memory, as the front-end describes it.

    Args:
        gpa: Its guest physical address.
        size: Bytes.
        uva: Its address in the front-end.
        mmap_offset: Where it begins in *fd*, bytes.
        fd: What to map; None where a message brings none (REM_MEM_REG).
    """

    gpa: int
    size: int
    uva: int
    mmap_offset: int
    fd: Fd | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GetFeatures:
    """Ask which virtio features the device offers; the reply is a u64."""

    request: ClassVar[Request] = Request.GET_FEATURES
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFeatures:
    """Ack virtio features; comes twice at each start."""

    request: ClassVar[Request] = Request.SET_FEATURES
    features: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetOwner:
    """Claim the device for this connection; may come after feature negotiation."""

    request: ClassVar[Request] = Request.SET_OWNER
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetOwner:
    """Deprecated: disable all rings."""

    request: ClassVar[Request] = Request.RESET_OWNER
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMemTable:
    """Replace all memory regions by these; each carries its descriptor."""

    request: ClassVar[Request] = Request.SET_MEM_TABLE
    regions: tuple[MemoryRegion, ...]
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLogBase:
    """Hand over the dirty log; without LOG_SHMFD only an address, in *mmap_offset*, comes."""

    request: ClassVar[Request] = Request.SET_LOG_BASE
    mmap_size: int
    mmap_offset: int
    fd: Fd | None
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLogFd:
    """Hand over an eventfd to signal when the dirty log grows."""

    request: ClassVar[Request] = Request.SET_LOG_FD
    fd: Fd
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringNum:
    """Set a ring's size in descriptors."""

    request: ClassVar[Request] = Request.SET_VRING_NUM
    index: int
    num: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringAddr:
    """Say where a ring lives: front-end virtual addresses, or IOVAs behind a vIOMMU."""

    request: ClassVar[Request] = Request.SET_VRING_ADDR
    index: int
    flags: VringAddrFlag
    desc: int
    used: int
    avail: int
    log: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringBase:
    """Set the next avail entry to take (packed: both indexes and wrap counters)."""

    request: ClassVar[Request] = Request.SET_VRING_BASE
    index: int
    base: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetVringBase:
    """Stop a ring and ask for its base; the reply is a ring state."""

    request: ClassVar[Request] = Request.GET_VRING_BASE
    index: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringKick:
    """Hand over a kick eventfd; None: the ring must be polled."""

    request: ClassVar[Request] = Request.SET_VRING_KICK
    index: int
    fd: Fd | None
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringCall:
    """Hand over a call eventfd; None: do not signal."""

    request: ClassVar[Request] = Request.SET_VRING_CALL
    index: int
    fd: Fd | None
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringErr:
    """Hand over an eventfd for a broken ring; None: do not signal."""

    request: ClassVar[Request] = Request.SET_VRING_ERR
    index: int
    fd: Fd | None
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetProtocolFeatures:
    """Ask which protocol features we offer; the reply is a u64."""

    request: ClassVar[Request] = Request.GET_PROTOCOL_FEATURES
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetProtocolFeatures:
    """Ack protocol features, in force from the next message on."""

    request: ClassVar[Request] = Request.SET_PROTOCOL_FEATURES
    features: ProtocolFeature
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetQueueNum:
    """Ask how many queues we serve at most; the reply is a u64."""

    request: ClassVar[Request] = Request.GET_QUEUE_NUM
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringEnable:
    """Enable or disable a ring, be it set up or not."""

    request: ClassVar[Request] = Request.SET_VRING_ENABLE
    index: int
    enable: bool
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetBackendReqFd:
    """Hand over the socket for our own requests."""

    request: ClassVar[Request] = Request.SET_BACKEND_REQ_FD
    fd: Fd
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class IotlbMsg:
    """Update or invalidate translations; *perm* and *kind* as ``struct vhost_iotlb_msg``."""

    request: ClassVar[Request] = Request.IOTLB_MSG
    iova: int
    size: int
    uaddr: int
    perm: int
    kind: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetConfig:
    """Ask for a part of the config space; the reply is its bytes."""

    request: ClassVar[Request] = Request.GET_CONFIG
    offset: int
    size: int
    flags: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetConfig:
    """Write a part of the config space."""

    request: ClassVar[Request] = Request.SET_CONFIG
    offset: int
    flags: int
    data: bytes
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetInflightFd:
    """Ask for a new inflight region; the reply is an InflightRegion."""

    request: ClassVar[Request] = Request.GET_INFLIGHT_FD
    num_queues: int
    queue_size: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetInflightFd:
    """Hand over the inflight region, maybe made by another back-end."""

    request: ClassVar[Request] = Request.SET_INFLIGHT_FD
    mmap_size: int
    mmap_offset: int
    num_queues: int
    queue_size: int
    fd: Fd
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetDevice:
    """Reset the device; regions and protocol features stay."""

    request: ClassVar[Request] = Request.RESET_DEVICE
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetMaxMemSlots:
    """Ask how many regions we can hold; the reply is a u64."""

    request: ClassVar[Request] = Request.GET_MAX_MEM_SLOTS
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AddMemReg:
    """Add one region, whose descriptor it carries."""

    request: ClassVar[Request] = Request.ADD_MEM_REG
    region: MemoryRegion
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemMemReg:
    """Remove the region with this gpa, size and uva; a descriptor, if any, is closed."""

    request: ClassVar[Request] = Request.REM_MEM_REG
    region: MemoryRegion
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus:
    """Set the device status; 0 resets."""

    request: ClassVar[Request] = Request.SET_STATUS
    status: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetStatus:
    """Ask for the device status; the reply is a u64."""

    request: ClassVar[Request] = Request.GET_STATUS
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """
    A message we could frame but not accept, and whose sender waits for an answer.

    Args:
        number: Its message number, known or not.
        errno: What the ack shall carry.
        reason: One line for the log.
    """

    number: int
    errno: int
    reason: str
    need_reply: bool = True


BlockMessage: TypeAlias = (
    GetFeatures
    | SetFeatures
    | SetOwner
    | ResetOwner
    | SetMemTable
    | SetLogBase
    | SetLogFd
    | SetVringNum
    | SetVringAddr
    | SetVringBase
    | GetVringBase
    | SetVringKick
    | SetVringCall
    | SetVringErr
    | GetProtocolFeatures
    | SetProtocolFeatures
    | GetQueueNum
    | SetVringEnable
    | SetBackendReqFd
    | IotlbMsg
    | GetConfig
    | SetConfig
    | GetInflightFd
    | SetInflightFd
    | ResetDevice
    | GetMaxMemSlots
    | AddMemReg
    | RemMemReg
    | SetStatus
    | GetStatus
)
Message: TypeAlias = BlockMessage | Foreign
Received: TypeAlias = Message | Invalid

REQUESTS: dict[int, Request] = {int(request): request for request in Request}


def fds_of(message: Received) -> tuple[Fd, ...]:
    """Return every descriptor that came with *message*, taken or not."""
    match message:
        case SetMemTable(regions=regions):
            candidates = [region.fd for region in regions]
        case AddMemReg(region=region) | RemMemReg(region=region):
            candidates = [region.fd]
        case _:
            candidates = [getattr(message, "fd", None)]
    return tuple(fd for fd in candidates if fd is not None)


def close_fds(message: Received) -> None:
    """Close the descriptors of *message* that nobody took."""
    for fd in fds_of(message):
        fd.close()
