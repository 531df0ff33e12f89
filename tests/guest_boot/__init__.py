"""
Real guests for the tests: where their parts are, who serves their disk, what they do with it.

The machine itself is :mod:`vhostblk.cli.guest_vm`, which the demonstration uses too.
"""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from vhostblk.cli import guest_vm
from vhostblk.errors import VhostBlkError

CHECKOUT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """Return this process's environment over the paths that `.ci/setup guest` left behind."""
    cache = Path(os.environ.get("VHOSTBLK_CACHE") or CHECKOUT / ".cache")
    tools = cache / "tools.env"
    lines = tools.read_text().splitlines() if tools.exists() else []
    return dict(line.split("=", 1) for line in lines) | dict(os.environ)


def tools() -> guest_vm.Tools:
    """Return what a guest is made of; skips the test, naming what is missing."""
    try:
        return guest_vm.find_tools(environment())
    except VhostBlkError as error:
        pytest.skip(f"{error}, or run `make setup`")


def old_tools() -> guest_vm.Tools:
    """Return the same with the QEMU of Debian's release, beside which ours is a backport."""
    old = environment().get("VHOSTBLK_OLD_QEMU")
    if old is None or not Path(old).exists():
        pytest.skip("no VHOSTBLK_OLD_QEMU: run `make setup`")
    return replace(tools(), qemu=Path(old))
