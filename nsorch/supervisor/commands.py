"""What the user says of a command, as the clone core wants it."""

from __future__ import annotations

import errno
import grp
import marshal
import os
import pwd
from typing import TYPE_CHECKING

import anyio

from nsorch.core.failures import translate
from nsorch.core.process import Streams
from nsorch.core.spawner.protocol import Command
from nsorch.errors import PermissionDeniedError, SetupError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from nsorch.core.streams import PipeReceiveStream, PipeSendStream

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
) -> Command:
    """The command without its streams. A *command* that is one string is a line for ``/bin/sh``.

    :param env: see :func:`encode_environment`
    :raises SetupError: there is no such user
    :raises ValueError: there is no program, or a null byte
    """
    arguments: Sequence[Argument] = ("/bin/sh", "-c", command) if isinstance(command, str | bytes) else command
    argv = tuple(os.fsencode(argument) for argument in arguments)
    if not argv or not argv[0]:
        raise ValueError("a command needs a program")
    directory = _current_directory() if cwd is None else os.fsencode(cwd)
    _refuse_null_bytes((*argv, directory))
    return Command(
        argv=argv,
        env=env,
        cwd=directory,
        cwd_required=cwd is not None,
        streams=(0, 0, 0),
        mode=mode,
        session=session,
        user=None if user is None else await anyio.to_thread.run_sync(_find_user, user, worker),
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


def _find_user(user: str | int, worker: str) -> tuple[int, int, tuple[int, ...]]:
    """(uid, gid, groups) of a name, a uid, or ``uid:gid``."""
    name, _, group = str(user).partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if _is_id(name) else pwd.getpwnam(name)
        uid, gid = entry.pw_uid, entry.pw_gid
        groups = tuple(os.getgrouplist(entry.pw_name, gid))
    except (KeyError, ValueError):
        if not _is_id(name):
            raise SetupError(f'there is no user "{name}"', worker=worker, stage="user") from None
        uid = gid = int(name)
        groups = ()
    if group:
        try:
            gid = int(group) if _is_id(group) else grp.getgrnam(group).gr_gid
        except (KeyError, ValueError):
            raise SetupError(f'there is no group "{group}"', worker=worker, stage="user") from None
        groups = ()
    return uid, gid, groups


def _is_id(text: str) -> bool:
    """Whether it is a uid or gid: 32 bits, but for the one that means none (credentials(7))."""
    return text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) < 2**32 - 1


def check_user(user: str | int | None, worker: str) -> None:
    """Refuse early what only root can do.

    :raises PermissionDeniedError: another user than root, of whom there is one in the supervisor's user namespace
    """
    if user is not None and str(user) not in ("0", "root", "0:0"):
        raise PermissionDeniedError(
            f'become user "{user}"',
            worker=worker,
            stage="user",
            detail="without root, a supervisor's user namespace has the caller alone, as uid 0",
        )


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
