"""
The ``vhostblk-backend`` program: what a manager of virtual machines starts by itself.

A manager asks every back-end it finds for its capabilities, and expects an answer before any work:
so this file answers and imports nothing until there is something to serve.

Spec: vhost-user, "Backend program conventions"; vhost-user.json, "VHostUserBackendCapabilities".
"""

import sys
from collections.abc import Sequence

CAPABILITIES = '{"type": "block", "features": ["read-only", "blk-file"]}'


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run ``vhostblk-backend``.

    Args:
        argv: Arguments without the program's name; None: the process's own.

    Returns:
        The exit status.
    """
    words = sys.argv[1:] if argv is None else argv
    if "--print-capabilities" in words:
        sys.stdout.write(CAPABILITIES + "\n")
        return 0
    from vhostblk.cli import backend_command, report  # noqa: PLC0415 - see above

    return report.run(backend_command.backend, words, name="vhostblk-backend")


if __name__ == "__main__":
    sys.exit(main())
