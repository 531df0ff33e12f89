"""Ask the C compiler what a kernel header says."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROGRAM = """
#include <stddef.h>
#include <stdio.h>
{includes}
int main(void) {{
{lines}
    return 0;
}}
"""


def values(tmp_path: Path, headers: list[str], expressions: list[str]) -> dict[str, int]:
    """
    Return what each C expression is worth.

    Args:
        tmp_path: Where to compile.
        headers: Headers to include, as between the angle brackets.
        expressions: C constant expressions.
    """
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (gcc) to read the kernel's headers with")
    includes = "\n".join(f"#include <{header}>" for header in headers)
    lines = "\n".join(
        f'    printf("%llu\\n", (unsigned long long)({expression}));' for expression in expressions
    )
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROGRAM.format(includes=includes, lines=lines))
    subprocess.run([compiler, "-o", program, source], check=True)
    result = subprocess.run([program], check=True, capture_output=True, text=True)
    return dict(zip(expressions, map(int, result.stdout.split()), strict=True))
