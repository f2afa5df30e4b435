"""The text of a lab's hosts file. See hosts(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

HEAD = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"


class HostsEntry(NamedTuple):
    """A worker.

    :ivar loopback: its own addresses, which its name stands for first
    :ivar segments: addresses by the bridge, or the other worker of the link
    """

    name: str
    loopback: tuple[str, ...]
    segments: Mapping[str, tuple[str, ...]]


def render_entry(entry: HostsEntry) -> str:
    """Its lines: the name lists all its addresses, ``web.lan`` is the one on ``lan``."""
    lines = [f"{address} {entry.name}\n" for address in entry.loopback]
    for segment, addresses in entry.segments.items():
        lines += [f"{address} {entry.name} {entry.name}.{segment}\n" for address in addresses]
    return "".join(lines)
