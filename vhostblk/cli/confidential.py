"""
Confidential guests, as QEMU and libvirt are told of them.

QEMU makes every virtio device of such a guest ``iommu_platform=on,disable-legacy=on``; we say it
too, so that the line shows what the guest gets and can be tried without the hardware.  Source:
QEMU 10.0, hw/core/machine.c; docs/system/confidential-guest-support.rst.
"""

import enum
import os
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

import click

from vhostblk.cli.options import parsed

DEVICE_OPTIONS = ("iommu_platform=on", "disable-legacy=on")
OBJECT_ID = "cgs0"
CPUID = Path("/dev/cpu/0/cpuid")
"""The cpuid module's file: 16 bytes (eax, ebx, ecx, edx) at the number of the leaf."""
USUAL_CBITPOS = 51
"""Of the processors that have SEV-SNP; earlier ones have 47."""
REDUCED_PHYS_BITS = 1
"""What a guest loses, whatever the host does (QEMU, qemu-options.hx)."""

_MAX_EXTENDED_LEAF = 0x80000000
_ENCRYPTION_LEAF = 0x8000001F
_SEV_SUPPORTED = 1 << 1
_CBITPOS = 0x3F
_POLICY_ES = 1 << 2

_F = TypeVar("_F", bound=Callable[..., object])


class Technology(enum.Enum):
    """What encrypts the guest; the value is the option's name."""

    SEV = "sev"
    SEV_ES = "sev-es"
    SEV_SNP = "sev-snp"
    TDX = "tdx"

    @property
    def pins_memory(self) -> bool:
        """QEMU locks all of the guest's memory: KVM must not move an encrypted page."""
        return self in {Technology.SEV, Technology.SEV_ES}


