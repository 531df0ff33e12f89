"""
New processes that take over from a test's own, or not: ``successors.py STEP`` and so on.

What is started as ``take-over ENGINE NAME=DISK...`` serves on until it is told to stop.  Any other
STEP is where the process fails, and how: ``ready:die``, ``last:hang``, ``version``.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from pathlib import Path

HERE = Path(__file__).parents[1]


def command(*words: str) -> list[str]:
    """Return how one is started."""
    return [sys.executable, __file__, *words]


class Failing:
    """
    A process that fails at a step.

    Args:
        step: Its name, a colon and ``die``, ``hang`` or ``refuse``.
    """

    def __init__(self, step: str) -> None:
        from vhostblk.server.courier import Courier  # noqa: PLC0415
        from vhostblk.server.heir import VARIABLE  # noqa: PLC0415

        self._step = step
        self._courier = Courier(socket.socket(fileno=int(os.environ[VARIABLE])))

    def _at(self, name: str) -> None:
        from vhostblk.server import handover  # noqa: PLC0415

        step, _, how = self._step.partition(":")
        if step != name:
            return
        if how == "refuse":
            self._courier.send(handover.Answer(refused="of a reason"), seconds=5)
        if how == "die":
            os._exit(3)
        time.sleep(60)

    def run(self) -> None:
        """Do everything up to that step, and everything else if there is none."""
        from vhostblk.server import handover  # noqa: PLC0415

        self._at("hello")
        version = 99 if self._step == "version" else handover.VERSION
        hello = handover.Hello(versions=(version,), program="9.9", pid=os.getpid())
        self._courier.send(hello, seconds=5)
        self._at("state")
        self._courier.receive(handover.ServerState, seconds=5)
        self._at("ready")
        self._courier.send(handover.Answer(), seconds=5)
        self._courier.receive(handover.Last, seconds=5)
        self._at("last")
        self._courier.send(handover.Answer(), seconds=5)
        self._at("owned")


async def take_over(engine: str, devices: list[str]) -> None:
    """Serve on in the place of the test's server."""
    from vhostblk.disk.grammar import parse  # noqa: PLC0415
    from vhostblk.disk.make import make  # noqa: PLC0415
    from vhostblk.engine.choose import load  # noqa: PLC0415
    from vhostblk.server.promise import DeviceOptions  # noqa: PLC0415
    from vhostblk.server.server import Server  # noqa: PLC0415
    from vhostblk.server.takeover import Takeover  # noqa: PLC0415

    takeover = Takeover.begin(os.environ)
    assert takeover is not None
    for word in devices:
        name, _, text = word.partition("=")
        disk = parse(text)
        takeover.add(make(disk), DeviceOptions(name=name, drain_seconds=2.0), disk)
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with Server(load(engine)) as server:  # type: ignore[arg-type]
        await takeover.go_on(server)
        await told.wait()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))  # the package is the one that is installed
    if sys.argv[1] == "take-over":
        asyncio.run(take_over(sys.argv[2], sys.argv[3:]))
    else:
        Failing(sys.argv[1]).run()
