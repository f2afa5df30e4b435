"""``nsorch unpack``: an image becomes a root file system."""

from __future__ import annotations

import json
from functools import partial

import anyio
import click

from nsorch import unpack


def unpack_image(
    image: str, directory: str, *, tag: str | None, platform: str | None, squash: bool | None, as_json: bool
) -> int:
    done = anyio.run(partial(unpack, image, directory, tag=tag, platform=platform, squash=squash))
    if as_json:
        click.echo(json.dumps(done.to_dict(), indent=2))
        return 0
    for note in done.notes:
        click.echo(f"nsorch: {note}", err=True)
    layers = f"{done.layers} layer{'' if done.layers == 1 else 's'}"
    click.echo(f"{done.directory}: {layers}, {done.entries} entries, {done.size} bytes")
    return 0
