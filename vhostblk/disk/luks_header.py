"""
LUKS headers and their key slots, through libcryptsetup: the one file that calls it.

The library is loaded when it is first needed, so that nobody else needs it installed.  It opens
images by their path, reads and writes headers, derives keys; it is asked for no device mapper and
works without privileges.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from types import TracebackType
from typing import Any, Self

import cffi

from vhostblk.disk.secret import Secret
from vhostblk.errors import VhostBlkError

SECTOR = 512
LIBRARY = "libcryptsetup.so.12"
PACKAGE = "libcryptsetup12"
MAGIC = b"LUKS\xba\xbe"

_ffi = cffi.FFI()
# <libcryptsetup.h> of 2.1 and later.
_ffi.cdef("""
struct crypt_device;
struct crypt_pbkdf_type {
    const char *type, *hash;
    uint32_t time_ms, iterations, max_memory_kb, parallel_threads, flags;
};
struct crypt_params_luks1 { const char *hash; size_t data_alignment; const char *data_device; };
struct crypt_params_luks2 {
    const struct crypt_pbkdf_type *pbkdf;
    const char *integrity;
    const void *integrity_params;
    size_t data_alignment;
    const char *data_device;
    uint32_t sector_size;
    const char *label, *subsystem;
};
int crypt_init(struct crypt_device **cd, const char *device);
void crypt_free(struct crypt_device *cd);
void crypt_set_debug_level(int level);
int crypt_metadata_locking(struct crypt_device *cd, int enable);
int crypt_load(struct crypt_device *cd, const char *type, void *params);
int crypt_set_data_offset(struct crypt_device *cd, uint64_t data_offset);
int crypt_set_pbkdf_type(struct crypt_device *cd, const struct crypt_pbkdf_type *pbkdf);
int crypt_format(struct crypt_device *cd, const char *type, const char *cipher, const char *mode,
                 const char *uuid, const char *key, size_t key_size, void *params);
int crypt_keyslot_add_by_volume_key(struct crypt_device *cd, int slot, const char *key,
                                    size_t key_size, const char *pass, size_t pass_size);
int crypt_keyslot_add_by_passphrase(struct crypt_device *cd, int slot, const char *pass,
                                    size_t pass_size, const char *added, size_t added_size);
int crypt_volume_key_get(struct crypt_device *cd, int slot, char *key, size_t *key_size,
                         const char *pass, size_t pass_size);
int crypt_keyslot_status(struct crypt_device *cd, int slot);
int crypt_keyslot_max(const char *type);
int crypt_keyslot_get_pbkdf(struct crypt_device *cd, int slot, struct crypt_pbkdf_type *pbkdf);
int crypt_persistent_flags_get(struct crypt_device *cd, int type, uint32_t *flags);
const char *crypt_get_type(struct crypt_device *cd);
const char *crypt_get_cipher(struct crypt_device *cd);
const char *crypt_get_cipher_mode(struct crypt_device *cd);
const char *crypt_get_uuid(struct crypt_device *cd);
uint64_t crypt_get_data_offset(struct crypt_device *cd);
int crypt_get_volume_key_size(struct crypt_device *cd);
int crypt_get_sector_size(struct crypt_device *cd);
""")
_SILENT = 3  # above every level that it logs at; it would write to stdout and stderr
_ANY_SLOT = -1
_IN_USE = frozenset({2, 3})  # CRYPT_SLOT_ACTIVE, CRYPT_SLOT_ACTIVE_LAST
_REQUIREMENTS = 1  # CRYPT_FLAGS_REQUIREMENTS
_NO_BENCHMARK = 2  # CRYPT_PBKDF_NO_BENCHMARK


class Version(StrEnum):
    """Of the format."""

    LUKS1 = "luks1"
    LUKS2 = "luks2"


DATA_OFFSET = {Version.LUKS1: 2 << 20, Version.LUKS2: 16 << 20}
"""Bytes before the data of an image that is formatted here: cryptsetup's own defaults."""


