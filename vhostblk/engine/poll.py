"""How long a worker looks on for the next request before it sleeps."""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Self

from vhostblk.errors import VhostBlkError

AUTO_CAP_US = 50
"""What the window of ``auto`` grows to: about what waking a thread and being woken by it takes."""
MAX_US = 1_000_000


class PollMode(Enum):
    """Whether the window behind the last request is found, given or without end."""

    AUTO = "auto"
    FIXED = "fixed"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class Poll:
    """
    How a worker polls.

    Args:
        mode: How the window behind the last request is chosen.
        microseconds: AUTO: the longest it may be; FIXED: the window, 0 for none; ALWAYS: 0.
    """

    mode: PollMode = PollMode.AUTO
    microseconds: int = AUTO_CAP_US

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Read ``auto``, ``0``, ``always``, or microseconds like ``50us``.

        Raises:
            VhostBlkError: It is none of them.
        """
        match text:
            case "auto":
                return cls()
            case "always":
                return cls(PollMode.ALWAYS, 0)
            case "0":
                return cls(PollMode.FIXED, 0)
        if re.fullmatch(r"[0-9]{1,7}us", text) and int(text[:-2]) <= MAX_US:
            return cls(PollMode.FIXED, int(text[:-2]))
        raise VhostBlkError(
            f"poll {text!r}: give auto, always, 0, or microseconds up to {MAX_US}, like 50us"
        )

    def __str__(self) -> str:
        """Write it as `parse` reads it."""
        if self.mode is not PollMode.FIXED:
            return str(self.mode.value)
        return f"{self.microseconds}us" if self.microseconds else "0"
