"""
Whether a device may use its disk now.

Most disks are a device's from open to close.  One that is locked while running is somebody else's
while no ring runs here: the other end of a migration has it open, too, and the guest runs on one
end only.  Its lock is taken before the first request and given back behind the last, when all
writes are stable, so that whoever takes it next finds them.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from vhostblk.errors import VhostBlkError
from vhostblk.server.log import Log
from vhostblk.server.marks import Marked, Marks

RETRY_SECONDS = 0.1
"""How often a lock is tried that somebody else has: the source of a migration lets it go within
the guest's downtime."""
PATIENCE = 60.0
"""How long it is tried that often; then an operator is told that something is wrong."""
SLOW_RETRY_SECONDS = 1.0
"""How often it is tried after that."""


class Locked(Marked, Protocol):
    """What a tenure needs of a disk."""

    async def lock(self) -> None:
        """Take it; raises `VhostBlkError` or OSError when somebody else has it."""
        ...

    async def unlock(self) -> None:
        """Let others have it."""
        ...


class Tenure:
    """
    A device's hold on its disk.

    Args:
        disk: To be locked.
        needed: It is locked while running; else it is ours as long as it is open.
        flush: Makes every completed write stable; raises OSError.
        log: For what an operator should know.

    Attributes:
        marks: What it has under way there, as others see it.
    """

    def __init__(
        self, disk: Locked, *, needed: bool, flush: Callable[[], Awaitable[None]], log: Log
    ) -> None:
        self.held = not needed
        """Whether requests may be taken."""
        self.marks = Marks(disk)
        self._needed = needed
        self._tried = False
        self._disk = disk
        self._flush = flush
        self._log = log
        self._users: set[object] = set()
        self._changing = asyncio.Lock()

    def want(self, user: object) -> None:
        """Keep the disk, once it is had, until *user* says `leave`."""
        self._users.add(user)

    async def take(self, user: object) -> None:
        """
        Return when the disk may be used; may take as long as somebody else uses it.

        Args:
            user: Who wants it.
        """
        since = asyncio.get_running_loop().time()
        said = given_up = False
        while True:
            async with self._changing:
                if self.held or user not in self._users:
                    return
                why = await self._try()
            if why is None:
                if said:
                    self._log.info("the disk is ours now: the queues run")
                return
            patient = asyncio.get_running_loop().time() - since < PATIENCE
            if not said:
                self._log.warning("the queues wait for the disk: %s", why)
                said = True
            elif not patient and not given_up:
                self._log.error("the queues wait for the disk since %g s: %s", PATIENCE, why)
                given_up = True
            await asyncio.sleep(RETRY_SECONDS if patient else SLOW_RETRY_SECONDS)

    async def _try(self) -> Exception | None:
        """Try to lock; return why not."""
        self._tried = True
        try:
            await self._disk.lock()
        except (VhostBlkError, OSError) as error:
            return error
        self.held = True
        return None

    def hand_over(self) -> None:
        """
        Use the disk no more, and leave its lock as it is.

        Another process has the same open file, and with it the lock.
        """
        self.marks.hand_over()
        self._needed = self.held = False

    def adopt(self) -> None:
        """Have the lock, which has come with the file from another process."""
        self.held = self._tried = True

    async def leave(self, user: object) -> None:
        """
        Heed that a user's last ring has stopped, with nothing in flight.

        When nobody else needs it the disk is flushed and unlocked.  A disk that cannot be flushed
        stays locked: who took it next could read what the guest has overwritten.
        """
        self._users.discard(user)
        if not self._needed:
            return
        async with self._changing:
            if self._users or not self._tried:
                return
            try:
                if self.held:
                    await self._flush()
                await self._disk.unlock()  # also where a `take` was called off under way
            except (VhostBlkError, OSError) as error:
                self._log.error("the disk stays locked, as it cannot be left: %s", error)
                return
            self.held = self._tried = False

    @asynccontextmanager
    async def succession(self, disk: Locked, *, needed: bool) -> AsyncIterator[None]:
        """
        Hold another disk as this one was held, unless what is done in this context fails.

        Args:
            disk: The other one; where somebody waits for the old one, it is locked at once.
            needed: It is locked while running; else it is ours as long as it is open.

        Raises:
            VhostBlkError: Somebody else has it.
        """
        async with self._changing:
            if needed and self._users:
                try:
                    await disk.lock()
                except OSError as error:
                    raise VhostBlkError(f"it cannot be locked: {error.strerror}") from error
            before = self._disk, self._needed, self.held, self._tried
            self._disk, self._needed = disk, needed
            self._tried = needed and bool(self._users)
            self.held = self._tried or not needed
            try:
                await self.marks.move(disk)
                yield
            except BaseException:
                self.marks.disk = before[0]
                self._disk, self._needed, self.held, self._tried = before
                raise
