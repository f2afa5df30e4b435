"""What passes links, as a stream of packets or a file."""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from operator import itemgetter
from typing import TYPE_CHECKING, Literal, Self

import anyio
from anyio.abc import ObjectReceiveStream

from nsorch.core.threads import in_thread
from nsorch.errors import TopologyError
from nsorch.net import pcapng
from nsorch.net.packets import Packet, StampProbe, Tap, compile_filter
from nsorch.supervisor.traffic.capture_file import CaptureFile
from nsorch.topology.kinds import items, of_kind, shown, to_path

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from nsorch.net.packets import Instructions
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Link, Side

Direction = Literal["in", "out", "both"]
# After so many packets the loop gets its turn.
_BURST = 64
# So many may be taken out of the stream meanwhile: more than come in one turn of the loop.
_TAKEN = 256
# Bytes that may wait for a slow disk; then the kernel's buffer fills, and it drops and counts.
_UNWRITTEN = 16 << 20
# Seconds until packets are surely stamped.
_STAMPING = 0.1


class Capture(ObjectReceiveStream[Packet]):
    """Made by :meth:`nsorch.Link.capture` and :meth:`nsorch.Supervisor.capture`: an async context manager.

    Inside of its block it is a stream of :class:`Packet`, unless the packets go to a file. It ends when the interfaces
    are gone.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        links: Sequence[Link],
        *,
        filter: str | Instructions | None,  # noqa: A002 - the field's word
        file: str | os.PathLike[str] | None,
        direction: Direction,
        snaplen: int,
        buffer: int,
    ) -> None:
        if filter is not None and not isinstance(filter, str):
            filter = items("filter", filter, "instructions")  # noqa: A001
            for instruction in filter:
                of_kind("filter", instruction, "an instruction: (operation, jump, jump, operand)", tuple, list)
        if file is not None:
            to_path("file", file)
        if direction not in ("in", "out", "both"):
            raise TopologyError(f"direction: {shown(direction)} is none of in, out, both")
        of_kind("snaplen", snaplen, "a number of bytes", int)
        if not 64 <= snaplen <= 262_144:
            raise TopologyError(f"snaplen: {shown(snaplen)} is not from 64 to 262144 bytes")
        of_kind("buffer", buffer, "a number of packets", int)
        if buffer < 1:
            raise TopologyError(f"buffer: {shown(buffer)} is not a positive number of packets")
        self._supervisor = supervisor
        self._links = links
        self._filter = filter
        self._path = file
        self._direction = direction
        self._snaplen = snaplen
        self._buffer = buffer
        self._taps: list[Tap] = []
        self._file: CaptureFile | None = None
        self._packets: deque[Packet] = deque()
        self._taken = 0  # out of these
        self._unwritten: list[tuple[int, bytes]] = []  # blocks by their time
        self._unwritten_size = 0
        self._overrun = 0
        self._open = 0  # taps that are still read
        self._failure: OSError | None = None  # of writing, which ends the block
        self._entered = False
        self._more: anyio.Event
        self._tasks: anyio.abc.TaskGroup

    @property
    def received(self) -> int:
        """Packets that passed the filter, in either direction."""
        return sum(tap.count()[0] for tap in self._taps)

    @property
    def dropped(self) -> int:
        """Packets lost because nobody took them in time: by the kernel's buffer, or by this stream's."""
        return self._overrun + sum(tap.count()[1] for tap in self._taps)

    # -- the block

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a capture is used once")
        for link in self._links:
            link._check()
        instructions = None if isinstance(self._filter, str) else self._filter
        if isinstance(self._filter, str):
            instructions = await in_thread(compile_filter, self._filter, self._snaplen, abandon_on_cancel=True)
        self._more = anyio.Event()
        self._entered = True
        try:
            for link in self._links:
                for side, other in link._both():
                    self._taps.append(await self._tap(side, other, instructions))
            if self._path is not None:
                self._file = await CaptureFile.open(self._path)
                for block in (pcapng.section(), *(pcapng.interface(tap.end, self._snaplen) for tap in self._taps)):
                    self._add(0, block)
            await _stamping()
            self._tasks = anyio.create_task_group()
            await self._tasks.__aenter__()
        except BaseException:
            with contextlib.suppress(OSError):  # of the file, which matters no more
                await self.aclose()
            raise
        self._open = len(self._taps)
        for number, tap in enumerate(self._taps):
            self._tasks.start_soon(self._read, number, tap, self._links[number // 2])
        if self._file is not None:
            self._tasks.start_soon(self._write)
        return self

    async def __aexit__(  # type: ignore[override]  # a failure to write ends the block by a cancellation of its own
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._tasks.cancel_scope.cancel()
        cancelled = isinstance(exc, anyio.get_cancelled_exc_class())
        try:
            # The body's exception leaves the block as it is, not wrapped in a group.
            swallowed = await self._tasks.__aexit__(*((kind, exc, traceback) if cancelled else (None, None, None)))
        finally:
            await self.aclose()
        swallowed = cancelled and bool(swallowed)
        if self._failure is not None and (exc is None or swallowed):
            raise self._failure
        return swallowed

    async def aclose(self) -> None:
        """Stop, and close what is open; what a file lacks is written also when cancelled."""
        if not self._entered:
            return
        try:
            if self._file is not None:
                await self._finish(self._file)
        finally:
            for tap in self._taps:
                tap.close()
            self._open = 0
            self._announce()

    async def _finish(self, file: CaptureFile) -> None:
        self._file = None
        await self._drain(*range(len(self._taps)))
        for number, tap in enumerate(self._taps):
            now = time.time_ns()
            self._add(now, pcapng.statistics(number, now, *tap.count()))
        try:
            if self._failure is None:
                await file.write(self._take_unwritten())
        finally:
            await file.close()

    async def _tap(self, side: Side, other: Side, instructions: Instructions | None) -> Tap:
        if side.worker is not None:
            end = str(side)
            sock = await side.worker.open_socket(socket.AF_PACKET, socket.SOCK_RAW)
        else:
            end = f"{side} ({other})"
            sock = await self._supervisor._wiring.open_in_fabric(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            return Tap(sock, side.ifname, end, snaplen=self._snaplen, instructions=instructions)
        except BaseException:
            sock.close()
            raise

    # -- packets

    async def _read(self, number: int, tap: Tap, link: Link) -> None:
        with anyio.CancelScope() as scope:
            link._on_removal.append(scope.cancel)
            try:
                while True:
                    await anyio.wait_readable(tap.sock)
                    while self._unwritten_size > _UNWRITTEN:
                        await self._more.wait()
                    if self._read_some(number, tap):
                        await anyio.lowlevel.checkpoint()
            except (OSError, anyio.ClosedResourceError):
                pass  # the interface is gone
            finally:
                link._on_removal.remove(scope.cancel)
        if scope.cancelled_caught:  # with the link; the socket would keep the network namespace
            await self._drain(number)
            tap.close()
        self._open -= 1
        self._announce()

    async def _drain(self, *numbers: int) -> None:
        """Take what these taps have already, also when cancelled; however much goes on coming."""
        for number in numbers:
            with contextlib.suppress(OSError):  # its interface is gone
                self._taps[number].stop()
        for number in numbers:
            with contextlib.suppress(OSError):
                while self._read_some(number, self._taps[number]):
                    await anyio.lowlevel.cancel_shielded_checkpoint()

    def _read_some(self, number: int, tap: Tap) -> bool:
        """Whether there may be more."""
        packets = list(tap.read(_BURST))
        self._take(number, packets)
        return len(packets) == _BURST

    def _take(self, number: int, packets: list[Packet]) -> None:
        for packet in packets:
            if self._direction != "both" and packet.outgoing != (self._direction == "out"):
                continue
            if self._path is not None:
                self._add(
                    packet.time_ns,
                    pcapng.packet(number, packet.time_ns, packet.data, packet.length, outgoing=packet.outgoing),
                )
            elif len(self._packets) < self._buffer:
                self._packets.append(packet)
            else:
                self._overrun += 1
        self._announce()

    def _announce(self) -> None:
        self._more.set()
        self._more = anyio.Event()

    def _add(self, time_ns: int, block: bytes) -> None:
        self._unwritten.append((time_ns, block))
        self._unwritten_size += len(block)

    def _take_unwritten(self) -> list[bytes]:
        """In the order of their times, as far as they are here."""
        taken, self._unwritten, self._unwritten_size = self._unwritten, [], 0
        taken.sort(key=itemgetter(0))
        return [block for _, block in taken]

    async def _write(self) -> None:
        while True:
            more = self._more
            if self._unwritten and self._file is not None:
                await anyio.lowlevel.checkpoint()  # after which all taps have read what came at one time
                try:
                    await self._file.write(self._take_unwritten())
                except OSError as exc:
                    self._failure = exc
                    self._tasks.cancel_scope.cancel()
                    return
                self._announce()
                await anyio.lowlevel.checkpoint()
            else:
                await more.wait()

    async def receive(self) -> Packet:
        """The next packet. Cancelled, none is lost.

        :raises anyio.EndOfStream: the interfaces are gone, or the block was left
        """
        self._taken += 1
        if self._taken % _TAKEN:
            await anyio.lowlevel.checkpoint_if_cancelled()
        else:  # one at each turn of the loop would be less than come
            await anyio.lowlevel.checkpoint()
        while not self._packets:
            if not self._open:
                raise anyio.EndOfStream
            await self._more.wait()
        return self._packets.popleft()


async def _stamping() -> None:
    """Wait until packets are stamped when they come, as far as this host tells."""
    with contextlib.suppress(OSError), contextlib.closing(StampProbe()) as probe, anyio.move_on_after(_STAMPING):
        while True:
            probe.send()
            await anyio.sleep(0.001)
            if probe.was_stamped():
                return
