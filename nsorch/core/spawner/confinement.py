"""What a command may do: the last steps of a forked child, alike for a worker's own process and for all that is
started in it."""

from __future__ import annotations

import contextlib
import errno
import functools
import marshal
import os
import resource
import signal
from typing import TYPE_CHECKING, NamedTuple

from .calls import NOW
from .stages import stage
from .syscalls import set_dumpable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .calls import Calls

#: uid, gid, supplementary groups
User = tuple[int, int, tuple[int, ...]]
#: name as ``NOFILE``, soft, hard; -1 is no limit
Limit = tuple[str, int, int]


class Capabilities(NamedTuple):
    """Bits of each set, as they are before the exec, whose rules then apply (capabilities(7))."""

    bounding: int
    permitted: int
    effective: int
    inheritable: int
    ambient: int


class Confinement(NamedTuple):
    """Travels as bytes, see :func:`encode`: thousands of commands have the same, which is read once."""

    capabilities: tuple[int, ...] | None = None  #: of Capabilities; None leaves all as they are
    no_new_privs: bool = False
    rlimits: tuple[Limit, ...] = ()
    oom_score_adj: int | None = None
    seccomp: bytes = b""  #: a BPF program
    keyring: bool = False  #: a session keyring of its own

    @property
    def restricts_early(self) -> bool:
        """Without no_new_privs a filter needs CAP_SYS_ADMIN."""
        return bool(self.seccomp) and not self.no_new_privs


NONE = Confinement()


def encode(confinement: Confinement) -> bytes:
    return b"" if confinement == NONE else marshal.dumps(tuple(confinement))


@functools.lru_cache(maxsize=16)
def decode(data: bytes) -> Confinement:
    return Confinement(*marshal.loads(data)) if data else NONE


def confine(confinement: Confinement, user: User | None, do: Calls = NOW) -> None:
    """All but what :func:`restrict` does, where that can be last.

    :raises StageError: naming the step; nothing is restored
    """
    if confinement.keyring:
        # A kernel without keyrings has none to be kept from.
        with do.stage("keyring"), do.optional(errno.ENOSYS):
            do.join_new_session_keyring()
    for limit in confinement.rlimits:
        own_soft, own_hard = resource.getrlimit(_resource(limit))
        if own_hard != resource.RLIM_INFINITY and not 0 <= limit[2] <= own_hard:  # for which a capability is needed
            _limit(do, limit, own_soft, limit[2])
    if confinement.restricts_early:
        restrict(confinement, do)
    capabilities = None if confinement.capabilities is None else Capabilities(*confinement.capabilities)
    if capabilities is not None:
        with do.stage("capabilities", "bounding set"):
            _bound(do, capabilities.bounding)
            do.keep_capabilities()
    if user is not None:
        become_user(user, do)
    if capabilities is not None:
        with do.stage("capabilities"):
            # Those that the supervisor hasn't itself can't be had; what the user named was checked before.
            held = do.get_permitted()
            # An exec takes all but the ambient ones from whoever isn't uid 0: it must not find a program by them.
            own = held if user is None or user[0] == 0 or capabilities.ambient else 0
            do.set_capabilities(
                capabilities.effective & own, capabilities.permitted & own, capabilities.inheritable & held
            )
            do.set_ambient(capabilities.ambient & held)
    if confinement.no_new_privs:
        with do.stage("no_new_privs"):
            do.set_no_new_privs()
    with do.stage("parent-death signal"):  # a change of credentials cleared it
        do.set_parent_death_signal(signal.SIGKILL)


def _resource(limit: Limit) -> int:
    return int(getattr(resource, f"RLIMIT_{limit[0]}"))


def _limit(do: Calls, limit: Limit, soft: int, hard: int) -> None:
    name, *wanted = limit
    with do.stage("rlimits", "{} {}:{}".format(name.lower(), *wanted)):
        do.set_limit(_resource(limit), soft, hard)


def restrict(confinement: Confinement, do: Calls = NOW) -> None:
    """From here on the limits and the filter hold, also for this process's own last calls."""
    for limit in confinement.rlimits:
        _limit(do, limit, *limit[1:])
    if confinement.seccomp:
        with do.stage("seccomp"):
            do.set_seccomp(confinement.seccomp)


def _bound(do: Calls, capabilities: int) -> None:
    with do.optional(errno.EINVAL):  # the first number that this kernel doesn't know
        for number in range(64):
            if not capabilities >> number & 1:
                do.drop_from_bounding_set(number)


def become_user(user: User, do: Calls = NOW) -> None:
    uid, gid, groups = user
    with do.stage("user", f"uid {uid}, gid {gid}"):
        # Denied in a user namespace that maps the caller's own id alone: its groups stay, and can't be told apart.
        with contextlib.nullcontext() if set(groups) - {gid} else do.optional(errno.EPERM):
            do.set_groups(groups)
        do.set_ids(uid, gid)


@contextlib.contextmanager
def lent_oom_score(confinement: Confinement, proc: int) -> Iterator[None]:
    """Have the caller's forks inherit a score: of what can't be traced, nobody but the host's root may set one.

    :param proc: descriptor of a /proc that knows the caller
    """
    if confinement.oom_score_adj is None:
        yield
        return
    own = _swap_oom_score(str(confinement.oom_score_adj), proc)
    try:
        yield
    finally:
        _swap_oom_score(own, proc)


@contextlib.contextmanager
def hidden(wanted: bool) -> Iterator[None]:
    """Have the caller's forks be hidden from others, up to their exec."""
    if wanted:
        set_dumpable(False)
    try:
        yield
    finally:
        if wanted:
            set_dumpable(True)


def _swap_oom_score(score: str, proc: int) -> str:
    with stage("oom_score_adj", score):
        fd = os.open("self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC, dir_fd=proc)
        try:
            before = os.read(fd, 16).decode().strip()
            os.pwrite(fd, score.encode(), 0)
        finally:
            os.close(fd)
    return before


def set_oom_score(confinement: Confinement, proc: int) -> None:
    if confinement.oom_score_adj is not None:
        _swap_oom_score(str(confinement.oom_score_adj), proc)
