"""
Which layers there are.

One table: a layer's name, and the module that knows how one is written and makes it.  A module is
imported when somebody names its layer.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Protocol, cast

from vhostblk.disk.api import Disk
from vhostblk.disk.grammar import LayerSpec
from vhostblk.disk.layer import Layer
from vhostblk.errors import VhostBlkError

LAYERS: Mapping[str, str] = {
    "cache": "vhostblk.disk.cache",
    "cow": "vhostblk.disk.cow",
    "cut": "vhostblk.disk.cut",
    "delay": "vhostblk.disk.delay",
    "error": "vhostblk.disk.error",
    "limit": "vhostblk.disk.limit",
    "log": "vhostblk.disk.log",
    "offset": "vhostblk.disk.offset",
    "partition": "vhostblk.disk.partition",
    "pause": "vhostblk.disk.pause",
    "record": "vhostblk.disk.record",
    "stats": "vhostblk.disk.stats",
    "truncate": "vhostblk.disk.truncate",
    "verify": "vhostblk.disk.verify",
    "zeroes": "vhostblk.disk.zeroes",
}
"""In the order of the alphabet, one a line."""


class LayerModule(Protocol):
    """
    What is needed of a layer's module.

    Attributes:
        OPTIONS: Those that can be written.
        FORM: How to write one, for errors and help.
    """

    OPTIONS: frozenset[str]
    FORM: str

    def build(self, below: Disk, options: Mapping[str, str]) -> Layer:
        """
        Make one of text.

        Args:
            below: The disk it is in front of; not open yet.
            options: As written; all of them are in `OPTIONS`.

        Raises:
            VhostBlkError: One line that says what to write.
        """
        ...


def layer_module(name: str) -> LayerModule:
    """
    Return what makes a layer.

    Args:
        name: One of `LAYERS`.
    """
    return cast("LayerModule", import_module(LAYERS[name]))


def stack(layers: Sequence[LayerSpec], disk: Disk) -> Disk:
    """
    Put layers in front of a disk; nothing is opened.

    Args:
        layers: The outermost first; looked at by `check`.
        disk: Not open yet.

    Raises:
        VhostBlkError: A value is none; one line that says what to write.
    """
    for layer in reversed(layers):
        disk = _build(layer, disk)
    return disk


def check(layers: Sequence[LayerSpec]) -> None:
    """
    Look at layers before anything is made.

    Args:
        layers: In any order.

    Raises:
        VhostBlkError: No such layer or option; one line that says what to write.
    """
    for layer in layers:
        if layer.name not in LAYERS:
            some = ", ".join(LAYERS)
            raise VhostBlkError(f"{layer}: no layer is called {layer.name!r} (there are {some})")
        module = layer_module(layer.name)
        for key in layer.options:
            if key not in module.OPTIONS:
                some = ", ".join(sorted(module.OPTIONS)) or "none"
                raise VhostBlkError(
                    f"{layer}: no option {key!r} for the layer {layer.name} (there are {some})"
                )


def _build(layer: LayerSpec, below: Disk) -> Disk:
    try:
        return layer_module(layer.name).build(below, layer.options)
    except VhostBlkError as error:
        text = str(error)
        raise VhostBlkError(
            text if text.startswith(f"{layer.name}:") else f"{layer.name}: {text}"
        ) from error
