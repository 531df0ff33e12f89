"""LUKS headers: ours are opened by others, those of others by us, and what is none is said."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from layer_kit.xts import crypt
from running import PACKAGES
from test_leaks import memory_of

from vhostblk.disk import luks_header
from vhostblk.disk.luks_header import DATA_OFFSET, Facts, Format, Header, Version
from vhostblk.disk.secret import Secret
from vhostblk.errors import VhostBlkError

MIB = 1 << 20
KEY, OTHER = b"correct horse", b"battery staple"
FORMATS = [
    Format(version=Version.LUKS1, iterations=1000),
    Format(version=Version.LUKS1, iterations=1000, key_bits=128),
    Format(version=Version.LUKS2, iterations=1000),
    Format(version=Version.LUKS2, iterations=1000, sector_size=4096),
]
LUKS1, LUKS2 = FORMATS[0], FORMATS[2]
Make = Callable[[Format], Path]


def secret(key: bytes) -> Secret:
    made = Secret(len(key))
    with made.room() as room:
        room[:] = key
    made.length = len(key)
    return made


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what makes an image of 1 MiB that `KEY` opens."""

    def formatted(wanted: Format) -> Path:
        path = tmp_path / "disk.luks"
        path.touch()
        os.truncate(path, DATA_OFFSET[wanted.version] + MIB)
        with secret(KEY) as key, Header(str(path)) as header:
            header.format(wanted, key)
        return path

    return formatted


def load(path: Path) -> Facts:
    with Header(str(path)) as header:
        return header.load()


def volume_key(path: Path, key: bytes = KEY) -> bytes:
    with secret(key) as one, Header(str(path)) as header:
        header.load()
        _, volume = header.volume_key(one)
        with volume, volume.view() as view:
            return bytes(view)


