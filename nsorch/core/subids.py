"""The ids that an ordinary user may map besides their own: subuid(5), subgid(5), and the programs that map them."""

from __future__ import annotations

import os
import pwd
from typing import TYPE_CHECKING

from nsorch.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: (first id inside, first outside, count) of the uids, of the gids
IdMaps = tuple[tuple[tuple[int, int, int], ...], ...]
_PROGRAMS = ("newuidmap", "newgidmap")
_FILES = ("/etc/subuid", "/etc/subgid")
_END = (1 << 32) - 1  # of ids; the last one means none (credentials(7))
_MOST_RANGES = 340  # UID_GID_MAP_MAX_EXTENTS


class SubIds:
    """What a supervisor without root maps: its caller as 0, and from 1 on the ranges that they were given.

    :ivar id_maps: as the kernel wants them
    :ivar programs: paths of newuidmap and newgidmap; empty where the caller's own ids are all
    """

    def __init__(self, id_maps: IdMaps, programs: tuple[str, ...] = ()) -> None:
        self.id_maps = id_maps
        self.programs = programs


def find_subids(wanted: bool | None) -> SubIds:
    """Read the files, which are short. Blocks for some 100 µs.

    :param wanted: False: never; None: where all that it takes is there; True: or else the error says what is missing
    :raises UnsupportedError: it is wanted and not there
    """
    own = (os.geteuid(), os.getegid())
    single = SubIds(tuple(((0, number, 1),) for number in own))
    if wanted is False:
        return single
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/bin", "/bin"))
    import shutil

    programs = tuple(found for name in _PROGRAMS if (found := shutil.which(name, path=path)))
    ranges = [ranges_in(file, own[0]) for file in _FILES]
    if len(programs) == len(_PROGRAMS) and all(ranges):
        return SubIds(tuple(_map(number, found) for number, found in zip(own, ranges, strict=True)), programs)
    if wanted:
        missing = [name for name in _PROGRAMS if not any(found.endswith(f"/{name}") for found in programs)]
        missing += [f"a line for the caller in {file}" for file, found in zip(_FILES, ranges, strict=True) if not found]
        raise UnsupportedError(
            "map more ids than the caller's own", stage="uid map", detail=f"missing: {', '.join(missing)}"
        )
    return single


def ranges_in(file: str, uid: int) -> list[tuple[int, int]]:
    """(first id, count) of each line ``name or uid:first:count`` that is about *uid*; others may be anything."""
    try:
        names = {str(uid), pwd.getpwuid(uid).pw_name}
    except KeyError:  # newuidmap refuses who has no name
        return []
    found = []
    try:
        with open(file, errors="surrogateescape") as lines:
            for line in lines:
                owner, _, rest = line.rstrip("\n").partition(":")
                first, _, count = rest.partition(":")
                if owner in names and first.isdecimal() and count.isdecimal() and int(count):
                    found.append((int(first), int(count)))
    except OSError:
        pass
    return found


def _map(own: int, ranges: list[tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    mapped = [(0, own, 1)]
    for first, count in ranges:
        for start, end in _unmapped(first, min(first + count, _END), mapped):
            mapped.append((mapped[-1][0] + mapped[-1][2], start, end - start))
    return tuple(mapped[:_MOST_RANGES])


def _unmapped(first: int, end: int, mapped: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of a range that no other has: a caller may be named twice, and the kernel refuses ranges that
    overlap."""
    for _, start, count in sorted(mapped, key=lambda ids: ids[1]):
        if first < min(start, end):
            yield first, min(start, end)
        first = max(first, start + count)
    if first < end:
        yield first, end
