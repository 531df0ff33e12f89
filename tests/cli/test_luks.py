"""``vhostblk luks`` as a person uses it."""

import re
from pathlib import Path

import pytest
from locks import locked

from vhostblk.cli import main
from vhostblk.disk.luks_header import DATA_OFFSET, Version

MIB = 1 << 20
QUICK = ("--iterations", "1000")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return a file with a key."""
    path = tmp_path / "key"
    path.write_bytes(b"correct horse")
    return path


def luks(*words: object) -> int:
    return main.main(["luks", *map(str, words)])


@pytest.mark.parametrize(
    ("version", "sector"), [("luks1", "512"), ("luks2", "512"), ("luks2", "4096")]
)
def test_an_image_is_made_and_looked_at(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str], version: str, sector: str
) -> None:
    """It has the size that was asked for, nobody else may read it, and the key opens it."""
    path = tmp_path / "disk.luks"
    words = ("--size", "1M", "--type", version, "--sector-size", sector, *QUICK)
    assert luks("format", *words, "--key-file", key, path) == 0
    assert path.stat().st_size == DATA_OFFSET[Version(version)] + MIB
    assert path.stat().st_mode & 0o777 == 0o600
    assert luks("info", "--key-command", f"cat {key}", path) == 0
    said = capsys.readouterr()
    assert said.err == ""
    about, *lines = said.out.splitlines()
    assert re.fullmatch(rf"{version.upper()}, UUID [0-9a-f-]{{36}}", about)
    assert lines == [
        f"cipher aes-xts-plain64, key of 512 bits, sectors of {sector}",
        f"data from byte {DATA_OFFSET[Version(version)]}",
        "slot 0: pbkdf2, 1000 iterations",
        "the key opens slot 0",
    ]


def test_a_wiped_image_has_no_zeroes(tmp_path: Path, key: Path) -> None:
    """All of its data is noise; without --wipe it is a hole."""
    plain, wiped = tmp_path / "plain", tmp_path / "wiped"
    words = ("format", "--size", "1M", "--type", "luks1", *QUICK, "--key-file", key)
    assert luks(*words, plain) == 0
    assert luks(*words, "--wipe", wiped) == 0
    data = plain.read_bytes()[2 * MIB :], wiped.read_bytes()[2 * MIB :]
    assert data[0] == bytes(MIB)
    assert all(any(data[1][at : at + 4096]) for at in range(0, MIB, 4096))
    assert len(set(data[1])) == 256


def test_another_key_is_added(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both open it then, and a third does not."""
    path = tmp_path / "disk.luks"
    assert luks("format", "--size", "1M", *QUICK, "--key-file", key, path) == 0
    added = ("--new-key-command", "echo battery", *QUICK)
    assert luks("add-key", "--key-file", key, *added, path) == 0
    assert luks("info", "--key-command", "echo battery", path) == 0
    assert luks("info", "--key-command", "echo staple", path) == 1
    said = capsys.readouterr()
    assert "the new key opens slot 1" in said.out
    assert "the key opens slot 1" in said.out
    assert said.err == f"vhostblk: {path}: the key opens none of its key slots\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "1M"], "where the key is: write one of key-file="),
        (["--key-file", "KEY", "--keyring", "x"], "where the key is: write one of key-file="),
        (["--key-file", "KEY"], "DISK: is not there: give --size to make it"),
        (["--key-file", "/dev/null", "--size", "1M"], "key-file=/dev/null: the key is empty"),
        (["--key-file", "KEY", "--size", "1000"], "--size 1000: not a multiple of 512 bytes"),
        (
            ["--key-file", "KEY", "--type", "luks1", "--sector-size", "4096"],
            "--sector-size 4096: LUKS1 has sectors of 512 bytes: use --type luks2",
        ),
    ],
)
def test_what_cannot_be_formatted(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    """One line says what to do, and nothing is made."""
    path = tmp_path / "disk.luks"
    assert luks("format", *(str(key) if word == "KEY" else word for word in words), path) == 1
    assert capsys.readouterr().err.startswith(f"vhostblk: {said.replace('DISK', str(path))}")
    assert not path.exists()


def test_what_is_there_is_not_lost(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unless --force is given; neither --size nor a file that is too small does it."""
    path = tmp_path / "disk.luks"
    words = ("format", *QUICK, "--type", "luks1", "--key-file", key)
    path.write_bytes(bytes(MIB))
    assert luks(*words, path) == 1
    path.write_bytes(bytes(2 * MIB - 1) + b"x" + bytes(MIB))
    before = path.read_bytes()
    assert luks(*words, path) == 1
    assert luks(*words, "--size", "1M", path) == 1
    assert path.read_bytes() == before
    assert capsys.readouterr().err == (
        f"vhostblk: {path}: {MIB} bytes are too few: the header alone takes {2 * MIB}\n"
        f"vhostblk: {path}: there is something on it: --force has it lost\n"
        f"vhostblk: {path}: is there already: leave out --size to format it\n"
    )
    assert luks(*words, "--force", path) == 0
    assert path.read_bytes().startswith(b"LUKS")


def test_an_image_in_use_is_left_alone(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By whoever has locked it, as a server does."""
    path = tmp_path / "disk.luks"
    path.write_bytes(bytes(3 * MIB))
    with locked(path, write=True):
        assert luks("format", *QUICK, "--type", "luks1", "--key-file", key, path) == 1
        said = capsys.readouterr().err
        new = ("--new-key-file", key)
        assert luks("add-key", "--key-file", key, *new, path) == 1
    assert said == capsys.readouterr().err
    assert "in use" in said
    assert path.read_bytes() == bytes(3 * MIB)