def needs(tool: str, package: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing (package {package})")


def qemu_io(path: Path, key: Path, command: str) -> str:
    needs("qemu-io", "qemu-utils")
    image = f"driver=luks,key-secret=k,file.filename={path}"
    return subprocess.run(
        ["qemu-io", "--object", f"secret,id=k,file={key}", "--image-opts", "-c", command, image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
def test_a_header_says_what_was_asked_for(make: Make, wanted: Format) -> None:
    """And its one key opens it."""
    path = make(wanted)
    facts = load(path)
    assert (facts.version, facts.sector_size) == (wanted.version, wanted.sector_size)
    assert (facts.cipher, facts.key_bits) == ("aes-xts-plain64", 2 * wanted.key_bits)
    assert facts.data_offset == DATA_OFFSET[wanted.version]
    assert [(one.number, one.kdf, one.iterations) for one in facts.slots] == [(0, "pbkdf2", 1000)]
    assert not facts.unfinished
    assert len(volume_key(path)) == 2 * wanted.key_bits // 8


@pytest.mark.parametrize("wanted", [LUKS1, LUKS2], ids=str)
def test_another_key_opens_the_same(make: Make, wanted: Format) -> None:
    """In a slot of its own."""
    path = make(wanted)
    with secret(KEY) as key, secret(OTHER) as other, Header(str(path)) as header:
        header.load()
        assert header.add_key(key, other, iterations=1000) == 1
    assert volume_key(path, OTHER) == volume_key(path, KEY)
    assert [slot.number for slot in load(path).slots] == [0, 1]


@pytest.mark.parametrize("wanted", [LUKS1, LUKS2], ids=str)
def test_a_wrong_key(make: Make, wanted: Format) -> None:
    """It opens nothing and adds nothing."""
    path = make(wanted)
    with pytest.raises(VhostBlkError, match=f"^{path}: the key opens none of its key slots$"):
        volume_key(path, OTHER)
    with secret(OTHER) as other, Header(str(path)) as header:
        header.load()
        with pytest.raises(VhostBlkError, match=r"the key opens none of its key slots$"):
            header.add_key(other, other, iterations=1000)


@pytest.mark.slow
def test_no_slot_is_free(make: Make) -> None:
    """LUKS1 has eight."""
    path = make(LUKS1)
    with secret(KEY) as key, Header(str(path)) as header:
        header.load()
        slots = [header.add_key(key, key, iterations=1000) for _ in range(7)]
        with pytest.raises(VhostBlkError, match=f"^{path}: no key slot is free$"):
            header.add_key(key, key, iterations=1000)
    assert slots == [1, 2, 3, 4, 5, 6, 7]


def test_no_header(tmp_path: Path) -> None:
    """A disk of zeroes, an empty one, and none at all."""
    path = tmp_path / "disk.img"
    with pytest.raises(VhostBlkError, match=f"^{path}: cannot be opened: "):
        load(path)
    path.write_bytes(bytes(4096))
    with pytest.raises(VhostBlkError, match=f"^{path}: it has no LUKS header$"):
        load(path)


@pytest.mark.parametrize("wanted", [LUKS1, LUKS2], ids=str)
def test_a_damaged_header(make: Make, wanted: Format, capfd: pytest.CaptureFixture[str]) -> None:
    """All behind its mark is noise, in both copies; the library says nothing by itself."""
    path = make(wanted)
    with path.open("r+b") as file:
        file.seek(6)
        file.write(b"noise" * 13000)
    with pytest.raises(VhostBlkError, match=f"^{path}: its LUKS header is damaged or cut short$"):
        load(path)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize("wanted", [LUKS1, LUKS2], ids=str)
@pytest.mark.parametrize("size", [300, 65536, 1 * MIB, "data"], ids=str)
def test_an_image_that_is_cut_short(make: Make, wanted: Format, size: int | str) -> None:
    """In its header, or where its data would begin."""
    path = make(wanted)
    offset = DATA_OFFSET[wanted.version]
    os.truncate(path, offset if isinstance(size, str) else size)
    with pytest.raises(VhostBlkError, match=f"^{path}: it.* cut short"):
        load(path)


def test_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the package."""
    monkeypatch.setattr(luks_header, "LIBRARY", "libnowhere.so.12")
    luks_header._library.cache_clear()
    with pytest.raises(VhostBlkError, match=r"install the package libcryptsetup12$"):
        Header("disk.luks")
    luks_header._library.cache_clear()


FORGETFUL = """
import sys
from vhostblk.disk.luks_header import Header
from vhostblk.disk.secret import KeySource
with KeySource("key-file", sys.argv[2]).read() as key, Header(sys.argv[1]) as header:
    header.load()
    slot, volume = header.volume_key(key)
    print(slot, flush=True)
    sys.stdin.readline()
    volume.close()
print(slot, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("wanted", [LUKS1, LUKS2], ids=str)
def test_no_key_stays_in_memory(make: Make, tmp_path: Path, wanted: Format) -> None:
    """While they are open both are there, once each; then neither is in the whole process."""
    path, file = make(wanted), tmp_path / "key"
    file.write_bytes(KEY)
    needles = (KEY, volume_key(path), volume_key(path)[:16])
    command = [sys.executable, "-c", FORGETFUL, str(path), str(file)]
    environ = {**os.environ, "PYTHONPATH": PACKAGES}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        held = memory_of(process.pid)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"
        left = memory_of(process.pid)
    assert [needle in held for needle in needles] == [True] * 3
    assert [needle in left for needle in needles] == [False] * 3


# ---- others -------------------------------------------------------------------------------------


def test_qemu_opens_ours(make: Make, tmp_path: Path) -> None:
    """What it writes is what the volume key decrypts."""
    path, key = make(LUKS1), tmp_path / "key"
    key.write_bytes(KEY)
    assert "wrote 8192/8192" in qemu_io(path, key, "write -P 0xa7 4096 8192")
    stored = path.read_bytes()[DATA_OFFSET[Version.LUKS1] :]
    assert crypt(volume_key(path), 4096, stored[4096:12288], encrypt=False) == b"\xa7" * 8192


@pytest.mark.slow
def test_we_open_qemus(tmp_path: Path) -> None:
    """What the volume key encrypts is what it reads."""
    needs("qemu-img", "qemu-utils")
    path, key = tmp_path / "disk.luks", tmp_path / "key"
    key.write_bytes(KEY)
    options = "key-secret=k,iter-time=10"
    secret_of = f"secret,id=k,file={key}"
    command = ["qemu-img", "create", "-q", "-f", "luks", "--object", secret_of, "-o", options]
    subprocess.run([*command, path, "1M"], check=True)
    facts = load(path)
    assert (facts.version, facts.cipher) == (Version.LUKS1, "aes-xts-plain64")
    with path.open("r+b") as file:
        file.seek(facts.data_offset + 8192)
        file.write(crypt(volume_key(path), 8192, b"\x5c" * 4096, encrypt=True))
    assert "read 4096/4096" in qemu_io(path, key, "read -P 0x5c 8192 4096")


@pytest.mark.parametrize("wanted", FORMATS, ids=str)
def test_cryptsetup_opens_ours(make: Make, tmp_path: Path, wanted: Format) -> None:
    """It finds the same volume key."""
    needs("cryptsetup", "cryptsetup-bin")
    path, key, out = make(wanted), tmp_path / "key", tmp_path / "volume"
    key.write_bytes(KEY)
    command = ["cryptsetup", "luksDump", "-q", "--disable-locks", "--dump-volume-key"]
    subprocess.run(
        [*command, "--key-file", key, "--volume-key-file", out, path],
        check=True,
        capture_output=True,
    )
    assert out.read_bytes() == volume_key(path)


@pytest.mark.parametrize("sector", ["512", "4096"])
def test_we_open_cryptsetups(tmp_path: Path, sector: str) -> None:
    """LUKS2 with a volume key that is known."""
    needs("cryptsetup", "cryptsetup-bin")
    path, key, volume = (tmp_path / name for name in ("disk.luks", "key", "volume"))
    key.write_bytes(KEY)
    volume.write_bytes(bytes(range(64)))
    path.touch()
    os.truncate(path, 17 * MIB)
    words = ["--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    words += ["--sector-size", sector, "--volume-key-file", str(volume)]
    command = ["cryptsetup", "luksFormat", "-q", "--disable-locks", *words]
    subprocess.run([*command, path, key], check=True, capture_output=True)
    assert load(path).sector_size == int(sector)
    assert volume_key(path) == bytes(range(64))
