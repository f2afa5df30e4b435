"""ICMP echo from inside workers, thousands a second from one event loop, without any ``ping`` process."""

from __future__ import annotations

import collections
import errno
import fcntl
import math
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any, overload

import anyio
from attrs import frozen

from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

_ECHO = struct.Struct("!BBHHH")
_REQUEST_4, _REPLY_4, _REQUEST_6, _REPLY_6 = 8, 0, 128, 129
_SOL_RAW, _ICMP_FILTER, _SOL_ICMPV6, _ICMP6_FILTER = 255, 1, 58, 1
_PAYLOAD = b"nsorch--"
# struct arpreq of linux/if_arp.h: protocol address, hardware address, flags, netmask, interface
_ARPREQ, _SIOCDARP = struct.Struct("=H2x4s8x16xi16x16s"), 0x8953
# How long the loop may be held at a time.
_SLICE = 0.0005


@frozen(eq=False, repr=False)
class Probe(Value):
    """To be asked: *source* is a key of the sockets, *target* a name for the result."""

    source: str
    target: str
    address: IPv4Address | IPv6Address


@frozen(kw_only=True, eq=False, repr=False)
class ProbeResult(Value):
    """*rtt* in seconds, or None with the reason in *error*."""

    source: str
    target: str
    address: IPv4Address | IPv6Address
    rtt: float | None
    error: str = ""


class Probes(Sequence[Probe]):
    """Half a million of them, without an object for each: the garbage collector would stop the loop for long."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._numbers: dict[str, int] = {}
        self._sources = array("I")
        self._targets = array("I")
        self._addresses: list[IPv4Address | IPv6Address] = []

    def add(self, source: str, target: str, address: IPv4Address | IPv6Address) -> None:
        """*address* is best one object for all probes to it."""
        self._sources.append(self._number(source))
        self._targets.append(self._number(target))
        self._addresses.append(address)

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number

    def select(self, numbers: Sequence[int]) -> Probes:
        """Some of them, in that order."""
        if numbers == range(len(self)):
            return self
        some = Probes()
        some._names, some._numbers = self._names, self._numbers
        some._sources = array("I", [self._sources[number] for number in numbers])
        some._targets = array("I", [self._targets[number] for number in numbers])
        some._addresses = [self._addresses[number] for number in numbers]
        return some

    def pair(self, number: int) -> tuple[str, str]:
        return self._names[self._sources[number]], self._names[self._targets[number]]

    def key(self, number: int) -> int:
        """A number for the pair."""
        return self._sources[number] << 32 | self._targets[number]

    def opposite_key(self, number: int) -> int:
        return self._targets[number] << 32 | self._sources[number]

    def find(self, pair: tuple[str, str]) -> int:
        """The :meth:`key` of *pair*.

        :raises KeyError: there is no such worker
        """
        return self._numbers[pair[0]] << 32 | self._numbers[pair[1]]

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Probe: ...

    @overload
    def __getitem__(self, index: slice) -> list[Probe]: ...

    def __getitem__(self, index: int | slice) -> Probe | list[Probe]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return Probe(*self.pair(index), self._addresses[index])


class Outcome:
    """What became of each probe: seconds, NaN for none, and why.

    :ivar errors: by the number of the probe
    """

    def __init__(self, count: int = 0) -> None:
        self.rtts = array("d", [math.nan]) * count
        self.errors: dict[int, str] = {}

    def place(self, numbers: Sequence[int], other: Outcome) -> None:
        """What became of those with *numbers*, in that order."""
        self.errors.update({numbers[number]: error for number, error in other.errors.items()})
        if numbers == range(len(self.rtts)):
            self.rtts = other.rtts
        else:
            for number, rtt in zip(numbers, other.rtts, strict=True):
                self.rtts[number] = rtt

    def result(self, probe: Probe, number: int) -> ProbeResult:
        rtt = self.rtts[number]
        return ProbeResult(
            source=probe.source,
            target=probe.target,
            address=probe.address,
            rtt=None if math.isnan(rtt) else rtt,
            error=self.errors.get(number, ""),
        )


class Results(Mapping[tuple[str, str], ProbeResult]):
    """By (source, target); each is made when it is looked at."""

    def __init__(self, probes: Probes, outcome: Outcome) -> None:
        self._probes = probes
        self._outcome = outcome
        self._numbers: dict[int, int] = {}

    async def number(self, pause: Callable[[], Awaitable[None]]) -> None:
        for number in range(len(self._probes)):
            self._numbers[self._probes.key(number)] = number
            if number % 1000 == 999:
                await pause()

    def with_opposites(self) -> Iterator[int]:
        """Numbers of all probes, each followed by that of the opposite pair, if there is one and it wasn't before."""
        given = bytearray(len(self._probes))
        for number in range(len(self._probes)):
            if not given[number]:
                yield number
                given[number] = 1
                other = self._numbers.get(self._probes.opposite_key(number), number)
                if not given[other]:
                    yield other
                    given[other] = 1

    @property
    def failed(self) -> list[ProbeResult]:
        return [self._result(number) for number in sorted(self._outcome.errors)]

    def _result(self, number: int) -> ProbeResult:
        return self._outcome.result(self._probes[number], number)

    def __getitem__(self, pair: tuple[str, str]) -> ProbeResult:
        number = self._numbers.get(self._probes.find(pair))
        if number is None:
            raise KeyError(pair)
        return self._result(number)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return (self._probes.pair(number) for number in self._numbers.values())

    def __len__(self) -> int:
        return len(self._numbers)


