"""Who still uses memory that is to go: `Queue.watch_use` as the worker sees it."""

from collections.abc import Callable, Sequence

from vhostblk.engine.api import Piece
from vhostblk.engine.reference.chain import Request


class Use:
    """
    Memory that the control plane waits for; the worker's, but for *over*.

    Args:
        memory: At addresses of this process.
        on_over: Called when no request that was marked is left.
    """

    def __init__(self, memory: Sequence[Piece], on_over: Callable[[], None]) -> None:
        self._memory = memory
        self._on_over = on_over
        self._users: list[Request] = []
        self.begun = False
        """The worker has looked who uses it."""
        self.over = False
        """Nobody does any more."""

    def begin(self, live: Sequence[Request], dead: Sequence[Request]) -> None:
        """Mark who uses it."""
        self.begun = True
        self._users = [request for request in live if self._has(request.status_at, 1)]
        self._users += [
            request
            for request in (*live, *dead)
            if any(self._has(part.address, part.length) for part in request.data)
        ]
        self._look()

    def leave(self, request: Request) -> None:
        """Note that *request* touches its memory no more."""
        if self.begun and not self.over:
            self._users = [one for one in self._users if one is not request]
            self._look()

    def _look(self) -> None:
        if not self._users:
            self.over = True
            self._on_over()

    def _has(self, address: int | None, length: int) -> bool:
        return address is not None and any(
            address < host + size and host < address + length for host, size in self._memory
        )
