"""
The guest CPU's accesses to the memory of a confidential machine, cut into pages.

``pages`` says what a page is; here are the ranges: which pages they cover, in what state those are,
and where in which memfd.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vhostblk.guest.errors import GuestError
from vhostblk.guest.layout import PAGE, Region
from vhostblk.guest.mapping import Mapping
from vhostblk.guest.pages import Pages, PageStates, Protection

_ZEROS = memoryview(bytes(PAGE))


@dataclass(frozen=True, slots=True)
class _Piece:
    """
    The part of a range that lies in one page.

    Args:
        page: Number of the page.
        raw: The whole page in the memfd.
        span: The part, in bytes from the start of the page.
        private: The form of the access.
    """

    page: int
    raw: memoryview
    span: slice
    private: bool


class Protected:
    """
    Ranges of protected memory.

    Args:
        protection: How.
        pages: What it comes to on a page.
        find: Finds the region of an address, or raises GuestError.
    """

    def __init__(
        self, protection: Protection, pages: Pages, find: Callable[[int], Mapping]
    ) -> None:
        self._punch = protection.punch and protection.mode != "sev"
        self._pages = pages
        self._states = PageStates(protection.mode)
        self._find = find

    @property
    def shared(self) -> frozenset[int]:
        """Return the addresses of all shared pages."""
        return frozenset(page * PAGE for page in self._states.shared)

    def is_shared(self, gpa: int) -> bool:
        """Tell whether the page at *gpa* is shared."""
        return gpa // PAGE in self._states.shared

    def read(self, gpa: int, length: int, private: bool | None) -> bytes:  # noqa: FBT001 - see form
        """Read a range; see ``GuestMemory.read``."""
        return b"".join(
            self._pages.read(piece.page, piece.raw, piece.span, private=piece.private)
            for piece in self._pieces(gpa, length, private)
        )

    def write(
        self,
        gpa: int,
        data: bytes | bytearray | memoryview,
        private: bool | None,  # noqa: FBT001 - see form
    ) -> None:
        """Write a range; see ``GuestMemory.write``."""
        view = memoryview(data)
        done = 0
        # A list: every page is looked at before the first is written.
        for piece in list(self._pieces(gpa, len(view), private)):
            part = view[done : done + piece.span.stop - piece.span.start]
            start = piece.span.start
            self._pages.write(piece.page, piece.raw, start, part, private=piece.private)
            done += len(part)

    def convert(self, gpa: int, length: int, *, private: bool) -> None:
        """
        Change the state of whole pages, as ``GuestMemory.set_shared`` and ``set_private`` do.

        Args:
            gpa: First byte.
            length: Bytes.
            private: The new state.

        Raises:
            GuestError: Not whole pages, no RAM, or in that state already.
        """
        if (gpa | length) % PAGE:
            raise GuestError(f"{length} bytes at GPA {gpa:#x} are not whole pages")
        for at in range(gpa, gpa + length, PAGE):
            mapping = self._find(at)
            start = at - mapping.region.gpa
            self._states.convert(at // PAGE, private=private)
            self._pages.converted(at // PAGE, mapping.data[start : start + PAGE], private=private)
            if private and self._punch:
                mapping.punch(start, PAGE)

    def move(self, gpa: int) -> None:
        """Put the page at *gpa* into another frame of the machine."""
        piece = next(self._pieces(gpa - gpa % PAGE, PAGE, None))
        self._pages.move(piece.page, piece.raw, private=piece.private)

    def damaged(self, mappings: Iterable[Mapping]) -> frozenset[int]:
        """Return the private pages the host wrote into; see ``GuestMemory.damaged_pages``."""
        found = set()
        for mapping in mappings:
            for gpa in mapping.touched():
                start = gpa - mapping.region.gpa
                raw = mapping.data[start : start + PAGE]
                if not self.is_shared(gpa) and self._pages.damaged(gpa // PAGE, raw):
                    found.add(gpa)
        return frozenset(found)

    def forget(self, region: Region) -> None:
        """Forget a region that is taken away: what comes in its place is private."""
        for page in range(region.gpa // PAGE, region.end // PAGE):
            self._states.shared.discard(page)
            self._pages.converted(page, _ZEROS, private=True)

    def _pieces(self, gpa: int, length: int, private: bool | None) -> Iterator[_Piece]:  # noqa: FBT001 - see form
        end = gpa + length
        while gpa < end:
            mapping = self._find(gpa)
            page, offset = divmod(gpa, PAGE)
            start = page * PAGE - mapping.region.gpa
            span = slice(offset, min(PAGE, offset + end - gpa))
            raw = mapping.data[start : start + PAGE]
            yield _Piece(page, raw, span, self._states.form(page, private))
            gpa += span.stop - span.start
