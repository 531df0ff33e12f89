"""A real guest under load that moves between two QEMUs, each with a server on the same image."""

from contextlib import ExitStack
from pathlib import Path

import pytest
from guest_boot import migrating, verified
from guest_boot.restarts import Server
from guest_boot.verified import QEMUS, RINGS, Maker, Qemu

from vhostblk.cli.guest_vm import Vm

pytestmark = pytest.mark.guest

LOCK = "while-running"


class Host:
    """
    One of two places: a server on the image, and a QEMU that runs the guest or waits for it.

    Args:
        stack: Ends what is started.
        directory: Of this place.
        image: Of both.
        maker: Of the guest, wherever it is.
    """

    def __init__(self, stack: ExitStack, directory: Path, image: Path, maker: Maker) -> None:
        directory.mkdir()
        self.directory = directory
        self._stack = stack
        self._maker = maker
        options = ("--num-queues", str(maker.queues), "--lock", LOCK)
        log = directory / "server.log"
        self.server = stack.enter_context(Server(directory / "s", image, log, options))

    def boot(self) -> Vm:
        """Start the guest here."""
        vm = self._maker.vm(self.server.socket, self.directory)
        return self._stack.enter_context(vm)

    def wait_for_guest(self) -> Vm:
        """Start a QEMU that waits for the guest."""
        waits = migrating.incoming(self.directory)
        vm = self._maker.vm(self.server.socket, self.directory, arguments=waits)
        return self._stack.enter_context(vm)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("ring", RINGS)
@pytest.mark.parametrize("qemu", QEMUS)
def test_guest_moves_there_and_back(tmp_path: Path, qemu: Qemu, ring: str) -> None:
    """
    A migration that fails leaves the guest where it is; one there and one back take it along.

    The guest verifies all it wrote, whoever served it, and so does the image.

    Spec: vhost-user, "Migration".
    """
    image = verified.image_in(tmp_path)
    maker = Maker(qemu, tmp_path, ring)
    with ExitStack() as stack:
        here = Host(stack, tmp_path / "here", image, maker)
        there = Host(stack, tmp_path / "there", image, maker)
        vm = here.boot()
        verified.wait_for_beats(vm)

        waiting = there.wait_for_guest()
        migrating.fail_at_the_last_moment(vm, there.directory)
        verified.wait_for_beats(vm)
        waiting.__exit__(None, None, None)

        moved = there.wait_for_guest()
        migrating.migrate(vm, there.directory)
        verified.wait_for_beats(moved)

        back = here.wait_for_guest()
        migrating.migrate(moved, here.directory)
        verified.wait_for_beats(back)

        verified.end(back, image)
        here.server.stop()
        there.server.stop()
        verified.check_ring(there.server.log, ring)
