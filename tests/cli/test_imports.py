"""What a server holds in memory for as long as it runs."""

import os
import subprocess
import sys

import pytest
from running import PACKAGES

STARTED = (
    "import sys\n"
    "from vhostblk.cli.main import vhostblk\n"
    "try:\n"
    "    vhostblk(['serve', '--config', '/nowhere'], standalone_mode=False)\n"
    "except Exception as error:\n"
    "    print(error)\n"
    "print(*sys.modules)\n"
)
OTHERS = ("vhostblk.guest", "vhostblk.cli.demo", "vhostblk.cli.ctl", "vhostblk.engine.reference")


@pytest.mark.slow
def test_serve_imports_no_other_command() -> None:
    """The fake guest, the other commands and the other data plane cost a server no memory."""
    command = [sys.executable, "-c", STARTED]
    environ = {**os.environ, "PYTHONPATH": PACKAGES}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environ)
    error, modules = done.stdout.splitlines()
    assert error == "/nowhere: No such file or directory"
    loaded = modules.split()
    assert "vhostblk.server.serve" in loaded
    assert [one for one in loaded if one.startswith(OTHERS)] == []
