"""
A file descriptor with an owner.

Descriptors arrive from a stranger with every other message.  Each is wrapped before anything
is checked, so that it is taken by one owner, once, or closed: none leaks.
"""

import os
import warnings


class Fd:
    """
    Owns a descriptor until it is taken or closed.

    Args:
        number: The descriptor; this object is responsible for it from here on.
    """

    __slots__ = ("_number",)

    def __init__(self, number: int) -> None:
        self._number: int | None = number

    def take(self) -> int:
        """
        Hand the descriptor to the caller, who closes it from now on.

        Raises:
            ValueError: It was taken or closed before: our own bug.
        """
        number = self.fileno()
        self._number = None
        return number

    def fileno(self) -> int:
        """
        Return the descriptor, which stays here.

        Raises:
            ValueError: It was taken or closed before: our own bug.
        """
        if self._number is None:
            raise ValueError("this descriptor was taken or closed before")
        return self._number

    def close(self) -> None:
        """Close the descriptor unless somebody took it; calling again does nothing."""
        if self._number is not None:
            os.close(self.take())

    @property
    def owned(self) -> bool:
        """Whether the descriptor is still here."""
        return self._number is not None

    def __repr__(self) -> str:
        return f"Fd({self._number})"

    def __del__(self) -> None:
        # A net, not a habit: whoever drops a message calls close_fds() on it.
        if self._number is not None:
            warnings.warn(f"{self!r} was never taken nor closed", ResourceWarning, stacklevel=1)
            self.close()
