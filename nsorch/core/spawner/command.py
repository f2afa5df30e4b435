"""Starting a command: by posix_spawn where nothing has to run in the child, else by its last steps before the exec."""

from __future__ import annotations

import errno
import fcntl
import marshal
import os
import signal
from typing import TYPE_CHECKING, NoReturn

from .confinement import confine, decode, restrict
from .mountapi import RESOLVE_NO_MAGICLINKS, openat2
from .protocol import Command, Own, Session, Stream
from .stages import StageError, stage
from .syscalls import clone3, posix_spawn, spawn_attributes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# What Python ignores: nothing else is, and handlers end with the exec.
IGNORED = (int(signal.SIGPIPE), int(signal.SIGXFSZ))
_ATTRIBUTES = {
    kind: spawn_attributes(IGNORED, session=kind == Session.NEW, group=kind == Session.GROUP)
    for kind in (Session.SHARED, Session.NEW, Session.GROUP)
}
_AT_FDCWD = -100
_MOST_INTERPRETERS = 6  # the kernel follows 5 (fs/exec.c)
_PIDFD_GET_PID_NAMESPACE = 0xFF05  # linux/pidfd.h
_DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


_latest_env: tuple[bytes, dict[bytes, bytes]] = (b"", {})


def environment(command: Command) -> dict[bytes, bytes]:
    global _latest_env
    if _latest_env[0] != command.env:
        _latest_env = command.env, marshal.loads(command.env)
    return _latest_env[1]


def candidates(command: Command) -> list[bytes]:
    """Where its program may be, in the order in which execvp tries them."""
    name = command.argv[0]
    if b"/" in name:
        # A relative path counts from the command's working directory.
        return [os.path.join(command.cwd, name)]
    path = environment(command).get(b"PATH", _DEFAULT_PATH)
    return [(folder or b".") + b"/" + name for folder in path.split(b":")] if name else []


def resolve(command: Command) -> bytes:
    """Find the program, as execvp does, in the file system as the caller sees it now.

    :raises StageError: of stage ``"command"`` with ENOENT or EACCES
    """
    for place in _executables(command):
        return place
    raise StageError("command", _why_not(command.argv[0], candidates(command)), os.fsdecode(command.argv[0]))


def find_all(command: Command) -> list[bytes]:
    """As :func:`resolve`, with what else it would find, if the command may be somebody who can't execute the first."""
    return (is_confined(command) and [*_executables(command)]) or [resolve(command)]


def _executables(command: Command) -> Iterator[bytes]:
    return (place for place in candidates(command) if os.access(place, os.X_OK) and os.path.isfile(place))


def is_confined(command: Command) -> bool:
    """Whether it has another user, or less rights."""
    return bool(command.confinement) or command.user is not None


def _why_not(name: bytes, places: list[bytes]) -> int:
    for place in places:
        try:
            os.stat(place)
        except OSError as exc:
            # A directory of PATH that can't be searched has no command, as shells see it.
            if exc.errno != errno.EACCES or b"/" not in name:
                continue
        return errno.EACCES
    return errno.ENOENT


def enter_directory(command: Command) -> None:
    try:
        with stage("cwd", os.fsdecode(command.cwd)):
            if command.guarded:
                _enter_inside(command.cwd)
            else:
                os.chdir(command.cwd)
    except StageError:
        if command.cwd_required:
            raise
        os.chdir("/")


def _enter_inside(path: bytes) -> None:
    """No way through a descriptor of ours to a directory of the host's (CVE-2024-21626)."""
    folder = openat2(_AT_FDCWD, path, os.O_PATH | os.O_DIRECTORY, RESOLVE_NO_MAGICLINKS)
    try:
        os.fchdir(folder)
        os.getcwd()  # fails where that is not below the root
    finally:
        os.close(folder)


def check_program(program: bytes) -> None:
    """Refuse a program, or the interpreter of a script, that a magic link of ``/proc`` leads to: the file that *this*
    process runs would be executed, and could be written to afterwards (CVE-2019-5736).

    :raises StageError: of stage ``"exec"`` with ELOOP
    """
    for _ in range(_MOST_INTERPRETERS):
        with stage("exec", os.fsdecode(program)):
            os.close(openat2(_AT_FDCWD, program, os.O_PATH, RESOLVE_NO_MAGICLINKS))
        interpreter = _interpreter_of(program)
        if interpreter is None:
            return
        program = interpreter


def _interpreter_of(program: bytes) -> bytes | None:
    """Of a script that can be read."""
    try:
        with open(openat2(_AT_FDCWD, program, os.O_RDONLY | os.O_NONBLOCK, RESOLVE_NO_MAGICLINKS), "rb") as file:
            first = file.read(256).partition(b"\n")[0]
    except OSError:  # may be executed, not read
        return None
    words = first[2:].split()
    return words[0] if first.startswith(b"#!") and words else None


def has_interpreter(program: bytes) -> bool:
    """Whether that of a script is there; it is no script else."""
    interpreter = _interpreter_of(program)
    return interpreter is None or os.path.exists(interpreter)


