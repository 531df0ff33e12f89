import struct
from collections.abc import Mapping
from pathlib import Path

import pytest

from vhostblk.cli import confidential, main

NEWER = {0x80000000: (0x80000020, 0, 0, 0), 0x8000001F: (0x0101FFFF, 0x4173, 0x1FD, 1)}
"""C-bit 51; the host itself loses 5 bits."""
OLDER = {0x80000000: (0x8000001F, 0, 0, 0), 0x8000001F: (0xF, 0x16F, 0xF, 5)}
"""C-bit 47."""


def cpuid(directory: Path, leaves: Mapping[int, tuple[int, int, int, int]]) -> Path:
    """Make a file that answers like the cpuid module's."""
    path = directory / "cpuid"
    with path.open("wb") as file:
        for number, registers in leaves.items():
            file.seek(number)
            file.write(struct.pack("<4I", *registers))
    return path


@pytest.mark.parametrize(("leaves", "bit"), [(NEWER, 51), (OLDER, 47)])
def test_cbitpos_is_what_the_host_says(
    tmp_path: Path, leaves: Mapping[int, tuple[int, int, int, int]], bit: int
) -> None:
    """
    Bits 5:0 of EBX, whatever else stands there.

    Source: AMD64 APM volume 3, CPUID Fn8000_001F.
    """
    assert confidential.host_cbitpos(cpuid(tmp_path, leaves)) == bit


@pytest.mark.parametrize(
    "leaves",
    [
        {0x80000000: (0x80000008, 0, 0, 0), 0x8000001F: (0xF, 0x33, 0, 0)},
        {0x80000000: (0x8000001F, 0, 0, 0), 0x8000001F: (1, 0x33, 0, 0)},
        {0x80000000: (0x80000021, 0, 0, 0), 0x8000001F: (0, 0, 0, 0)},
        {},
    ],
    ids=["leaf past the last one", "SME only", "hidden by a hypervisor", "short file"],
)
def test_cbitpos_of_a_host_without_sev_is_unknown(
    tmp_path: Path, leaves: Mapping[int, tuple[int, int, int, int]]
) -> None:
    """What a CPU without SEV says there means something else, or nothing."""
    assert confidential.host_cbitpos(cpuid(tmp_path, leaves)) is None
    assert confidential.host_cbitpos(tmp_path / "none") is None


def test_line_has_the_cbitpos_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the host says is the default; what the user says is stronger."""
    monkeypatch.setattr(confidential, "CPUID", cpuid(tmp_path, OLDER))
    line = ["qemu-args", "--socket-path", "/s", "--sev-snp"]
    assert main.main(line) == 0
    assert ",cbitpos=47,reduced-phys-bits=1 " in capsys.readouterr().out
    assert main.main([*line, "--cbitpos", "50"]) == 0
    assert ",cbitpos=50,reduced-phys-bits=1 " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["qemu-args", "libvirt-xml"])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--sev --tdx", "Give one of them: --sev and --tdx."),
        ("--sev-es --sev-snp", "Give one of them: --sev-es and --sev-snp."),
        ("--cbitpos 51", "Give --cbitpos with --sev, --sev-es or --sev-snp."),
        ("--tdx --cbitpos 51", "Give --cbitpos with --sev, --sev-es or --sev-snp."),
        ("--tdx --policy 1", "Give --policy with --sev, --sev-es or --sev-snp."),
        ("--sev --policy 0x7", "Policy 0x7 asks for SEV-ES: say --sev-es."),
        ("--sev-es --policy 1", "Policy 0x1 does not ask for SEV-ES: set bit 2, 0x5."),
        (
            "--sev --policy x",
            "Invalid value for '--policy': 'x' is not a policy; give a number like 0x5.",
        ),
        ("--sev --cbitpos 12", "Invalid value for '--cbitpos': 12 is not in the range 32<=x<=63."),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    command: str, options: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what to give instead."""
    assert main.main([command, "--socket-path", "/s", *options.split()]) == 2

    assert capsys.readouterr() == (
        "",
        f"vhostblk {command}: {says} See 'vhostblk {command} --help'.\n",
    )
