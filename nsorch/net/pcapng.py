"""Captures as Wireshark reads them: PCAP Next Generation, draft-ietf-opsawg-pcapng. Pure."""

from __future__ import annotations

import struct

_SECTION, _INTERFACE, _STATISTICS, _PACKET = 0x0A0D0D0A, 1, 5, 6
_BYTE_ORDER = 0x1A2B3C4D
_ETHERNET = 1
_IF_NAME, _IF_RESOLUTION, _USER_APPLICATION, _FLAGS, _RECEIVED, _DROPPED = 2, 9, 4, 2, 4, 5
_NANOSECONDS = b"\x09"
_INBOUND, _OUTBOUND = struct.pack("=I", 1), struct.pack("=I", 2)


def section() -> bytes:
    """The head of a file."""
    return _block(_SECTION, struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1), (_USER_APPLICATION, b"nsorch"))


def interface(name: str, snaplen: int) -> bytes:
    """The next interface, numbered from 0. *snaplen* is in bytes."""
    body = struct.pack("=HHI", _ETHERNET, 0, snaplen)
    return _block(_INTERFACE, body, (_IF_NAME, name.encode()[:65535]), (_IF_RESOLUTION, _NANOSECONDS))


def packet(number: int, time_ns: int, data: bytes, length: int, *, outgoing: bool) -> bytes:
    """A packet of *length* bytes at interface *number*, of which *data* was kept; *time_ns* since the epoch."""
    body = struct.pack("=IIIII", number, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length) + _padded(data)
    return _block(_PACKET, body, (_FLAGS, _OUTBOUND if outgoing else _INBOUND))


def statistics(number: int, time_ns: int, received: int, dropped: int) -> bytes:
    """What was counted at interface *number* until *time_ns*."""
    body = struct.pack("=III", number, time_ns >> 32, time_ns & 0xFFFFFFFF)
    return _block(_STATISTICS, body, (_RECEIVED, struct.pack("=Q", received)), (_DROPPED, struct.pack("=Q", dropped)))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _block(kind: int, body: bytes, *options: tuple[int, bytes]) -> bytes:
    for code, value in options:
        body += struct.pack("=HH", code, len(value)) + _padded(value)
    body += bytes(4)  # the end of the options
    length = struct.pack("=I", len(body) + 12)
    return struct.pack("=I", kind) + length + body + length
