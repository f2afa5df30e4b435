"""What a worker sees of file systems, as frozen values that have been checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from attrs import Attribute, field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.converters import among
from nsorch.topology.kinds import absolute, at, each, flag, items, noted, shown, to_path
from nsorch.topology.values import made
from nsorch.values import Value

_SIZE = re.compile(r"\s*([0-9]+)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_MOST_BYTES = 1 << 63
_MOST_LAYERS = 499  # OVL_MAX_STACK, but for one of our own


def _absolute(where: str, value: Any) -> str:
    path = to_path(where, value)
    if not path.startswith("/"):
        raise TopologyError(f'{where}: "{path}" is not an absolute path inside the worker')
    return path


def size(value: Any) -> int:
    """Bytes: a number of them, or such as ``"64m"``, in powers of 1024.

    :raises ValueError: it is neither
    """
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MOST_BYTES:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    size = int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ") if match and len(match[1]) < 20 else 0
    if not 0 < size < _MOST_BYTES:
        raise ValueError(f"{shown(value)} is not a number of bytes above 0, or such as 64m")
    return size


def _layers(value: Any) -> tuple[str, ...]:
    layers = [value] if isinstance(value, str | os.PathLike) else value
    found = tuple(to_path("rootfs.lower", layer) for layer in items("rootfs.lower", layers, "paths"))
    if not 0 < len(found) <= _MOST_LAYERS:
        raise TopologyError(f"rootfs.lower: {len(found)} layers, not 1 to {_MOST_LAYERS}")
    return found


def _to_upper(value: Any) -> str | None:
    return None if value is None else to_path("rootfs.upper", value)


def _to_work(value: Any) -> str | None:
    return None if value is None else to_path("rootfs.work", value)


def _size(value: Any) -> int | None:
    try:
        return None if value is None else size(value)
    except ValueError as exc:
        raise TopologyError(f"size: {exc}") from None


def _to_upper_size(value: Any) -> int | None:
    try:
        return _size(value)
    except TopologyError as exc:
        raise TopologyError(f"rootfs.{exc.problems[0]}") from None


@frozen(kw_only=True, eq=False, repr=False)
class Overlay(Value):
    """See :func:`overlay`."""

    lower: tuple[str, ...] = field(converter=_layers)
    upper: str | None = field(default=None, converter=_to_upper)
    work: str | None = field(default=None, converter=_to_work)
    size: int | None = field(default=None, converter=_to_upper_size)

    def __attrs_post_init__(self) -> None:
        if self.work is not None and self.upper is None:
            raise TopologyError("rootfs.work: belongs to an upper directory, which isn't given")
        if self.size is not None and self.upper is not None:
            raise TopologyError("rootfs.size: is of an ephemeral upper directory, but one is given")
        work, upper = (_folder(f"rootfs.{name}", getattr(self, name)) for name in ("work", "upper"))
        if work and upper and (work.startswith(upper) or upper.startswith(work)):
            raise TopologyError("rootfs.work: is the upper directory, or one of both lies in the other")
        # They may lie in one, as in "/".
        for layer in self.lower:
            for name, folder in (("upper", upper), ("work", work)):
                if folder and _folder("rootfs.lower", layer).startswith(folder):
                    raise TopologyError(f'rootfs.{name}: the layer "{layer}" is the same directory, or lies in it')


def _folder(where: str, path: str | None) -> str:
    return "" if path is None else os.path.join(os.path.realpath(absolute(where, path)), "")


def overlay(*lower: Any, upper: Any = None, work: Any = None, size: Any = None) -> Overlay:
    """A root file system of read-only layers below one that takes all changes.

    :param lower: directories, the topmost first
    :param upper: directory of the changes; None for one on a tmpfs that goes with the worker
    :param work: an empty directory of the same file system, overlayfs's own; ``UPPER.work`` if None,
        made where missing
    :param size: bytes of an ephemeral upper directory, or such as ``"64m"``; the half of the memory if None
    """
    layers = lower[0] if len(lower) == 1 and not isinstance(lower[0], str | os.PathLike) else lower
    return Overlay(lower=layers, upper=upper, work=work, size=size)


def to_rootfs(value: Any) -> str | Overlay | None:
    if value is None or isinstance(value, Overlay):
        return value
    if isinstance(value, Mapping):
        unknown = set(value) - {"lower", "upper", "work", "size"}
        problems = [f"rootfs.{key}: unknown key" for key in sorted(map(str, unknown))]
        if "lower" not in value:
            problems.append("rootfs.lower: the directories below are missing")
        with noted(problems):
            overlay = made(Overlay, {"lower": "/"} | {key: item for key, item in value.items() if key not in unknown})
        if problems:
            raise TopologyError(*problems)
        return overlay
    return to_path("rootfs", value)


def _to_src(value: Any) -> str:
    return to_path("src", value)


def _to_dst(value: Any) -> str:
    path = _absolute("dst", value)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or parts[0] == "proc" or ".." in parts:
        raise TopologyError(f'dst: nothing can be mounted at "{path}": the root, /proc, and what leads up from a path')
    return path


PROPAGATIONS = ("private", "shared")


@frozen(kw_only=True, eq=False, repr=False)
class Bind(Value):
    """See :func:`bind`."""

    src: str = field(converter=_to_src)
    dst: str = field(converter=_to_dst)
    read_only: bool = field(default=False, validator=flag)
    recursive: bool = field(default=True, validator=flag)
    propagation: str = field(default="private", validator=among(PROPAGATIONS))


def _mode(instance: Any, attribute: Attribute[int], value: Any) -> None:  # noqa: ARG001
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 0o7777:
        raise TopologyError(f"mode: {shown(value)} is not a mode such as 0o1777")


@frozen(kw_only=True, eq=False, repr=False)
class Tmpfs(Value):
    """See :func:`tmpfs`."""

    dst: str = field(converter=_to_dst)
    size: int | None = field(default=None, converter=_size)
    mode: int = field(default=0o1777, validator=_mode)
    read_only: bool = field(default=False, validator=flag)
    exec: bool = field(default=True, validator=flag)


Mount = Bind | Tmpfs


def bind(
    src: Any, dst: Any = None, *, read_only: bool = False, recursive: bool = True, propagation: str = "private"
) -> Bind:
    """A file or directory of the host, to be seen in the worker.

    :param src: on the host
    :param dst: absolute, inside the worker; where *src* is if None. Made where the worker has a root file system of
        its own; symbolic links count inside of that
    :param read_only: also what is mounted below it, if *recursive*
    :param recursive: with what is mounted below *src*
    :param propagation: ``"private"``, or ``"shared"`` with the mount namespaces that the worker makes; never with the
        host's
    """
    return Bind(
        src=src,
        dst=_place(to_path("src", src)) if dst is None else dst,
        read_only=read_only,
        recursive=recursive,
        propagation=propagation,
    )


def _place(src: str) -> str:
    """Of a source, without ``..``."""
    if ".." not in src.split("/"):
        return os.path.abspath(absolute("src", src))
    folder, name = os.path.split(src)
    return os.path.realpath(src) if name in ("", ".", "..") else os.path.join(os.path.realpath(folder), name)


def tmpfs(dst: Any, *, size: Any = None, mode: int = 0o1777, read_only: bool = False, exec: bool = True) -> Tmpfs:  # noqa: A002
    """An empty file system in memory.

    :param dst: absolute, inside the worker
    :param size: bytes, or such as ``"64m"``; the half of the memory if None
    :param mode: of its top directory
    :param exec: whether programs may be run from it
    """
    return Tmpfs(dst=dst, size=size, mode=mode, read_only=read_only, exec=exec)


_KINDS: dict[str, type[Bind | Tmpfs]] = {"bind": Bind, "tmpfs": Tmpfs}
#: the keys of each kind in a file
MOUNT_KEYS = {
    "bind": ("type", "src", "dst", "read_only", "recursive", "propagation"),
    "tmpfs": ("type", "dst", "size", "mode", "read_only", "exec"),
}


def to_mounts(value: Any) -> tuple[Mount, ...]:
    if value is None:
        return ()
    return each("mounts", value, "mounts", _mount_at)


def _mount_at(where: str, value: Any) -> Mount:
    with at(where):
        return _mount(value)


def _mount(value: Any) -> Mount:
    if isinstance(value, Bind | Tmpfs):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TopologyError(f"type: {shown(value)} is neither of bind() and tmpfs() nor a table of type bind or tmpfs")
    problems = [f"{key}: unknown key of a {kind}" for key in value if key not in MOUNT_KEYS[kind]]
    table = {key: item for key, item in value.items() if key in MOUNT_KEYS[kind] and key != "type"}
    if isinstance(table.get("mode"), str):
        try:
            table["mode"] = int(table["mode"], 8)
        except ValueError:
            problems.append(f"mode: {shown(table.pop('mode'))} is not a mode such as 1777")
    missing = [key for key in ("src", "dst") if key in MOUNT_KEYS[kind] and key not in table]
    problems += [f"{key}: is missing" for key in missing]
    with noted(problems):
        mount = made(_KINDS[kind], dict.fromkeys(missing, "/x") | table)
    if problems:
        raise TopologyError(*problems)
    return mount


def _paths(name: str, value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    return each(name, value, "paths", _hidden)


def _hidden(where: str, value: Any) -> str:
    """In one spelling: what lies below ``/proc`` is told by it."""
    path = _absolute(where, value)
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if parts in ([], ["proc"]) or ".." in parts:
        raise TopologyError(
            f'{where}: "{path}" can\'t be hidden: the root (there is readonly_root), /proc as a whole, and what leads '
            "up from a path"
        )
    return f"/{'/'.join(parts)}"


def to_masked(value: Any) -> tuple[str, ...] | None:
    """Absolute paths inside a worker; None for what the preset says."""
    return _paths("masked", value)


def to_readonly_paths(value: Any) -> tuple[str, ...] | None:
    """Absolute paths inside a worker; None for what the preset says."""
    return _paths("readonly_paths", value)
