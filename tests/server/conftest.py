from collections.abc import Callable, Iterator
from functools import partial
from typing import get_args

import pytest
from places import direct_image, image, loop_device, tiny_tmpfs
from server_kit.serving import Serving, serving

from vhostblk.engine.choose import EngineName
from vhostblk.guest import Guest
from vhostblk.guest.pytest_plugin import vhost_user_guest

__all__ = ["direct_image", "image", "loop_device", "tiny_tmpfs", "vhost_user_guest"]


@pytest.fixture(params=sorted(set(get_args(EngineName)) - {"auto"}))
def engine(request: pytest.FixtureRequest) -> EngineName:
    """Return the name of a data plane; a test that asks for it runs once for each."""
    name: EngineName = request.param
    return name


@pytest.fixture
def server(engine: EngineName) -> Iterator[Serving]:
    """Run a server with each data plane."""
    with serving(engine) as running:
        yield running


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def connect(
    request: pytest.FixtureRequest, vhost_user_guest: Callable[..., Guest]
) -> Callable[..., Guest]:
    """Connect a guest with rings of one format, then of the other."""
    return partial(vhost_user_guest, packed=request.param)
