"""
The excerpts of the fake guest's how-to run, against ``vhostblk serve``.

An excerpt that defines tests is run by pytest.  Another one finds the names a reader would have:
``path``, ``payload``, ``my_backend``, what the excerpts before it imported and, where it connects
to nothing itself, a ``guest`` with four queues.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import running

from vhostblk.guest import Guest, GuestMemory, slots_layout

PAGE = running.ROOT / "docs/how-to/test-with-the-fake-guest.md"
EXCERPTS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
MORE_IMPORTS = "from vhostblk.guest.hostile import flicker\n"
NUMBERS = range(len(EXCERPTS))
CONFTEST = """\
import types, pytest

@pytest.fixture
def my_backend():
    return types.SimpleNamespace(socket_path={path!r})
"""


def imports_before(number: int) -> str:
    shown = "\n".join(EXCERPTS[:number])
    return "".join(re.findall(r"^(?:import|from) .*\n", shown, re.MULTILINE))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the socket of one server for all excerpts, as starting one takes its time."""
    where = tmp_path_factory.mktemp("served") / "s"
    # Quiet, as nobody reads its log before the end, and a pipe is soon full.
    with running.serving("-q", "--num-queues", "4", "memory:1M", socket=where) as server:
        yield where
        running.end(server)


class Backend:
    """
    A server that can be killed and started again.

    Args:
        directory: For its socket.
    """

    def __init__(self, directory: Path) -> None:
        self.socket_path = directory / "s"
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        server = running.serving("-q", "memory:1M", socket=self.socket_path)
        self._running.enter_context(server)

    def kill(self) -> None:
        self._running.close()


@pytest.fixture
def my_backend(tmp_path: Path) -> Iterator[Backend]:
    backend = Backend(tmp_path)
    yield backend
    backend.kill()


@pytest.mark.parametrize("number", [n for n in NUMBERS if "def test_" not in EXCERPTS[n]])
def test_excerpt_runs(number: int, path: Path, my_backend: Backend) -> None:
    """Each excerpt works with the names a reader would have."""
    text = EXCERPTS[number]
    names: dict[str, object] = {"path": path, "payload": bytes(4096), "my_backend": my_backend}
    if "my_backend" in text:
        my_backend.start()
    names |= {"good": bytes(4), "bad": bytes(4)}
    exec(imports_before(number) + MORE_IMPORTS, names)
    if "connect(" in text:
        exec(text, names)
        for one in names.values():
            if isinstance(one, Guest):
                one.close()  # for the next one, as a device has one front-end at a time
        return
    with (
        GuestMemory(slots_layout(4, 16 << 20)) as memory,
        Guest.connect(path, queues=4, memory=memory) as guest,
    ):
        names |= {"guest": guest, "header_gpa": memory.allocate(16)}
        exec(text, names)


@pytest.mark.parametrize("number", [n for n in NUMBERS if "def test_" in EXCERPTS[n]])
def test_excerpt_passes(number: int, path: Path, tmp_path: Path) -> None:
    """The tests the page shows pass."""
    (tmp_path / "conftest.py").write_text(CONFTEST.format(path=str(path)))
    (tmp_path / "test_shown.py").write_text(imports_before(number) + EXCERPTS[number])
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shown.py")
    assert running.outcome(*words, cwd=tmp_path)[0] == 0
