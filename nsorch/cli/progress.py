"""A bar for what takes longer than a second, on a terminal only."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import anyio

from nsorch.cli.terminal import is_terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_DELAY = 1.0
_INTERVAL = 0.1


@contextlib.asynccontextmanager
async def progress(what: str, total: int, done: Callable[[], int]) -> AsyncIterator[None]:
    """While the block runs, show how many of *total* are *done*."""
    if not is_terminal(sys.stderr) or not total:
        yield
        return
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_show, what, total, done)
        try:
            yield
        finally:
            tasks.cancel_scope.cancel()


async def _show(what: str, total: int, done: Callable[[], int]) -> None:
    await anyio.sleep(_DELAY)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn by this task alone: rich's own thread would take the loop's turns.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total)
        while True:
            bar.update(task, completed=done(), refresh=True)
            await anyio.sleep(_INTERVAL)
