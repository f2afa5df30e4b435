"""When a worker is ready, as values that have been checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.conditions import Condition
from nsorch.topology.kinds import check_port, is_text, shown, to_command
from nsorch.topology.units import duration


def _to_port(value: Any) -> int:
    check_port("ready.tcp", value)
    return int(value)


def _to_host(value: Any) -> str | None:
    if value is not None and not (isinstance(value, str) and value and is_text(value)):
        raise TopologyError(f"ready.host: {shown(value)} is not a string: a name or an address")
    return value


def _to_timeout(value: Any) -> float:
    return _seconds("timeout", value)


def _to_interval(value: Any) -> float:
    return _seconds("interval", value)


def _seconds(name: str, value: Any) -> float:
    try:
        return duration(value)
    except ValueError as exc:
        raise TopologyError(f"ready.{name}: {exc}") from None


def _to_condition(value: Any) -> tuple[Any, ...]:
    try:
        found = to_command(value)
    except TopologyError as exc:
        raise TopologyError(f"ready.exec: {exc.problems[0].removeprefix('command: ')}") from None
    if found is None:
        raise TopologyError("ready.exec: the command is missing")
    return found


@frozen(kw_only=True, eq=False, repr=False)
class TcpReady(Condition):
    """See :func:`tcp_ready`."""

    port: int = field(converter=_to_port)
    host: str | None = field(default=None, converter=_to_host)
    timeout: float = field(default=30.0, converter=_to_timeout)
    interval: float = field(default=0.02, converter=_to_interval)


@frozen(kw_only=True, eq=False, repr=False)
class ExecReady(Condition):
    """See :func:`exec_ready`."""

    command: tuple[str, ...] = field(converter=_to_condition)
    timeout: float = field(default=30.0, converter=_to_timeout)
    interval: float = field(default=0.1, converter=_to_interval)


def tcp_ready(port: int, *, host: str | None = None, timeout: float = 30.0, interval: float = 0.02) -> TcpReady:
    """Ready when TCP *port* accepts a connection from inside the worker: at *host*, or any address of the worker.

    :param timeout: seconds until NotReadyError
    :param interval: seconds between two tries
    """
    return TcpReady(port=port, host=host, timeout=timeout, interval=interval)


def exec_ready(command: Sequence[str], *, timeout: float = 30.0, interval: float = 0.1) -> ExecReady:
    """Ready when *command*, run in the worker, ends with status 0.

    :param timeout: seconds until NotReadyError
    :param interval: seconds between two tries
    """
    return ExecReady(command=command, timeout=timeout, interval=interval)
