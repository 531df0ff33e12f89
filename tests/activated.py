"""
Starts a program as systemd starts one with sockets: ``activated.py FD:NAME... -- PROGRAM...``.

Source: sd_listen_fds(3).
"""

import os
import sys

FIRST = 3


def main(words: list[str]) -> None:
    end = words.index("--")
    sockets = [word.partition(":") for word in words[:end]]
    # High up first: one may be where another belongs.
    copies = [os.dup2(int(fd), 100 + at) for at, (fd, _, _) in enumerate(sockets)]
    for at, fd in enumerate(copies):
        os.dup2(fd, FIRST + at)
        os.close(fd)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.environ["LISTEN_FDS"] = str(len(sockets))
    os.environ["LISTEN_FDNAMES"] = ":".join(name for _, _, name in sockets)
    os.execvp(words[end + 1], words[end + 1 :])


if __name__ == "__main__":
    main(sys.argv[1:])
