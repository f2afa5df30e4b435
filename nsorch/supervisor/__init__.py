"""The only place where core and net meet: workers, their supervision, and their wiring.

What is here by name is for annotations, which are looked up when somebody asks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.later import later

if TYPE_CHECKING:
    from ssl import SSLContext
    from subprocess import CompletedProcess

    from anyio.streams.stapled import MultiListener
    from anyio.streams.tls import TLSStream
    from httpx import AsyncClient

    from nsorch.core.usage import WorkerStats
    from nsorch.net.packets import Instructions
    from nsorch.net.ping import Reachability
    from nsorch.supervisor.deployment import Deployment
    from nsorch.supervisor.statistics import StatsStream
    from nsorch.supervisor.traffic.capture import Capture, Direction
    from nsorch.supervisor.traffic.tun import TunDevice
    from nsorch.supervisor.wiring.uplinks import Uplink
    from nsorch.supervisor.worker import Worker

LATER = {
    "AsyncClient": "httpx",
    "Capture": "nsorch.supervisor.traffic.capture",
    "CompletedProcess": "subprocess",
    "Deployment": "nsorch.supervisor.deployment",
    "Direction": "nsorch.supervisor.traffic.capture",
    "Instructions": "nsorch.net.packets",
    "MultiListener": "anyio.streams.stapled",
    "Reachability": "nsorch.net.ping",
    "SSLContext": "ssl",
    "StatsStream": "nsorch.supervisor.statistics",
    "TLSStream": "anyio.streams.tls",
    "TunDevice": "nsorch.supervisor.traffic.tun",
    "Uplink": "nsorch.supervisor.wiring.uplinks",
    "Worker": "nsorch.supervisor.worker",
    "WorkerStats": "nsorch.core.usage",
}

__all__ = [
    "AsyncClient",
    "Capture",
    "CompletedProcess",
    "Deployment",
    "Direction",
    "Instructions",
    "MultiListener",
    "Reachability",
    "SSLContext",
    "StatsStream",
    "TLSStream",
    "TunDevice",
    "Uplink",
    "Worker",
    "WorkerStats",
]

if not TYPE_CHECKING:  # type checkers would take any name for one that exists
    __getattr__, __dir__ = later(globals(), LATER)