@frozen(eq=False, repr=False)
class Reachability(Value):
    """Who reaches whom: the result of each (source, target)."""

    pairs: Mapping[tuple[str, str], ProbeResult]

    @property
    def ok(self) -> bool:
        """Whether every pair answered."""
        return not self.failed

    @property
    def failed(self) -> list[ProbeResult]:
        if isinstance(self.pairs, Results):
            return self.pairs.failed
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


def hear_replies_only(sock: socket.socket) -> None:
    """A raw socket would get a copy of every other ICMP message, too."""
    if sock.family == socket.AF_INET6:
        mask = bytearray(b"\xff" * 32)
        mask[_REPLY_6 // 8] &= ~(1 << _REPLY_6 % 8) & 0xFF
        # 32-bit words in the machine's order, see linux/icmpv6.h
        words = struct.unpack("<8I", mask)
        sock.setsockopt(_SOL_ICMPV6, _ICMP6_FILTER, struct.pack("=8I", *words))
    else:
        sock.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~(1 << _REPLY_4) & 0xFFFFFFFF))


def forget_neighbours(entries: Iterable[tuple[socket.socket, str, IPv4Address]]) -> None:
    """Drop addresses that interfaces have asked for, each by a socket in the interface's network namespace: arp(7).
    Those that aren't there are no error. Blocks.

    :raises PermissionError: this process may not change network namespaces
    """
    for sock, ifname, address in entries:
        request = _ARPREQ.pack(socket.AF_INET, address.packed, 0, ifname.encode())
        try:
            fcntl.ioctl(sock, _SIOCDARP, request)
        except OSError as exc:
            if exc.errno not in (errno.ENXIO, errno.ENODEV, errno.ENOENT):
                raise


