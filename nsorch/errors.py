"""The one error family. Every failure of nsorch is an :class:`NsorchError` that says what failed, where and why."""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Sequence


class NsorchError(Exception):
    """Base of the family.

    :ivar worker: name of the worker that it is about, or None
    :ivar stage: what nsorch was doing, such as ``"unshare"`` or ``"exec"``, or None
    :ivar errno: the kernel's error number, or None
    :ivar detail: the kernel's own words or what more is known, or ``""``
    """

    def __init__(
        self,
        message: str,
        *,
        worker: str | None = None,
        stage: str | None = None,
        errno: int | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.stage = stage
        self.errno = errno
        self.detail = detail

    def __str__(self) -> str:
        text = str(self.args[0])
        if self.errno is not None:
            text += f": {os.strerror(self.errno)} ({_errno.errorcode.get(self.errno, self.errno)})"
        if self.detail:
            text += f": {self.detail}"
        return f"{self.worker}: {text}" if self.worker is not None else text


class NameInUseError(NsorchError):
    """A worker or bridge of that name exists already; the two share one space of names."""


class SetupError(NsorchError):
    """nsorch's own preparation of a worker failed before its command could run."""


class CommandNotFoundError(NsorchError):
    """The command doesn't exist in the worker's file system, or no directory of its PATH has it."""


class NotReadyError(NsorchError, TimeoutError):
    """A worker's ``ready`` condition didn't hold before its deadline. The worker is gone."""


class WorkerExitedError(NsorchError):
    """A process ended although it was needed: before it was ready, or a critical worker's at any time.

    :ivar code: its exit status, or None if a signal ended it
    :ivar signal: the signal that ended it, or None
    :ivar stderr: the end of what it wrote to standard error, where that was captured
    """

    def __init__(
        self,
        message: str,
        *,
        worker: str | None = None,
        code: int | None = None,
        signal: int | None = None,
        stderr: bytes = b"",
    ) -> None:
        super().__init__(message, worker=worker, detail=stderr.decode(errors="replace").strip())
        self.code = code
        self.signal = signal
        self.stderr = stderr


class AddressError(NsorchError, ValueError):
    """An address is malformed, outside its subnet, or used twice."""


class SubnetFullError(NsorchError, ValueError):
    """No free address is left in a subnet."""


class TopologyError(NsorchError, ValueError):
    """A description is wrong; nothing was created.

    :ivar problems: one line for each error, each starting with its path, such as ``workers.web.links[0].delay: …``
    :ivar source: the file, or None
    :ivar lines: of each problem its line in the file, or None where the reader can't tell
    """

    def __init__(self, *problems: str, source: str | None = None, lines: Sequence[int | None] = ()) -> None:
        self.problems = tuple(map(printable, problems)) or ("wrong description",)
        self.source = source
        self.lines = tuple(lines) or (None,) * len(self.problems)
        texts = self.located()
        head = f"{source}: " if source else ""
        super().__init__(texts[0] if len(texts) == 1 else "\n  ".join((f"{head}{len(texts)} errors", *texts)))

    def located(self) -> list[str]:
        """The problems as compilers print them: ``file:line: problem``."""
        texts = []
        for problem, line in zip(self.problems, self.lines, strict=True):
            place = [part for part in (self.source, None if line is None else str(line)) if part]
            texts.append(": ".join([":".join(place), problem]) if place else problem)
        return texts


class ImageError(NsorchError, ValueError):
    """An image or archive is damaged, of no known form, or has an entry that leads outside. Nothing of it is left.

    :ivar entry: the name of the entry that is wrong, as the archive has it, or ``""``
    """

    def __init__(self, message: str, *, entry: str = "", detail: str = "") -> None:
        super().__init__(printable(message), stage="unpack", detail=printable(detail))
        self.entry = entry


def printable(text: str) -> str:
    """Without what a terminal obeys: names and tags of an image are its maker's."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class UnsupportedError(NsorchError):
    """This host, or this version of nsorch, can't do what was asked; the message names what is missing."""


class PermissionDeniedError(NsorchError, PermissionError):
    """The kernel or a setting of the host forbids it; the message names the setting."""


class NetlinkError(NsorchError):
    """The kernel refused a network operation.

    :ivar operation: what was asked for, such as ``"create link"``
    :ivar object: the name of the link, address or route that it is about
    """

    def __init__(
        self,
        operation: str,
        object: str,  # noqa: A002 - the field's own word
        *,
        errno: int,
        detail: str = "",
        worker: str | None = None,
    ) -> None:
        super().__init__(f"{operation} {object}", worker=worker, stage="netlink", errno=errno, detail=detail)
        self.operation = operation
        self.object = object


class SpawnerDiedError(NsorchError):
    """The helper process that holds the workers is gone, and every process of theirs with it."""


class ClosedError(NsorchError):
    """The supervisor, worker, bridge or link has ended, or the supervisor isn't running yet."""