@dataclass(frozen=True, slots=True)
class Slot:
    """
    A key slot in use.

    Args:
        number: From 0.
        kdf: What makes a key of a passphrase: pbkdf2, argon2i, argon2id.
        iterations: Of that.
    """

    number: int
    kdf: str
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    What a header says.

    Args:
        version: Of LUKS.
        cipher: With its mode: aes-xts-plain64.
        key_bits: Of the volume key; XTS has two keys in it.
        sector_size: Bytes that are encrypted as one.
        data_offset: First byte of the data.
        uuid: As text.
        slots: Those in use.
        unfinished: The data is being encrypted anew, or needs what is not known here.
    """

    version: Version
    cipher: str
    key_bits: int
    sector_size: int
    data_offset: int
    uuid: str
    slots: Sequence[Slot]
    unfinished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """
    How to format.

    Args:
        version: Of LUKS.
        key_bits: Of the cipher, AES-XTS: 128 or 256.
        sector_size: Bytes that are encrypted as one; LUKS1 has 512.
        iterations: Of PBKDF2, for tests; None: the library's choice, for about two seconds.
    """

    version: Version = Version.LUKS2
    key_bits: int = 256
    sector_size: int = SECTOR
    iterations: int | None = None


class Header:
    """
    The header of an image; a context manager.

    Args:
        path: Of the image: a file or block device.

    Raises:
        VhostBlkError: The library or the image is missing.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lib = _library()
        out = _ffi.new("struct crypt_device **")
        self._checked(self._lib.crypt_init(out, os.fsencode(path)), "cannot be opened")
        self._cd = out[0]
        self._lib.crypt_metadata_locking(self._cd, 0)  # of /run/cryptsetup, which is root's

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Free what the library has of it, keys among that."""
        self._lib.crypt_free(self._cd)

    def load(self) -> Facts:
        """
        Read what is there.

        Raises:
            VhostBlkError: No header, a damaged one, or an image that ends before its data.
        """
        result = self._lib.crypt_load(self._cd, _ffi.NULL, _ffi.NULL)
        if result < 0:
            with open(self._path, "rb") as file:  # noqa: PTH123 - bytes of its name stay
                begun = file.read(len(MAGIC)) == MAGIC
            what = "its LUKS header is damaged or cut short" if begun else "it has no LUKS header"
            raise VhostBlkError(f"{self._path}: {what}")
        facts = self._facts()
        size = _size(self._path)
        if size < facts.data_offset + facts.sector_size:
            raise VhostBlkError(
                f"{self._path}: it is cut short: its data begins at byte {facts.data_offset}, "
                f"and it has {size} bytes"
            )
        return facts

    def format(self, wanted: Format, key: Secret) -> None:
        """
        Write a new header with a new volume key, and *key* into its first slot.

        Raises:
            VhostBlkError: It cannot be done; what was there may be gone.
        """
        lib, offset = self._lib, DATA_OFFSET[wanted.version]
        sha256 = _ffi.new("char[]", b"sha256")
        if wanted.version is Version.LUKS1:
            params = _ffi.new("struct crypt_params_luks1 *", {"hash": sha256})
        else:
            params = _ffi.new("struct crypt_params_luks2 *", {"sector_size": wanted.sector_size})
        self._checked(lib.crypt_set_data_offset(self._cd, offset // SECTOR), "cannot be formatted")
        self._set_iterations(wanted.iterations)
        result = lib.crypt_format(
            self._cd,
            wanted.version.upper().encode(),
            b"aes",
            b"xts-plain64",
            _ffi.NULL,
            _ffi.NULL,
            2 * wanted.key_bits // 8,
            params,
        )
        self._checked(result, "cannot be formatted")
        with _pointer(key) as (text, length):
            result = lib.crypt_keyslot_add_by_volume_key(
                self._cd, _ANY_SLOT, _ffi.NULL, 0, text, length
            )
        self._checked(result, "the key cannot be added")

    def add_key(self, key: Secret, added: Secret, *, iterations: int | None = None) -> int:
        """
        Put another key into a free slot of a header that is loaded.

        Args:
            key: One that opens it.
            added: The other.
            iterations: As `Format` has it.

        Returns:
            The slot.

        Raises:
            VhostBlkError: *key* is wrong, or there is no slot.
        """
        self._set_iterations(iterations)
        with _pointer(key) as (old, old_length), _pointer(added) as (new, new_length):
            result = self._lib.crypt_keyslot_add_by_passphrase(
                self._cd, _ANY_SLOT, old, old_length, new, new_length
            )
        if result == -errno.EINVAL:
            raise VhostBlkError(f"{self._path}: no key slot is free")
        return self._opened(result)

    def volume_key(self, key: Secret) -> tuple[int, Secret]:
        """
        Return the slot that *key* opens, and the volume key in it, which is the caller's to close.

        Raises:
            VhostBlkError: It opens none.
        """
        volume = Secret(self._lib.crypt_get_volume_key_size(self._cd))
        size = _ffi.new("size_t *", len(volume.room()))
        try:
            with (
                volume.room() as room,
                _ffi.from_buffer("char[]", room, require_writable=True) as out,
                _pointer(key) as (text, length),
            ):
                result = self._lib.crypt_volume_key_get(
                    self._cd, _ANY_SLOT, out, size, text, length
                )
            volume.length = size[0]
            return self._opened(result), volume
        except BaseException:
            volume.close()
            raise

    # ---- what the library says ------------------------------------------------------------------

    def _facts(self) -> Facts:
        lib, cd = self._lib, self._cd
        kind = lib.crypt_get_type(cd)
        flags = _ffi.new("uint32_t *")
        version = Version(_text(kind).lower())
        if version is Version.LUKS2:
            self._checked(
                lib.crypt_persistent_flags_get(cd, _REQUIREMENTS, flags), "cannot be read"
            )
        return Facts(
            version=version,
            cipher=f"{_text(lib.crypt_get_cipher(cd))}-{_text(lib.crypt_get_cipher_mode(cd))}",
            key_bits=8 * lib.crypt_get_volume_key_size(cd),
            sector_size=lib.crypt_get_sector_size(cd),
            data_offset=SECTOR * lib.crypt_get_data_offset(cd),
            uuid=_text(lib.crypt_get_uuid(cd)),
            slots=[
                self._slot(number)
                for number in range(lib.crypt_keyslot_max(kind))
                if lib.crypt_keyslot_status(cd, number) in _IN_USE
            ],
            unfinished=bool(flags[0]),
        )

    def _slot(self, number: int) -> Slot:
        kdf = _ffi.new("struct crypt_pbkdf_type *")
        result = self._lib.crypt_keyslot_get_pbkdf(self._cd, number, kdf)
        self._checked(result, f"slot {number} cannot be read")
        return Slot(number, _text(kdf.type), kdf.iterations)

    def _set_iterations(self, iterations: int | None) -> None:
        if iterations is None:
            return
        names = [_ffi.new("char[]", name) for name in (b"pbkdf2", b"sha256")]
        kdf = _ffi.new(
            "struct crypt_pbkdf_type *",
            {"type": names[0], "hash": names[1], "iterations": iterations, "flags": _NO_BENCHMARK},
        )
        self._checked(self._lib.crypt_set_pbkdf_type(self._cd, kdf), f"iterations={iterations}")

    def _opened(self, result: int) -> int:
        if result in {-errno.EPERM, -errno.ENOENT}:
            raise VhostBlkError(f"{self._path}: the key opens none of its key slots")
        return self._checked(result, "the key cannot be tried")

    def _checked(self, result: int, what: str) -> int:
        if result < 0:
            raise VhostBlkError(f"{self._path}: {what}: {os.strerror(-result)}")
        return result


@contextmanager
def _pointer(secret: Secret) -> Iterator[tuple[object, int]]:
    """Yield where a key is, without a copy, and its bytes."""
    with secret.view() as view, _ffi.from_buffer("char[]", view) as start:
        yield start, len(view)


def _text(pointer: object) -> str:
    return str(_ffi.string(pointer).decode()) if pointer else ""


def _size(path: str) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


@cache
def _library() -> Any:  # noqa: ANN401 - cffi's has no type
    try:
        lib = _ffi.dlopen(LIBRARY)
    except OSError:
        raise VhostBlkError(
            f"LUKS needs {LIBRARY}, which is not here: install the package {PACKAGE}"
        ) from None
    lib.crypt_set_debug_level(_SILENT)
    return lib
