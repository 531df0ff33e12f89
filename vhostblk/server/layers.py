"""
The layers of a disk, as an operator sees and changes them.

All of it runs on the disk's thread, between two requests; what a layer raises is told, and costs
nothing else.
"""

import asyncio
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from math import isfinite
from typing import Protocol, TypedDict, TypeVar, cast

from vhostblk.disk.grammar import DiskSpec
from vhostblk.disk.layer import Layer, Value
from vhostblk.errors import VhostBlkError
from vhostblk.server.jsonrpc import Json

LOOK_SECONDS = 1.0
"""How long a disk that is busy is waited for, by those who only want to see its layers."""
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class OnThread(Protocol):
    """Work on a disk's thread."""

    def __call__(self, work: Coroutine[object, object, _T], /) -> asyncio.Future[_T]:
        """Do it."""
        ...


class LayerRow(TypedDict):
    """
    A layer.

    Attributes:
        name: Its own; with its place among them, like ``zeroes:2``, where several have that name.
        settings: What it says of itself.
        commands: What it can be told to do.
    """

    name: str
    settings: Mapping[str, Value]
    commands: Sequence[str]


@dataclass(frozen=True, slots=True)
class Order:
    """
    What an operator wants of a layer.

    Args:
        layer: Its name, as in `LayerRow`.
        values: What it is to be set to, text by option; first.
        command: What it is to do then; empty: nothing.
    """

    layer: str
    values: Mapping[str, str]
    command: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """
    What has become of an order.

    Args:
        index: Which layer it was.
        values: What is to be written of it otherwise from now on.
        row: What it is set to then.
        result: What its command has returned.
        error: What it has raised instead.
    """

    index: int
    values: Mapping[str, str]
    row: LayerRow
    result: Mapping[str, Value] | None = None
    error: VhostBlkError | OSError | None = None


class Layers:
    """
    The layers of an open disk, for the control thread.

    Args:
        layers: The outermost first.
        on_thread: Does something on their disk's thread.

    Attributes:
        seen: What they have said of themselves when they were last asked.
    """

    def __init__(self, layers: Sequence[Layer], on_thread: OnThread) -> None:
        self.seen: Sequence[LayerRow] = ()
        self._layers = layers
        self._on_thread = on_thread
        self._orders: set[asyncio.Future[Done]] = set()
        self._ended = False

    async def look(self, *, seconds: float = LOOK_SECONDS) -> Sequence[LayerRow]:
        """Ask what they are set to; those of a disk that is stuck are as they last said."""
        if self._layers and not self._ended:
            with suppress(TimeoutError):
                self.seen = await asyncio.wait_for(self._on_thread(_rows(self._layers)), seconds)
        return self.seen

    async def counted(self) -> Sequence[tuple[str, Mapping[str, int]]]:
        """
        Return what each has counted, by name.

        Raises:
            TimeoutError: Their disk is stuck.
            Exception: Whatever one of them raised.
        """
        layers = self._layers

        async def counted() -> list[tuple[str, Mapping[str, int]]]:
            return [(layer.name, dict(layer.counted())) for layer in layers]

        if not layers:
            return ()
        return await asyncio.wait_for(self._on_thread(counted()), LOOK_SECONDS)

    async def options(self) -> Sequence[Mapping[str, str]]:
        """Return of each what is to be written of it; see `Layer.options`."""
        layers = self._layers

        async def options() -> list[Mapping[str, str]]:
            return [layer.options() for layer in layers]

        return await self._on_thread(options()) if layers else ()

    async def recall(self, told: Sequence[tuple[str, Mapping[str, int]]]) -> None:
        """
        Have them add what they have counted in another process, if they are the same still.

        Raises:
            TimeoutError: Their disk is stuck.
            Exception: Whatever one of them raised.
        """
        layers = self._layers

        async def recall() -> None:
            for layer, (_, counted) in zip(layers, told, strict=True):
                layer.recall(counted)

        if layers and [layer.name for layer in layers] == [name for name, _ in told]:
            await asyncio.wait_for(self._on_thread(recall()), LOOK_SECONDS)

    async def order(self, order: Order) -> Done:
        """Change one; see `carry_out`."""
        if self._ended:
            raise VhostBlkError("its disk is exchanged or closed now: ask again")
        asked = self._on_thread(carry_out(self._layers, order))
        self._orders.add(asked)
        try:
            return await asked
        finally:
            self._orders.discard(asked)

    @contextmanager
    def left_alone(self) -> Iterator[None]:
        """
        Take no orders, from now on, unless what is done in this context fails.

        Raises:
            VhostBlkError: One is being carried out, maybe with what another disk is to use.
        """
        if self._orders:
            raise VhostBlkError("a layer is doing what it was told to: try again later")
        self._ended = True
        try:
            yield
        except BaseException:
            self._ended = False
            raise

    async def end(self, *, seconds: float) -> None:
        """Take no more orders, and let what is done end, for so long."""
        self._ended = True
        if self._orders:
            await asyncio.wait(tuple(self._orders), timeout=seconds)