def checked(programs: Iterable[bytes]) -> list[bytes]:
    """Those of *programs* that :func:`check_program` lets pass, up to one that it refuses for what it is.

    :raises StageError: there is none
    """
    found: list[bytes] = []
    failure: StageError | None = None
    for program in programs:
        try:
            check_program(program)
            found.append(program)
        except StageError as exc:
            failure = failure or exc
            if exc.number != errno.EACCES:
                break
    if failure is not None and not found:
        raise failure
    return found


def spawn(command: Command, program: bytes, streams: tuple[int, int, int]) -> int:
    """Run *program* by posix_spawn: the child shares the memory until its exec, which has happened on return.

    Changes the caller's working directory.
    """
    enter_directory(command)
    with stage("exec", os.fsdecode(program)):
        return posix_spawn(program, command.argv, environment(command), streams, _ATTRIBUTES[command.session])


_NOTHING = Own()


def is_plain(command: Command, own: Own = _NOTHING) -> bool:
    """Whether a posix_spawn does all that it takes."""
    return command.user is None and own == _NOTHING and not command.confinement and not command.guarded


def is_leased(program: bytes) -> bool:
    """Whether somebody has a lease on *program*, who would keep us waiting for its exec (F_SETLEASE in fcntl(2))."""
    try:
        os.close(os.open(program, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as exc:
        return exc.errno == errno.EWOULDBLOCK
    return False


def start(command: Command, program: bytes, streams: tuple[int, int, int]) -> int:
    """Run *program* in a child, its exec confirmed on return. Changes the caller's working directory.

    :raises StageError: the child is gone
    """
    if is_plain(command):
        return spawn(command, program, streams)
    # The end of file on a close-on-exec pipe, with nothing read, confirms the exec.
    ours, theirs = os.pipe()
    if theirs <= 2:  # an init has no standard streams, and the command's would overwrite it
        low, theirs = theirs, fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, 3)
        os.close(low)
    try:
        with stage("clone3"):
            pid, _ = clone3(0)
    except StageError:
        os.close(ours)
        os.close(theirs)
        raise
    if pid == 0:
        try:
            become(command, program, streams, theirs)
        except StageError as exc:
            os.write(theirs, marshal.dumps((exc.stage, exc.number, exc.detail)))
        finally:
            os._exit(125)
    os.close(theirs)
    failure = os.read(ours, 65536)
    os.close(ours)
    if failure:
        os.waitpid(pid, 0)
        raise StageError(*marshal.loads(failure))
    return pid


def become(command: Command, program: bytes, streams: tuple[int, int, int], *keep: int) -> NoReturn:
    """Turn the calling process, a forked child, into the command. *keep* are close-on-exec and stay open until then.

    :raises StageError: naming the step; nothing of the caller's state is restored
    """
    confinement = decode(command.confinement)
    if command.session == Session.NEW:
        os.setsid()
    elif command.session == Session.GROUP:
        os.setpgid(0, 0)
    enter_directory(command)
    # All are above 2, see Server: none is overwritten before it is duplicated.
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    programs = [program]
    if is_confined(command):
        programs += (other for other in _executables(command) if other != program)
        confine(confinement, command.user)
    close_all_but(0, 1, 2, *keep)
    with stage("signals"):  # which a filter may forbid
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if command.guarded:
        programs = checked(programs)
    if not confinement.restricts_early:
        restrict(confinement)
    with stage("exec", os.fsdecode(program)):
        _execute(programs, command)
    raise AssertionError("unreachable")


def _execute(programs: list[bytes], command: Command) -> None:
    """The first of *programs* that may be executed."""
    for left in range(len(programs), 0, -1):
        try:
            os.execve(programs[-left], command.argv, environment(command))
        except PermissionError:
            if left == 1:
                raise


def close_all_but(*keep: int) -> None:
    low = 0
    for fd in sorted(set(keep)):
        if low < fd:  # closerange(0, 0) closes everything: its end is an unsigned number
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def pick_streams(
    sources: tuple[int, int, int], inherited: tuple[int, int, int], null: int, fds: list[int]
) -> tuple[int, int, int]:
    def pick(number: int, source: int) -> int:
        if source == Stream.INHERIT:
            return inherited[number]
        return null if source == Stream.NULL else fds[source]

    return pick(0, sources[0]), pick(1, sources[1]), pick(2, sources[2])


def identify(pidfd: int, proc: int) -> tuple[int, int]:
    """Pid of an unreaped child as the host sees it, and the inode of its pid namespace; *proc* is the host's /proc."""
    file = os.open(f"thread-self/fdinfo/{pidfd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
    pid = int(os.read(file, 1024).partition(b"\nPid:")[2].split(None, 1)[0])
    os.close(file)
    try:
        namespace = fcntl.ioctl(pidfd, _PIDFD_GET_PID_NAMESPACE)
        try:
            return pid, os.fstat(namespace).st_ino
        finally:
            os.close(namespace)
    except OSError:
        pass
    try:
        # Linux before 6.11. The first look into the directory of a process costs 160 µs.
        return pid, os.stat(f"{pid}/ns/pid", dir_fd=proc).st_ino
    except OSError:  # a set-user-id command of a rootless supervisor doesn't let itself be looked at
        return pid, 0
