"""
Live migration: a guest moves to another back-end, and its memory with it, while it runs.

There are two copies of the memory.  What the guest's CPU writes goes to both; what the device
writes gets into the second one only by the pages it marks in the dirty log.  So at the end, with
the device stopped, the copies differ exactly where it wrote and did not mark.

The order of messages is QEMU's, as traced from QEMU 10.

Spec: vhost-user, "Migration".
"""

from dataclasses import dataclass, field
from pathlib import Path

from vhostblk.guest.dirty import DirtyLog
from vhostblk.guest.errors import GuestError
from vhostblk.guest.frontend import FrontEnd
from vhostblk.guest.layout import PAGE
from vhostblk.guest.memory import GuestMemory
from vhostblk.guest.session import Session


class UnmarkedError(GuestError):
    """
    The device wrote pages that it did not mark in the dirty log.

    Args:
        pages: Their GPAs.
    """

    def __init__(self, pages: list[int]) -> None:
        shown = ", ".join(hex(page) for page in pages[:8])
        super().__init__(f"{len(pages)} pages were written and not marked: {shown}")
        self.pages = pages


@dataclass(slots=True)
class Report:
    """
    What a migration came to.

    Args:
        passes: For each pass, the GPAs of the pages that were marked.
        unchanged: GPAs of pages that were marked though nothing in them had changed, in any pass.
        bases: Where each queue stood on the source.
    """

    passes: list[list[int]] = field(default_factory=list)
    unchanged: set[int] = field(default_factory=set)
    bases: dict[int, int] = field(default_factory=dict)


class Migration:
    """
    A migration under way; ``finish`` or ``cancel`` it.

    Args:
        session: The device's; it and its requests go on at the destination.
        memory: The guest's, plain; has the destination's memory in the end.
        path: Where the destination's back-end listens.

    Raises:
        GuestError: The memory cannot be copied, a back-end cannot migrate or did not answer.
    """

    def __init__(self, session: Session, memory: GuestMemory, path: str | Path) -> None:
        self.report = Report()
        """What it came to so far."""
        self._session = session
        self._memory = memory
        self._twin = memory.twin()
        self._link = None
        self._log = DirtyLog(memory)
        try:
            memory.mirror(self._twin)
            # QEMU connects to it when the destination is started, long before it is needed.
            timeout = session.frontend.connection.timeout
            self._link = session.open_link(FrontEnd.connect(path, timeout=timeout))
            session.start_logging(self._log)
            for mapping in memory.mappings:
                for page in mapping.touched():  # the others read as zeros in both
                    self._copy(page)
        except BaseException:
            self._release()
            raise

    def copy(self) -> list[int]:
        """Copy the pages that were marked since the last pass; return their GPAs."""
        pages = self._log.take()
        for page in pages:
            if not self._memory.is_ram(page):
                raise GuestError(f"page {page:#x}, which is no RAM, is marked in the dirty log")
            if not self._copy(page):
                self.report.unchanged.add(page)
        self.report.passes.append(pages)
        return pages

    def finish(self) -> Report:
        """
        Stop the device, copy what is left, and start it at the destination.

        Returns:
            What it came to.

        Raises:
            UnmarkedError: The copies differ; the guest is stopped.
            GuestError: A back-end refused or did not answer.
        """
        assert self._link is not None  # noqa: S101 - since it was made
        try:
            self.report.bases = self._session.stop()
            self.copy()
            if unmarked := self.unmarked():
                raise UnmarkedError(unmarked)
            self._memory.exchange(self._twin).close()
            self._twin = self._memory.twin()  # to be released in its place
            link, self._link = self._link, None
            self._session.go_on(link)
        finally:
            self._release()
        return self.report

    def cancel(self) -> None:
        """Go on where it was, without a log."""
        try:
            self._session.stop_logging()
        finally:
            self._release()

    def unmarked(self) -> list[int]:
        """Return the GPAs of pages of which the copies differ."""
        differ = []
        for mapping in self._memory.mappings:
            start, size = mapping.region.gpa, mapping.region.size
            ours = self._memory.read(start, size)
            theirs = b"".join(bytes(view) for view in self._twin.views(start, size))
            if ours != theirs:
                pages = range(0, size, PAGE)
                differ += [start + p for p in pages if ours[p : p + PAGE] != theirs[p : p + PAGE]]
        return differ

    def _copy(self, page: int) -> bool:
        """Copy a page; tell whether that changed anything."""
        (there,) = self._twin.views(page, PAGE)
        data = self._memory.read(page, PAGE)
        changed = there != data
        there[:] = data
        return bool(changed)

    def _release(self) -> None:
        if self._link is not None:
            self._link.close()
        self._link = None
        self._memory.mirror(None)
        self._twin.close()
        self._log.close()
