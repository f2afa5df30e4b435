"""ICMP echo from inside workers, thousands a second from one event loop, without any ``ping`` process."""

from __future__ import annotations

import collections
import os
import select
import socket
import struct
import time
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ECHO = struct.Struct("!BBHHH")
_REQUEST_4, _REPLY_4, _REQUEST_6, _REPLY_6 = 8, 0, 128, 129
_SOL_RAW, _ICMP_FILTER, _SOL_ICMPV6, _ICMP6_FILTER = 255, 1, 58, 1
_PAYLOAD = b"nsorch--"
# How long the loop may be held at a time.
_SLICE = 0.0005


@frozen
class Probe:
    """To be asked: *source* is a key of the sockets, *target* a name for the result."""

    source: str
    target: str
    address: IPv4Address | IPv6Address


@frozen(kw_only=True)
class ProbeResult:
    """*rtt* in seconds, or None with the reason in *error*."""

    source: str
    target: str
    address: IPv4Address | IPv6Address
    rtt: float | None
    error: str = ""


@frozen
class Reachability:
    """Who reaches whom: the result of each (source, target)."""

    pairs: Mapping[tuple[str, str], ProbeResult]

    @property
    def ok(self) -> bool:
        """Whether every pair answered."""
        return not self.failed

    @property
    def failed(self) -> list[ProbeResult]:
        return [result for result in self.pairs.values() if result.rtt is None]

    @property
    def loss(self) -> float:
        """Fraction of the pairs that didn't answer."""
        return len(self.failed) / len(self.pairs) if self.pairs else 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON types; times in seconds."""
        return {
            "ok": self.ok,
            "pairs": [
                {
                    "source": result.source,
                    "target": result.target,
                    "address": str(result.address),
                    "rtt": result.rtt,
                    "error": result.error,
                }
                for result in self.pairs.values()
            ],
        }


@define(eq=False)
class _Pending:
    index: int
    probe: Probe
    attempt: int
    sent: float
    deadline: float


class _Source:
    """One raw socket and the probes that it waits for, by sequence number."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ipv6 = sock.family == socket.AF_INET6
        self.identifier = int.from_bytes(os.urandom(2))
        self.sequence = 0
        self.waiting: dict[int, _Pending] = {}
        # Only echo replies: a raw socket would get a copy of every other ICMP message.
        if self.ipv6:
            mask = bytearray(b"\xff" * 32)
            mask[_REPLY_6 // 8] &= ~(1 << _REPLY_6 % 8) & 0xFF
            # 32-bit words in the machine's order, see linux/icmpv6.h
            words = struct.unpack("<8I", mask)
            sock.setsockopt(_SOL_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
        else:
            sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _REPLY_4) & 0xFFFFFFFF))

    def send(self, address: IPv4Address | IPv6Address) -> int:
        self.sequence = self.sequence + 1 & 0xFFFF
        kind = _REQUEST_6 if self.ipv6 else _REQUEST_4
        packet = _ECHO.pack(kind, 0, 0, self.identifier, self.sequence) + _PAYLOAD
        if not self.ipv6:  # the kernel does it for ICMPv6 (RFC 3542)
            packet = _ECHO.pack(kind, 0, _checksum(packet), self.identifier, self.sequence) + _PAYLOAD
        self.sock.sendto(packet, (str(address), 0))
        return self.sequence

    def receive(self) -> tuple[int, str] | None:
        """(sequence number, address) of the next reply to one of ours, (-1, "") for another packet, None if none."""
        try:
            data, (address, *_) = self.sock.recvfrom(1024)
        except BlockingIOError:
            return None
        start = 0 if self.ipv6 else (data[0] & 0x0F) * 4
        if len(data) < start + _ECHO.size:
            return -1, ""
        kind, _, _, identifier, sequence = _ECHO.unpack_from(data, start)
        if identifier != self.identifier or kind != (_REPLY_6 if self.ipv6 else _REPLY_4):
            return -1, ""
        return sequence, address


