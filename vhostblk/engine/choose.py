"""Which data plane serves: the C core, or the reference engine where there is none."""

import importlib
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal, get_args

from vhostblk.engine.api import Engine
from vhostblk.engine.poll import Poll
from vhostblk.errors import VhostBlkError

EngineName = Literal["auto", "native", "reference"]

_NATIVE = "vhostblk.engine.native"
_REFERENCE = "vhostblk.engine.reference.engine"
_log = logging.getLogger(__name__)


def load(
    name: EngineName,
    *,
    workers: int | None = None,
    poll: Poll | None = None,
    cpus: Sequence[int] = (),
) -> Engine:
    """
    Make a data plane.

    Args:
        name: ``auto``: the C core, or with one warning the reference engine where it is missing.
        workers: Threads of the C core at most; None: as many as there are CPUs for them.
        poll: How long a worker of the C core looks on before it sleeps; None: as it pays.
        cpus: The CPU of each of these threads, in their order; none: they run on any.

    Raises:
        VhostBlkError: ``native`` was asked for and is missing, there is no such engine, or one of
            *cpus* is not there.
    """
    if name not in get_args(EngineName):
        raise VhostBlkError(f"no engine {name!r}: there are {', '.join(get_args(EngineName))}")
    if name == "reference":
        return _reference()
    try:
        return _native(workers, poll, cpus)
    except ImportError as error:
        if name == "native":
            raise VhostBlkError(
                f"this installation has no compiled core ({error}): install a wheel, or build "
                "with a C compiler and liburing-dev"
            ) from error
        _log.warning("no compiled core (%s): serving slowly, with the reference engine", error)
        return _reference()


def preload(name: EngineName) -> None:
    """Import what `load` is going to need; what is missing is for it to say."""
    if name != "reference":
        with suppress(ImportError):
            importlib.import_module(_NATIVE)
            return
    importlib.import_module(_REFERENCE)


def _native(workers: int | None, poll: Poll | None, cpus: Sequence[int]) -> Engine:
    # Imported here and by name: where there was no compiler the module's own import fails.
    module = importlib.import_module(_NATIVE)
    engine: Engine = module.NativeEngine(workers, poll=poll, cpus=cpus)
    return engine


def _reference() -> Engine:
    # By name, too: who is served by the C core need not hold this one in memory.
    engine: Engine = importlib.import_module(_REFERENCE).ReferenceEngine()
    return engine
