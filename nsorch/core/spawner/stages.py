"""What the helpers report when a step fails."""

from __future__ import annotations

import contextlib
import errno
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
