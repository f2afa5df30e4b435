"""What the user says of a command, as the clone core wants it."""

from __future__ import annotations

import errno
import marshal
import os
from typing import TYPE_CHECKING

import anyio

from nsorch.core.failures import translate
from nsorch.core.process import Streams
from nsorch.core.spawner.protocol import Command
from nsorch.supervisor.confining import check_mapped
from nsorch.supervisor.users import find_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsorch.core.streams import PipeReceiveStream, PipeSendStream
    from nsorch.supervisor.confining import Confined

Argument = str | bytes | os.PathLike[str]


async def build_command(
    command: str | bytes | Sequence[Argument],
    *,
    env: bytes,
    cwd: str | os.PathLike[str] | None,
    user: str | int | None,
    mode: int,
    session: bool,
    worker: str,
    confined: Confined,
    unconfined: bool = False,
) -> Command:
    """The command without its streams. A *command* that is one string is a line for ``/bin/sh``.

    :param env: see :func:`encode_environment`
    :param user: the worker's if None
    :param unconfined: with the supervisor's privileges and as its user, unless *user* says otherwise
    :raises SetupError: there is no such user
    :raises ValueError: there is no program, or a null byte
    """
    arguments: Sequence[Argument] = ("/bin/sh", "-c", command) if isinstance(command, str | bytes) else command
    argv = tuple(os.fsencode(argument) for argument in arguments)
    if not argv or not argv[0]:
        raise ValueError("a command needs a program")
    default = b"/" if confined.root else _current_directory()
    confinement = confined.confinement
    if unconfined:
        confinement = confined.unconfined if user is None else b""
    directory = default if cwd is None else os.fsencode(cwd)
    _refuse_null_bytes((*argv, directory))
    become = confined.unconfined_user if unconfined else confined.user
    if user is not None:
        become = await anyio.to_thread.run_sync(find_user, user, (), confined.rootfs, worker)
        check_mapped(become, confined.mapped, worker)
    return Command(
        argv=argv,
        env=env,
        cwd=directory,
        cwd_required=cwd is not None,
        streams=(0, 0, 0),
        mode=mode,
        session=session,
        user=become,
        confinement=confinement,
        guarded=confined.guarded,
    )


def encode_environment(env: Mapping[str, str] | None) -> bytes:
    """A whole environment as the clone core wants it; the application's own if *env* is None.

    :raises ValueError: a null byte, or a name that is empty or holds "="
    """
    pairs = dict(os.environb) if env is None else {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    _refuse_null_bytes((*pairs.keys(), *pairs.values()))
    if env is not None and (wrong := [name for name in pairs if not name or b"=" in name]):
        raise ValueError(f"{wrong[0]!r} can't be the name of an environment variable")
    return marshal.dumps(pairs)


def _refuse_null_bytes(texts: Iterable[bytes]) -> None:
    for text in texts:
        if b"\0" in text:
            raise ValueError(f"null byte in {text!r}")


def _current_directory() -> bytes:
    try:
        return os.getcwdb()
    except FileNotFoundError:
        return b"/"


class OpenedStreams:
    """Standard streams, with the files that were opened for them."""

    def __init__(self, streams: Streams, files: list[int]) -> None:
        self._streams = streams
        self._files = files
        self.numbers = (streams.sources[0], streams.sources[1], streams.sources[2])
        self.fds = streams.fds
        self.stdin: PipeSendStream | None = streams.stdin
        self.stdout: PipeReceiveStream | None = streams.stdout
        self.stderr: PipeReceiveStream | None = streams.stderr

    def sent(self) -> None:
        """The command has its ends, or never will."""
        self._streams.sent()
        while self._files:
            os.close(self._files.pop())

    def close(self) -> None:
        """Close the ends that stay here."""
        self._streams.close()


async def open_streams(stdin: object, stdout: object, stderr: object, *, worker: str) -> OpenedStreams:
    """Make pipes, and open the files that are given by path: for appending, in a thread.

    :raises NsorchError: of stage ``"streams"``: a file can't be opened, or a descriptor isn't open
    """
    files: list[int] = []
    sources: list[object] = []
    try:
        for number, source in enumerate((stdin, stdout, stderr)):
            if isinstance(source, str | os.PathLike):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT
                path: str | os.PathLike[str] = source
                fd = await anyio.to_thread.run_sync(os.open, path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
                files.append(fd)
                sources.append(fd)
            else:
                sources.append(source)
        return OpenedStreams(Streams.make(*sources), files)
    except BaseException as exc:
        for fd in files:
            os.close(fd)
        if isinstance(exc, OSError):
            raise translate("streams", exc.errno or errno.EIO, exc.filename or "", worker) from None
        raise
