"""
The minimal polled responder: a ceiling for clients that poll.

::

    python -m bench.respond SOCKET SIZE [--status]

Just enough vhost-user for libblkio to connect, out of our own protocol room; the ring then is
`respond.c`'s, which pops and pushes and does nothing else.  One client after the other, one split
queue of its.  Whoever connects is trusted.
"""

import argparse
import ctypes
import socket
import subprocess
import tempfile
from pathlib import Path
from threading import Thread

from vhostblk.blk.config import ConfigSpace
from vhostblk.blk.device import BlkDevice
from vhostblk.memory.mapping import Mapping
from vhostblk.protocol import messages as msg
from vhostblk.protocol.connection import Connection
from vhostblk.protocol.replies import Outcome
from vhostblk.spec import virtio_blk as blk
from vhostblk.spec.vhost_user import VHOST_USER_F_PROTOCOL_FEATURES, ProtocolFeature
from vhostblk.spec.virtio_ring import F_VERSION_1

SOURCE = Path(__file__).parent / "respond.c"
# No EVENT_IDX: one flag in the used ring then says that kicks are not wanted.
FEATURES = F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES | blk.F_SEG_MAX | blk.F_BLK_SIZE | blk.F_MQ
PROTOCOL_FEATURES = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.CONFIG
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
)
MEM_SLOTS = 32
ANSWERS: dict[type, int] = {
    msg.GetFeatures: FEATURES,
    msg.GetProtocolFeatures: int(PROTOCOL_FEATURES),
    msg.GetQueueNum: 1,
    msg.GetMaxMemSlots: MEM_SLOTS,
    msg.GetVringBase: 0,
}


class Ring(ctypes.Structure):
    """``struct respond``."""

    _fields_ = (
        ("desc", ctypes.c_void_p),
        ("avail", ctypes.c_void_p),
        ("used", ctypes.c_void_p),
        ("delta", ctypes.c_ssize_t),
        ("size", ctypes.c_uint32),
        ("status", ctypes.c_uint32),
        ("stop", ctypes.c_uint32),
    )


def build(directory: Path) -> ctypes.CDLL:
    """Compile respond.c into *directory* and load it."""
    library = directory / "respond.so"
    command = ["gcc", "-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", str(SOURCE)]
    subprocess.run([*command, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.respond.argtypes = (ctypes.POINTER(Ring),)
    loaded.respond.restype = ctypes.c_uint64
    return loaded


class Responder:
    """
    One front-end's device.

    Args:
        library: From `build`.
        size: Bytes of the disk that it claims to be.
        status: Write the status byte of each request.
    """

    def __init__(self, library: ctypes.CDLL, *, size: int, status: bool) -> None:
        self._library = library
        self._config = ConfigSpace(BlkDevice(capacity_sectors=size // 512))
        self._regions: list[tuple[msg.MemoryRegion, Mapping]] = []
        self._ring = Ring(status=status)
        self._thread: Thread | None = None

    def handle(self, message: msg.Received) -> Outcome:
        """Do what *message* asks, if a ring needs it; anything else succeeds without effect."""
        match message:
            case msg.GetConfig(offset=offset, size=size):
                return self._config.read(offset, size)
            case msg.AddMemReg(region=region) if region.fd is not None:
                mapped = Mapping(region.fd.take(), offset=region.mmap_offset, length=region.size)
                self._regions.append((region, mapped))
            case msg.SetVringNum(num=num):
                self._ring.size = num
            case msg.SetVringAddr():
                self._place(message)
            case msg.SetVringEnable(enable=True):
                self._start()
            case msg.GetVringBase():
                self.stop()
        return ANSWERS.get(type(message))

    def _place(self, message: msg.SetVringAddr) -> None:
        for region, mapping in self._regions:
            if region.uva <= message.desc < region.uva + region.size:
                delta = mapping.address - region.uva
                self._ring.desc = message.desc + delta
                self._ring.avail = message.avail + delta
                self._ring.used = message.used + delta
                # libblkio's addresses are its own: guest physical ones are the same.
                self._ring.delta = delta

    def _start(self) -> None:
        if self._thread is None and self._ring.desc:
            self._thread = Thread(target=self._library.respond, args=(ctypes.byref(self._ring),))
            self._thread.start()

    def stop(self) -> None:
        """End the loop; the ring is the front-end's alone again."""
        self._ring.stop = 1
        if self._thread is not None:
            self._thread.join()
        self._thread, self._ring.stop = None, 0

    def serve(self, sock: socket.socket) -> None:
        """Answer one front-end until it goes."""
        connection = Connection(queues=1)
        try:
            while True:
                data, fds, _, _ = socket.recv_fds(sock, connection.want, MEM_SLOTS)
                if not data:
                    return
                message = connection.receive(data, fds)
                if message is not None:
                    reply, _ = connection.reply(message, self.handle(message))
                    msg.close_fds(message)
                    sock.sendall(reply)
        finally:
            self.stop()
            for _, mapping in self._regions:
                mapping.release()


def main() -> None:
    """Serve one client after the other until killed."""
    parser = argparse.ArgumentParser(prog="python -m bench.respond", description=__doc__)
    parser.add_argument("socket", type=Path)
    parser.add_argument("size", type=int, help="bytes")
    parser.add_argument("--status", action="store_true", help="write each request's status byte")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vhb-") as scratch:
        library = build(Path(scratch))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(args.socket))
        listener.listen()
        while True:
            front_end, _ = listener.accept()
            with front_end:
                Responder(library, size=args.size, status=args.status).serve(front_end)


if __name__ == "__main__":
    main()
