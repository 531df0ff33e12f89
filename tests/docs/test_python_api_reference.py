"""The Python API's page names everything there is."""

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

import vhostblk
from vhostblk.layers import Layer

PAGE = (Path(__file__).parents[2] / "docs/reference/python-api.md").read_text()


@pytest.mark.parametrize("name", vhostblk.__all__)
def test_page_names_every_export(name: str) -> None:
    """Nothing the package exports is left out."""
    assert f"`{name}" in PAGE or f"`vhostblk.{name}(" in PAGE


@pytest.mark.parametrize("name", inspect.signature(vhostblk.serve).parameters)
def test_page_names_every_argument_of_serve(name: str) -> None:
    """Each argument has a row."""
    assert f"| `{name}` |" in PAGE


@pytest.mark.parametrize("name", [field.name for field in fields(vhostblk.DiskInfo)])
def test_page_names_every_field_of_disk_info(name: str) -> None:
    """Each field has a row."""
    assert f"| `{name}` |" in PAGE


@pytest.mark.parametrize(
    "name", [name for name, _ in inspect.getmembers(vhostblk.Disk, inspect.isfunction)]
)
def test_page_names_every_method_of_a_disk(name: str) -> None:
    """Each method of the contract has a row."""
    assert name.startswith("_") or f"| `{name}(" in PAGE


@pytest.mark.parametrize(
    "name",
    [
        *("name", "commands", "under", "settings", "change", "options"),
        *("counts", "counted", "inherit"),
    ],
)
def test_page_names_what_makes_a_layer(name: str) -> None:
    """Each member that a layer has beside the contract has a row."""
    assert hasattr(Layer, name)
    assert f"| `{name}" in PAGE.partition("## `Layer`")[2]
