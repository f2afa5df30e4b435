"""Descriptors that somebody uses while their owner may close them."""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING

from nsorch.core import descriptors
from nsorch.core.failures import translate

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def lent(fd: int, stage: str, worker: str | None = None) -> Iterator[int]:
    """Another descriptor of the same: once *fd* is closed its number may be another's.

    :raises NsorchError: of *stage*: there is no room for another one
    """
    try:
        copy = descriptors.duplicate(fd)
    except OSError as exc:
        raise translate(stage, exc.errno or errno.EBADF, "", worker) from None
    try:
        yield copy
    finally:
        descriptors.close([copy])
