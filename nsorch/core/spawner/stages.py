"""What the helpers report when a step fails."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class StageError(Exception):
    """A step failed: its name, the error number, and what it was about."""

    def __init__(self, stage: str, number: int, detail: str = "") -> None:
        super().__init__(stage, number, detail)
        self.stage = stage
        self.number = number
        self.detail = detail


@contextlib.contextmanager
def stage(name: str, detail: str = "") -> Iterator[None]:
    """Give an OSError of the block the name of the step that it stopped; and what Python refuses before it asks the
    kernel, such as a null byte, or a number that C has no room for."""
    try:
        yield
    except OSError as exc:
        raise StageError(name, exc.errno or errno.EIO, detail) from None
    except (ValueError, OverflowError) as exc:
        raise StageError(name, errno.EINVAL, f"{detail}: {exc}" if detail else str(exc)) from None


def failure_of(pid: int, failure: StageError) -> StageError:
    """Why nothing came of the child *pid*, which is killed: *failure*, unless it had ended before. The kernel refuses
    much that is asked of who has ended, with errors that tell of other reasons."""
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    os.kill(pid, signal.SIGKILL)
    return failure if ended is None else StageError("start", errno.ESRCH, "it was killed")
