"""Confidential guests, and what must be true of each."""

import random
from collections.abc import Callable

from vhostblk.guest import Guest, touched_pages
from vhostblk.guest.bounce import Bounced
from vhostblk.guest.confidential import Kind

Connect = Callable[..., Guest]
PAGE = 4096
MIB = 1 << 20
SIZE = 4 * MIB
KINDS: list[Kind] = ["bounced", "sev", "snp", "tdx"]
APART: list[Kind] = ["snp", "tdx"]
"""Whose private pages are holes."""


def noise(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


def pool(guest: Guest) -> Bounced:
    assert isinstance(guest.dma, Bounced)
    return guest.dma


def nothing_private_was_touched(guest: Guest) -> None:
    """No page exists but those that rings and descriptors named, or no ciphertext has changed."""
    assert guest.memory.damaged_pages() == frozenset()
    if guest.memory.protection.mode in APART:
        assert touched_pages(guest.memory) <= pool(guest).exposed
