"""Requests of several steps, and those that wait for each other."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostblk.disk.steps import Cursor, Steps, Turn, Turns, walk


def test_steps_that_do_not_wait_are_taken_at_once() -> None:
    """In front of a plain disk there is nothing to await."""
    done = []

    def steps() -> Steps:
        done.append(1)
        yield None
        done.append(2)

    assert walk(steps()) is None
    assert done == [1, 2]


def test_the_rest_of_the_steps_is_awaited() -> None:
    """From the first that waits on; what it raises is raised at the yield, and may be handled."""
    done: list[object] = []

    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError(5, "broken")

    def steps() -> Steps:
        try:
            yield asyncio.sleep(0)
            done.append(1)
            yield None
            yield fail()
        except OSError as error:
            done.append(error.errno)
            yield asyncio.sleep(0)
        finally:
            done.append("end")
        yield fail()

    async def check() -> None:
        pending = walk(steps())
        assert pending is not None
        assert done == []
        with pytest.raises(OSError, match="broken"):
            await pending

    asyncio.run(check())
    assert done == [1, 5, "end"]


def test_a_request_that_is_cancelled_cleans_up() -> None:
    """Its turn is given to the next one."""
    turns, order = Turns(), []

    def steps(name: str, seconds: float) -> Steps:
        turn = turns.ask(0, 1, alone=True)
        try:
            yield turns.wait(turn)
            yield asyncio.sleep(seconds)
            order.append(name)
        finally:
            turns.end(turn)

    async def awaited(name: str, seconds: float) -> None:
        if (pending := walk(steps(name, seconds))) is not None:
            await pending

    async def check() -> None:
        first = asyncio.create_task(awaited("a", 60))
        await asyncio.sleep(0)
        second, third = (asyncio.create_task(awaited(n, 0)) for n in "bc")
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        await asyncio.gather(first, second, third, return_exceptions=True)
        assert turns.is_free(0, 1)

    asyncio.run(check())
    assert order == ["c"]


@given(
    asked=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 5), st.booleans()), min_size=1, max_size=12
    )
)
def test_turns_are_taken_in_order(asked: list[tuple[int, int, bool]]) -> None:
    """No two that overlap have theirs together unless both may share; those that came go first."""
    turns = Turns()
    having: list[Turn] = []
    order: list[int] = []

    def overlap(one: Turn, other: Turn) -> bool:
        shared = not (one.alone or other.alone)
        return one.start < other.end and other.start < one.end and not shared

    async def take(number: int, turn: Turn) -> None:
        if (pending := turns.wait(turn)) is not None:
            await pending
        assert not any(overlap(turn, other) for other in having)
        having.append(turn)
        order.append(number)
        await asyncio.sleep(0)
        having.remove(turn)
        turns.end(turn)

    async def check() -> None:
        all_of_them = [turns.ask(a, a + n, alone=alone) for a, n, alone in asked]
        await asyncio.gather(*(take(i, turn) for i, turn in enumerate(all_of_them)))
        for i, later in enumerate(all_of_them):
            for j, earlier in enumerate(all_of_them[:i]):
                assert not overlap(later, earlier) or order.index(j) < order.index(i)
        assert turns.is_free(0, 100)

    asyncio.run(check())


@given(
    data=st.binary(max_size=60),
    cuts=st.lists(st.integers(0, 60)),
    takes=st.lists(st.integers(0, 20)),
)
def test_a_cursor_takes_every_byte_once(data: bytes, cuts: list[int], takes: list[int]) -> None:
    """Whatever the views, and whatever is asked for."""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    views = [memoryview(data)[a:b] for a, b in pairwise(edges)]
    cursor, taken = Cursor(views), b""
    for length in takes:
        piece = b"".join(cursor.take(min(length, len(data) - len(taken))))
        assert len(piece) == min(length, len(data) - len(taken))
        taken += piece
    assert data.startswith(taken)
