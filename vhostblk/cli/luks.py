"""``vhostblk luks``: make encrypted images, look at their headers, give them more keys."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click

from vhostblk.cli import options
from vhostblk.cli.progress import shown
from vhostblk.disk import lock
from vhostblk.disk.luks_header import DATA_OFFSET, SECTOR, Facts, Format, Header, Version
from vhostblk.disk.secret import KINDS, parse_source
from vhostblk.errors import VhostBlkError

_F = TypeVar("_F", bound=Callable[..., object])
_CHUNK = 1 << 20
_METAVARS = {"key-file": "PATH", "key-fd": "N", "key-command": "CMD", "keyring": "NAME"}
_HELP = {
    "key-file": "The key is all that is in this file, the end of its last line too.",
    "key-fd": "It is all that this file descriptor gives.",
    "key-command": "It is what the shell's CMD prints, without the end of its last line.",
    "keyring": "It is the kernel's key of this name, of type user.",
}


def _keys(prefix: str = "") -> Callable[[_F], _F]:
    """Give a command the options that say where a key is."""

    def decorate(command: _F) -> _F:
        for kind in reversed(KINDS):
            name, text = f"--{prefix}{kind}", _HELP[kind]
            text = text if not prefix else text.replace("The key", "The new key", 1)
            command = click.option(name, metavar=_METAVARS[kind], help=text)(command)
        return command

    return decorate


_DISK = click.argument("disk", type=click.Path(dir_okay=False, path_type=Path))
_ITERATIONS = click.option(
    "--iterations",
    type=click.IntRange(1000, 1 << 31),
    metavar="N",
    help="Of PBKDF2 for the key.  [default: what takes two seconds; LUKS2: of Argon2id]",
)


def _said(words: dict[str, str | None], prefix: str = "") -> dict[str, str]:
    """Return the options that name a key, as `parse_source` wants them."""
    names = {kind: f"{prefix}{kind}".replace("-", "_") for kind in KINDS}
    return {kind: text for kind, name in names.items() if (text := words[name]) is not None}


@click.group("luks", short_help="Make and look at encrypted images (LUKS).")
def luks() -> None:
    """
    Work with encrypted images: LUKS1, as QEMU reads it, and LUKS2.

    Needs libcryptsetup (package libcryptsetup12), and no privileges. A key is
    never an argument, which everybody could read: it is in a file, comes from
    a file descriptor or a command, or is in the kernel's keyring.

    \b
    Examples:
      vhostblk luks format --size 10G --key-file vm0.key vm0.luks
      vhostblk luks info vm0.luks
      vhostblk luks add-key --key-file vm0.key --new-key-command 'pass vm0' vm0.luks
    """  # noqa: D301 - \b keeps click from joining the lines of the examples


# ---- format -------------------------------------------------------------------------------------


@luks.command("format", short_help="Make an encrypted image.")
@_DISK
@click.option(
    "--size",
    metavar="SIZE",
    callback=options.parsed(options.size),
    help="Of the disk in it; makes the file.  [default: DISK is there, and all of it]",
)
@click.option(
    "--type",
    "version",
    type=click.Choice([version.value for version in Version]),
    default=Version.LUKS2.value,
    show_default=True,
    help="Of the format; QEMU reads luks1 only.",
)
@click.option(
    "--sector-size",
    type=click.Choice(["512", "4096"]),
    default="512",
    show_default=True,
    help="Bytes that are encrypted as one, and the disk's block size; 4096 is faster.",
)
@click.option(
    "--key-bits",
    type=click.Choice(["128", "256"]),
    default="256",
    show_default=True,
    help="Of AES, whose mode is XTS.",
)
@_ITERATIONS
@click.option("--wipe", is_flag=True, help="Fill it with random bytes first.")
@click.option("--force", is_flag=True, help="Though there is something on it, which is lost.")
@_keys()
def format_(
    disk: Path,
    *,
    size: int | None,
    version: str,
    sector_size: str,
    key_bits: str,
    iterations: int | None,
    wipe: bool,
    force: bool,
    **words: str | None,
) -> None:
    """
    Make DISK an encrypted image with a new key of its own, which the given key opens.

    Without --wipe, who gets hold of the image sees which parts of it were
    never written. Space is needed for all of it then, and it takes as long as
    writing it takes.
    """
    source = parse_source(_said(words))
    wanted = Format(
        version=Version(version),
        key_bits=int(key_bits),
        sector_size=int(sector_size),
        iterations=iterations,
    )
    if wanted.version is Version.LUKS1 and wanted.sector_size != SECTOR:
        raise VhostBlkError("--sector-size 4096: LUKS1 has sectors of 512 bytes: use --type luks2")
    with source.read() as key, _image(disk, size, wanted, force=force) as fd:
        if wipe:
            _wipe(fd, os.lseek(fd, 0, os.SEEK_END))
        with Header(str(disk)) as header:
            header.format(wanted, key)
        os.fsync(fd)


@contextmanager
def _image(disk: Path, size: int | None, wanted: Format, *, force: bool) -> Iterator[int]:
    """Yield an image that may be formatted, which is ours alone; one that was made goes again."""
    flags = os.O_RDWR | os.O_CLOEXEC
    if size is not None:
        flags |= os.O_CREAT | os.O_EXCL
        if size <= 0 or size % wanted.sector_size:
            raise VhostBlkError(f"--size {size}: not a multiple of {wanted.sector_size} bytes")
    try:
        fd = os.open(disk, flags, 0o600)
    except FileExistsError:
        raise VhostBlkError(f"{disk}: is there already: leave out --size to format it") from None
    except FileNotFoundError:
        raise VhostBlkError(f"{disk}: is not there: give --size to make it") from None
    try:
        lock.acquire(fd, str(disk), write=True)
        if size is not None:
            os.ftruncate(fd, DATA_OFFSET[wanted.version] + size)
        _check_room(fd, disk, wanted, force=force)
        yield fd
    except BaseException:
        if size is not None:
            disk.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def _check_room(fd: int, disk: Path, wanted: Format, *, force: bool) -> None:
    offset = DATA_OFFSET[wanted.version]
    size = os.lseek(fd, 0, os.SEEK_END)
    if size < offset + wanted.sector_size:
        raise VhostBlkError(f"{disk}: {size} bytes are too few: the header alone takes {offset}")
    if (size - offset) % wanted.sector_size:
        raise VhostBlkError(f"{disk}: {size} bytes are not a multiple of {wanted.sector_size}")
    if not force and any(any(os.pread(fd, _CHUNK, at)) for at in range(0, offset, _CHUNK)):
        raise VhostBlkError(f"{disk}: there is something on it: --force has it lost")


def _wipe(fd: int, size: int) -> None:
    """Fill with random bytes, which nobody can tell from what is encrypted."""
    done = 0
    with shown(lambda: f"wiped {done * 100 // size} %"):
        while done < size:
            done += os.pwrite(fd, os.urandom(min(_CHUNK, size - done)), done)
        os.fsync(fd)


# ---- info, add-key ------------------------------------------------------------------------------


@luks.command(short_help="Say what a header has.")
@_DISK
@_keys()
def info(disk: Path, **words: str | None) -> None:
    """Say what the header of DISK has; and which slot a key opens, if one is given."""
    said = _said(words)
    with Header(str(disk)) as header:
        facts = header.load()
        for line in _lines(facts):
            click.echo(line)
        if said:
            with parse_source(said).read() as key:
                slot, volume = header.volume_key(key)
                volume.close()
            click.echo(f"the key opens slot {slot}")


def _lines(facts: Facts) -> Iterator[str]:
    yield f"{facts.version.upper()}, UUID {facts.uuid}"
    yield f"cipher {facts.cipher}, key of {facts.key_bits} bits, sectors of {facts.sector_size}"
    yield f"data from byte {facts.data_offset}"
    if facts.unfinished:
        yield "it is being encrypted anew, or needs what is not known here"
    for slot in facts.slots:
        yield f"slot {slot.number}: {slot.kdf}, {slot.iterations} iterations"


@luks.command("add-key", short_help="Let another key open an image.")
@_DISK
@_keys()
@_keys("new-")
@_ITERATIONS
def add_key(disk: Path, *, iterations: int | None, **words: str | None) -> None:
    """Let another key open DISK, too; a key that opens it is needed for that."""
    old, new = parse_source(_said(words)), _said(words, "new-")
    if not new:
        raise VhostBlkError("where the new key is: write --new-key-file PATH, or another --new-…")
    fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
    try:
        lock.acquire(fd, str(disk), write=True)
        with old.read() as key, parse_source(new).read() as added, Header(str(disk)) as header:
            header.load()
            slot = header.add_key(key, added, iterations=iterations)
    finally:
        os.close(fd)
    click.echo(f"the new key opens slot {slot}")
