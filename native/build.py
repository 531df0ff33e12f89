"""
Generate a cffi module's C source from a contract: `include/vhostblk.h`, or `guest/driver.h`.

The text between the two ``cdef`` markers of each header is handed to cffi verbatim, so the
declarations exist once.
"""

import argparse
from pathlib import Path

import cffi

BEGIN, END = "/* cdef: begin */", "/* cdef: end */"


def cdef_text(header: str) -> str:
    """Return what stands between the markers of *header*."""
    return header.split(BEGIN, 1)[1].split(END, 1)[0]


def main() -> None:
    """Write the C source named last on the command line, out of the headers before it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("headers", type=Path, nargs="+", help="the last one includes the others")
    parser.add_argument("--module", required=True, help="what Python imports")
    parser.add_argument("output", type=Path)
    args = parser.parse_args()

    ffi = cffi.FFI()
    for header in args.headers:
        ffi.cdef(cdef_text(header.read_text(encoding="utf-8")))
    # py_limited_api: one wheel for every CPython from 3.11 on.
    include = f'#include "{args.headers[-1].name}"'
    ffi.set_source(args.module, include, py_limited_api=True)
    ffi.emit_c_code(str(args.output))


if __name__ == "__main__":
    main()
