"""A command that runs in a worker, as an anyio process."""

from __future__ import annotations

import os
from signal import Signals
from typing import TYPE_CHECKING, Protocol

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.abc import Process as AbstractProcess

from nsorch.core import descriptors
from nsorch.core.spawner.protocol import Stream
from nsorch.core.streams import PipeReceiveStream, PipeSendStream, make_pipe

if TYPE_CHECKING:
    from nsorch.core.jobs import Job

    class Ends(Protocol):
        """The ends of a command's standard streams that stay here."""

        stdin: PipeSendStream | None
        stdout: PipeReceiveStream | None
        stderr: PipeReceiveStream | None

        def close(self) -> None: ...


#: as the module subprocess has them, whose import takes as long as a fifth of all others
PIPE, STDOUT, DEVNULL = -1, -2, -3


#: of each standard stream what it is, see :func:`standard_stream`
Inherited = tuple[tuple[int, int] | None, ...]


def standard_stream(number: int) -> tuple[int, int] | None:
    """Device and inode of what this process has as standard stream *number*; None where it has none to hand on."""
    try:
        found = os.fstat(number)
        return (found.st_dev, found.st_ino) if os.get_inheritable(number) else None
    except OSError:
        return None


class Process(AbstractProcess):
    """A command that was started in a worker by :meth:`nsorch.Worker.popen`.

    Leaving its ``async with`` block, or :meth:`aclose`, kills it and all its descendants, and waits for them.
    """

    def __init__(self, job: Job, streams: Ends) -> None:
        self._job = job
        self._streams = streams
        self._pid = job.pid

    async def wait(self) -> int:
        """Wait for its end and return :attr:`returncode`. Cancelled, it changes nothing."""
        await anyio.lowlevel.checkpoint()
        await self._job.end()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """SIGTERM to the command."""
        self.send_signal(15)

    def kill(self) -> None:
        """SIGKILL to the command and its descendants, also those that left its session."""
        self._job.kill()

    def send_signal(self, signal: Signals | int) -> None:
        """Send *signal* to the command; after its end nothing happens."""
        self._job.signal(signal)

    @property
    def pid(self) -> int:
        """Its pid, as the host sees it."""
        return self._pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        if self._job.exit is None:
            return None
        return os.waitstatus_to_exitcode(self._job.exit.status)

    @property
    def stdin(self) -> ByteSendStream | None:
        return self._streams.stdin

    @property
    def stdout(self) -> ByteReceiveStream | None:
        return self._streams.stdout

    @property
    def stderr(self) -> ByteReceiveStream | None:
        return self._streams.stderr

    async def aclose(self) -> None:
        """Kill what still runs, and wait for it also when cancelled."""
        with anyio.CancelScope(shield=True) as scope:
            self._streams.close()
            await self._job.kill_and_wait()
            scope.shield = False
            await anyio.lowlevel.checkpoint()


class Streams:
    """Standard streams of a command to be started: what the helper gets, and the ends that stay here."""

    def __init__(self, inherited: Inherited) -> None:
        self._inherited = inherited
        self.sources: list[int] = []
        self.fds: list[int] = []  #: descriptors for the request, in the order of their numbers in *sources*
        self.stdin: PipeSendStream | None = None
        self.stdout: PipeReceiveStream | None = None
        self.stderr: PipeReceiveStream | None = None
        self._ours: list[int] = []  #: those of fds to be closed when they are sent

    @classmethod
    def make(cls, sources: tuple[object, object, object], inherited: Inherited) -> Streams:
        """Make the pipes that are asked for.

        :param inherited: the standard streams that the helper has
        :raises TypeError: something that is no stream
        :raises OSError: a descriptor that isn't open
        """
        streams = cls(inherited)
        stdin, stdout, stderr = sources
        try:
            streams._add_input(stdin)
            streams.stdout = streams._add_output(stdout)
            if stderr == STDOUT:
                streams.sources.append(streams.sources[1])
            else:
                streams.stderr = streams._add_output(stderr)
        except BaseException:
            streams.close()
            streams.sent()
            raise
        return streams

    def _add(self, fd: int) -> None:
        self.sources.append(len(self.fds))
        self.fds.append(fd)

    def _add_copy(self, fd: int) -> None:
        """Of a descriptor that may be closed before the request is sent."""
        copy = descriptors.duplicate(fd)
        self._ours.append(copy)
        self._add(copy)

    def _add_input(self, source: object) -> None:
        if source == PIPE:
            theirs, ours = make_pipe()
            self._ours.append(theirs)
            self._add(theirs)
            self.stdin = PipeSendStream(ours)
        else:
            self._add_other(source)

    def _add_output(self, source: object) -> PipeReceiveStream | None:
        if source == PIPE:
            ours, theirs = make_pipe()
            self._ours.append(theirs)
            self._add(theirs)
            return PipeReceiveStream(ours)
        self._add_other(source)
        return None

    def _add_other(self, source: object) -> None:
        if source is None:
            self._add_inherited(len(self.sources))
        elif source == DEVNULL:
            self.sources.append(Stream.NULL)
        elif isinstance(source, int) and source >= 0:
            self._add_copy(source)
        elif hasattr(source, "fileno"):
            self._add_copy(source.fileno())
        else:
            raise TypeError(f"a standard stream is PIPE, DEVNULL, None, a descriptor or a file, not {source!r}")

    def _add_inherited(self, number: int) -> None:
        """The application may have another one since the helper was started."""
        if standard_stream(number) in (None, self._inherited[number]):
            self.sources.append(Stream.INHERIT)
        else:
            self._add_copy(number)

    def sent(self) -> None:
        """The command has its ends, or never will: close ours."""
        descriptors.close(self._ours)
        self._ours.clear()

    def close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()
