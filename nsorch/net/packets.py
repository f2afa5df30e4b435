"""Packets as they pass an interface: AF_PACKET sockets, see packet(7), and filters for them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import re
import socket
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.errors import TopologyError, UnsupportedError
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

_ETH_P_ALL = 3
_SOL_PACKET, _STATISTICS, _AUXDATA = 263, 6, 8
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_OUTGOING = 4
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_AUX = struct.Struct("=IIIHHHH")  # status, length, kept, offsets of the link and network headers, VLAN tag and its type
_TIME = struct.Struct("@qq")
_INSTRUCTION = struct.Struct("=HBBI")
_BUFFER = 4 * 1024 * 1024

#: classic BPF: operation, jump if true, jump if false, operand
Instructions = Sequence[tuple[int, int, int, int]]
_NOTHING: Instructions = [(6, 0, 0, 0)]  # keeps no byte of any packet


@frozen(eq=False, repr=False)
class Packet(Value):
    """A frame, from its Ethernet header on.

    :ivar time_ns: when the kernel had it, nanoseconds since the epoch
    :ivar data: what was kept of it
    :ivar length: bytes of the whole frame
    :ivar end: of the link, as ``worker:interface``, or ``bridge (worker:interface)`` for a bridge's port
    :ivar outgoing: it left by this end; else it arrived
    """

    time_ns: int
    data: bytes
    length: int
    end: str
    outgoing: bool


class Tap:
    """What passes one interface.

    :param sock: AF_PACKET, SOCK_RAW, protocol 0, non-blocking, of the interface's namespace; closed with the tap
    :raises OSError: there is no such interface
    """

    def __init__(
        self, sock: socket.socket, interface: str, end: str, *, snaplen: int, instructions: Instructions | None
    ) -> None:
        self.sock = sock
        self.end = end
        self._snaplen = snaplen
        self._received = self._dropped = 0
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:  # up to net.core.rmem_max
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        if instructions is not None:
            attach(sock, instructions)
        # Before that it hears nothing: the protocol was 0.
        sock.bind((interface, _ETH_P_ALL))

    def read(self, most: int) -> Iterator[Packet]:
        """Up to *most* packets that are there.

        :raises OSError: ENETDOWN: the interface is gone
        """
        for _ in range(most):
            try:
                data, control, _, address = self.sock.recvmsg(self._snaplen, 256)
            except BlockingIOError:
                return
            except OSError as exc:
                # Told once of each time it goes down, too; bound to one that is gone, the socket knows no name.
                if exc.errno != errno.ENETDOWN or not self.sock.getsockname()[0]:
                    raise
                continue
            time_ns, length, tag = _parse_control(control)
            if tag is not None:
                data = (data[:12] + tag + data[12:])[: self._snaplen]
                length += len(tag)
            yield Packet(time_ns, data, max(length, len(data)), self.end, address[2] == _OUTGOING)

    def count(self) -> tuple[int, int]:
        """Packets so far that passed the filter, and those of them that the kernel had no room for."""
        try:
            received, dropped = struct.unpack("=II", self.sock.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        except OSError:
            received = dropped = 0
        # The kernel's counters begin anew with each look.
        self._received += received
        self._dropped += dropped
        return self._received, self._dropped

    def stop(self) -> None:
        """Take no more: only what is here already is left to be read.

        :raises OSError: the interface is gone
        """
        attach(self.sock, _NOTHING)

    def close(self) -> None:
        self.count()
        self.sock.close()


class StampProbe:
    """Whether the kernel stamps packets: it begins to some moments after the first socket has asked for it, and until
    then a packet's time is that of its reading."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setblocking(False)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._sock.bind(("127.0.0.1", 0))
        self._sock.connect(self._sock.getsockname())

    def send(self) -> None:
        self._sock.send(b"")

    def was_stamped(self) -> bool:
        """Whether the last one sent was, if some time has passed since.

        :raises BlockingIOError: it hasn't arrived
        """
        now = time.time_ns()
        return _parse_control(self._sock.recvmsg(1, 256)[1])[0] < now

    def close(self) -> None:
        self._sock.close()


def _parse_control(control: list[tuple[int, int, bytes]]) -> tuple[int, int, bytes | None]:
    time_ns = length = 0
    tag = None
    for level, kind, data in control:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanoseconds = _TIME.unpack_from(data)
            time_ns = seconds * 1_000_000_000 + nanoseconds
        elif level == _SOL_PACKET and kind == _AUXDATA:
            status, length, _, _, _, tci, tpid = _AUX.unpack_from(data)
            if status & _VLAN_VALID:
                # The kernel keeps the tag beside the packet.
                tag = struct.pack(">HH", tpid if status & _VLAN_TPID_VALID else 0x8100, tci)
    return time_ns, length, tag


def attach(sock: socket.socket, instructions: Instructions) -> None:
    """:raises TopologyError: these are no instructions, or the kernel refuses them"""
    try:
        program = b"".join(_INSTRUCTION.pack(*instruction) for instruction in instructions)
    except struct.error as exc:
        raise TopologyError(f"filter: an instruction is (operation, jump, jump, operand): {exc}") from None
    buffer = ctypes.create_string_buffer(program, len(program))
    try:
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
        )
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOMEM):
            raise TopologyError("filter: the kernel refuses these instructions") from None
        raise


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


def _load_libpcap() -> ctypes.CDLL:
    from ctypes.util import find_library  # which imports much

    # The first needs ldconfig or a compiler; Debian's soname is an old one.
    for name in (find_library("pcap"), "libpcap.so.1", "libpcap.so.0.8"):
        with contextlib.suppress(OSError):
            if name is not None:
                return ctypes.CDLL(name)
    raise UnsupportedError("a filter expression needs libpcap, which is not installed", stage="capture")


def compile_filter(expression: str, snaplen: int) -> list[tuple[int, int, int, int]]:
    """An expression of pcap-filter(7), for Ethernet, by libpcap.

    :raises TopologyError: it isn't one; in libpcap's words
    :raises UnsupportedError: there is no libpcap
    """
    if "\0" in expression:
        raise TopologyError(f"filter: null character in {expression!r}")
    try:
        encoded = expression.encode()
    except UnicodeEncodeError as exc:
        raise TopologyError(f"filter: {expression!r} is not Unicode: {exc.reason}") from None
    if re.search(r"\bvlan\b", expression):
        raise UnsupportedError(
            f'filter: "{expression}": the kernel keeps tags beside packets, where libpcap\'s "vlan" doesn\'t look',
            stage="capture",
        )
    pcap = _load_libpcap()
    pcap.pcap_open_dead.restype = ctypes.c_void_p
    pcap.pcap_geterr.restype = ctypes.c_char_p
    handle = ctypes.c_void_p(pcap.pcap_open_dead(1, snaplen))
    try:
        program = _Program()
        if pcap.pcap_compile(handle, ctypes.byref(program), encoded, 1, ctypes.c_uint(0xFFFFFFFF)):
            raise TopologyError(f'filter: "{expression}": {pcap.pcap_geterr(handle).decode(errors="replace")}')
        try:
            data = ctypes.string_at(program.instructions, program.length * _INSTRUCTION.size)
            return list(_INSTRUCTION.iter_unpack(data))
        finally:
            pcap.pcap_freecode(ctypes.byref(program))
    finally:
        pcap.pcap_close(handle)
