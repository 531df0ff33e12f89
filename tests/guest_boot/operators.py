"""Somebody at the control socket of a server whose guest runs."""

from collections.abc import Callable, Mapping
from pathlib import Path

from vhostblk.cli import rpc
from vhostblk.cli.guest_vm import Vm
from vhostblk.server.jsonrpc import Json

TIMEOUT_S = 90.0


class Operator:
    """
    Who looks at a disk and changes it while a guest runs.

    Args:
        control: The server's socket.
        vm: The guest.
        device: The disk's name, that of its socket.
    """

    def __init__(self, control: Path, vm: Vm, device: str = "s") -> None:
        self._control = control
        self._device = device
        self._vm = vm

    def ask(self, method: str, **params: Json) -> Json:
        return rpc.call(self._control, method, {"device": self._device, **params}, seconds=60)

    def settings(self, layer: str) -> Mapping[str, Json]:
        answer = self.ask("layer", layer=layer)
        assert isinstance(answer, Mapping)
        assert isinstance(answer["settings"], Mapping)
        return answer["settings"]

    def beats(self, n: int = 3) -> None:
        """Wait until the guest has written more, and it is stable."""
        for _ in range(n):
            self._vm.wait_for("beat", TIMEOUT_S)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for *condition*, a question at a time: each takes as long as an answer does."""
        assert any(condition() for _ in range(20_000))
