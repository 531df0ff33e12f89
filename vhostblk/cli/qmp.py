"""
One command to a running QEMU over its monitor socket (QMP).

Source: QEMU, docs/interop/qmp-spec.rst.
"""

import json
import socket
from pathlib import Path
from typing import TextIO

from vhostblk.errors import VhostBlkError

_ANSWER_TIMEOUT_S = 10.0


def run(monitor: Path, command: str, **arguments: object) -> object:
    """
    Run one command on a connection of its own.

    Args:
        monitor: The socket QEMU listens on (-qmp unix:PATH,server=on).
        command: The command's name.
        arguments: Its arguments; an underscore in a name stands for QMP's hyphen.

    Returns:
        What QEMU returned.

    Raises:
        VhostBlkError: QEMU refused the command, hung up or does not answer.
    """
    named = {name.replace("_", "-"): value for name, value in arguments.items()}
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(str(monitor))
            with connection.makefile() as answers:
                _answer(answers)  # the greeting
                _call(connection, answers, "qmp_capabilities", {})
                return _call(connection, answers, command, named)
    except OSError as error:
        raise VhostBlkError(f"QEMU's monitor {monitor} does not answer: {error}") from error


def _call(
    connection: socket.socket, answers: TextIO, command: str, arguments: dict[str, object]
) -> object:
    message = json.dumps({"execute": command, "arguments": arguments})
    connection.sendall(message.encode() + b"\n")
    answer = _answer(answers)
    if "error" in answer:
        raise VhostBlkError(f"QEMU refused {command}: {answer['error']}")
    return answer["return"]


def _answer(answers: TextIO) -> dict[str, object]:
    """Read up to the next answer; events may come at any time and are passed over."""
    for line in answers:
        message: dict[str, object] = json.loads(line)
        if "event" not in message:
            return message
    raise VhostBlkError("QEMU closed its monitor")