async def ping_pairs(
    sockets: Mapping[tuple[str, int], socket.socket],
    probes: Sequence[Probe],
    *,
    timeout: float = 1.0,
    attempts: int = 3,
    window: int = 256,
) -> list[ProbeResult]:
    """Send an echo request for each of *probes*, and again where none answers.

    :param sockets: raw, non-blocking ICMP or ICMPv6 sockets by (source, address family); they stay their owner's
    :param timeout: seconds to wait for the answer to one attempt
    :param window: how many are under way at a time
    :return: a result for each probe, in the same order. Cancelled, nothing goes on
    """
    with select.epoll() as poll:
        engine = _Engine(sockets, poll, timeout, attempts, len(probes))
        return await engine.run(probes, window)


class _Engine:
    def __init__(
        self,
        sockets: Mapping[tuple[str, int], socket.socket],
        poll: select.epoll,
        timeout: float,
        attempts: int,
        count: int,
    ) -> None:
        self._sources = {key: _Source(sock) for key, sock in sockets.items()}
        self._by_fd = {source.sock.fileno(): source for source in self._sources.values()}
        self._poll = poll
        for fd in self._by_fd:
            poll.register(fd, select.EPOLLIN)
        self._timeout = timeout
        self._attempts = attempts
        self._results: list[ProbeResult | None] = [None] * count
        self._under_way = 0
        # In the order of their deadlines, because every attempt has the same time.
        self._timers: collections.deque[tuple[_Source, int, _Pending]] = collections.deque()

    async def run(self, probes: Sequence[Probe], window: int) -> list[ProbeResult]:
        todo = collections.deque((index, probe, 1) for index, probe in enumerate(probes))
        retries = self._retries = collections.deque[tuple[int, Probe, int]]()
        while todo or retries or self._under_way:
            end = time.monotonic() + _SLICE
            while (todo or retries) and self._under_way < window and time.monotonic() < end:
                self._ask(*(retries or todo).popleft())
            while time.monotonic() < end + _SLICE and (ready := self._poll.poll(0, 64)):
                for fd, _ in ready:
                    self._hear(self._by_fd[fd])
            self._expire()
            if (todo or retries) and self._under_way < window:
                await anyio.lowlevel.checkpoint()
            elif self._timers:
                with anyio.move_on_after(max(0.0, self._timers[0][2].deadline - time.monotonic())):
                    await anyio.wait_readable(self._poll.fileno())
        await anyio.lowlevel.checkpoint()
        return [result for result in self._results if result is not None]

    def _ask(self, index: int, probe: Probe, attempt: int) -> None:
        family = socket.AF_INET if probe.address.version == 4 else socket.AF_INET6
        source = self._sources[probe.source, family]
        now = time.monotonic()
        pending = _Pending(index, probe, attempt, time.perf_counter(), now + self._timeout)
        try:
            sequence = source.send(probe.address)
        except OSError as exc:
            self._finish(pending, None, exc.strerror or str(exc))
            return
        source.waiting[sequence] = pending
        self._timers.append((source, sequence, pending))
        self._under_way += 1

    def _hear(self, source: _Source) -> None:
        for _ in range(16):
            reply = source.receive()
            if reply is None:
                return
            sequence, address = reply
            pending = source.waiting.get(sequence)
            if pending is not None and ip_address(address.partition("%")[0]) == pending.probe.address:
                del source.waiting[sequence]
                self._under_way -= 1
                self._finish(pending, time.perf_counter() - pending.sent, "")

    def _expire(self) -> None:
        now = time.monotonic()
        while self._timers:
            source, sequence, pending = self._timers[0]
            if source.waiting.get(sequence) is not pending:
                self._timers.popleft()
                continue
            if pending.deadline > now:
                return
            self._timers.popleft()
            del source.waiting[sequence]
            self._under_way -= 1
            if pending.attempt < self._attempts:
                self._retries.append((pending.index, pending.probe, pending.attempt + 1))
            else:
                self._finish(pending, None, f"no answer to {pending.attempt} requests")

    def _finish(self, pending: _Pending, rtt: float | None, error: str) -> None:
        probe = pending.probe
        self._results[pending.index] = ProbeResult(
            source=probe.source, target=probe.target, address=probe.address, rtt=rtt, error=error
        )


def _checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