def as_text(values: Mapping[str, Json]) -> dict[str, str]:
    """
    Return options as they are written, of what JSON says: true is ``on``, 5 is ``5``.

    Raises:
        VhostBlkError: It is no option's value.
    """
    return {key: _text(key, value) for key, value in values.items()}


def _text(key: str, value: Json) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case str() | int() | float():
            text = str(value)
            if text.isprintable():
                return text
    raise VhostBlkError(f"{key} is set to a text, a number, true or false")


async def _rows(layers: Sequence[Layer]) -> list[LayerRow]:
    return [_row(name, layer) for name, layer in zip(names(layers), layers, strict=True)]


def names(layers: Sequence[Layer]) -> list[str]:
    """Return what layers are called, each by a name of its own."""
    many = Counter(layer.name for layer in layers)
    seen: Counter[str] = Counter()
    called = []
    for layer in layers:
        seen[layer.name] += 1
        called.append(layer.name if many[layer.name] == 1 else f"{layer.name}:{seen[layer.name]}")
    return called


async def carry_out(layers: Sequence[Layer], order: Order) -> Done:
    """
    Change a layer.

    Args:
        layers: All of a disk, the outermost first.
        order: What is wanted of one of them.

    Raises:
        VhostBlkError: There is no such layer or command, or it cannot be set like that.
    """
    index = _find(layers, order.layer)
    layer, name = layers[index], names(layers)[index]
    if order.command and order.command not in layer.commands:
        some = ", ".join(layer.commands) or "none"
        raise VhostBlkError(f"{name} has no command {order.command!r} (there are {some})")
    if order.values:
        with _told(name, "change"):
            layer.change(order.values)
    if not order.command:
        return Done(index, order.values, _row(name, layer))
    try:
        with _told(name, order.command):
            result = await _called(getattr(layer, order.command))
    except (VhostBlkError, OSError) as error:
        return Done(index, order.values, _row(name, layer), error=error)
    return Done(index, {**order.values, **layer.options()}, _row(name, layer), result)


def written(source: DiskSpec, index: int, layer: Layer, values: Mapping[str, str]) -> DiskSpec:
    """
    Return a disk as it would be written now that a layer is set otherwise.

    Args:
        source: As it was.
        index: Which layer of the disk it is.
        layer: That layer; where a program has put it there it is not in *source*.
        values: What it was set to, last.
    """
    if index >= len(source.layers) or source.layers[index].name != layer.name:
        return source
    old = source.layers[index]
    left = {key: text for key, text in old.options.items() if key not in values}
    new = replace(old, options={**left, **values})  # at the end, as one may hold for others
    return replace(source, layers=(*source.layers[:index], new, *source.layers[index + 1 :]))


def _find(layers: Sequence[Layer], name: str) -> int:
    called = names(layers)
    if name in called:
        return called.index(name)
    some = ", ".join(called) or "none"
    if name.endswith(":1") and name[:-2] in called:
        return called.index(name[:-2])
    if any(layer.name == name for layer in layers):
        raise VhostBlkError(f"several layers are called {name!r}: say which of {some}")
    raise VhostBlkError(f"no layer is called {name!r} (there are {some})")


def _row(name: str, layer: Layer) -> LayerRow:
    try:
        settings = {str(key): _value(value) for key, value in layer.settings().items()}
    except Exception as error:  # noqa: BLE001 - the layer's, whatever it is
        _log.exception("the layer %s raised in settings", name)
        settings = {"error": _line(error)}
    return {"name": name, "settings": settings, "commands": list(layer.commands)}


async def _called(command: Callable[[], object]) -> Mapping[str, Value] | None:
    result = command()
    if inspect.isawaitable(result):
        result = await cast("Awaitable[object]", result)
    if not isinstance(result, Mapping):
        return None
    return {str(key): _value(value) for key, value in result.items()}


@contextmanager
def _told(name: str, method: str) -> Iterator[None]:
    """Have what is wrong say whose it is."""
    try:
        yield
    except VhostBlkError as error:
        text = str(error)
        named = text.startswith(name.partition(":")[0] + ":")
        raise VhostBlkError(text if named else f"{name}: {text}") from error
    except OSError:
        raise
    except Exception as error:
        _log.exception("the layer %s raised in %s", name, method)
        raise VhostBlkError(f"the layer {name} raised in {method}: {_line(error)}") from error


def _value(value: object) -> Value:
    """Return what JSON can say."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return value if isinstance(value, float) and isfinite(value) else str(value)


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
