"""Events as lines of a log, through structlog, in the way that the application has configured; nothing of its own."""

from __future__ import annotations

import functools
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

    from nsorch.events.types import Event

_INFO, _WARNING = 20, 30  # of logging, whose import takes as long as that of all event types
_WARNINGS = frozenset({"WorkerSetupFailed", "WorkerFailed", "WorkerUnhealthy", "NetError"})
_failure_told = False


def prepare_logging() -> None:
    """Import structlog now if the standard logger ``nsorch`` would take events.

    The import takes a tenth of a second, for which the first event would else hold the event loop.
    """
    if _stdlib().isEnabledFor(_WARNING) and _stdlib().hasHandlers():
        _over_stdlib()


def log_event(event: Event) -> None:
    """Log an event as one line: its kind as the structlog event, its fields as key-values.

    Failures are warnings, the rest has level ``INFO``. The line goes to ``structlog.get_logger("nsorch")`` where the
    application has configured structlog; else to the standard logger ``nsorch``, as ``key=value`` pairs, if that is
    enabled for the level and has a handler; else nowhere. Never raises; a logger that does is reported once, at level
    ``ERROR`` of the standard logger.
    """
    global _failure_told
    try:
        level = _WARNING if event.kind in _WARNINGS else _INFO
        # Who has configured structlog has imported it.
        structlog = sys.modules.get("structlog")
        if structlog is not None and structlog.is_configured():
            logger = structlog.get_logger("nsorch")
        elif _stdlib().isEnabledFor(level) and _stdlib().hasHandlers():
            logger = _over_stdlib()
        else:
            return
        data = event.to_dict()
        kind = data.pop("kind")
        if level == _WARNING:
            logger.warning(kind, **data)
        else:
            logger.info(kind, **data)
    except Exception:
        # An event must reach its subscribers whatever a handler or processor of the application's does.
        if not _failure_told:
            _failure_told = True
            with suppress(Exception):
                _stdlib().exception("logging %s failed; further failures are not told", type(event).__name__)


@functools.cache
def _stdlib() -> logging.Logger:
    import logging

    return logging.getLogger("nsorch")


@functools.cache
def _over_stdlib() -> Any:
    import structlog

    return structlog.wrap_logger(
        _stdlib(),
        processors=[structlog.processors.LogfmtRenderer(key_order=["event"], bool_as_flag=False)],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
