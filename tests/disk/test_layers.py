"""The table of layers, and what every layer in it has."""

from importlib import import_module

import pytest

import vhostblk.layers
from vhostblk.disk.grammar import LayerSpec, parse
from vhostblk.disk.layer import Layer
from vhostblk.disk.layers import LAYERS, check, layer_module
from vhostblk.disk.make import SCHEMES
from vhostblk.errors import VhostBlkError


def _class(name: str) -> type[Layer]:
    """Return the class of a layer, which its module defines."""
    module = import_module(LAYERS[name])
    found = [
        one
        for one in vars(module).values()
        if isinstance(one, type)
        and issubclass(one, Layer)
        and one.__module__ == module.__name__
        and one.name == name
    ]
    assert len(found) == 1, f"{module.__name__} has one class with the name {name!r}"
    return found[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_its_row_says(name: str) -> None:
    """Its module says its options and its form, and has the class that bears the name."""
    module = layer_module(name)
    assert module.FORM.split("[")[0].split(":")[0] == name
    assert all(f"{option}=" in module.FORM for option in module.OPTIONS)
    assert not any("_" in option for option in module.OPTIONS)
    made = _class(name)
    assert all(callable(getattr(made, command)) for command in made.commands)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_can_be_imported_from_one_place(name: str) -> None:
    """`vhostblk.layers` has every class of the table."""
    made = _class(name)
    assert getattr(vhostblk.layers, made.__name__) is made
    assert made.__name__ in vhostblk.layers.__all__


def test_layers_and_disks_have_names_of_their_own() -> None:
    """A name is a layer's or a disk's, in order, and such that the grammar reads it."""
    assert not set(LAYERS) & set(SCHEMES)
    assert list(LAYERS) == sorted(LAYERS)
    for name in LAYERS:
        assert parse(f"{name}|null:1M").layers == (LayerSpec(name),)


@pytest.mark.parametrize("name", LAYERS)
def test_an_unknown_option_is_refused(name: str) -> None:
    """The message names those there are."""
    with pytest.raises(VhostBlkError, match=f"no option 'nonsense' for the layer {name} .there"):
        check([LayerSpec(name, {"nonsense": "1"})])
