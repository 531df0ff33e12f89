"""
What a confidential machine puts between the guest's CPU and the memory the host maps.

Each page of the guest is private or shared; all are private at the start.  The guest chooses, page
by page, and at each access says which it means (the C-bit, or TDX's shared bit, in its page
tables).  What the host finds on a private page depends on the technology:

* SEV and SEV-ES: the same memory, encrypted.  Nothing enforces the guest's choice: whoever uses
  the other form of access reads noise.  A conversion converts nothing, so the guest has to write a
  page anew after it.
* SEV-SNP and TDX: nothing, a hole.  Private pages live elsewhere, a conversion loses the contents,
  and an access in the wrong form is an error that kills the guest.

Only the guest's own accesses come here.  The host's go straight to the memfd, which is the point.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, Protocol

from vhostblk.guest.aes import BLOCK
from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE
from vhostblk.guest.xex import Frames, PageCipher

Mode = Literal["plain", "sev", "snp", "tdx"]
ADDRESS_BIT = {"sev": 51, "snp": 51, "tdx": 47}
"""The address bit that tells private from shared: SEV's C-bit, TDX's shared bit."""
_WRONG = {"snp": "an RMP violation", "tdx": "a #VE or an EPT violation"}


class PageStateError(GuestError):
    """The guest touched a page in the form it does not have, or converted it to what it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """
    How a guest's memory is protected.

    Args:
        mode: ``plain``: not at all.
        seed: Decides SEV's keys.
        spa_seed: Decides which frame of the machine holds which page.
        punch: A page that becomes private leaves a hole; False: the shared bytes stay behind, as
            with huge pages.
    """

    mode: Mode = "plain"
    seed: int = 0
    spa_seed: int = 0
    punch: bool = True


class Pages(Protocol):
    """
    The guest CPU's way to protected memory, a page at a time.

    *raw* is always the whole page in the memfd; *private* is the form of the access.
    """

    def read(self, page: int, raw: memoryview, span: slice, *, private: bool) -> bytes:
        """Read *span* of page number *page*."""

    def write(
        self, page: int, raw: memoryview, start: int, data: memoryview, *, private: bool
    ) -> None:
        """Write *data* at byte *start* of page number *page*."""

    def converted(self, page: int, raw: memoryview, *, private: bool) -> None:
        """Hear that the page has become private or shared."""

    def move(self, page: int, raw: memoryview, *, private: bool) -> None:
        """Put the page into another frame of the machine."""

    def damaged(self, page: int, raw: memoryview) -> bool:
        """Tell whether the host wrote into the page, which is private."""


class Encrypted:
    """
    SEV: private pages are encrypted in place.

    Args:
        protection: The seeds.
    """

    def __init__(self, protection: Protection) -> None:
        self._cipher = PageCipher(protection.seed)
        self._frames = Frames(protection.spa_seed)
        self._sums: dict[int, bytes] = {}

    def read(self, page: int, raw: memoryview, span: slice, *, private: bool) -> bytes:
        """Read; private: decrypt whatever lies there."""
        if not private:
            return bytes(raw[span])
        first, end = _blocks(span.start, span.stop)
        plain = self._cipher.decrypt(self._frames.address(page) + first, bytes(raw[first:end]))
        return plain[span.start - first : span.stop - first]

    def write(
        self, page: int, raw: memoryview, start: int, data: memoryview, *, private: bool
    ) -> None:
        """Write; private: whole blocks change, the rest of them decrypted and encrypted again."""
        end = start + len(data)
        if not private:
            raw[start:end] = data
            return
        first, last = _blocks(start, end)
        plain = bytes(data)
        if (first, last) != (start, end):
            around = self.read(page, raw, slice(first, last), private=True)
            plain = around[: start - first] + plain + around[end - first :]
        # What the host wrote elsewhere on the page is not the guest's own by this write.
        intact = not self.damaged(page, raw)
        raw[first:last] = self._cipher.encrypt(self._frames.address(page) + first, plain)
        if intact or last - first == PAGE:
            self._sums[page] = _sum(raw)

    def converted(self, page: int, raw: memoryview, *, private: bool) -> None:
        """Change nothing: the bytes are what they were, and read as something else."""
        if private:
            self._sums[page] = _sum(raw)
        else:
            self._sums.pop(page, None)

    def move(self, page: int, raw: memoryview, *, private: bool) -> None:
        """Encrypt a private page for its new frame."""
        plain = self.read(page, raw, slice(0, PAGE), private=private)
        self._frames.move(page)
        self.write(page, raw, 0, memoryview(plain), private=private)

    def damaged(self, page: int, raw: memoryview) -> bool:
        """Compare with what the guest left there; a page it never wrote is zeros."""
        return _sum(raw) != self._sums.get(page, _ZEROS)


