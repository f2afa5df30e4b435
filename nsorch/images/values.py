"""What unpacking an image answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import field, frozen

from nsorch.values import Value


def _frozen_copy(values: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(values))


@frozen(kw_only=True, eq=False, repr=False)
class ImageConfig(Value):
    """How an image wants to be run; empty where it doesn't say.

    :ivar entrypoint: what :attr:`cmd` is appended to
    :ivar user: ``name``, ``uid`` or ``uid:gid``, of the image's own users
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: Mapping[str, str] = field(factory=dict, converter=_frozen_copy)
    cwd: str = ""
    user: str = ""

    @property
    def command(self) -> tuple[str, ...]:
        """Program and arguments."""
        return self.entrypoint + self.cmd

    def to_dict(self) -> dict[str, Any]:
        return {
            "entrypoint": list(self.entrypoint),
            "cmd": list(self.cmd),
            "env": dict(self.env),
            "cwd": self.cwd,
            "user": self.user,
        }


@frozen(kw_only=True, eq=False, repr=False)
class Unpacked(Value):
    """What :func:`nsorch.unpack` did.

    :ivar directory: the root file system, as an absolute path
    :ivar layers: how many were applied; 1 for a tarball
    :ivar entries: how many were read
    :ivar size: bytes that were written to files, holes of sparse ones aside
    :ivar config: of an image; None for a tarball
    :ivar digest: of the image's manifest, or ``""``
    :ivar notes: what was left out, and why, a line for each kind
    """

    directory: str
    layers: int
    entries: int
    size: int
    config: ImageConfig | None = None
    digest: str = ""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """In types that :mod:`json` writes."""
        return {
            "directory": self.directory,
            "layers": self.layers,
            "entries": self.entries,
            "size": self.size,
            "config": None if self.config is None else self.config.to_dict(),
            "digest": self.digest,
            "notes": list(self.notes),
        }
