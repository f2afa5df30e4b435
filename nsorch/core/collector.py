"""Python's garbage collector, while much is made at once.

A full collection looks at every object of the application, 10 to 40 ms long, and its loop stands still. Python begins
one whenever the objects since the last have become a quarter of all: a few times while thousands of workers start, are
asked or go, although nothing of them is garbage. So the full ones wait until the burst is over; the younger
generations, where garbage is mostly found, are collected as ever.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER = (1 << 31) - 1
_lock = threading.Lock()  # a supervisor may run in each thread
_bursts = 0
_oldest = 0  # the application's own threshold of the oldest generation


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """While any such block runs; what the application sets meanwhile stays."""
    global _bursts, _oldest
    with _lock:
        _bursts += 1
        if _bursts == 1:
            young, middle, _oldest = gc.get_threshold()
            gc.set_threshold(young, middle, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _bursts -= 1
            young, middle, oldest = gc.get_threshold()
            if not _bursts and oldest == _NEVER:
                gc.set_threshold(young, middle, _oldest)