_POLICIES = {Technology.SEV: 0x1, Technology.SEV_ES: 0x5, Technology.SEV_SNP: 0x30000}
"""QEMU's own: no debugging; for SEV-ES bit 2 as well; SNP: SMT allowed, bit 17 is always set."""
_TYPES = {Technology.SEV_SNP: "sev-snp", Technology.TDX: "tdx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidential:
    """
    A confidential guest.

    Args:
        technology: What encrypts it.
        cbitpos: Bit of a guest page table entry that says "encrypted"; AMD only.
        policy: What the host may do with the guest, in the firmware's bits; AMD only.
    """

    technology: Technology
    cbitpos: int = USUAL_CBITPOS
    policy: int | None = None

    @property
    def type(self) -> str:
        """The name QEMU's object (before "-guest") and libvirt's element have for it."""
        return _TYPES.get(self.technology, "sev")

    @property
    def effective_policy(self) -> int | None:
        """The policy, or QEMU's default; None: the technology has none."""
        return _POLICIES.get(self.technology) if self.policy is None else self.policy


def qemu_object(guest: Confidential) -> str:
    """Say what QEMU's -object is given."""
    words = [f"{guest.type}-guest", f"id={OBJECT_ID}"]
    if guest.technology is not Technology.TDX:
        words += [f"cbitpos={guest.cbitpos}", f"reduced-phys-bits={REDUCED_PHYS_BITS}"]
    if guest.policy is not None or guest.technology is Technology.SEV_ES:
        words.append(f"policy={guest.effective_policy:#x}")
    return ",".join(words)


def launch_security(guest: Confidential) -> ET.Element:
    """
    Make libvirt's element.

    Source: libvirt, formatdomain, "Launch Security": policy is mandatory for AMD's.
    """
    element = ET.Element("launchSecurity", type=guest.type)
    if guest.technology is not Technology.TDX:
        ET.SubElement(element, "cbitpos").text = str(guest.cbitpos)
        ET.SubElement(element, "reducedPhysBits").text = str(REDUCED_PHYS_BITS)
        ET.SubElement(element, "policy").text = f"{guest.effective_policy:#06x}"
    return element


def host_cbitpos(cpuid: Path) -> int | None:
    """
    Ask this host's CPU where its C-bit is.

    Args:
        cpuid: See `CPUID`.

    Returns:
        The bit; None: no cpuid module, not allowed, or not a CPU that has SEV.
    """
    try:
        fd = os.open(cpuid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A leaf past the last one answers with another leaf's bits on some CPUs.
        if _leaf(fd, _MAX_EXTENDED_LEAF)[0] < _ENCRYPTION_LEAF:
            return None
        eax, ebx, _, _ = _leaf(fd, _ENCRYPTION_LEAF)
    except (OSError, struct.error):
        return None
    finally:
        os.close(fd)
    return ebx & _CBITPOS if eax & _SEV_SUPPORTED else None


def _leaf(fd: int, number: int) -> tuple[int, ...]:
    return struct.unpack("<4I", os.pread(fd, 16, number))


class Said(TypedDict):
    """What a command gets from `options`."""

    sev: bool
    sev_es: bool
    sev_snp: bool
    tdx: bool
    cbitpos: int | None
    policy: int | None


def options(command: _F) -> _F:
    """Give a command ``--sev`` and its like; `chosen` makes a guest of them."""
    sev = click.option("--sev", is_flag=True, help="For a guest of AMD SEV.")
    sev_es = click.option("--sev-es", is_flag=True, help="For a guest of AMD SEV-ES.")
    sev_snp = click.option("--sev-snp", is_flag=True, help="For a guest of AMD SEV-SNP.")
    tdx = click.option(
        "--tdx", is_flag=True, help="For a guest of Intel TDX; needs QEMU 10.1 or newer."
    )
    cbitpos = click.option(
        "--cbitpos",
        type=click.IntRange(32, 63),
        metavar="BIT",
        help="AMD: where the C-bit is.  [default: what this host's CPU says, else 51]",
    )
    policy = click.option(
        "--policy",
        metavar="NUMBER",
        callback=parsed(_policy),
        help="AMD: the guest's policy.  [default: QEMU's; for --sev-es 0x5]",
    )
    return sev(sev_es(sev_snp(tdx(cbitpos(policy(command))))))


def _policy(text: str) -> int:
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise click.BadParameter(f"{text!r} is not a policy; give a number like 0x5.")
    return value


def chosen(said: Said) -> Confidential | None:
    """
    Make a guest of what `options` took.

    Returns:
        None: an ordinary guest.

    Raises:
        click.UsageError: The options do not go together.
    """
    given = zip(
        Technology, (said["sev"], said["sev_es"], said["sev_snp"], said["tdx"]), strict=True
    )
    technologies = [technology for technology, is_given in given if is_given]
    _check(technologies, said["cbitpos"], said["policy"])
    if not technologies:
        return None
    cbitpos = said["cbitpos"] or host_cbitpos(CPUID) or USUAL_CBITPOS
    return Confidential(technology=technologies[0], cbitpos=cbitpos, policy=said["policy"])


def _check(technologies: list[Technology], cbitpos: int | None, policy: int | None) -> None:
    context = click.get_current_context()
    names = " and ".join(f"--{technology.value}" for technology in technologies)
    if len(technologies) > 1:
        raise click.UsageError(f"Give one of them: {names}.", context)
    amd = technologies not in ([], [Technology.TDX])
    for option, value in (("--cbitpos", cbitpos), ("--policy", policy)):
        if value is not None and not amd:
            raise click.UsageError(f"Give {option} with --sev, --sev-es or --sev-snp.", context)
    es = policy is not None and bool(policy & _POLICY_ES)
    if technologies == [Technology.SEV] and es:
        raise click.UsageError(f"Policy {policy:#x} asks for SEV-ES: say --sev-es.", context)
    if technologies == [Technology.SEV_ES] and policy is not None and not es:
        raise click.UsageError(
            f"Policy {policy:#x} does not ask for SEV-ES: set bit 2, {policy | _POLICY_ES:#x}.",
            context,
        )
