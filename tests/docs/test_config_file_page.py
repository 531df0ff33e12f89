"""The configuration file's page: its keys are those there are, its example is one."""

import re
from pathlib import Path

import pytest
import running

from vhostblk.cli.serve import serve
from vhostblk.server.config_file import SERVER_KEYS, read_config
from vhostblk.server.settings import KEYS, KINDS, Key

PAGE = (running.ROOT / "docs/reference/config-file.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
ROWS = {key: (kind, default, text) for key, kind, default, text in ROW.findall(PAGE)}
TYPES = {kind: text.removeprefix("a ") for kind, text in KINDS.items()}
NOT_IN_A_FILE = {"config", "check", "verbose", "quiet", "help"}


def test_page_has_a_row_for_each_key() -> None:
    """None is left out, none is made up."""
    assert set(ROWS) == {*KEYS, *SERVER_KEYS}


@pytest.mark.parametrize(("name", "key"), [*KEYS.items(), *SERVER_KEYS.items()])
def test_page_tells_type_default_and_values_of(name: str, key: Key) -> None:
    """As the code has them."""
    kind, default, text = ROWS[name]
    assert kind == TYPES[key.kind]
    if key.default not in {None, ""}:
        assert default.strip("`") == str(key.default).replace("True", "true").replace(
            "False", "false"
        )
    for value in key.allowed:
        assert f"`{value}`" in text


def test_every_option_of_serve_is_a_key() -> None:
    """With _ for -; what is not is of the command line's nature."""
    options = {str(one.name) for one in serve.params} - NOT_IN_A_FILE
    assert options - {*SERVER_KEYS} == set(KEYS) - {"name", "systemd"}
    assert {*SERVER_KEYS} <= options


def test_example_is_right(tmp_path: Path) -> None:
    """It reads as two devices."""
    (example,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "f.toml").write_text(example)
    config = read_config(tmp_path / "f.toml")
    assert [one.name for one in config.devices] == ["vm0.sock", "scratch"]
    assert config.devices[0].options.num_queues == 4
    assert str(config.devices[0].source) == "file:/dev/vg0/vm0,cache=none"
