"""
The bytes of vhost-user, packed from the standard.

Written apart from the back-end's own layouts on purpose: two implementations that agree prove
something, one that is used twice proves nothing.

Spec: vhost-user, "Message Specification".
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.mapping import Mapping
from vhostblk.spec import vhost_user as vu

# Native byte order, no padding but what is spelled out.
HEADER = struct.Struct("=III")
U64 = struct.Struct("=Q")
VRING_STATE = struct.Struct("=II")
VRING_ADDR = struct.Struct("=IIQQQQ")
MEM_TABLE_HEAD = struct.Struct("=I4x")
MEM_REGION = struct.Struct("=QQQQ")
SINGLE_REGION_PAD = struct.Struct("=8x")
CONFIG_HEAD = struct.Struct("=III")
LOG = struct.Struct("=QQ")
IOTLB = struct.Struct("=QQQBB6x")


@dataclass(frozen=True, slots=True)
class Message:
    """
    What came over a socket.

    Args:
        request: The number in the header.
        flags: The flags in the header.
        payload: The bytes behind the header.
        fds: Descriptors that came along; the receiver's to close.
    """

    request: int
    flags: int
    payload: bytes = b""
    fds: tuple[int, ...] = ()

    @property
    def need_reply(self) -> bool:
        """Tell whether the sender asked for an acknowledgement."""
        return bool(self.flags & vu.FLAG_NEED_REPLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class VringAddr:
    """
    Where a ring lies; UVAs.

    Args:
        index: Which ring.
        desc: Descriptor table.
        used: Used ring.
        avail: Available ring.
        log: GPA under which writes to the used ring are logged.
        flags: Of ``VringAddrFlag``.
    """

    index: int
    desc: int
    used: int
    avail: int
    log: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Iotlb:
    """
    What an IOTLB message carries, in either direction.

    Args:
        iova: First byte.
        size: Bytes.
        uaddr: The same byte, a UVA.
        perm: 1: read, 2: write, 3: both.
        kind: Of ``IotlbType``.
    """

    iova: int
    size: int
    uaddr: int
    perm: int
    kind: int

    def pack(self) -> bytes:
        """Return its 32 bytes."""
        return IOTLB.pack(self.iova, self.size, self.uaddr, self.perm, self.kind)

    @classmethod
    def parse(cls, payload: bytes) -> "Iotlb":
        """
        Unpack.

        Raises:
            GuestError: It has another size.
        """
        if len(payload) != IOTLB.size:
            raise GuestError(f"an IOTLB message has {len(payload)} bytes, not {IOTLB.size}")
        return cls(*IOTLB.unpack(payload))


def message(
    request: int, payload: bytes = b"", *, need_reply: bool = False, reply: bool = False
) -> bytes:
    """
    Pack header and payload.

    Args:
        request: Number of the request.
        payload: As it goes on the wire.
        need_reply: Set bit 3.
        reply: Set bit 2.

    Returns:
        All bytes of the message.
    """
    flags = vu.VERSION
    flags |= vu.FLAG_NEED_REPLY if need_reply else 0
    flags |= vu.FLAG_REPLY if reply else 0
    return HEADER.pack(request, flags, len(payload)) + payload


def vring_addr(addr: VringAddr) -> bytes:
    """Pack SET_VRING_ADDR; used comes before avail."""
    return VRING_ADDR.pack(addr.index, addr.flags, addr.desc, addr.used, addr.avail, addr.log)


def mem_region(mapping: Mapping) -> bytes:
    """Pack one region description."""
    return MEM_REGION.pack(mapping.region.gpa, mapping.region.size, mapping.uva, mapping.offset)


def mem_table(mappings: Sequence[Mapping]) -> bytes:
    """Pack SET_MEM_TABLE; the descriptors go in the same order."""
    return MEM_TABLE_HEAD.pack(len(mappings)) + b"".join(mem_region(m) for m in mappings)


def single_region(mapping: Mapping) -> bytes:
    """Pack ADD_MEM_REG or REM_MEM_REG."""
    return SINGLE_REGION_PAD.pack() + mem_region(mapping)


def config(offset: int, data: bytes, flags: int = 0) -> bytes:
    """Pack GET_CONFIG (with *data* of zeros) or SET_CONFIG."""
    return CONFIG_HEAD.pack(offset, len(data), flags) + data


def parse_u64(payload: bytes) -> int:
    """
    Unpack a u64 reply.

    Args:
        payload: Exactly 8 bytes.

    Returns:
        The value.

    Raises:
        GuestError: It has another size.
    """
    if len(payload) != U64.size:
        raise GuestError(f"a u64 reply has {len(payload)} bytes instead of {U64.size}")
    return int(U64.unpack(payload)[0])


def request_name(request: int) -> str:
    """Return the standard's name of a front-end request."""
    try:
        return vu.Request(request).name
    except ValueError:
        return f"request {request}"
