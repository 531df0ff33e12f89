"""How what a cow keeps becomes the disk below, and what it is when that fails."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_kit.disks import Below, Late, Plain
from layer_kit.model import (
    BASE,
    Request,
    apart,
    apply,
    at_once,
    compare,
    content,
    opened,
    requests,
)

from vhostblk.disk.call import run
from vhostblk.disk.cow import Cow
from vhostblk.errors import VhostBlkError

BLOCK = 4096


@pytest.mark.parametrize("below", [Plain, Late])
@given(
    rounds=st.lists(
        st.tuples(st.lists(requests(), max_size=8), st.sampled_from(("commit", "discard", "open"))),
        max_size=5,
    )
)
@settings(max_examples=12)
def test_a_commit_moves_all_and_a_discard_forgets_all(
    below: Below,
    rounds: Sequence[tuple[Sequence[Request], str]],
) -> None:
    """After a commit the disk below is the disk; after a discard the disk is the one below."""

    async def check(path: Path) -> None:
        disk, kept = below(BASE), BASE
        model = bytearray(BASE)
        cow = Cow(disk, scratch=path, block=BLOCK)
        calls = await opened(cow)
        for sequence, then in rounds:
            await compare(calls, model, sequence)
            assert disk.data == kept
            match then:
                case "commit":
                    await cow.commit()
                    kept = bytes(model)
                    assert disk.data == kept
                    assert cow.settings()["held"] == 0
                case "discard":
                    cow.discard_all()
                    model[:] = kept
                case "open":
                    await run(calls.close)
                    cow = Cow(disk, scratch=path)
                    calls = await opened(cow)
            assert await content(calls) == model
        await run(calls.close)

    with TemporaryDirectory(dir="/dev/shm") as directory:
        asyncio.run(check(Path(directory) / "s"))


@given(
    before=st.lists(requests(), max_size=10),
    sequence=st.lists(requests(), max_size=20),
    seed=st.integers(0, 99),
)
@settings(max_examples=12)
def test_requests_go_on_during_a_commit(
    before: Sequence[Request], sequence: Sequence[Request], seed: int
) -> None:
    """What is written meanwhile is kept, in blocks that were copied already, too."""

    async def check() -> None:
        disk = Late(BASE, seed)
        cow = Cow(disk, block=BLOCK)
        calls = await opened(cow)
        model, together = bytearray(BASE), apart(sequence)
        await compare(calls, model, before)
        commit = asyncio.ensure_future(cow.commit())
        for one in together:
            apply(model, one)
        assert await at_once(calls, together) == model
        await commit
        assert await content(calls) == model
        await cow.commit()
        assert disk.data == model
        await run(calls.close)

    asyncio.run(check())


class Failing(Plain):
    """Its writes fail from the second on."""

    writes = 0

    def write(self, offset: int, views: Sequence[memoryview]) -> None:
        """Write once."""
        self.writes += 1
        if self.writes > 1:
            raise OSError(5, "no more")
        super().write(offset, views)


def test_a_commit_that_fails_loses_nothing(tmp_path: Path) -> None:
    """All is still kept, and a discard is refused, as a part is below; the next one does it."""

    async def check() -> None:
        disk, model = Failing(BASE), bytearray(BASE)
        cow = Cow(disk, scratch=tmp_path / "s", block=BLOCK)
        calls = await opened(cow)
        await compare(calls, model, [Request("write", 0, 8, 3), Request("write", 80, 8, 4)])
        with pytest.raises(VhostBlkError, match="commit has ended in the middle: no more"):
            await cow.commit()
        assert await content(calls) == model
        assert disk.data != BASE
        with pytest.raises(VhostBlkError, match="a part is below already: commit again"):
            cow.discard_all()
        await run(calls.close)
        cow = Cow(disk, scratch=tmp_path / "s")
        calls = await opened(cow)
        disk.writes = -100
        await cow.commit()
        assert disk.data == model
        await run(calls.close)

    asyncio.run(check())
