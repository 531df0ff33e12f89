"""``vhostblk ctl``: ask a server, or have it change what it serves."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from vhostblk.cli import rpc, shown
from vhostblk.cli.seconds import timeout_option
from vhostblk.disk.grammar import parse_size
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
@timeout_option(SECONDS, "How long an answer may take.")
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


@ctl.command(short_help="Serve one more device.")
@click.argument("disk")
@click.argument("settings", nargs=-1, metavar="KEY=VALUE...")
@_as_json
@click.pass_obj
def add(asking: Asking, *, disk: str, settings: tuple[str, ...]) -> None:
    """
    Serve DISK, too.

    KEY is an option of `vhostblk serve` with _ for -, or `name`; a VALUE is
    written as in a configuration file, where a text needs no quotes.

    \b
    Example:
      vhostblk ctl add memory:1G socket_path=/run/vm1.sock num_queues=4
    """  # noqa: D301 - \b keeps click from joining lines
    params: dict[str, Json] = {"disk": disk}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or key in params:
            raise click.BadParameter(f"{word!r} is not a KEY=VALUE, each key once.")
        params[key] = _value(key, value)
    asking.tell(asking.ask("add", params), lambda row: shown.devices([row]))


def _value(key: str, text: str) -> Json:
    """Read a value in the type that the key has; what does not fit is for the server to say."""
    from vhostblk.server.settings import KEYS  # noqa: PLC0415 - of many modules, for this command

    kind = KEYS[key].kind if key in KEYS else str
    if kind is bool and text in {"true", "false"}:
        return text == "true"
    try:
        return kind(text) if kind in {int, float} else text
    except ValueError:
        return text


@ctl.command()
@click.argument("name")
@_as_json
@click.pass_obj
def resume(asking: Asking, *, name: str) -> None:
    """Have the queues of NAME that an error has stopped try again."""
    asking.tell(asking.ask("resume", {"device": name}), lambda result: shown.resumed(name, result))


@ctl.command("layers")
@click.argument("name")
@_as_json
@click.pass_obj
def list_layers(asking: Asking, *, name: str) -> None:
    """Show the layers of the device NAME, and what they are set to."""
    asking.tell(asking.ask("layers", {"device": name}), shown.layers)


@ctl.command(short_help="Set a layer otherwise, or have it do something.")
@click.argument("name")
@click.argument("layer")
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--do", "do", metavar="COMMAND", default="", help="What it is to do, then.")
@_as_json
@click.pass_obj
def layer(asking: Asking, *, name: str, layer: str, settings: tuple[str, ...], do: str) -> None:
    """
    Set LAYER of the device NAME, or have it do something, while a guest uses it.

    LAYER is what `vhostblk ctl layers` calls it: its name, and where several
    have that name its place among them, like zeroes:2. KEY=VALUE are its
    options, as in front of a disk. Without any, what it is set to is shown.

    \b
    Examples:
      vhostblk ctl layer vm0.sock zeroes unmap=on
      vhostblk ctl layer vm0.sock pause --do resume
    """  # noqa: D301 - \b keeps click from joining lines
    values: dict[str, Json] = {}
    for word in settings:
        key, equals, value = word.partition("=")
        if not equals or key in values:
            raise click.BadParameter(f"{word!r} is not a KEY=VALUE, each key once.")
        values[key] = value
    params: dict[str, Json] = {"device": name, "layer": layer}
    if values:
        params["set"] = values
    if do:
        params["do"] = do
    asking.tell(asking.ask("layer", params), lambda result: shown.layer(result, do))


@ctl.command(short_help="Give a device another size.")
@click.argument("name")
@click.argument("size", required=False)
@_as_json
@click.pass_obj
def resize(asking: Asking, *, name: str, size: str | None) -> None:
    """
    Give the device NAME another SIZE, while it is used.

    SIZE is bytes, or a whole number with K, M, G, T behind it. Without SIZE the
    device looks at its disk again: use that for a block device, or a file that
    something else has made longer.

    A regular file is cut or made longer. The guest sees the new size at once; a
    file system in it has to be resized by the guest, before if it shrinks.
    """
    params: dict[str, Json] = {"device": name}
    if size is not None:
        params["size"] = parse_size(size)
    asking.tell(asking.ask("resize", params), lambda result: shown.resized(name, result))


@ctl.command(short_help="Serve another disk behind a device.")
@click.argument("name")
@click.argument("disk")
@click.option("--layer", metavar="LAYER", default="", help="A layer of the old disk, and")
@click.option("--do", "do", metavar="COMMAND", default="", help="what it is to do as its last.")
@_as_json
@click.pass_obj
def replace(asking: Asking, *, name: str, disk: str, layer: str, do: str) -> None:
    """
    Serve DISK, written as for `vhostblk serve`, behind the device NAME.

    The guest's requests wait meanwhile, and none is lost. What is on DISK should
    be what was on the old one, or the guest should expect something else.

    A layer that keeps what the guest has written can bring it to its disk when
    no request comes any more, so that nothing is missing there.

    \b
    Example:
      vhostblk ctl replace vm0.sock disk.img --layer cow --do commit
    """  # noqa: D301 - \b keeps click from joining lines
    params: dict[str, Json] = {"device": name, "disk": disk}
    if layer or do:
        params |= {"layer": layer, "do": do}
    asking.tell(asking.ask("replace", params), f"{name} serves {disk} now")


@ctl.command()
@click.argument("name")
@_as_json
@click.pass_obj
def reload(asking: Asking, *, name: str) -> None:
    """Serve the python: disk NAME with its code as it is now."""
    asking.tell(asking.ask("reload", {"device": name}), f"{name} runs its new code now")


@ctl.command(short_help="Have another worker serve a queue.")
@click.argument("name")
@click.argument("queue", type=click.IntRange(min=0))
@click.argument("worker", type=click.IntRange(min=0), required=False)
@_as_json
@click.pass_obj
def move(asking: Asking, *, name: str, queue: int, worker: int | None) -> None:
    """
    Have the thread WORKER serve QUEUE of the device NAME, both by number.

    Without WORKER the queue goes to a thread that has fewer queues, if there is
    one. The guest's requests wait for a moment, and none is lost.
    """
    params: dict[str, Json] = {"device": name, "queue": queue}
    if worker is not None:
        params["worker"] = worker
    asking.tell(asking.ask("move", params), lambda result: shown.moved(name, queue, result))


@ctl.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also if a front-end is connected: hang up on it.")
@_as_json
@click.pass_obj
def remove(asking: Asking, *, name: str, force: bool) -> None:
    """Serve the device NAME no longer."""
    params: dict[str, Json] = {"device": name, "force": force}
    asking.tell(asking.ask("remove", params), f"{name} is served no longer")


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
