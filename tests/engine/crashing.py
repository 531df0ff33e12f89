"""
The core with places to die at, and a process that can be seen to die there as often as one likes.

A process that is killed leaves what it shares with others as it is at that moment.  So to be killed
at a place is to have a copy taken there, to go on all the same, and then to find the copy: nobody
dies, and a test can say what comes next.  `native/tests/test_crash.c` kills real processes.
"""

import ctypes
import hashlib
import importlib
import importlib.machinery
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from engine.harness import SteppedEngine

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
MODULE = "vhostblk._native"
BINDING = "vhostblk.engine.native"

Hook = Callable[[str], None]


class Crashing:
    """
    The core with places to die at.

    Args:
        module: Its compiled module.
        path: Where that is.
        make: Makes an engine of it that is stepped by hand.
    """

    _TYPE = ctypes.CFUNCTYPE(None, ctypes.c_char_p)

    def __init__(self, path: Path, make: Callable[[], SteppedEngine]) -> None:
        self.make = make
        self._core = ctypes.CDLL(str(path))
        self._core.vhb_crash_name.restype = ctypes.c_char_p
        self._set_hook(None)

    def _set_hook(self, hook: Hook | None) -> None:
        self._hook = self._TYPE(0) if hook is None else self._TYPE(lambda name: hook(name.decode()))
        self._core.vhb_crash_set_hook(self._hook)

    @contextmanager
    def at(self, number: int, hook: Hook) -> Iterator[None]:
        """Call *hook* with the name of the place that is passed as the *number*-th."""
        passed = 0

        def count(name: str) -> None:
            nonlocal passed
            passed += 1
            if passed == number:
                hook(name)

        with self.everywhere(count):
            yield

    @contextmanager
    def everywhere(self, hook: Hook) -> Iterator[None]:
        """Call *hook* with the name of each place that is passed."""
        self._set_hook(hook)
        try:
            yield
        finally:
            self._set_hook(None)

    def places(self) -> set[str]:
        """Return the names of all places."""
        names: set[str] = set()
        index = 0
        while (name := self._core.vhb_crash_name(index)) is not None:
            names.add(cast("bytes", name).decode())
            index += 1
        return names


def _digest() -> str:
    seen = hashlib.sha256(sys.version.encode())
    for path in sorted(NATIVE.rglob("*")):
        if path.suffix in (".c", ".h", ".py") and "tests" not in path.parts:
            seen.update(path.read_bytes())
    return seen.hexdigest()[:16]


def build(cache: Path) -> Path:
    """Compile the core with places to die at, where this very source was not compiled before."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (gcc) to build the core with places to die at")
    done = cache / _digest() / "_native.so"
    if done.exists():
        return done
    shutil.rmtree(cache, ignore_errors=True)
    scratch = done.parent
    scratch.mkdir(parents=True)
    source, fresh = scratch / "_native.c", scratch / "fresh.so"
    include = NATIVE / "include"
    names = "vhostblk_values.h", "vhostblk_stages.h", "vhostblk.h"
    build: list[str | Path] = [sys.executable, NATIVE / "build.py", "--module", MODULE]
    subprocess.run([*build, *(include / name for name in names), source], check=True)
    command: list[str | Path] = [compiler, "-shared", "-fPIC", "-O1", "-std=gnu11"]
    command += ["-D_GNU_SOURCE", "-DVHB_CRASH_POINTS", f"-I{include}", f"-I{NATIVE / 'src'}"]
    command += [f"-I{sysconfig.get_path('include')}", source, *sorted(NATIVE.glob("src/*.c"))]
    subprocess.run([*command, "-l:liburing.a", "-lpthread", "-o", fresh], check=True)
    return fresh.rename(done)


def _load(path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def load(path: Path) -> Crashing:
    """Load it, and the binding once more on top of it, beside what is installed."""
    engines = importlib.import_module("vhostblk.engine")
    kept = {
        name: module for name, module in sys.modules.items() if name.startswith((MODULE, BINDING))
    }
    native = getattr(engines, "native", None)
    for name in kept:
        del sys.modules[name]
    try:
        sys.modules[MODULE] = _load(path)
        engine: Any = importlib.import_module(BINDING).NativeEngine
    finally:
        for name in [name for name in sys.modules if name.startswith((MODULE, BINDING))]:
            del sys.modules[name]
        sys.modules.update(kept)
        if native is not None:
            vars(engines)["native"] = native  # as an import had set it
    return Crashing(path, lambda: engine(threaded=False))
