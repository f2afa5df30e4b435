"""A netlink socket: batches of messages out, acknowledgements and the kernel's own words back."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from nsorch.errors import NetlinkError
from nsorch.net import messages
from nsorch.net.messages import NLM_F_ACK, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Sequence

    from nsorch.net.messages import Field

NETLINK_NETFILTER = 12  # not in the socket module
_SOL_NETLINK, _NETLINK_EXT_ACK = 270, 11
_NLMSGERR_ATTR_MSG = 1
_CAPPED, _EXTENDED = 0x100, 0x200
_HEADER = struct.Struct("=IHHII")
_FLAGS = struct.Struct("=H")
_SEQUENCE = struct.Struct("=I")
_DATAGRAM_BYTES = 16 * 1024
#: 50 veth pairs in a datagram hold send() for about 19 ms
_DATAGRAM_MESSAGES = 32
#: the kernel needs about 12 µs for a route
_COPIES = 128
# Longer datagrams need more than the kernel's usual net.core.wmem_default.
_USUAL_SEND_BUFFER = 64 * 1024
#: the kernel's datagrams have 32 KiB; what is larger than 128 KiB is mapped and unmapped each time
_MOST_RECEIVED = 64 * 1024
# Half the scheduler's tick of 4 ms.
_TURN = 0.002
_TIMEOUT = struct.pack("@ll", 30, 0)


class Request(NamedTuple):
    """A packed message, and what it is about, for the error."""

    data: bytes
    operation: str
    object: str


class NetnsHandle(NamedTuple):
    """A network namespace: its descriptor, a NETLINK_ROUTE socket opened inside, and a name for errors."""

    fd: int
    sock: socket.socket
    name: str


class Turns:
    """Gives the event loop its turn, which else may wait for the processor until the scheduler's next tick; but not
    after each datagram: since Linux 6.18 who yields goes behind all others, also busy ones of strangers."""

    def __init__(self) -> None:
        self._begun = 0.0

    def end(self) -> None:
        if time.monotonic() - self._begun > _TURN:
            os.sched_yield()
            self._begun = time.monotonic()


_turns = Turns()


class Netlink:
    """Around a NETLINK_ROUTE or NETLINK_NETFILTER socket, which stays its owner's. Blocks: for a thread of its own."""

    def __init__(self, sock: socket.socket, worker: str | None = None) -> None:
        self._sock = sock
        self._worker = worker
        self._sequence = int.from_bytes(os.urandom(3))
        sock.setblocking(True)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        sock.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)

    def transact(self, requests: Sequence[Request]) -> list[NetlinkError]:
        """Carry out all in order, and return the errors; the kernel goes on after one.

        :raises NetlinkError: the socket itself failed
        """
        errors: list[NetlinkError] = []
        start = 0
        while start < len(requests):
            size = 0
            end = start
            while end < len(requests) and end - start < _DATAGRAM_MESSAGES:
                size += len(requests[end].data)
                if size > _DATAGRAM_BYTES and end > start:
                    break
                end += 1
            errors += self._send(requests[start:end])
            start = end
        return errors

    def execute(self, requests: Sequence[Request]) -> None:
        """Carry out all; raise the first error, the others as its notes."""
        _raise_all(self.transact(requests))

    def _send(self, requests: Sequence[Request]) -> list[NetlinkError]:
        first = self._sequence + 1 & 0x7FFFFFFF
        last = self._sequence = first + len(requests) - 1
        datagram = bytearray()
        for sequence, request in enumerate(requests, first):
            at = len(datagram)
            datagram += request.data
            _SEQUENCE.pack_into(datagram, at + 8, sequence)
        _ask_for_ack(datagram, at)
        return self._carry_out(datagram, range(first, last + 1), (last,), lambda number: requests[number])

    def _carry_out(
        self, datagram: bytes | bytearray, sequence: range, ends: Container[int], request: Callable[[int], Request]
    ) -> list[NetlinkError]:
        """Send a datagram of messages of which the last asks for an acknowledgement: that is enough, because the kernel
        answers in order, and for each that failed.

        :param sequence: their numbers
        :param ends: those of them after whose answer none follows
        :param request: what the nth is
        :raises NetlinkError: the socket itself failed
        """
        errors = []
        over = False
        try:
            self._sock.send(datagram)
            _turns.end()
            while not over:
                for kind, flags, number, body in self._receive():
                    if kind == NLMSG_ERROR and number in sequence:
                        if failure := -_SEQUENCE_SIGNED.unpack_from(body)[0]:
                            failed = request(number - sequence.start)
                            errors.append(self._error(failed, failure, _explanation(flags, body)))
                        over |= number in ends
        except OSError as exc:
            raise self._error(request(0), _number(exc), "the netlink socket failed") from exc
        return errors

    def commit(self, requests: Sequence[Request]) -> None:
        """Carry out all at once, or nothing: a batch of nf_tables, in one datagram.

        :raises NetlinkError: the first, the others as its notes
        """
        from nsorch.net import nftables

        first = self._sequence + 1 & 0x7FFFFFFF
        last = self._sequence = first + len(requests) + 1
        edges = [nftables.batch_edge(kind) for kind in (nftables.BATCH_BEGIN, nftables.BATCH_END)]
        datagram = bytearray()
        for number, data in enumerate([edges[0], *(request.data for request in requests), edges[1]]):
            at = len(datagram)
            datagram += data
            if number == len(requests):
                _ask_for_ack(datagram, at)
            _SEQUENCE.pack_into(datagram, at + 8, first + number)
        if len(datagram) > _USUAL_SEND_BUFFER:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(datagram))
        whole = Request(b"", "commit", "rules")
        about = [whole, *requests, whole]
        _raise_all(self._carry_out(datagram, range(first, last + 1), (first, last - 1), about.__getitem__))

    def send_copies(
        self, template: bytes, fields: Sequence[Field], operation: str, name: Callable[[int], str]
    ) -> list[NetlinkError]:
        """Carry out *template* for each of the values of *fields*, many in a datagram; the errors, as :meth:`transact`.

        :param name: what the nth is about
        """
        errors: list[NetlinkError] = []
        count = len(fields[0].values) // fields[0].size
        for start in range(0, count, _COPIES):
            end = min(start + _COPIES, count)
            errors += self._send_copies(template, [field.part(start, end) for field in fields], operation, name, start)
        return errors

    def _send_copies(
        self, template: bytes, fields: Sequence[Field], operation: str, name: Callable[[int], str], start: int
    ) -> list[NetlinkError]:
        first = self._sequence + 1 & 0x7FFFFFFF
        last = self._sequence = first + len(fields[0].values) // fields[0].size - 1
        datagram = messages.copies(template, fields, first)
        return self._carry_out(
            datagram,
            range(first, last + 1),
            (last,),
            lambda number: Request(b"", operation, name(start + number)),
        )

    def dump(self, request: Request, kind: int) -> list[bytes]:
        """All messages of *kind* that answer a dump request, without their headers; again if it was disturbed."""
        for _ in range(10):
            bodies, interrupted = self._dump_once(request, kind)
            if not interrupted:
                break
        return bodies

    def _dump_once(self, request: Request, wanted: int) -> tuple[list[bytes], bool]:
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        datagram = bytearray(request.data)
        _SEQUENCE.pack_into(datagram, 8, self._sequence)
        bodies: list[bytes] = []
        interrupted = False
        try:
            self._sock.send(datagram)
            while True:
                for kind, flags, sequence, body in self._receive():
                    if sequence != self._sequence:
                        continue
                    interrupted |= bool(flags & NLM_F_DUMP_INTR)
                    if kind == NLMSG_ERROR:
                        number = -_SEQUENCE_SIGNED.unpack_from(body)[0]
                        raise self._error(request, number, _explanation(flags, body))
                    if kind == NLMSG_DONE:
                        return bodies, interrupted
                    if kind == wanted:
                        bodies.append(body)
        except OSError as exc:
            raise self._error(request, _number(exc), "the netlink socket failed") from exc

    def ask(self, request: Request) -> bytes:
        """The one message that answers a request, without its header."""
        self._sequence = self._sequence + 1 & 0xFFFFFFFF
        datagram = bytearray(request.data)
        _SEQUENCE.pack_into(datagram, 8, self._sequence)
        try:
            self._sock.send(datagram)
            while True:
                for kind, flags, sequence, body in self._receive():
                    if sequence == self._sequence:
                        if kind == NLMSG_ERROR:
                            number = -_SEQUENCE_SIGNED.unpack_from(body)[0]
                            raise self._error(request, number, _explanation(flags, body))
                        return body
        except OSError as exc:
            raise self._error(request, _number(exc), "the netlink socket failed") from exc

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, sequence number, body) of each message of the next datagram."""
        data = self._sock.recv(_MOST_RECEIVED)
        at = 0
        while at + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if length < _HEADER.size:
                return
            yield kind, flags, sequence, data[at + _HEADER.size : at + length]
            at += (length + 3) & ~3

    def _error(self, request: Request, number: int, detail: str) -> NetlinkError:
        return NetlinkError(request.operation, request.object, errno=number, detail=detail, worker=self._worker)


_SEQUENCE_SIGNED = struct.Struct("=i")


def _ask_for_ack(datagram: bytearray, at: int) -> None:
    """Of the message that begins *at* there."""
    _FLAGS.pack_into(datagram, at + 6, _FLAGS.unpack_from(datagram, at + 6)[0] | NLM_F_ACK)


def _raise_all(errors: Sequence[NetlinkError]) -> None:
    if errors:
        for other in errors[1:]:
            errors[0].add_note(str(other))
        raise errors[0]


def _explanation(flags: int, body: bytes) -> str:
    """The extended acknowledgement's text, see linux/netlink.h: it stands behind the copy of the request."""
    if not flags & _EXTENDED:
        return ""
    copied = _HEADER.size if flags & _CAPPED else _HEADER.unpack_from(body, 4)[0]
    found = attributes(body, 4 + ((copied + 3) & ~3))
    return found.get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


def _number(exc: OSError) -> int:
    return errno.ETIMEDOUT if exc.errno in (None, errno.EAGAIN) else exc.errno