class _Source:
    """One raw socket and the probes that it waits for, by sequence number."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.ipv6 = sock.family == socket.AF_INET6
        self.identifier = int.from_bytes(os.urandom(2))
        self.sequence = 0
        self.waiting: dict[int, int] = {}  # sequence number to number of the probe

    def send(self, address: IPv4Address | IPv6Address) -> int:
        self.sequence = self.sequence % 0xFFFF + 1
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
    report: Callable[[int], None] | None = None,
) -> Outcome:
    """Send an echo request for each of *probes*, and again where none answers.

    :param sockets: raw, non-blocking ICMP or ICMPv6 sockets by (source, address family), which only hear replies; they
        stay their owner's
    :param timeout: seconds to wait for the answer to one attempt
    :param window: how many are under way at a time
    :param report: called now and then with how many are done
    :return: of each probe, by its number. Cancelled, nothing goes on
    """
    with select.epoll() as poll:
        engine = _Engine(sockets, poll, timeout, attempts, probes)
        try:
            return await engine.run(window, report)
        finally:
            with anyio.CancelScope(shield=True):
                await engine.close()


class _Engine:
    """Numbers in arrays, and no object that outlives a turn: the garbage collector would have to look at tens of
    thousands again and again, while the loop stands still."""

    def __init__(
        self,
        sockets: Mapping[tuple[str, int], socket.socket],
        poll: select.epoll,
        timeout: float,
        attempts: int,
        probes: Sequence[Probe],
    ) -> None:
        self._sockets = sockets
        self._sources: dict[tuple[str, int], _Source] = {}  # of the probes so far
        self._by_fd: dict[int, _Source] = {}
        self._poll = poll
        self._timeout = timeout
        self._attempts = attempts
        self._probes = probes
        self._outcome = Outcome(len(probes))
        self._under_way = 0
        # Of each probe its latest attempt; the sequence number is 0 when it is over.
        self._tried = array("H", bytes(2 * len(probes)))
        self._sequences = array("I", bytes(4 * len(probes)))
        self._sent = array("d", bytes(8 * len(probes)))
        # In the order of their deadlines, because every attempt has the same time.
        self._timers: collections.deque[int] = collections.deque()
        self._retries: collections.deque[int] = collections.deque()

    async def run(self, window: int, report: Callable[[int], None] | None) -> Outcome:
        fresh, count = 0, len(self._probes)
        while fresh < count or self._retries or self._under_way:
            end = time.monotonic() + _SLICE
            while (fresh < count or self._retries) and self._under_way < window and time.monotonic() < end:
                if self._retries:
                    self._ask(self._retries.popleft())
                else:
                    self._ask(fresh)
                    fresh += 1
            while time.monotonic() < end + _SLICE and (ready := self._poll.poll(0, 64)):
                for fd, _ in ready:
                    self._hear(self._by_fd[fd])
            self._expire()
            if report is not None:
                report(fresh - self._under_way - len(self._retries))
            if (fresh < count or self._retries) and self._under_way < window:
                await anyio.lowlevel.checkpoint()
            elif self._timers:
                with anyio.move_on_after(max(0.0, self._deadline(self._timers[0]) - time.perf_counter())):
                    await anyio.wait_readable(self._poll.fileno())
        await anyio.lowlevel.checkpoint()
        return self._outcome

    async def close(self) -> None:
        """Of thousands of sockets it would take 10 ms at once."""
        end = time.monotonic() + _SLICE
        for fd in self._by_fd:
            self._poll.unregister(fd)
            if time.monotonic() > end:
                await anyio.lowlevel.checkpoint()
                end = time.monotonic() + _SLICE

    def _deadline(self, number: int) -> float:
        return self._sent[number] + self._timeout

    def _source(self, probe: Probe) -> _Source:
        key = probe.source, socket.AF_INET if probe.address.version == 4 else socket.AF_INET6
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = _Source(self._sockets[key])
            fd = source.sock.fileno()
            self._poll.register(fd, select.EPOLLIN)
            self._by_fd[fd] = source
        return source

    def _ask(self, number: int) -> None:
        probe = self._probes[number]
        source = self._source(probe)
        self._tried[number] += 1
        self._sent[number] = time.perf_counter()
        try:
            sequence = source.send(probe.address)
        except OSError as exc:
            self._outcome.errors[number] = exc.strerror or str(exc)
            return
        source.waiting[sequence] = number
        self._sequences[number] = sequence
        self._timers.append(number)
        self._under_way += 1

    def _hear(self, source: _Source) -> None:
        for _ in range(16):
            reply = source.receive()
            if reply is None:
                return
            sequence, address = reply
            number = source.waiting.get(sequence)
            if number is not None and ip_address(address.partition("%")[0]) == self._probes[number].address:
                self._outcome.rtts[number] = time.perf_counter() - self._sent[number]
                self._finish(source, number)

    def _finish(self, source: _Source, number: int) -> None:
        del source.waiting[self._sequences[number]]
        self._sequences[number] = 0
        self._under_way -= 1

    def _expire(self) -> None:
        now = time.perf_counter()
        while self._timers:
            number = self._timers[0]
            if self._sequences[number]:
                if self._deadline(number) > now:
                    return
                self._finish(self._source(self._probes[number]), number)
                if self._tried[number] < self._attempts:
                    self._retries.append(number)
                else:
                    self._outcome.errors[number] = f"no answer to {self._tried[number]} requests"
            self._timers.popleft()


def _checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
