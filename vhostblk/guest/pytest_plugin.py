"""
The pytest fixtures of the fake guest.

Installing this package makes them available, with two options: ``--vhostblk-socket`` names a
back-end that runs already, and ``--vhostblk-destroy`` allows tests to write to its disk.  A project
that starts its back-end itself overrides the fixtures ``vhostblk_socket`` and ``vhostblk_destroy``.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from vhostblk.guest.guest import Guest
from vhostblk.guest.options import GuestOptions, NotOfferedError
from vhostblk.guest.probe import find_fault
from vhostblk.spec.virtio_blk import F_RO

SOCKET = "--vhostblk-socket"
DESTROY = "--vhostblk-destroy"
MARKER = "vhostblk"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("vhostblk", "vhost-user-blk back-ends")
    group.addoption(
        SOCKET,
        type=Path,
        metavar="PATH",
        help="socket of the back-end under test, which runs already and has no front-end",
    )
    group.addoption(
        DESTROY,
        action="store_true",
        help="tests may write to its disk: everything on it is lost",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say what our marker is."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(**options): how the fixture vhostblk_guest is made, as GuestOptions takes it",
    )


@contextlib.contextmanager
def closing_guests() -> Iterator[Callable[..., Guest]]:
    """
    Make guests that are closed at the end of the block, the last one first.

    Yields:
        A function with the arguments of ``Guest.connect``.
    """
    with contextlib.ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(Guest.connect(*args, **kwargs))


@pytest.fixture
def vhost_user_guest() -> Iterator[Callable[..., Guest]]:
    """Connect fake guests to a back-end; see ``Guest.connect`` for the arguments."""
    with closing_guests() as connect:
        yield connect


@pytest.fixture(scope="session")
def vhostblk_socket(pytestconfig: pytest.Config) -> Path:
    """
    Return the socket that ``--vhostblk-socket`` names.

    A test that needs it is skipped without the option, and fails at once where no guest could use
    it.  Override this fixture, in any scope, to start a back-end of your own.
    """
    path: Path | None = pytestconfig.getoption(SOCKET)
    if path is None:
        pytest.skip(f"no back-end to test: give one with {SOCKET} PATH")
    if fault := find_fault(path):
        pytest.fail(fault, pytrace=False)
    return path


@pytest.fixture(scope="session")
def vhostblk_destroy(pytestconfig: pytest.Config) -> None:
    """Skip a test that writes, unless ``--vhostblk-destroy`` allows it; override to allow it."""
    if not pytestconfig.getoption(DESTROY):
        pytest.skip(f"destroys what is on the disk: allow it with {DESTROY}")


@pytest.fixture
def vhostblk_connect(
    vhostblk_socket: Path, vhost_user_guest: Callable[..., Guest]
) -> Callable[..., Guest]:
    """Connect guests to that socket; the arguments of ``Guest.connect`` but for the path."""
    return lambda **options: vhost_user_guest(vhostblk_socket, **options)


@pytest.fixture
def vhostblk_guest(request: pytest.FixtureRequest, vhostblk_socket: Path) -> Iterator[Guest]:
    """
    Connect a guest to that socket, closed when the test ends.

    How it is made is said by ``@pytest.mark.vhostblk(packed=True, queues=4)``, or by indirect
    parametrization with ``GuestOptions`` (or dictionaries of their arguments).  A test is skipped
    where the back-end does not offer what it needs.
    """
    try:
        guest = _options(request).connect(vhostblk_socket)
    except NotOfferedError as error:
        pytest.skip(str(error))
    with guest:
        yield guest


@pytest.fixture
def vhostblk_scratch(vhostblk_destroy: None, vhostblk_guest: Guest) -> Guest:  # noqa: ARG001 - it skips
    """Return ``vhostblk_guest``, whose disk may be written; else the test is skipped."""
    if vhostblk_guest.features & F_RO:
        pytest.skip("the disk is read-only")
    return vhostblk_guest


def _options(request: pytest.FixtureRequest) -> GuestOptions:
    given: object = getattr(request, "param", None)
    if isinstance(given, GuestOptions):
        return given
    marker = request.node.get_closest_marker(MARKER)
    words: dict[str, object] = {} if marker is None else dict(marker.kwargs)
    if isinstance(given, Mapping):
        words |= given
    try:
        return GuestOptions(**words)  # type: ignore[arg-type]  # what the test says
    except TypeError as error:
        raise pytest.UsageError(f"{request.node.nodeid}: {error}") from error
