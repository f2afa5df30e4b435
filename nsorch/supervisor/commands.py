"""What the user says of a command, as the clone core wants it."""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
from collections.abc import Mapping
from types import NoneType
from typing import TYPE_CHECKING, Any

from nsorch.core.failures import translate
from nsorch.core.process import Streams
from nsorch.core.spawner.protocol import Command
from nsorch.core.threads import in_thread
from nsorch.errors import SetupError, TopologyError
from nsorch.supervisor.confined import check_mapped, without_unmapped
from nsorch.supervisor.opening import open_file
from nsorch.topology.few import to_user
from nsorch.topology.kinds import is_text, items, of_kind, shown, to_command, to_path
from nsorch.topology.specs import check_stream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsorch.core.process import Inherited
    from nsorch.core.streams import PipeReceiveStream, PipeSendStream
    from nsorch.supervisor.confined import Confined
    from nsorch.topology.specs import WorkerSpec

Argument = str | bytes | os.PathLike[str]


async def build_command(
    command: Sequence[Argument],
    *,
    env: bytes,
    cwd: str | os.PathLike[str] | None,
    user: str | int | None,
    mode: int,
    session: int,
    worker: str,
    confined: Confined,
    unconfined: bool = False,
) -> Command:
    """The command without its streams.

    :param env: see :func:`encode_environment`
    :param user: the worker's if None
    :param unconfined: with the supervisor's privileges and as its user, unless *user* says otherwise
    :raises SetupError: there is no such user
    """
    argv = tuple(os.fsencode(argument) for argument in command)
    default = b"/" if confined.root else _current_directory()
    confinement = confined.confinement
    if unconfined:
        confinement = confined.unconfined if user is None else b""
    directory = default if cwd is None else os.path.join(default, os.fsencode(cwd))
    become = confined.unconfined_user if unconfined else confined.user
    if user is not None:
        from nsorch.supervisor.users import find_user

        found = await in_thread(find_user, user, (), confined.rootfs, worker)
        become = without_unmapped(found, confined.mapped)
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


def environment_of(spec: WorkerSpec, confined: Confined) -> Mapping[str, str] | None:
    """That of a worker's commands, where they give none; None for the application's."""
    return confined.env if spec.env is None else spec.env


def encode_environment(env: Mapping[str, str] | None) -> bytes:
    """A whole environment as the clone core wants it; the application's own if *env* is None."""
    pairs = dict(os.environb) if env is None else {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    return marshal.dumps(pairs)


def check_command(
    command: Any, *, streams: Mapping[str, object], env: Any, cwd: Any, user: Any, flags: Mapping[str, Any]
) -> tuple[Argument, ...]:
    """Refuse what can't be started, before anything is. Returns the *command*'s arguments; one string is a line for
    ``/bin/sh``.

    :raises TopologyError: one of them is of a wrong kind; names it
    """
    alone = isinstance(command, str | bytes)
    arguments = to_command(("/bin/sh", "-c", command) if alone else items("command", command, "strings"))
    assert arguments is not None
    for name, stream in streams.items():
        check_stream(name, stream)
    if env is not None:
        of_kind("env", env, "a mapping of names to strings", Mapping)
        for key, value in env.items():
            if not _is_argument(key) or not (raw := os.fsencode(key)) or b"=" in raw:
                raise TopologyError(f"env: {shown(key)} can't be the name of an environment variable")
            if not _is_argument(value):
                raise TopologyError(f"env.{os.fsdecode(key)}: {shown(value)} is not a string without null characters")
    if cwd is not None:
        to_path("cwd", cwd)
    to_user(user)
    for name, flag in flags.items():
        of_kind(name, flag, "true or false", bool)
    return arguments


def check_run(*, input: Any, timeout: Any) -> None:  # noqa: A002 - subprocess's word
    """
    :raises TopologyError: one of them is of a wrong kind
    """
    of_kind("input", input, "bytes", bytes, bytearray, memoryview, NoneType)
    of_kind("timeout", timeout, "a number of seconds", int, float, NoneType)
    if timeout is not None and timeout != float("inf") and not -(1 << 32) < timeout < 1 << 32:
        raise TopologyError(f"timeout: {shown(timeout)} is not a number of seconds")


def _is_argument(value: Any) -> bool:
    return isinstance(value, str | bytes | os.PathLike) and is_text(os.fspath(value))


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


_STREAMS = ("stdin", "stdout", "stderr")
Files = tuple[tuple[object, tuple[int, int] | None], ...]


def files_behind(stdin: object, stdout: object, stderr: object) -> Files:
    """Each as it was given, and the file that it is of if it is a descriptor or an object with one, but for the
    application's own standard streams: their numbers are names."""
    return tuple((source, _file_behind(source)) for source in (stdin, stdout, stderr))


def _file_behind(source: Any) -> tuple[int, int] | None:
    try:
        fd = source.fileno() if hasattr(source, "fileno") else source
        if not isinstance(fd, int) or fd <= 2:
            return None
        with open(f"/proc/self/fdinfo/{fd}") as file:  # fstat would ask a file system, which may keep us waiting
            shown = dict(line.split(":", 1) for line in file if line.startswith(("mnt_id:", "ino:")))
        return int(shown["mnt_id"]), int(shown["ino"])
    except (OSError, ValueError, KeyError):  # closed
        return None


def check_same_files(before: Files, now: Files, worker: str) -> None:
    """
    :raises SetupError: the number of one that was closed is another file's, which is nobody's gift to the worker
    """
    for name, (source, file), (again, found) in zip(_STREAMS, before, now, strict=True):
        if source == again and file is not None and file != found:
            raise SetupError(
                f"{name}: the descriptor given at its start was closed since: give a path, or keep it open",
                worker=worker,
                stage="streams",
            )


async def open_streams(
    stdin: object, stdout: object, stderr: object, *, inherited: Inherited, worker: str
) -> OpenedStreams:
    """Make pipes, and open the files that are given by path: for appending, in a thread.

    :param inherited: the standard streams that the helper has
    :raises NsorchError: of stage ``"streams"``: a file can't be opened, or a descriptor isn't open
    """
    files: list[int] = []
    sources: list[object] = []
    try:
        for number, source in enumerate((stdin, stdout, stderr)):
            if isinstance(source, str | os.PathLike):
                flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND | os.O_CREAT
                fd = await open_file(source, flags)
                files.append(fd)
                sources.append(fd)
            else:
                sources.append(source)
        return OpenedStreams(Streams.make((sources[0], sources[1], sources[2]), inherited), files)
    except BaseException as exc:
        for fd in files:
            os.close(fd)
        if isinstance(exc, OSError):
            what = exc.filename or _closed(stdin, stdout, stderr)
            raise translate("streams", exc.errno or errno.EIO, what, worker) from None
        raise


def _closed(*sources: Any) -> str:
    """Which of the standard streams was given a descriptor that isn't open."""
    for name, source in zip(_STREAMS, sources, strict=True):
        fd = source.fileno() if hasattr(source, "fileno") else source
        if isinstance(fd, int) and fd >= 0:
            try:
                fcntl.fcntl(fd, fcntl.F_GETFD)
            except OSError:
                return f"{name}={fd}"
    return ""
