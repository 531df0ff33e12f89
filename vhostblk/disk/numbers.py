"""Numbers as they are written in options of layers."""

import re

from vhostblk.errors import VhostBlkError

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?)(%?)", re.ASCII)

MAX_NUMBER = (1 << 63) - 1


def parse_number(text: str, what: str, *, least: int = 0) -> int:
    """
    Read a whole number.

    Args:
        text: Digits.
        what: Its name in the error.
        least: The smallest that it may be.

    Raises:
        VhostBlkError: None, too small, or 2^63 or more.
    """
    number = int(text) if re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) else -1
    if not least <= number <= MAX_NUMBER:
        raise VhostBlkError(f"{what}={text}: write a whole number from {least} on")
    return number


def parse_share(text: str, what: str) -> float:
    """
    Read a share: ``0.05``, ``5%``, ``1``.

    Returns:
        0 to 1.

    Raises:
        VhostBlkError: None, or more than all.
    """
    match = _SHARE.fullmatch(text)
    share = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= share <= 1:
        raise VhostBlkError(f"{what}={text}: write a share: 0.05, or 5%, up to 1 or 100%")
    return share
