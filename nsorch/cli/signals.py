"""The signals that end a command of the command line, which cleans up first."""

from __future__ import annotations

import signal

import anyio

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted:
    """:ivar number: of the signal that came, or 0; :ivar scope: what one ends"""

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.number = 0
        self.scope = scope


async def await_signal(body: anyio.CancelScope, *, task_status: anyio.abc.TaskStatus[Interrupted]) -> None:
    # Who is begun by nohup(1) goes on when the terminal is gone.
    stays = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    with anyio.open_signal_receiver(*(SIGNALS[:-1] if stays else SIGNALS)) as signals:
        interrupted = Interrupted(body)
        task_status.started(interrupted)
        async for number in signals:
            interrupted.number = int(number)
            interrupted.scope.cancel()
