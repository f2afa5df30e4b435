"""An httpx client before httpx is imported: that takes 100 ms, for which the caller's loop must not stand still."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any, cast

from nsorch.core.threads import in_thread_or_here
from nsorch.errors import UnsupportedError

if TYPE_CHECKING:
    import httpx

    from nsorch.supervisor.worker import Worker

_MODULE = "nsorch.supervisor.traffic.http"


def make_client(worker: Worker, *, http2: bool, **options: Any) -> httpx.AsyncClient:
    """See :meth:`Worker.http_client`."""
    if http2 and importlib.util.find_spec("h2") is None:
        raise UnsupportedError("http_client(http2=True) needs h2: pip install h2")
    options["http2"] = http2
    if {"httpx", "httpcore"} <= sys.modules.keys():
        return _make(worker, options)
    if importlib.util.find_spec("httpx") is None:
        raise UnsupportedError("http_client needs httpx: pip install nsorch[http]")
    return cast("httpx.AsyncClient", _Later(worker, options))


def _make(worker: Worker, options: dict[str, Any]) -> httpx.AsyncClient:
    made: httpx.AsyncClient = importlib.import_module(_MODULE).make_client(worker, **options)
    return made


class _Later:
    """Becomes the client when it is entered, after an import in a thread; or when something else is asked of it."""

    def __init__(self, worker: Worker, options: dict[str, Any]) -> None:
        vars(self)["_waiting"] = worker, options

    def _become(self) -> httpx.AsyncClient:
        made = _make(*vars(self)["_waiting"])
        vars(self).clear()
        vars(self).update(vars(made))
        object.__setattr__(self, "__class__", type(made))
        return cast("httpx.AsyncClient", self)

    async def __aenter__(self) -> httpx.AsyncClient:
        await in_thread_or_here(importlib.import_module, _MODULE)
        return await self._become().__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        # Python looks this up before it enters, when it was none yet.
        await cast("Any", self).__aexit__(*exc)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying and the like
            raise AttributeError(name)
        return getattr(self._become(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._become(), name, value)
