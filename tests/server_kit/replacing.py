"""Another disk behind a device that a test serves, and disks that show who serves."""

from collections.abc import Sequence
from pathlib import Path

from server_kit.disks import Ram
from server_kit.serving import Serving
from vhostblk.server import change
from vhostblk.server.jsonrpc import Json

MIB = 1 << 20
SECTORS = MIB // 512
X, Y = b"x" * 4096, b"y" * 4096


class Full(Ram):
    """A memory full of one byte; notes what is written, by its first byte."""

    def __init__(self, fill: bytes = b"\0", size: int = MIB) -> None:
        super().__init__(size)
        self.data[:] = fill * size
        self.served: list[tuple[int, int]] = []
        self.order: list[str] = []

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        self.served.append((offset, int.from_bytes(bytes(views[0][:4]), "little")))
        self.order.append("write")
        super().write(offset, views)

    def flush(self) -> None:
        self.order.append("flush")

    def close(self) -> None:
        self.order.append("close")


def replace(server: Serving, disk: object, device: int = 0) -> None:
    server.run(change.replace(server.devices[device], disk, None))


def replace_by(server: Serving, text: str, device: str = "s1") -> Json:
    return server.run(server.operations.replace(device, text))


def image(path: Path, fill: bytes = b"\0", size: int = MIB) -> Path:
    path.write_bytes(fill * size)
    return path
