"""Trains of UDP packets from one worker to another, by sockets in this process: one clock, and the kernel's own time of
each arrival. What was sent, what came, when."""

from __future__ import annotations

import contextlib
import math
import socket
import statistics
import struct
import time
from typing import TYPE_CHECKING, Any

import anyio
from attrs import define, field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from nsorch import Worker

_PORT = 5001
_HEAD = struct.Struct(">IQ")  # number, time sent
_MARK = 0xFFFFFFFF
_SO_TIMESTAMPNS = 35
_TIME = struct.Struct("@qq")
_ECHO = struct.Struct(">BBHHH")  # of ICMP, without data
#: Ethernet, IPv4 and UDP, of which the rate of a qdisc consists, too
HEADERS = 42


@define
class Train:
    """:ivar delays: one way, in seconds, by number of packet; of duplicates the first
    :ivar arrivals: in seconds, in the order of arrival
    :ivar order: numbers, in the order of arrival
    """

    sent: int = 0
    size: int = 0
    delays: dict[int, float] = field(factory=dict)
    arrivals: list[float] = field(factory=list)
    order: list[int] = field(factory=list)

    @property
    def lost(self) -> int:
        return self.sent - len(self.delays)

    @property
    def delay(self) -> float:
        """The median, in seconds."""
        return statistics.median(self.delays.values())

    @property
    def least(self) -> float:
        """Of all delays, in seconds: a busy processor only adds to some."""
        return min(self.delays.values())

    @property
    def duplicates(self) -> int:
        return len(self.order) - len(self.delays)

    @property
    def overtaken(self) -> int:
        """Packets that came after one that was sent later."""
        latest, found = -1, 0
        for number in self.order:
            found += number < latest
            latest = max(latest, number)
        return found

    @property
    def rate(self) -> float:
        """Bits per second, of frames; without the first tenth, which a bucket may let through at once."""
        skipped = len(self.arrivals) // 10
        took = self.arrivals[-1] - self.arrivals[skipped]
        return (len(self.arrivals) - 1 - skipped) * (self.size + HEADERS) * 8 / took


async def send_train(
    source: Worker,
    target: Worker,
    address: IPv4Address | IPv6Address,
    *,
    count: int,
    interval: float = 0.0,
    size: int = 100,
    wait: float = 5.0,
) -> Train:
    """*count* packets of *size* bytes, *interval* seconds apart, or as fast as the socket takes them.

    :param wait: seconds for what is under way when the last was sent
    """
    train = Train(size=size)
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with (
        await source.open_socket(family, socket.SOCK_DGRAM) as out,
        await target.open_socket(family, socket.SOCK_DGRAM) as incoming,
    ):
        incoming.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        incoming.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        incoming.bind((str(address), _PORT))
        async with anyio.create_task_group() as tasks:
            marks, arrived = anyio.create_memory_object_stream[None](1)
            tasks.start_soon(_receive, incoming, train, marks)
            # First of all, one that has the ends find each other: who asks may be delayed or lost, too.
            await _arrive(out, address, size, arrived, wait)
            start = time.monotonic()
            for number in range(count):
                if (rest := start + number * interval - time.monotonic()) > 0:
                    await anyio.sleep(rest)
                await _send(out, address, number, size)
                train.sent += 1
            await _arrive(out, address, size, arrived, wait)
            await anyio.sleep(0.2)  # what a jitter has delayed longer than the last
            tasks.cancel_scope.cancel()
            marks.close()
            arrived.close()
    return train


async def round_trip(source: Worker, address: IPv4Address | IPv6Address, *, count: int = 5) -> float:
    """By ICMP, in seconds: the least of *count*, each to the kernel's own time of the answer.

    :raises TimeoutError: one wasn't answered within 5 s
    """
    found = []
    with await source.open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        for number in range(count):
            request = _ECHO.pack(8, 0, 0xFFFF - 0x0800 - number, 0, number)  # the check sum of just these
            sent = time.time_ns()
            sock.sendto(request, (str(address), 0))
            with anyio.fail_after(5):
                while True:
                    await anyio.wait_readable(sock)
                    data, ancillary, _, _ = sock.recvmsg(2048, 64)
                    if data[20:21] == b"\0" and data[26:28] == request[6:8]:
                        break
            seconds, nanoseconds = _TIME.unpack_from(ancillary[0][2])
            found.append((seconds * 1_000_000_000 + nanoseconds - sent) / 1e9)
    return min(found)


async def send_trains(ways: Sequence[tuple[Worker, Worker]], *, interval: float, **options: Any) -> list[Train]:
    """One train for each of the *ways*, all at once, by their turns: what is sent is spread evenly over *interval*."""
    trains: dict[int, Train] = {}

    async def send(number: int, source: Worker, target: Worker) -> None:
        await anyio.sleep(interval * number / len(ways))
        address = target.addresses[0].ip
        trains[number] = await send_train(source, target, address, interval=interval, **options)

    async with anyio.create_task_group() as tasks:
        for number, (source, target) in enumerate(ways):
            tasks.start_soon(send, number, source, target)
    return [trains[number] for number in range(len(ways))]


async def _arrive(
    out: socket.socket,
    address: IPv4Address | IPv6Address,
    size: int,
    arrived: MemoryObjectReceiveStream[None],
    wait: float,
) -> None:
    """Until a packet comes through, of as many as it takes."""
    with contextlib.suppress(anyio.WouldBlock):
        arrived.receive_nowait()  # of one that came late
    with anyio.move_on_after(wait):
        while True:
            await _send(out, address, _MARK, size)
            with anyio.move_on_after(0.3):
                await arrived.receive()
                return


async def _send(out: socket.socket, address: IPv4Address | IPv6Address, number: int, size: int) -> None:
    while True:
        try:
            out.sendto(_HEAD.pack(number, time.time_ns()).ljust(size, b"\0"), (str(address), _PORT))
            await anyio.lowlevel.checkpoint()
            return
        except BlockingIOError:
            await anyio.wait_writable(out)


async def _receive(incoming: socket.socket, train: Train, marks: MemoryObjectSendStream[None]) -> None:
    while True:
        await anyio.wait_readable(incoming)
        while True:
            try:
                data, ancillary, _, _ = incoming.recvmsg(65536, 64)
            except BlockingIOError:
                break
            number, sent = _HEAD.unpack_from(data)
            if number == _MARK:
                with contextlib.suppress(anyio.WouldBlock):
                    marks.send_nowait(None)
                continue
            seconds, nanoseconds = _TIME.unpack_from(ancillary[0][2])
            arrival = seconds * 1_000_000_000 + nanoseconds
            train.order.append(number)
            train.arrivals.append(arrival / 1e9)
            train.delays.setdefault(number, (arrival - sent) / 1e9)


@frozen
class Interval:
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


def binomial(count: int, share: float, confidence: float = 0.99) -> Interval:
    """How often something of probability *share* happens in *count* tries, but for as little as (1 - confidence) / 2 at
    either side."""
    tail = (1 - confidence) / 2
    if share in (0.0, 1.0):
        return Interval(share * count, share * count)
    below = 0.0
    low = None
    for number in range(count + 1):
        below += math.exp(
            math.lgamma(count + 1)
            - math.lgamma(number + 1)
            - math.lgamma(count - number + 1)
            + number * math.log(share)
            + (count - number) * math.log1p(-share)
        )
        if low is None and below > tail:
            low = number
        if below >= 1 - tail:
            return Interval(low or 0, number)
    return Interval(low or 0, count)


def about(value: float, *, share: float = 0.0, plus: float = 0.0) -> Interval:
    slack = value * share + plus
    return Interval(value - slack, value + slack)
