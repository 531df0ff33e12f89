"""Moving a guest from one QEMU to another on this machine, over a Unix socket."""

import time
from collections.abc import Callable
from pathlib import Path

from running import is_listening

from vhostblk.cli import qmp
from vhostblk.cli.guest_vm import Vm

TIMEOUT_S = 60.0
BANDWIDTH = 2 << 30
"""Bytes a second: the guest must not outrun its own migration."""


def incoming(directory: Path) -> tuple[str, ...]:
    """Return what a QEMU is told that waits for a guest."""
    return ("-incoming", f"unix:{directory / 'incoming'}")


def migrate(source: Vm, directory: Path) -> None:
    """
    Move a guest to the QEMU that waits in *directory*, which then runs it.

    Raises:
        AssertionError: It did not come about.
    """
    start(source, directory)
    wait_for(source, "completed")
    qmp.run(source.monitor, "quit")


def fail_at_the_last_moment(source: Vm, directory: Path) -> None:
    """
    Begin to move a guest, and give up when its device has been stopped for it.

    With pause-before-switchover QEMU stops the guest (so every ring was asked for its base) and
    waits; a cancel then lets the guest go on where it was.
    """
    capability = {"capability": "pause-before-switchover", "state": True}
    qmp.run(source.monitor, "migrate-set-capabilities", capabilities=[capability])
    start(source, directory)
    wait_for(source, "pre-switchover")
    qmp.run(source.monitor, "migrate_cancel")
    wait_for(source, "cancelled")
    capability["state"] = False
    qmp.run(source.monitor, "migrate-set-capabilities", capabilities=[capability])
    until(lambda: status(source, "query-status") == "running")


def start(source: Vm, directory: Path) -> None:
    """Begin to move a guest."""
    until(lambda: is_listening(directory / "incoming"))
    limits = {"max_bandwidth": BANDWIDTH, "downtime_limit": 300}
    qmp.run(source.monitor, "migrate-set-parameters", **limits)
    qmp.run(source.monitor, "migrate", uri=f"unix:{directory / 'incoming'}")


def wait_for(source: Vm, wanted: str) -> None:
    """Wait until the migration is *wanted*."""

    def there() -> bool:
        now = status(source, "query-migrate")
        assert now == wanted or now != "failed", qmp.run(source.monitor, "query-migrate")
        return now == wanted

    until(there)


def status(vm: Vm, query: str) -> str:
    """Ask QEMU for a status by *query*."""
    answer = qmp.run(vm.monitor, query)
    assert isinstance(answer, dict)
    return str(answer.get("status"))


def until(there: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + TIMEOUT_S
    while not there():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.02)
