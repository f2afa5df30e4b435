"""Python's garbage collector, while much is made at once.

A full collection looks at every object of the application, 10 to 120 ms long, and its loop stands still. Python begins
one whenever the objects since the last have become a quarter of all: a few times while thousands of workers start, are
asked or go, and at once after that, although nothing of them is garbage. So while there is a burst only the youngest
objects are collected, where garbage is mostly found; and what a large one has made counts as old from its end on, as
after a full collection.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NEVER = (1 << 31) - 1
# Fewer objects are looked at in 5 ms.
_FEW = 15_000
# Python 3.12 itself has some 400 frozen objects: those that are immortal. Whoever freezes has thousands.
_IMMORTAL = 1_000
# So many more may become old before Python has its way, of which some 30,000 workers come and go: garbage may be among
# them.
_MOST = 2_000_000
_lock = threading.Lock()  # a supervisor may run in each thread
_bursts = 0
_older = (0, 0)  # the application's own thresholds of the older generations
_unseen = 0  # objects that became old without a full collection
_full = 0  # number of these, when they did


@contextlib.contextmanager
def no_full_collections() -> Iterator[None]:
    """While any such block runs, unless they go on and on; what the application sets meanwhile stays."""
    global _bursts, _older
    with _lock:
        _bursts += 1
        if _bursts == 1:
            young, *older = gc.get_threshold()
            _older = (older[0], older[1])
            gc.set_threshold(young, _NEVER, _NEVER)
    try:
        yield
    finally:
        with _lock:
            _bursts -= 1
            made = gc.get_threshold()[0] * gc.get_count()[1]
            if not _bursts or made > _MOST:
                _let_it_collect()
            if not _bursts:
                _grow_old(made)


def _let_it_collect() -> None:
    young, *older = gc.get_threshold()
    gc.set_threshold(young, *(own if now == _NEVER else now for now, own in zip(older, _older, strict=True)))


def _grow_old(made: int) -> None:
    """What is young becomes old, by a way round: some *made* objects."""
    global _unseen, _full
    full = gc.get_stats()[-1]["collections"]
    if full != _full:
        _unseen, _full = 0, full
    # Unfreezing would be of what the application has frozen, too.
    if made >= _FEW and _unseen + made <= _MOST and gc.isenabled() and gc.get_freeze_count() < _IMMORTAL:
        _unseen += made
        gc.freeze()
        gc.unfreeze()
