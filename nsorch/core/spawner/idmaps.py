"""Maps of ids, and other small files of /proc."""

from __future__ import annotations

import os

#: ranges (first id inside, first outside, count) of uids, and of gids
IdMaps = tuple[tuple[tuple[int, int, int], ...], ...]


def map_ids(pid: int, id_maps: IdMaps, proc: int, *, deny_setgroups: bool = False) -> None:
    """Map ids in the user namespace of *pid*, as *proc* counts: one write each."""
    if deny_setgroups:
        write(f"{pid}/setgroups", "deny", proc)
    for name, ranges in zip(("uid_map", "gid_map"), id_maps, strict=True):
        write(f"{pid}/{name}", "".join("{} {} {}\n".format(*ids) for ids in ranges), proc)


def map_gids(pid: int, ranges: tuple[tuple[int, int, int], ...], proc: int) -> None:
    """The gids alone, as an ordinary user may: without setgroups."""
    write(f"{pid}/setgroups", "deny", proc)
    write(f"{pid}/gid_map", "".join("{} {} {}\n".format(*ids) for ids in ranges), proc)


def first_ids(maps: IdMaps) -> tuple[int, int]:
    """The first uid and gid that there are."""
    uid, gid = (ranges[0][0] for ranges in maps)
    return uid, gid


def own_maps(proc: int) -> IdMaps:
    """Those of the caller's user namespace, outside being the one above."""
    found = []
    for name in ("uid_map", "gid_map"):
        with open(os.open(f"self/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as file:
            found.append(tuple((*map(int, line.split()),) for line in file))
    return tuple(found)  # type: ignore[arg-type]


def has_helper(maps: IdMaps) -> bool:
    """Whether the helper's own ids, which are 0, are among them."""
    return all(any(outside == 0 for _, outside, _ in ranges) for ranges in maps)


def read(path: str, folder: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def write(path: str, text: str, folder: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
