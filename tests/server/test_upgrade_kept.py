"""A new process goes on with what layers keep, while a guest uses it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from server_kit.serving import Serving
from server_kit.taking_over import one_engine, taken_over

from vhostblk.engine.choose import EngineName
from vhostblk.guest import Guest

Connect = Callable[..., Guest]
MIB = 1 << 20
X, Y, Z = b"x" * 4096, b"y" * 4096, b"z" * 512


@one_engine
@pytest.mark.slow
@pytest.mark.parametrize(
    "layer",
    [
        "cow:scratch={0}/kept",
        "cow:block=4K",
        "cache:mode=writeback",
        "verify:file={0}/kept",
        "verify|cache:mode=writeback|cow:scratch={0}/kept",
    ],
)
def test_what_is_kept_goes_over(
    layer: str, server: Serving, engine: EngineName, vhost_user_guest: Connect, tmp_path: Path
) -> None:
    """In a file or in memory, flushed or not: the guest reads what it wrote, from both."""
    image = tmp_path / "image"
    image.write_bytes(b"a" * MIB)
    text = f"{layer.format(tmp_path)}|file:{image}"
    guest = vhost_user_guest(server.add_written(text))
    guest.write(0, X)
    guest.flush()
    guest.write(256, X)
    with taken_over(server, engine, f"s1={text}"):
        server.stop()
        assert guest.read(0, 4096) == X
        assert guest.read(256, 4096) == X
        guest.write(0, Y)
        guest.write(9, Z)
        guest.flush()
        assert guest.read(0, 8192) == Y + b"a" * 512 + Z + b"a" * 3072
        guest.close()
    assert (image.read_bytes() == b"a" * MIB) == ("cow" in layer)
