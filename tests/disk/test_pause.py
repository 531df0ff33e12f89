"""The layer that holds requests."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from layer_kit.model import opened

from vhostblk.disk.call import Calls, Pending, run
from vhostblk.disk.make import make
from vhostblk.disk.memory import Memory
from vhostblk.disk.pause import Pause
from vhostblk.errors import VhostBlkError

X = b"x" * 512
Op = Callable[[Calls], Pending]

OPS: dict[str, Op] = {
    "read": lambda calls: calls.read(0, [memoryview(bytearray(512))]),
    "write": lambda calls: calls.write(0, [memoryview(X)]),
    "flush": lambda calls: calls.flush(),
    "discard": lambda calls: calls.discard(0, 512),
    "write-zeroes": lambda calls: calls.write_zeroes(0, 512),
}


async def held(calls: Calls) -> set[str]:
    """Return what does not come back at once; all of it has ended behind this."""
    tasks = {name: asyncio.ensure_future(run(op, calls)) for name, op in OPS.items()}
    for _ in range(5):
        await asyncio.sleep(0)
    waiting = {name for name, task in tasks.items() if not task.done()}
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
    return waiting


def test_it_holds_what_it_is_told_to() -> None:
    """Everything, or the operations that are named; nothing once it is resumed."""

    async def main() -> None:
        everything = Pause(Memory(1 << 20), paused=True)
        assert await held(await opened(everything)) == set(OPS)
        some = Pause(Memory(1 << 20), paused=True, ops=["write", "flush"])
        assert await held(await opened(some)) == {"write", "flush"}
        some.resume()
        assert await held(Calls(some)) == set()
        some.pause()
        assert await held(Calls(some)) == {"write", "flush"}

    asyncio.run(main())


def test_what_was_held_goes_on() -> None:
    """A write that was held is in the disk behind `resume`, and not before."""

    async def main() -> None:
        layer = Pause(Memory(1 << 20), paused=True)
        calls = await opened(layer)
        pending = calls.write(512, [memoryview(X)])
        assert pending is not None
        task = asyncio.ensure_future(pending)
        await asyncio.sleep(0)
        assert layer.settings()["held"] == 1
        back = bytearray(512)
        layer.under.read(512, [memoryview(back)])
        assert back == bytes(512)
        layer.resume()
        await task
        layer.under.read(512, [memoryview(back)])
        assert back == X
        assert layer.settings()["held"] == 0

    asyncio.run(main())


def test_it_is_free_while_it_is_not_paused() -> None:
    """A plain disk below stays plain: no coroutine is made of its requests."""

    async def main() -> None:
        calls = await opened(Pause(Memory(1 << 20)))
        assert [op(calls) for op in OPS.values()] == [None] * len(OPS)

    asyncio.run(main())


def test_a_file_pauses_it_while_it_is_there(tmp_path: Path) -> None:
    """No command is needed: the file's coming and going is enough."""
    hang = tmp_path / "hang"

    async def main() -> None:
        layer = Pause(Memory(1 << 20), file=str(hang))
        calls = await opened(layer)
        assert await held(calls) == set()
        hang.touch()
        assert await held(calls) == set(OPS)
        assert layer.settings()["held_by_file"] is True
        pending = calls.flush()
        assert pending is not None
        task = asyncio.ensure_future(pending)
        await asyncio.sleep(0)
        hang.unlink()
        async with asyncio.timeout(5):
            await task

    asyncio.run(main())


def test_a_change_lets_go_what_need_not_be_held_any_more() -> None:
    """Options change as they are written, and all of them or none."""

    async def main() -> None:
        layer = Pause(Memory(1 << 20), paused=True)
        calls = await opened(layer)
        pending = calls.flush()
        assert pending is not None
        task = asyncio.ensure_future(pending)
        await asyncio.sleep(0)
        with pytest.raises(VhostBlkError, match="ops=sync: write some of read, write, flush"):
            layer.change({"paused": "off", "ops": "sync"})
        assert layer.settings()["paused"] is True
        layer.change({"ops": "read+write"})
        await task
        assert await held(calls) == {"read", "write"}

    asyncio.run(main())


def test_it_is_written_with_its_options() -> None:
    """What is written is what it is set to."""
    layer = make("pause:paused=on,ops=flush+discard,file=/run/hang|memory:1M")
    assert isinstance(layer, Pause)
    assert layer.settings() == {
        "paused": True,
        "ops": "flush+discard",
        "file": "/run/hang",
        "held_by_file": False,
        "held": 0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pause:ops=sync", "pause: ops=sync: write some of read, write, flush, discard, write-z"),
        ("pause:ops=", "pause: ops=: write some of"),
        ("pause:paused=yes", "pause: paused=yes: write paused=on or paused=off"),
    ],
)
def test_a_mistake_says_what_to_write(text: str, message: str) -> None:
    """One line, with the remedy in it."""
    with pytest.raises(VhostBlkError, match=message) as caught:
        make(f"{text}|memory:1M")
    assert "\n" not in str(caught.value)


def test_new_code_below_leaves_it_paused() -> None:
    """When its disk is loaded again, the new layer is set as the old one was."""

    async def main() -> None:
        before, after = Pause(Memory(1 << 20)), Pause(Memory(1 << 20))
        await opened(before)
        before.pause()
        calls = await opened(after)
        await run(calls.inherit, before)
        assert await held(calls) == set(OPS)

    asyncio.run(main())
