"""How long what is in flight may go on with memory that its guest has taken back."""

import asyncio

from vhostblk.engine.api import Queue

INVALIDATE_SECONDS = 1.0
"""The guest, with all its CPUs perhaps, waits for that long."""


async def unused(queue: Queue) -> bool:
    """Wait for `Queue.unused`, for a bounded time; return whether it came in that."""
    try:
        async with asyncio.timeout(INVALIDATE_SECONDS):
            await queue.unused()
    except TimeoutError:
        return False
    return True
