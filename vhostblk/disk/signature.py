"""
Notice an image of another format that is about to be served raw.

It is only ever noticed, never acted on: the first bytes of a raw disk are the guest's to write,
so a format that is guessed from them is a format the guest chooses, backing files and all.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class _Format:
    """
    How an image of a format begins, and what to do with one.

    Args:
        name: As people call it.
        at: Where its mark is, in bytes.
        mark: The bytes.
        remedy: What its owner most likely wants instead.
        raw: It may well be meant to be served as it is.
    """

    name: str
    at: int
    mark: bytes
    remedy: str
    raw: bool = False


def _convert(name: str) -> str:
    return f"qemu-img convert -f {name} -O raw makes a raw disk of it"


_FORMATS = (
    _Format("qcow2", 0, b"QFI\xfb", _convert("qcow2")),
    _Format("VMDK", 0, b"KDMV", _convert("vmdk")),
    _Format("VMDK", 0, b"COWD", _convert("vmdk")),
    _Format("VMDK", 0, b"# Disk DescriptorFile", _convert("vmdk")),
    _Format("VDI", 0x40, b"\x7f\x10\xda\xbe", _convert("vdi")),
    _Format(
        "LUKS",
        0,
        b"LUKS\xba\xbe",
        "that is right if the guest unlocks it, else open it with cryptsetup and serve /dev/mapper",
        raw=True,
    ),
)

LENGTH = 512
"""Bytes from the start of a disk that `warning` wants to see."""


def warning(path: str, start: bytes | bytearray) -> str | None:
    """
    Say what a raw disk looks like, if it looks like something else.

    Args:
        path: Its name.
        start: Its first `LENGTH` bytes.

    Returns:
        One line, or None where nothing is known to begin like that.
    """
    known = _recognised(start)
    if known is None:
        return None
    return (
        f"{path} begins like a {known.name} image and is served raw, as file: does: {known.remedy}"
    )


def mistaken(path: str, start: bytes | bytearray) -> str | None:
    """
    Say what a file is that cannot be a raw disk, where that is seen.

    Args:
        path: Its name.
        start: Its first `LENGTH` bytes, or what there is of them.

    Returns:
        One line, or None where it may be a raw disk after all.
    """
    known = _recognised(start)
    if known is None or known.raw:
        return None
    return f"{path}: a {known.name} image, and file: serves raw disks: {known.remedy}"


def _recognised(start: bytes | bytearray) -> _Format | None:
    for known in _FORMATS:
        if start.startswith(known.mark, known.at):
            return known
    return None
