"""
The regions a front-end has named.

A table is a value: what would change it returns a new one, and which regions came and went.  The
caller installs the new table where it is used, and only then releases what went (or, when
installing failed, what came).  *Adding needs parked; removing needs drained.*
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from errno import EINVAL, ENOENT, ENOSPC
from itertools import pairwise

from vhostblk.errors import Refused
from vhostblk.memory.mapping import Mapping, file_identity
from vhostblk.spec.vhost_user import MAX_MEM_SLOTS

_TOP = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    Where a region is, as the front-end says it.

    Args:
        gpa: Guest physical address of its first byte.
        size: Bytes.
        uva: The same byte's address in the front-end.
    """

    gpa: int
    size: int
    uva: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """
    A region that shall be in the table.

    Args:
        place: Where it is.
        mmap_offset: Where it begins in *fd*, bytes.
        fd: What to map; taken over by whatever this is given to.
    """

    place: Place
    mmap_offset: int
    fd: int


@dataclass(frozen=True, slots=True)
class Region:
    """
    A region and its mapping.

    Args:
        place: Where it is.
        mapping: Its memory, *place.size* bytes of it.
    """

    place: Place
    mapping: Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """
    What a message does to the table.

    Args:
        table: The table from then on.
        kept: Regions that stay as they are.
        added: New ones; release their mappings when *table* is not taken into use.
        removed: Old ones; release their mappings when nothing runs on the old table any more.
    """

    table: "RegionTable"
    kept: tuple[Region, ...]
    added: tuple[Region, ...] = ()
    removed: tuple[Region, ...] = ()


def _check_size(place: Place) -> None:
    if place.size == 0:
        raise Refused(EINVAL, f"the memory region at {place.gpa:#x} has size 0")


def _check_overflow(wanted: Wanted) -> None:
    place = wanted.place
    for start in (place.gpa, place.uva, wanted.mmap_offset):
        if start + place.size > _TOP:
            raise Refused(EINVAL, f"{place.size:#x} bytes at {start:#x} are beyond 64 bits")


def _check_count(places: Sequence[Place]) -> None:
    if len(places) > MAX_MEM_SLOTS:
        raise Refused(ENOSPC, f"more than {MAX_MEM_SLOTS} memory regions")


def _check_gpa_overlap(places: Sequence[Place]) -> None:
    for low, high in pairwise(sorted(places, key=lambda place: place.gpa)):
        if low.gpa + low.size > high.gpa:
            raise Refused(EINVAL, f"memory regions overlap at guest physical address {high.gpa:#x}")


def _check_uva_overlap(places: Sequence[Place]) -> None:
    for low, high in pairwise(sorted(places, key=lambda place: place.uva)):
        if low.uva + low.size > high.uva:
            raise Refused(EINVAL, f"memory regions overlap at front-end address {high.uva:#x}")


def _check(wanted: Sequence[Wanted], places: Sequence[Place]) -> None:
    for one in wanted:
        _check_size(one.place)
        _check_overflow(one)
    _check_count(places)
    _check_gpa_overlap(places)
    _check_uva_overlap(places)


def _close(wanted: Sequence[Wanted]) -> None:
    for one in wanted:
        os.close(one.fd)


def _map_all(wanted: Sequence[Wanted]) -> tuple[Region, ...]:
    made: list[Region] = []
    try:
        for one in wanted:
            mapping = Mapping(one.fd, offset=one.mmap_offset, length=one.place.size)
            made.append(Region(one.place, mapping))
    except BaseException:
        # The one that failed has closed its own.
        _close(wanted[len(made) + 1 :])
        for region in made:
            region.mapping.release()
        raise
    return tuple(made)


def _is(region: Region, wanted: Wanted) -> bool:
    """Whether *wanted* is *region*, sent again: a table is sent whole to change a part."""
    mapping = region.mapping
    return (
        region.place == wanted.place
        and mapping.offset == wanted.mmap_offset
        and mapping.file == file_identity(wanted.fd)
    )


@dataclass(frozen=True, slots=True)
class RegionTable:
    """
    Regions, disjoint in guest physical and in front-end addresses.

    Args:
        regions: In the order of their guest physical addresses.
    """

    regions: tuple[Region, ...] = ()

    def _with(self, regions: Sequence[Region]) -> "RegionTable":
        return RegionTable(tuple(sorted(regions, key=lambda region: region.place.gpa)))

    def add(self, wanted: Wanted) -> Change:
        """
        Map one more region.

        Raises:
            Refused: It has no size, overlaps another, is one too many, or cannot be mapped; its
                descriptor is closed.

        Spec: vhost-user, "VHOST_USER_ADD_MEM_REG".
        """
        try:
            _check([wanted], [*(region.place for region in self.regions), wanted.place])
        except Refused:
            _close([wanted])
            raise
        added = _map_all([wanted])
        return Change(table=self._with(self.regions + added), kept=self.regions, added=added)

    def remove(self, place: Place) -> Change:
        """
        Leave one region out: the one with exactly this gpa, size and uva.

        Raises:
            Refused: There is none.

        Spec: vhost-user, "VHOST_USER_REM_MEM_REG".
        """
        removed = tuple(region for region in self.regions if region.place == place)
        if not removed:
            raise Refused(ENOENT, f"no memory region {place.size:#x}@{place.gpa:#x} to remove")
        kept = tuple(region for region in self.regions if region.place != place)
        return Change(table=RegionTable(kept), kept=kept, removed=removed)

    def replace(self, wanted: Sequence[Wanted]) -> Change:
        """
        Make the table exactly *wanted*; regions that are already here stay as they are.

        Raises:
            Refused: As for `add`; every descriptor is closed and nothing has changed.

        Spec: vhost-user, "VHOST_USER_SET_MEM_TABLE".
        """
        try:
            _check(wanted, [one.place for one in wanted])
        except Refused:
            _close(wanted)
            raise
        known = {region.place: region for region in self.regions}
        again = [one for one in wanted if one.place in known and _is(known[one.place], one)]
        new = [one for one in wanted if one not in again]
        _close(again)
        kept = tuple(known[one.place] for one in again)
        added = _map_all(new)
        removed = tuple(region for region in self.regions if region not in kept)
        return Change(table=self._with(kept + added), kept=kept, added=added, removed=removed)

    def at_uva(self, uva: int) -> Region | None:
        """Return the region that holds this front-end virtual address."""
        for region in self.regions:
            if region.place.uva <= uva < region.place.uva + region.place.size:
                return region
        return None

    def at_gpa(self, gpa: int) -> Region | None:
        """Return the region that holds this guest physical address."""
        for region in self.regions:
            if region.place.gpa <= gpa < region.place.gpa + region.place.size:
                return region
        return None

    def uva_to_gpa(self, uva: int) -> int:
        """
        Return the guest physical address of a front-end virtual one.

        Raises:
            Refused: No region holds it.
        """
        region = self.at_uva(uva)
        if region is None:
            raise Refused(EINVAL, f"no memory region holds front-end address {uva:#x}")
        return region.place.gpa + (uva - region.place.uva)
