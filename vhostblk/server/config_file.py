"""
The configuration file: many devices, and what they share.

TOML; ``[[device]]`` tables hold what `settings` knows, the keys above them are the server's.
Whatever is wrong is told with file, table and key.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vhostblk.engine.api import OnError
from vhostblk.engine.choose import EngineName
from vhostblk.engine.cpus import parse_cpus
from vhostblk.engine.poll import Poll
from vhostblk.errors import VhostBlkError
from vhostblk.server.settings import Key, Settings, check, read_settings

MAX_WORKERS = 256
SERVER_KEYS: Mapping[str, Key] = {
    "control": Key(str),
    "engine": Key(str, "auto", get_args(EngineName)),
    "workers": Key(int),
    "cpus": Key(str, ""),
    "poll": Key(str, "auto"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """
    What a configuration file says.

    Args:
        path: Where it is.
        control: Where to listen for operators; None: nowhere.
        engine: The data plane.
        workers: Threads of the native one at most; None: one for each CPU.
        cpus: The CPU of each of them, in their order; none: they run on any.
        poll: How long one looks on before it sleeps.
        devices: What to serve.
    """

    path: Path
    control: Path | None
    engine: EngineName
    workers: int | None
    cpus: tuple[int, ...]
    poll: Poll
    devices: tuple[Settings, ...]

    @property
    def shared(self) -> tuple[object, ...]:
        """What no running server can change."""
        return self.control, self.engine, self.workers, self.cpus, self.poll


def read_config(path: Path) -> Config:
    """
    Read a configuration file.

    Raises:
        VhostBlkError: It cannot be read, or says something that cannot be.
    """
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise VhostBlkError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # of TOML, and of UTF-8
        raise VhostBlkError(f"{path}: not TOML: {error}") from error
    try:
        return _config(path, document)
    except VhostBlkError as error:
        raise VhostBlkError(f"{path}: {error}") from error


def _config(path: Path, document: Mapping[str, object]) -> Config:
    tables = document.get("device", [])
    if not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise VhostBlkError("device is a list of tables: write [[device]] above each")
    said: dict[str, object] = {}
    for key, value in document.items():
        if key != "device":
            said[key] = _server_key(key, value)
    devices = tuple(_device(number, table) for number, table in enumerate(tables, start=1))
    control, engine = said.get("control"), said.get("engine", "auto")
    workers = found if isinstance(found := said.get("workers"), int) else None
    config = Config(
        path=path,
        control=None if control is None else Path(str(control)),
        engine=next(name for name in get_args(EngineName) if name == engine),
        workers=workers,
        cpus=parse_cpus(str(said.get("cpus", "")), workers=workers),
        poll=Poll.parse(str(said.get("poll", "auto"))),
        devices=devices,
    )
    _check(config)
    return config


def _server_key(key: str, value: object) -> object:
    if key not in SERVER_KEYS:
        known = ", ".join(SERVER_KEYS)
        raise VhostBlkError(
            f"there is no key {key!r} above the devices; there are {known}, "
            "and what is about one device stands in its [[device]]"
        )
    found = check(key, value, SERVER_KEYS)
    if key == "workers" and not (isinstance(found, int) and 1 <= found <= MAX_WORKERS):
        raise VhostBlkError(f"workers is 1 to {MAX_WORKERS}, not {found}")
    return found


def _device(number: int, table: Mapping[str, object]) -> Settings:
    try:
        return read_settings(table)
    except VhostBlkError as error:
        name = table.get("name")
        called = f" ({name})" if isinstance(name, str) and name.isprintable() else ""
        raise VhostBlkError(f"device {number}{called}: {error}") from error


def _check(config: Config) -> None:
    places: dict[object, str] = {}
    names: set[str] = set()
    for one in config.devices:
        if one.name in names:
            raise VhostBlkError(f"two devices are called {one.name!r}: give one of them a name")
        names.add(one.name)
        at = one.place
        place = at.listen_on or at.connect_to or at.fd or (at.systemd and f"systemd:{at.systemd}")
        if place in places:
            raise VhostBlkError(f"{places[place]} and {one.name} have one socket: {place}")
        places[place] = one.name
        if one.options.on_error is not OnError.REPORT and config.control is None:
            raise VhostBlkError(
                f"{one.name}: on_error {one.options.on_error} stops the guest's disk until an "
                "operator says go on: give control, too, for `vhostblk ctl resume`"
            )
