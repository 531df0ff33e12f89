import json
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import running
from locks import held_bytes

from vhostblk.cli import backend
from vhostblk.guest import Guest


@pytest.mark.parametrize(
    "argv", [["--print-capabilities"], ["--fd=x", "--print-capabilities", "--no-such-option"]]
)
def test_print_capabilities_answers_whatever_else_is_said(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The answer is JSON, alone on stdout, and the status 0.

    Spec: vhost-user, "Backend program conventions", --print-capabilities.
    """
    assert backend.main(argv) == 0

    out, err = capsys.readouterr()
    assert json.loads(out) == {"type": "block", "features": ["read-only", "blk-file"]}
    assert err == ""


def test_print_capabilities_comes_before_any_work() -> None:
    """A manager's question is answered before anything that serves is imported."""
    code = (
        "import sys; from vhostblk.cli import backend; backend.main(['--print-capabilities']);"
        "sys.exit(any(m in sys.modules for m in ('click', 'asyncio', 'cffi', 'construct')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 0


def test_description_for_discovery_is_in_the_package() -> None:
    """
    Managers find the program by a JSON file of its type and path.

    Spec: vhost-user.json, "VHostUserBackendInfo".
    """
    text = resources.files("vhostblk.cli").joinpath("50-vhostblk.json").read_text()
    description = json.loads(text)
    assert description["type"] == "block"
    assert description["binary"] == "/usr/bin/vhostblk-backend"
    assert description["description"] == "vhostblk vhost-user-blk"


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--fd=3"], "Missing option '--blk-file'."),
        (["--blk-file=x"], "Give --socket-path PATH or --fd FDNUM, one of them."),
        (
            ["--blk-file=x", "--fd=3", "--socket-path=y"],
            "Give --socket-path PATH or --fd FDNUM, one of them.",
        ),
    ],
)
def test_backend_says_what_is_missing(
    argv: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file to serve and one place to serve it are needed; the rest is optional."""
    assert backend.main(argv) == 2

    assert capsys.readouterr().err == f"vhostblk-backend: {line} See 'vhostblk-backend --help'.\n"


def test_lock_reaches_the_image(image: Path) -> None:
    """--lock=while-running leaves it to others while no guest runs."""
    path = image.with_name("s")
    words = ("--socket-path", path, "--blk-file", image, "--lock", "while-running")
    with running.start("-m", "vhostblk.cli.backend", *words, cwd=image.parent) as server:
        try:
            running.wait_for_socket(path, server)
            assert not held_bytes(image)
            with Guest.connect(path) as guest:
                guest.read(0, 512)
                assert held_bytes(image) >= {100, 101, 201}
            running.end(server)
        finally:
            server.kill()
