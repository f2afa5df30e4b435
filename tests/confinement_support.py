"""What the kernel says of the processes of a worker, and a filter for them."""

from __future__ import annotations

import pathlib
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import nsorch


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


async def inside(worker: nsorch.Worker) -> list[dict[str, str]]:
    """/proc/PID/status of the worker's own process, of what ``run`` starts, and of what ``popen`` starts."""
    assert worker.pid is not None
    found = [status(pathlib.Path(f"/proc/{worker.pid}/status").read_text())]
    found.append(status((await worker.run(["cat", "/proc/self/status"])).stdout.decode()))
    async with await worker.popen(["cat", "/proc/self/status"]) as process:
        assert process.stdout is not None
        found.append(status(b"".join([chunk async for chunk in process.stdout]).decode()))
    return found


def refuse(number: int, error: int) -> bytes:
    """A program that lets the call *number* fail, whatever the architecture."""
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 1, number),  # jump if equal
            (0x06, 0, 0, 0x00050000 | error),
            (0x06, 0, 0, 0x7FFF0000),
        )
    )
