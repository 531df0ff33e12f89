"""The guide to ordering bugs: typed from top to bottom, it prints what it shows."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import running

PAGE = (running.ROOT / "docs/how-to/find-ordering-bugs.md").read_text()
FILES = re.compile(r"^```python\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"^```sh\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
OF_A_GUEST = "vm.trace"
"""In a block that needs a recording of a real guest; tests/test_real_powercut.py has one."""
MARK = "-- next block --"


@pytest.mark.slow
def test_what_the_page_shows_is_what_happens(tmp_path: Path) -> None:
    """The bug is found at the request and by the seed that the page names; mended, it is not."""
    here = PAGE.replace("/run/", f"{tmp_path}/")
    for name, text in FILES.findall(here):
        (tmp_path / name).write_text(text)
    blocks = [(typed, shown) for typed, shown in TYPED.findall(here) if OF_A_GUEST not in typed]
    script = f"set -eu\nPATH={tmp_path}/bin:$PATH\n"
    script += f"echo '{MARK}'\n".join(typed for typed, _ in blocks)
    (tmp_path / "bin").mkdir()
    for name, words in (("python", ""), ("vhostblk", "-m vhostblk")):
        program = tmp_path / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {words} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", script.replace("{}'\n", "{}' || [ $? = 3 ]\n")],  # a bad state is no end
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout.split(f"{MARK}\n")
    assert len(said) == len(blocks)
    for (typed, shown), out in zip(blocks, said, strict=True):
        if shown:
            assert re.fullmatch(re.escape(shown).replace("…", ".*"), out), (typed, out)
