"""
Sessions that real QEMUs had with two back-ends, read from the text of their logs.

The logs are not part of this repository; they lie in ``../shared/traces`` beside the checkout, or
where VHOSTBLK_TRACES says.
"""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from frontend_bytes import NEED_REPLY, VERSION, message

from vhostblk.spec.vhost_user import Request

TRACES = Path(os.environ.get("VHOSTBLK_TRACES", Path(__file__).parents[2] / "shared" / "traces"))

_LINE = re.compile(
    r"\s*[\d.]+ (?P<way>F->B|B->F) (?P<name>[A-Z_]+)(?P<words>(?: \w+)*) size=(?P<size>\d+)"
    r"(?: fds=(?P<fds>\d+))?(?: \| ?(?P<text>.*))?$"
)
_ADDR = ("index", "flags", "desc", "used", "avail", "log")
_INFLIGHT = ("mmap_size", "mmap_offset", "num_queues", "queue_size")
_PERM = {"none": 0, "ro": 1, "wo": 2, "rw": 3}
_KIND = {"MISS": 1, "UPDATE": 2, "INVALIDATE": 3}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One line: a request, or a reply, with the text of its payload."""

    request: Request
    size: int
    fds: int
    need_reply: bool
    text: str

    def numbers(self) -> dict[str, int]:
        """Return the ``name=value`` pairs of the text."""
        pairs = re.findall(r"(\w+)=(0x[0-9a-f]+|\d+)", self.text)
        return {name: int(value, 0) for name, value in pairs}

    def value(self) -> int:
        """Return the u64 of the text, under whichever name it has."""
        found = re.match(r"(?:\w+=)?(0x[0-9a-f]+|\d+)", self.text)
        assert found is not None, self.text
        return int(found[1], 0)


@dataclass(slots=True)
class Session:
    """One connection: what the front-end sent, and what it was answered, each in order."""

    requests: list[Recorded] = field(default_factory=list)
    replies: list[Recorded] = field(default_factory=list)


def sessions(path: Path) -> list[Session]:
    """Read a log."""
    found: list[Session] = []
    for line in path.read_text().splitlines():
        if "--- connection" in line:
            found.append(Session())
        parsed = _LINE.match(line)
        if parsed is None:
            continue
        words = parsed["words"].split()
        recorded = Recorded(
            Request[parsed["name"]],
            int(parsed["size"]),
            int(parsed["fds"] or 0),
            "need_reply" in words,
            parsed["text"] or "",
        )
        (found[-1].requests if parsed["way"] == "F->B" else found[-1].replies).append(recorded)
    return found


def _regions(text: str) -> Iterator[bytes]:
    for row in re.findall(r"\[([^]]*)\]", text):
        numbers = {name: int(value, 0) for name, value in re.findall(r"(\w+)=(\w+)", row)}
        yield struct.pack(
            "=QQQQ", *(numbers[name] for name in ("gpa", "size", "uva", "mmap_offset"))
        )


def _payload(recorded: Recorded) -> bytes:  # noqa: PLR0911 - one return for one layout
    numbers, text = recorded.numbers(), recorded.text
    match recorded.request:
        case Request.SET_MEM_TABLE:
            rows = list(_regions(text))
            return struct.pack("=II", len(rows), 0) + b"".join(rows)
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            return bytes(8) + next(_regions(text))
        case Request.SET_VRING_ADDR:
            return struct.pack("=IIQQQQ", *(numbers[name] for name in _ADDR))
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            return struct.pack("=Q", numbers["index"])
        case Request.GET_CONFIG | Request.SET_CONFIG:
            data = b"" if "zeroes" in text else bytes.fromhex(text.split()[-1])
            head = struct.pack("=III", numbers["offset"], numbers["size"], numbers["flags"])
            return head + data.ljust(numbers["size"], b"\0")
        case Request.GET_INFLIGHT_FD | Request.SET_INFLIGHT_FD:
            return struct.pack("=QQHH4x", *(numbers[name] for name in _INFLIGHT))
        case Request.SET_LOG_BASE:
            return struct.pack("=QQ", numbers["mmap_size"], numbers["mmap_offset"])
        case Request.IOTLB_MSG:
            kind, perm = _KIND[text.split()[0]], _PERM[text.rpartition("perm=")[2]]
            where = (numbers[name] for name in ("iova", "size", "uaddr"))
            return struct.pack("=QQQBB6x", *where, perm, kind)
    if "num" in numbers:
        return struct.pack("=II", numbers["index"], numbers["num"])
    return struct.pack("=Q", recorded.value()) if text else b""


def encode(recorded: Recorded) -> bytes:
    """Return the bytes the front-end sent, made again from the text."""
    flags = VERSION | (NEED_REPLY if recorded.need_reply else 0)
    data = message(recorded.request, _payload(recorded), flags)
    assert len(data) == 12 + recorded.size, recorded
    return data
