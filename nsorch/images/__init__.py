"""Images become directories: OCI image layouts, layer by layer, and tarballs of root file systems. Knows no kernel
object but files."""

from __future__ import annotations

import os
import threading
from types import NoneType

import anyio

from nsorch.errors import TopologyError
from nsorch.images.values import ImageConfig, Unpacked
from nsorch.topology.kinds import of_kind, shown, to_path

__all__ = ["ImageConfig", "Unpacked", "unpack"]


async def unpack(
    image: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    tag: str | None = None,
    platform: str | None = None,
    squash: bool | None = None,
    max_size: int = 64 << 30,
) -> Unpacked:
    """Unpack *image* into *directory*, which is there whole on return, and not at all after an error or a cancellation.

    The work is done in a thread. It goes on below a hidden directory beside *directory*, which a ``kill -9`` leaves.

    :param image: an OCI image layout, or what ``skopeo copy … dir:`` leaves; an archive such as ``docker save`` writes;
        or a tarball of a root file system, plain or compressed by gzip, bzip2, xz or (with the extra ``nsorch[zstd]``,
        or Python 3.14) zstd
    :param directory: must not exist, or be empty
    :param tag: which image of a layout; needed where there are several
    :param platform: such as ``"linux/arm64/v8"``; this machine's if None
    :param squash: give all files to the caller, leave device nodes, set-id bits and privileged attributes out. None:
        unless the caller is root, with all users mapped
    :param max_size: bytes of all files, holes of sparse ones aside; a larger image is refused
    :raises TopologyError: an argument is of a wrong kind; names it
    :raises ImageError: it is damaged, fits no platform, or has an entry that leads outside; the error names it
    :raises UnsupportedError: a compression that this Python can't read
    :raises OSError: *directory* can't be written, or isn't empty
    """
    from nsorch.images.unpacking import unpack_blocking

    image, directory = to_path("image", image), to_path("directory", directory)
    of_kind("tag", tag, "a string", str, NoneType)
    of_kind("platform", platform, "a string such as linux/arm64", str, NoneType)
    of_kind("squash", squash, "true or false", bool, NoneType)
    of_kind("max_size", max_size, "a number of bytes", int)
    if max_size <= 0:
        raise TopologyError(f"max_size: {shown(max_size)} is not a number of bytes above 0")
    cancelled = threading.Event()

    async def watch() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    outcome: Unpacked | None = None
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            outcome = await anyio.to_thread.run_sync(
                lambda: unpack_blocking(
                    image, directory, tag=tag, platform=platform, squash=squash, max_size=max_size, cancelled=cancelled
                )
            )
        except Exception as exc:
            failure = exc  # not through the task group, which would wrap it
        tasks.cancel_scope.cancel()
    if failure is not None:
        await anyio.lowlevel.checkpoint_if_cancelled()  # then it is why it failed
        raise failure
    assert outcome is not None
    return outcome
