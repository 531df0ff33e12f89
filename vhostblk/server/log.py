"""Log lines that name their device, through the standard library's logging."""

import logging
from collections.abc import MutableMapping

MESSAGES = "vhostblk.messages"
"""The logger of every protocol message by name, at level DEBUG."""
STATUS = "vhostblk.status"
"""The logger of status documents that were asked for, at level INFO."""


class Log(logging.LoggerAdapter[logging.Logger]):
    """
    A logger of one device; an adapter is the one thing logging wants inherited.

    Args:
        logger: Its name, under ``vhostblk``.
        device: What every line begins with.
    """

    def __init__(self, logger: str, device: str) -> None:
        super().__init__(logging.getLogger(logger), {"device": device})
        self._device = device.replace("%", "_")

    def process(
        self, msg: object, kwargs: MutableMapping[str, object]
    ) -> tuple[str, MutableMapping[str, object]]:
        """Put the device in front."""
        return f"{self._device}: {msg}", kwargs
