"""A front-end with a ring that runs, over memory whose bytes a test can set."""

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server_kit.wire import QUIET, REGION_SIZE, Wire, memfd, region, wired

NUM = 128
"""Descriptors of a ring."""
AVAIL, USED = 0x1000, 0x2000
"""Where its other parts begin, in the guest and in the file."""


@asynccontextmanager
async def attached(num: int = NUM, *, name: str = "device") -> AsyncIterator[tuple[Wire, int]]:
    """Give a front-end whose ring 0 runs, and the file of its memory."""
    with memfd(REGION_SIZE) as fd:
        async with wired(name=name) as wire:
            await wire.negotiate()
            assert await wire.acked(37, region(), [os.dup(fd)]) == 0
            await begin(wire, 0, num)
            yield wire, fd


async def begin(wire: Wire, index: int, num: int = NUM) -> None:
    """Start a ring."""
    await wire.set_up(index, num)
    assert await wire.acked(18, struct.pack("=II", index, 1)) == 0


async def said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    """Wait until it is in the log."""
    for _ in range(1000):
        if text in caplog.text:
            return
        await asyncio.sleep(QUIET / 10)
    raise AssertionError(caplog.text)
