"""The values that events carry: states, exits, resource usage."""

from __future__ import annotations

import enum
from typing import Any

from attrs import frozen

from nsorch.values import Value


class State(enum.Enum):
    """Where a worker is in its life."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    EXITED = "exited"
    BACKOFF = "backoff"
    FAILED = "failed"
    REMOVED = "removed"


@frozen(kw_only=True, weakref_slot=False, eq=False, repr=False)
class Usage(Value):
    """What a process and its waited-for descendants used (``getrusage(2)``).

    :ivar user_time: seconds of CPU in user mode
    :ivar system_time: seconds of CPU in the kernel
    :ivar max_rss: largest resident set, in bytes; at least the helper's, some 12 MB, which the kernel counts up to the
        exec (setmax_mm_hiwater_rss() in fs/exec.c)
    """

    user_time: float
    system_time: float
    max_rss: int

    def to_dict(self) -> dict[str, Any]:
        return {"user_time": self.user_time, "system_time": self.system_time, "max_rss": self.max_rss}


@frozen(kw_only=True, weakref_slot=False, eq=False, repr=False)
class Exit(Value):
    """How a process ended: by itself with a ``code``, or by a ``signal``; exactly one of the two is given.

    :ivar expected: whether nsorch was asked to end it
    :ivar usage: what it used, or None if nobody could ask the kernel
    """

    code: int | None = None
    signal: int | None = None
    expected: bool = False
    usage: Usage | None = None

    def __attrs_post_init__(self) -> None:
        if (self.code is None) == (self.signal is None):
            raise ValueError(f"an exit has either a code or a signal, not code={self.code}, signal={self.signal}")

    @property
    def status(self) -> int:
        """The exit status as a shell has it: the code, or 128 plus the signal."""
        if self.code is not None:
            return self.code
        assert self.signal is not None
        return 128 + self.signal

    def to_dict(self) -> dict[str, Any]:
        usage = None if self.usage is None else self.usage.to_dict()
        return {"code": self.code, "signal": self.signal, "expected": self.expected, "usage": usage}


@frozen(kw_only=True, weakref_slot=False, eq=False, repr=False)
class WorkerStatus(Value):
    """What the bus knows of one worker.

    :ivar incarnation: number of its latest process, 0 if it had none
    :ivar pid: of its command as the host sees it, or None if it has no process now
    :ivar exit: how its latest ended process ended, or None
    """

    state: State
    incarnation: int = 0
    pid: int | None = None
    exit: Exit | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "incarnation": self.incarnation,
            "pid": self.pid,
            "exit": None if self.exit is None else self.exit.to_dict(),
        }
