"""Requests that were taken and not given back, in the order they were taken."""

from vhostblk.engine.reference.chain import Request


class Order:
    """
    Who may be given back; the worker's.

    Without IN_ORDER that is who has ended, in the order they ended.  With it a request waits for
    all that were taken before it.  When one will never end, as the disk kept its memory, its queue
    is about to break: who was not due by then is not given back, and nobody passes it.

    Spec: virtio 1.3, 2.7.9, 2.8.9.
    """

    def __init__(self) -> None:
        self._taken: list[Request] = []
        self._ended: list[Request] = []
        self._lost: list[Request] = []
        self._last: list[Request] = []  # who was due when the first was lost

    def __len__(self) -> int:
        return len(self._taken) - len(self._lost)

    def take(self, request: Request) -> None:
        """Note that a request was taken."""
        self._taken.append(request)

    def end(self, request: Request) -> None:
        """Note that a request has its status."""
        self._ended.append(request)

    def lose(self, request: Request) -> None:
        """Note that a request will never end."""
        if not self._lost:
            self._last = self._due()
        self._lost.append(request)

    def give_back(self, *, in_order: bool) -> list[Request]:
        """Return who may be given back now, and forget them."""
        due = self._ended
        if in_order:
            due, self._last = (self._last if self._lost else self._due()), []
        self._taken = _without(self._taken, due)
        self._ended = _without(self._ended, due)
        return due

    def _due(self) -> list[Request]:
        ended = {id(request) for request in self._ended}
        for n, request in enumerate(self._taken):
            if id(request) not in ended:
                return self._taken[:n]
        return self._taken

    def forget(self) -> list[Request]:
        """Return who has ended, and forget them and who never will: the queue is broken."""
        gone, self._ended = self._ended, []
        self._taken = _without(self._taken, [*gone, *self._lost])
        self._lost = []
        return gone


def _without(requests: list[Request], gone: list[Request]) -> list[Request]:
    names = {id(request) for request in gone}
    return [request for request in requests if id(request) not in names]