class Apart:
    """SEV-SNP and TDX: private pages are not in the memfd at all."""

    def __init__(self) -> None:
        self._store: dict[int, bytearray] = {}

    def read(self, page: int, raw: memoryview, span: slice, *, private: bool) -> bytes:
        """Read from the memfd or from our own store."""
        if not private:
            return bytes(raw[span])
        return (
            bytes(self._store[page][span]) if page in self._store else bytes(span.stop - span.start)
        )

    def write(
        self, page: int, raw: memoryview, start: int, data: memoryview, *, private: bool
    ) -> None:
        """Write to the memfd or to our own store."""
        to = self._store.setdefault(page, bytearray(PAGE)) if private else raw
        to[start : start + len(data)] = data

    def converted(self, page: int, raw: memoryview, *, private: bool) -> None:  # noqa: ARG002 - it is a Pages
        """Lose the private contents."""
        self._store.pop(page, None)

    def move(self, page: int, raw: memoryview, *, private: bool) -> None:
        """Change nothing anybody sees."""

    def damaged(self, page: int, raw: memoryview) -> bool:  # noqa: ARG002 - it is a Pages
        """Return False: what the host writes there the guest never sees."""
        return False


def protect(protection: Protection) -> Pages | None:
    """
    Make what a mode needs.

    Args:
        protection: Which mode.

    Returns:
        It, or ``None`` for ``plain``.

    Raises:
        GuestError: There is no such mode.
    """
    match protection.mode:
        case "plain":
            return None
        case "sev":
            return Encrypted(protection)
        case "snp" | "tdx":
            return Apart()
    raise GuestError(f"there is no memory mode {protection.mode!r}")


class PageStates:
    """
    Which pages are shared, and whether an access is of the right form.

    Args:
        mode: Not ``plain``.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self.shared: set[int] = set()
        """Numbers of the pages that are shared."""

    def form(self, page: int, private: bool | None) -> bool:  # noqa: FBT001 - None is the third
        """
        Decide how the CPU goes to a page.

        Args:
            page: Its number.
            private: The form asked for; ``None``: the page's own.

        Returns:
            True for private.

        Raises:
            PageStateError: Not the page's own form, where the hardware forbids it.
        """
        own = page not in self.shared
        if private is None or private == own:
            return own
        if self._mode in _WRONG:
            raise PageStateError(
                f"{_word(private=private)} access to the {_word(private=own)} page at "
                f"GPA {page * PAGE:#x}: {_WRONG[self._mode]}"
            )
        return private

    def convert(self, page: int, *, private: bool) -> None:
        """
        Change the state of a page.

        Args:
            page: Its number.
            private: The new state.

        Raises:
            PageStateError: It is the old one.
        """
        if (page not in self.shared) == private:
            raise PageStateError(f"the page at GPA {page * PAGE:#x} is {_word(private=private)}")
        (self.shared.discard if private else self.shared.add)(page)


def _sum(raw: memoryview) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


_ZEROS = _sum(memoryview(bytes(PAGE)))


def _word(*, private: bool) -> str:
    return "private" if private else "shared"


def _blocks(start: int, end: int) -> tuple[int, int]:
    return start - start % BLOCK, -(-end // BLOCK) * BLOCK
