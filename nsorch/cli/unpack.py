"""``nsorch unpack``: an image becomes a root file system."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import anyio
import click

from nsorch import unpack
from nsorch.cli.signals import await_signal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from nsorch import Unpacked


def unpack_image(
    image: str, directory: str, *, tag: str | None, platform: str | None, squash: bool | None, as_json: bool
) -> int:
    done = anyio.run(_interruptible, partial(unpack, image, directory, tag=tag, platform=platform, squash=squash))
    if isinstance(done, int):
        return 128 + done
    if as_json:
        click.echo(json.dumps(done.to_dict(), indent=2))
        return 0
    for note in done.notes:
        click.echo(f"nsorch: {note}", err=True)
    layers = f"{done.layers} layer{'' if done.layers == 1 else 's'}"
    click.echo(f"{done.directory}: {layers}, {done.entries} entries, {done.size} bytes")
    return 0


async def _interruptible(work: Callable[[], Awaitable[Unpacked]]) -> Unpacked | int:
    """What it gives, or the signal that ended it."""
    failure: BaseException | None = None
    done: Unpacked | None = None
    async with anyio.create_task_group() as tasks:
        with anyio.CancelScope() as body:
            interrupted = await tasks.start(await_signal, body)
            try:
                done = await work()
            except Exception as exc:
                failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return interrupted.number if done is None else done
