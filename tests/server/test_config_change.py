"""A guest that waits for its disk to change, as the fake guest's users do."""

from collections.abc import Callable

import pytest
from server_kit.serving import Serving

from vhostblk.disk.memory import Memory
from vhostblk.guest import DeadlineError, Guest
from vhostblk.guest.iommu import Flush

Connect = Callable[..., Guest]
MIB = 1 << 20


@pytest.mark.parametrize("iommu", [None, "page"])
def test_a_change_is_waited_for(
    iommu: Flush | None, server: Serving, vhost_user_guest: Connect
) -> None:
    """The message is had whoever serves the channel, and the new capacity with it."""
    guest = vhost_user_guest(server.add(Memory(MIB)), iommu=iommu)
    guest.write(0, b"x" * 4096)
    with pytest.raises(DeadlineError):
        guest.wait_config_change(timeout=0.01)
    assert guest.capacity == MIB // 512
    server.run(server.operations.resize("s1", 2 * MIB))
    assert guest.wait_config_change().capacity == guest.capacity == 2 * MIB // 512
    assert guest.read(MIB // 512, 4096) == bytes(4096)
