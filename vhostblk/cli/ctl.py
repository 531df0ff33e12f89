"""``vhostblk ctl``: ask a server, or have it change what it serves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from vhostblk.cli import rpc, shown
from vhostblk.server.jsonrpc import Json

SECONDS = 120.0
"""How long an answer may take: a drain of the old disk, a flush, a drain of the new one."""

_F = TypeVar("_F", bound=Callable[..., object])


@dataclass(slots=True)
class Asking:
    """
    What the options of the group say.

    Args:
        control: The server's socket.
        seconds: How long an answer may take.
        raw: Print the answer as JSON.
    """

    control: Path
    seconds: float
    raw: bool

    def ask(self, method: str, params: Json = None) -> Json:
        """Call a method; see `rpc.call`."""
        return rpc.call(self.control, method, params, seconds=self.seconds)

    def tell(self, result: Json, text: Callable[[Json], str] | str) -> None:
        """Print an answer; *text*: for a person, where there is something to say."""
        said = json.dumps(result) if self.raw else text if isinstance(text, str) else text(result)
        if said:
            click.echo(said)


def _as_json(command: _F) -> _F:
    """Give a command ``--json``, which the group has, too."""

    def heed(context: click.Context, _param: click.Parameter, raw: bool) -> None:  # noqa: FBT001
        asking = context.find_object(Asking)
        if raw and asking is not None:
            asking.raw = True

    return click.option(
        "--json", is_flag=True, expose_value=False, callback=heed, help="Print the answer as JSON."
    )(command)


@click.group("ctl", short_help="Ask a server, or change what it serves.")
@click.option(
    "--control",
    required=True,
    metavar="PATH",
    envvar="VHOSTBLK_CONTROL",
    show_envvar=True,
    type=click.Path(path_type=Path),
    help="The socket given to `vhostblk serve --control`.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="How long an answer may take.",
)
@click.option("--json", "raw", is_flag=True, help="Print answers as JSON.")
@click.pass_context
def ctl(context: click.Context, *, control: Path, timeout: float, raw: bool) -> None:
    """
    Ask a server, or have it change what it serves.

    What each command does, and the protocol behind it: docs/reference/control.md.

    \b
    Examples:
      vhostblk ctl --control /run/vhostblk.sock list
      vhostblk ctl --control /run/vhostblk.sock status vm0.sock
    """  # noqa: D301 - \b keeps click from joining lines
    context.obj = Asking(control, timeout, raw)


@ctl.command("list")
@_as_json
@click.pass_obj
def list_devices(asking: Asking) -> None:
    """List the devices."""
    asking.tell(asking.ask("list"), shown.devices)


@ctl.command()
@click.argument("name", required=False)
@_as_json
@click.pass_obj
def status(asking: Asking, *, name: str | None) -> None:
    """Show what the devices and their guests do; of NAME, or of all."""
    if name is not None:
        asking.tell(asking.ask("status", {"device": name}), shown.status)
        return
    asking.tell(asking.ask("status"), shown.all_status)


@ctl.command()
@_as_json
@click.pass_obj
def shutdown(asking: Asking) -> None:
    """End the server, as SIGTERM does."""
    asking.tell(asking.ask("shutdown"), "the server ends")


@ctl.command()
@_as_json
@click.pass_obj
def version(asking: Asking) -> None:
    """Say which server answers."""
    asking.tell(asking.ask("version"), shown.version)


@ctl.command()
@click.argument("method")
@click.argument("params", required=False, metavar="[JSON]")
@click.pass_obj
def call(asking: Asking, *, method: str, params: str | None) -> None:
    """
    Call METHOD with parameters as JSON, and print the result as JSON.

    \b
    Example:
      vhostblk ctl --control /run/vhostblk.sock call status '{"device": "vm0.sock"}'
    """  # noqa: D301 - \b keeps click from joining lines
    asking.raw = True
    asking.tell(asking.ask(method, _params(params)), "")


def _params(text: str | None) -> Json:
    if text is None:
        return None
    try:
        params: Json = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}.") from None
    if not isinstance(params, list | Mapping):
        raise click.BadParameter(
            f"parameters are an object or an array, not {text}.", click.get_current_context()
        )
    return params
