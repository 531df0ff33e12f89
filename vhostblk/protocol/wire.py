"""
The layouts of the wire, byte for byte: numbers in, plain numbers out.

Native byte order, as the two ends share a machine.  The only file that imports `construct`; no
object of that library leaves it.

Spec: vhost-user, "Message Specification".
"""

from construct import Int8un, Int16un, Int32un, Int64un, Padding, Struct


class Layout:
    """
    A payload of fixed size, made of named unsigned numbers in order.

    Args:
        fields: Names and construct types; padding has no name.
    """

    __slots__ = ("_names", "_parse", "_struct", "size")

    def __init__(self, *fields: object) -> None:
        self._struct = Struct(*fields)
        self._names = tuple(field.name for field in self._struct.subcons if field.name)
        self.size: int = self._struct.sizeof()
        # Three times as fast as walking the description for each message.
        self._parse = self._struct.compile().parse

    def unpack(self, data: bytes) -> tuple[int, ...]:
        """
        Read the numbers.

        Args:
            data: Exactly *size* bytes.
        """
        if len(data) != self.size:
            raise ValueError(f"{len(data)} bytes given where the layout has {self.size}")
        parsed = self._parse(data)
        return tuple(int(parsed[name]) for name in self._names)

    def pack(self, *values: int) -> bytes:
        """Write the numbers, in the order of the fields; padding is zero."""
        return bytes(self._struct.build(dict(zip(self._names, values, strict=True))))


HEADER = Layout("request" / Int32un, "flags" / Int32un, "size" / Int32un)
U64 = Layout("value" / Int64un)
VRING_STATE = Layout("index" / Int32un, "num" / Int32un)
VRING_ADDR = Layout(
    "index" / Int32un,
    "flags" / Int32un,
    "desc" / Int64un,
    "used" / Int64un,  # before avail: not the order of struct vring
    "avail" / Int64un,
    "log" / Int64un,
)
_REGION = (
    "gpa" / Int64un,
    "size" / Int64un,
    "uva" / Int64un,
    "mmap_offset" / Int64un,
)
REGION = Layout(*_REGION)
REGION_COUNT = Layout("count" / Int32un, Padding(4))
"""What the regions of SET_MEM_TABLE follow."""
SINGLE_REGION = Layout(Padding(8), *_REGION)
LOG_BASE = Layout("mmap_size" / Int64un, "mmap_offset" / Int64un)
CONFIG = Layout("offset" / Int32un, "size" / Int32un, "flags" / Int32un)
"""What *size* bytes of config space follow."""
IOTLB = Layout(
    "iova" / Int64un,
    "size" / Int64un,
    "uaddr" / Int64un,
    "perm" / Int8un,
    "type" / Int8un,
    Padding(6),  # as the C compiler pads it: 32 bytes, not 26
)
INFLIGHT = Layout(
    "mmap_size" / Int64un,
    "mmap_offset" / Int64un,
    "num_queues" / Int16un,
    "queue_size" / Int16un,
    Padding(4),  # as the C compiler pads it: 24 bytes, not 20
)
DEVICE_STATE = Layout("direction" / Int32un, "phase" / Int32un)
