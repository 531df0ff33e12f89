"""
Every Python program shown in the pages runs.

A block that imports something is a program.  One that serves is started, used by the fake guest
and ended by SIGTERM; for one that talks to a socket, a disk is served there.  Sockets named in
``/run`` and ``/tmp`` are in the test's own directory instead.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import running

from vhostblk.guest import Guest
from vhostblk.spec import virtio_blk

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FAKE_GUEST = ROOT / "docs/how-to/test-with-the-fake-guest.md"
"""Made of excerpts; `test_fake_guest_page` runs them."""
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^(import|from) ", re.MULTILINE)
SERVES = re.compile(r'^ *vhostblk\.serve\(.*"/(?:run|tmp)/(.+?)"', re.MULTILINE)
CONNECTS = re.compile(r'connect\("/(?:run|tmp)/(.+?)"')


def programs() -> Iterator[object]:
    for page in (page for page in PAGES if page != FAKE_GUEST):
        for number, text in enumerate(PYTHON.findall(page.read_text()), start=1):
            if IMPORT.search(text):
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Return a directory for a program's files and sockets."""
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    return tmp_path


@pytest.mark.parametrize("text", list(programs()))
def test_program_runs(text: str, here: Path) -> None:
    """What a page shows works as it stands there."""
    program = here / "example.py"
    program.write_text(re.sub(r'"/(run|tmp)/', f'"{here}/', text))
    serves, connects = SERVES.search(text), CONNECTS.search(text)
    if serves:
        check_server(program, here / serves[1])
    elif connects:
        check_client(program, here / connects[1])
    else:
        assert running.outcome(program, cwd=here) == (0, "")


def check_server(program: Path, socket: Path) -> None:
    process = running.start(program, cwd=program.parent)
    try:
        running.wait_for_socket(socket, process)
        with Guest.connect(socket) as guest:
            assert len(guest.read(8, 8192)) == 8192
            if not guest.features & virtio_blk.F_RO:
                guest.write(8, b"vhostblk" * 1024)
                guest.flush()
                assert guest.read(8, 8192) == b"vhostblk" * 1024
        running.end(process)
    finally:
        process.kill()


def check_client(program: Path, socket: Path) -> None:
    with running.serving("disk.img", socket=socket) as server:
        assert running.outcome(program, cwd=program.parent) == (0, "")
        running.end(server)
