import shutil
import subprocess
from pathlib import Path

import pytest

from vhostblk.disk.signature import LENGTH, mistaken, warning

VDI = b"<<< Oracle VM VirtualBox Disk Image >>>\n".ljust(0x40, b"\0") + b"\x7f\x10\xda\xbe"


@pytest.mark.parametrize(
    ("start", "name", "remedy"),
    [
        (b"QFI\xfb\0\0\0\3", "qcow2", "qemu-img convert -f qcow2 -O raw"),
        (b"KDMV\1\0\0\0", "VMDK", "qemu-img convert -f vmdk -O raw"),
        (b"COWD\1\0\0\0", "VMDK", "qemu-img convert -f vmdk -O raw"),
        (b"# Disk DescriptorFile\nversion=1\n", "VMDK", "qemu-img convert -f vmdk -O raw"),
        (VDI, "VDI", "qemu-img convert -f vdi -O raw"),
        (b"LUKS\xba\xbe\0\2", "LUKS", "cryptsetup"),
    ],
)
def test_an_image_of_another_format_is_noticed(start: bytes, name: str, remedy: str) -> None:
    """Each signature is named, with what its owner most likely wants."""
    text = warning("x.img", start.ljust(LENGTH, b"\0"))
    assert text is not None
    assert text.startswith(f"x.img begins like a {name} image and is served raw")
    assert remedy in text


@pytest.mark.parametrize(
    "start", [b"", bytes(LENGTH), b"\xeb\x63\x90".ljust(510, b"\0") + b"\x55\xaa", b"QFI", b"LUKS"]
)
def test_a_raw_disk_is_left_alone(start: bytes) -> None:
    """Zeroes, a boot sector and half a signature say nothing."""
    assert warning("x.img", start) is None


@pytest.mark.parametrize(("kind", "name"), [("qcow2", "qcow2"), ("vmdk", "VMDK"), ("vdi", "VDI")])
def test_what_qemu_img_makes_is_noticed(tmp_path: Path, kind: str, name: str) -> None:
    """The signatures are those that QEMU writes."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is missing (package qemu-utils)")
    path = tmp_path / "x"
    subprocess.run(["qemu-img", "create", "-q", "-f", kind, str(path), "1M"], check=True)
    text = warning("x", path.read_bytes()[:LENGTH])
    assert text is not None
    assert f"like a {name} image" in text


def test_a_file_that_cannot_be_raw_is_called_what_it_is() -> None:
    """An image of another format is named; LUKS, which is served raw on purpose, is not."""
    text = mistaken("x.img", b"QFI\xfb\0\0\0\3")
    assert text is not None
    assert text.startswith("x.img: a qcow2 image, and file: serves raw disks: qemu-img convert")
    assert mistaken("x.img", b"LUKS\xba\xbe\0\2") is None
    assert mistaken("x.img", b"") is None
