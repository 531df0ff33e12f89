"""
Messages that no block device answers.

They are parsed all the same, so that each is refused by its name and its descriptors are closed.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from vhostblk.protocol.fd import Fd
from vhostblk.spec.vhost_user import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class SendRarp:
    """Announce a network card's address after migration."""

    request: ClassVar[Request] = Request.SEND_RARP
    mac: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NetSetMtu:
    """Set a network card's MTU."""

    request: ClassVar[Request] = Request.NET_SET_MTU
    mtu: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetVringEndian:
    """Set the byte order of a legacy ring: *num* 0 little, 1 big."""

    request: ClassVar[Request] = Request.SET_VRING_ENDIAN
    index: int
    num: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateCryptoSession:
    """Make a session of a crypto device; *payload* as it came."""

    request: ClassVar[Request] = Request.CREATE_CRYPTO_SESSION
    payload: bytes
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CloseCryptoSession:
    """End a session of a crypto device."""

    request: ClassVar[Request] = Request.CLOSE_CRYPTO_SESSION
    session: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PostcopyAdvise:
    """Ask for a userfaultfd."""

    request: ClassVar[Request] = Request.POSTCOPY_ADVISE
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PostcopyListen:
    """Tell that memory arrives page by page from now on."""

    request: ClassVar[Request] = Request.POSTCOPY_LISTEN
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PostcopyEnd:
    """Tell that all memory has arrived."""

    request: ClassVar[Request] = Request.POSTCOPY_END
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSetSocket:
    """Hand over the socket of a graphics device."""

    request: ClassVar[Request] = Request.GPU_SET_SOCKET
    fd: Fd
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VringKick:
    """Kick a ring in-band instead of through an eventfd."""

    request: ClassVar[Request] = Request.VRING_KICK
    index: int
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GetSharedObject:
    """Ask for the dma-buf of an object, by its 16-byte UUID."""

    request: ClassVar[Request] = Request.GET_SHARED_OBJECT
    uuid: bytes
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetDeviceStateFd:
    """Offer a pipe for internal state: *direction* 0 save, 1 load; *phase* 0 stopped."""

    request: ClassVar[Request] = Request.SET_DEVICE_STATE_FD
    direction: int
    phase: int
    fd: Fd
    need_reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckDeviceState:
    """Ask whether the transfer of internal state went well."""

    request: ClassVar[Request] = Request.CHECK_DEVICE_STATE
    need_reply: bool = False


Foreign: TypeAlias = (
    SendRarp
    | NetSetMtu
    | SetVringEndian
    | CreateCryptoSession
    | CloseCryptoSession
    | PostcopyAdvise
    | PostcopyListen
    | PostcopyEnd
    | GpuSetSocket
    | VringKick
    | GetSharedObject
    | SetDeviceStateFd
    | CheckDeviceState
)
