"""What a link does over time, as a list of moments; also from files of mahimahi."""

from __future__ import annotations

import itertools
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from attrs import Factory, field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.emulation import Emulation
from nsorch.topology.kinds import shown
from nsorch.topology.units import duration
from nsorch.values import Value

# At each of the times of mahimahi's files one packet of full size may be delivered.
_PACKET = 1500 * 8
_INTERVAL = 0.001


@frozen(eq=False, repr=False)
class Step(Value):
    """From *time* on, in seconds since the beginning, what *emulation* says; what it doesn't say stays."""

    time: float
    emulation: Emulation


def _steps(value: Any) -> tuple[Step, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TopologyError(f"trace: {shown(value)} is no list of times and what is said then")
    found: list[Step] = []
    for number, item in enumerate(value):
        where = f"trace[{number}]"
        if isinstance(item, Step):
            step = item
        else:
            try:
                time, said = item
                step = Step(duration(time), said if isinstance(said, Emulation) else Emulation(**said))
            except TopologyError as exc:
                raise TopologyError(*(f"{where}.{problem}" for problem in exc.problems)) from None
            except (TypeError, ValueError) as exc:
                raise TopologyError(f"{where}: {shown(item)} is not a time and what is said then: {exc}") from None
        if found and step.time <= found[-1].time:
            raise TopologyError(f"{where}: {step.time:g} s is not after the step before, at {found[-1].time:g} s")
        found.append(step)
    if not found:
        raise TopologyError("trace: it has no steps")
    return tuple(found)


def _to_length(value: Any) -> float:
    try:
        return duration(value)
    except ValueError as exc:
        raise TopologyError(f"trace.length: {exc}") from None


def _to_interval(value: Any) -> float:
    try:
        seconds = duration(value)
    except ValueError as exc:
        raise TopologyError(f"trace.interval: {exc}") from None
    if seconds < _INTERVAL:
        raise TopologyError(f"trace.interval: {shown(value)} is below {_INTERVAL:g} s, in which the times are")
    return seconds


@frozen(eq=False, repr=False)
class Trace(Value):
    """Steps in the order of their times: ``Trace([(0, {"rate": "5mbit"}), (2.5, {"rate": "1mbit", "loss": "1%"})])``.

    :ivar length: seconds until it begins again, or ends; the time of the last step if not given
    """

    steps: tuple[Step, ...] = field(converter=_steps)
    length: float = field(
        default=Factory(lambda self: self.steps[-1].time, takes_self=True), kw_only=True, converter=_to_length
    )

    def __attrs_post_init__(self) -> None:
        last = self.steps[-1].time
        if self.length < last:
            raise TopologyError(f"trace.length: {self.length:g} s is before the last step, at {last:g} s")

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @classmethod
    def mahimahi(cls, path: str | os.PathLike[str], *, interval: Any = 0.1) -> Trace:
        """The rates of a file of mahimahi's link emulator: a line for each packet of 1,500 bytes that may be delivered,
        with its time in milliseconds. Blocks.

        :param interval: seconds for which a rate holds, 0.001 or more. Where packets are rarer than that, the time
            between two of them counts, so that no rate is zero
        :raises TopologyError: it can't be read, or is no such file
        """
        name = os.fspath(path)
        try:
            with open(name, encoding="ascii") as file:
                times = [int(line) for line in file if line.strip()]
        except (OSError, ValueError) as exc:
            raise TopologyError(f"it is no trace of mahimahi: {exc}", source=str(name)) from None
        if not times or times[0] < 0 or times[-1] <= 0 or any(one > other for one, other in itertools.pairwise(times)):
            raise TopologyError("it is no trace of mahimahi: its times don't ascend", source=str(name))
        return cls(_rates(times, _to_interval(interval)), length=times[-1] / 1000)


def _rates(times: list[int], interval: float) -> Iterable[tuple[float, Mapping[str, float]]]:
    """Between two times, packets come into being evenly: at any time there is a number of them, also a broken one."""
    length = times[-1] / 1000
    count = max(1, round(length / interval))
    edges = [length * number / count for number in range(count + 1)]
    passed = [_packets(times, edge) for edge in edges]
    before = None
    for number in range(count):
        rate = (passed[number + 1] - passed[number]) * _PACKET / (edges[number + 1] - edges[number])
        if rate != before:
            yield edges[number], {"rate": max(rate, 8.0)}
            before = rate


def _packets(times: list[int], edge: float) -> float:
    """How many of *times*, in milliseconds, are not after *edge*, in seconds, and which part of the next is."""
    at = edge * 1000
    number = bisect_right(times, at)
    if number == len(times):
        return float(number)
    start = times[number - 1] if number else 0
    return number + (at - start) / (times[number] - start)
