import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from vhostblk.errors import VhostBlkError
from vhostblk.server import tenure
from vhostblk.server.log import Log
from vhostblk.server.tenure import Tenure


class Locked:
    """A disk that somebody else has for a while; notes what is asked of it."""

    def __init__(self, taken: int = 0) -> None:
        self.taken = taken
        self.calls: list[str] = []
        self.error: OSError | None = None
        self.asked = asyncio.Event()
        self.stuck: asyncio.Event | None = None

    async def lock(self) -> None:
        self.calls.append("lock")
        self.asked.set()
        if self.stuck is not None:
            await self.stuck.wait()
        if self.taken:
            self.taken -= 1
            raise VhostBlkError("in use: qemu (pid 7) writes to it")

    async def unlock(self) -> None:
        self.calls.append("unlock")

    async def mark(self, number: int) -> None:
        self.calls.append(f"mark {number}")

    def unmark(self, number: int) -> None:
        self.calls.append(f"unmark {number}")

    async def marked_by_others(self, number: int) -> bool:
        self.calls.append(f"look for {number}")
        return False

    async def flush(self) -> None:
        self.calls.append("flush")
        if self.error is not None:
            raise self.error


def made(disk: Locked, *, needed: bool = True) -> Tenure:
    return Tenure(disk, needed=needed, flush=disk.flush, log=Log(__name__, "vda"))


async def had(one: Tenure, user: object) -> None:
    one.want(user)
    await one.take(user)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await test()

    uvloop.run(whole())


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure, "RETRY_SECONDS", 0)
    monkeypatch.setattr(tenure, "SLOW_RETRY_SECONDS", 0)


def test_a_disk_that_is_always_ours_is_never_locked() -> None:
    """It may be used at once, and a stop costs it nothing."""

    async def use() -> None:
        disk = Locked()
        one = made(disk, needed=False)
        assert one.held
        await had(one, "a")
        await one.leave("a")
        assert one.held
        assert disk.calls == []

    run(use)


def test_a_disk_is_flushed_before_others_may_have_it() -> None:
    """Locked before the first use; behind the last one flushed, then unlocked, once."""

    async def use() -> None:
        disk = Locked()
        one = made(disk)
        assert not one.held
        await had(one, "a")
        assert one.held
        await one.leave("a")
        await one.leave("a")
        assert not one.held
        assert disk.calls == ["lock", "flush", "unlock"]

    run(use)


def test_a_disk_that_somebody_has_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Who has it is said once, and once that it is ours."""
    caplog.set_level("INFO")

    async def use() -> None:
        disk = Locked(taken=5)
        one = made(disk)
        await had(one, "a")
        assert one.held
        assert disk.calls == ["lock"] * 6

    run(use)
    waits = "the queues wait for the disk: in use: qemu (pid 7) writes to it"
    assert caplog.text.count(waits) == 1
    assert caplog.text.count("the disk is ours now") == 1


def test_a_disk_nobody_gives_up_is_an_error_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When that has gone on for long an operator is told, once, and it is tried on."""
    monkeypatch.setattr(tenure, "PATIENCE", 0)

    async def use() -> None:
        one = made(Locked(taken=9))
        await had(one, "a")
        assert one.held

    run(use)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 1


def test_a_disk_stays_as_long_as_anybody_uses_it() -> None:
    """Whoever comes before the one before has left takes it over, without a moment between."""

    async def use() -> None:
        disk = Locked()
        one = made(disk)
        await had(one, "old")
        one.want("new")
        await one.leave("old")
        assert one.held
        await one.take("new")
        await one.leave("new")
        assert disk.calls == ["lock", "flush", "unlock"]

    run(use)


def test_a_disk_that_cannot_be_flushed_stays_locked(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever took it next could read what the guest has overwritten."""

    async def use() -> None:
        disk = Locked()
        disk.error = OSError(5, "Input/output error")
        one = made(disk)
        await had(one, "a")
        await one.leave("a")
        assert one.held
        assert disk.calls == ["lock", "flush"]

    run(use)
    assert "the disk stays locked" in caplog.text


def test_a_wait_that_is_called_off_leaves_nothing_locked() -> None:
    """A lock that was under way when the rings stopped is given back, whatever came of it."""

    async def use() -> None:
        disk = Locked()
        disk.stuck = asyncio.Event()
        one = made(disk)
        one.want("a")
        waiting = asyncio.ensure_future(one.take("a"))
        await disk.asked.wait()
        waiting.cancel()
        await one.leave("a")
        assert not one.held
        assert disk.calls == ["lock", "unlock"]

    run(use)
