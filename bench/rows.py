"""The rows of the table, each with the limit that nsorch promises."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from . import jobs
from .figure import Figure, Limit
from .isolation import isolation_row
from .jobs import measure
from .networks import ROUTERS
from .peers import peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .setting import Setting


_BACKENDS = ("asyncio", "trio")
_GIB = 1 << 30


@frozen(kw_only=True)
class _Shape:
    row: int
    what: str
    name: str
    arguments: tuple[str, ...]
    limit: float


_SHAPES = (
    _Shape(
        row=1,
        what="workers, 5 namespaces, sleep, init=False",
        name="exec",
        arguments=("sleep", "600"),
        limit=1.4,
    ),
    _Shape(row=2, what="workers, 5 namespaces, sleep, init", name="init", arguments=("sleep", "600"), limit=3.0),
    _Shape(row=3, what="workers, passive, netns alone", name="passive", arguments=("passive",), limit=1.5),
)


def _pairs(
    setting: Setting, n: int, first: Callable[[], float], second: Callable[[], float]
) -> list[tuple[float, float]]:
    """Run both *n* times, each as often before the other as after it."""
    found = []
    for number in range(n):
        setting.settle()
        if number % 2:
            b = second()
            setting.settle()
            found.append((first(), b))
        else:
            a = first()
            setting.settle()
            found.append((a, second()))
    return found


_RESOLUTION = 0.0005
"""Seconds. The C program prints milliseconds, which may be none."""


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float, float]:
    """Of the first, of the second, and of their ratios."""
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / max(b, _RESOLUTION) for a, b in pairs),
    )


def start_row(shape: _Shape, setting: Setting) -> Iterator[Figure]:
    """Rows 1 to 3: µs a worker, beside the C program's."""
    what = f"{setting.n:,} {shape.what}"
    floor = setting.floor
    if isinstance(floor, str):
        yield Figure(row=shape.row, what=what, skipped=floor)
        return
    n = setting.n
    pairs = _pairs(
        setting,
        setting.pairs,
        lambda: float(measure(jobs.start, n, shape.name)["seconds"]),
        lambda: floor.namespaces(n, *shape.arguments),
    )
    measured, beside, ratio = _medians(pairs)
    yield Figure(
        row=shape.row,
        what=what,
        unit="µs each",
        measured=measured / n * 1e6,
        beside=beside / n * 1e6,
        beside_what="C",
        ratio=ratio,
        kind=Limit.RATIO_AT_MOST,
        limit=shape.limit,
    )


def ticker_row(setting: Setting) -> Iterator[Figure]:
    """Row 4: the lateness of a 1 ms ticker while rows 1 to 3 run, beside its lateness while the C program does."""
    for shape in _SHAPES:
        for backend in _BACKENDS:
            yield _ticker(shape, backend, setting)


def _ticker(shape: _Shape, backend: str, setting: Setting) -> Figure:
    n, floor = setting.n, setting.floor

    def ours() -> float:
        return float(measure(jobs.tick_during_start, n, shape.name, backend=backend)["p99"])

    def beside() -> float:
        assert not isinstance(floor, str)
        return float(measure(jobs.tick_beside, floor.program, str(n), *shape.arguments, backend=backend)["p99"])

    pairs = _pairs(setting, (setting.pairs + 1) // 2, ours, (lambda: 1.0) if isinstance(floor, str) else beside)
    measured, noise, ratio = _medians(pairs)
    return Figure(
        row=4,
        what=f"1 ms ticker late at p99, {backend}, row {shape.row}",
        unit="ms",
        measured=measured * 1e3,
        beside=None if isinstance(floor, str) else noise * 1e3,
        beside_what="C in its place",
        ratio=None if isinstance(floor, str) else ratio,
        kind=Limit.AT_MOST,
        limit=5,
    )


def memory_row(setting: Setting) -> Iterator[Figure]:
    """Row 5: KiB a worker."""
    n = setting.n
    yield Figure(
        row=5,
        what=f"PSS of application and helpers a passive worker, of {n:,}",
        unit="KiB",
        measured=measure(jobs.passive_memory, n)["bytes"] / 1024,
        kind=Limit.AT_MOST,
        limit=20,
    )
    sizes = measure(jobs.init_memory, n)
    for what, key in ((f"PSS of a worker's init, of {n:,}", "init"), ("PSS that a worker with an init adds", "added")):
        yield Figure(
            row=5,
            what=what,
            unit="KiB",
            measured=sizes[key] / 1024,
            beside=sizes["command"] / 1024,
            beside_what="its sleep",
            ratio=sizes[key] / sizes["command"],
            kind=Limit.AT_MOST,
            limit=768,
        )


def run_row(setting: Setting) -> Iterator[Figure]:
    """Row 6: ms of a short command."""
    seconds = measure(jobs.run_true, max(10, setting.n // 5))
    nsenter = seconds.get("nsenter")
    for state in ("live", "passive"):
        yield Figure(
            row=6,
            what=f'run(["true"]) in a {state} worker, p50',
            unit="ms",
            measured=seconds[state] * 1e3,
            beside=None if nsenter is None else nsenter * 1e3,
            beside_what="nsenter -a true",
            ratio=None if nsenter is None else seconds[state] / nsenter,
            kind=Limit.AT_MOST,
            limit=6,
        )


def heap_row(setting: Setting) -> Iterator[Figure]:
    """Row 7: what a large heap of the caller changes."""
    what = "supervisor + 50 starts, caller of 1 GiB"
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 2 * _GIB:
        yield Figure(row=7, what=what, skipped="less than 2 GiB of free memory")
        return
    pairs = _pairs(
        setting,
        setting.pairs,
        lambda: float(measure(jobs.enter_and_start, 50, _GIB)["seconds"]),
        lambda: float(measure(jobs.enter_and_start, 50, 0)["seconds"]),
    )
    measured, beside, ratio = _medians(pairs)
    yield Figure(
        row=7,
        what=what,
        unit="ms",
        measured=measured * 1e3,
        beside=beside * 1e3,
        beside_what="small caller",
        ratio=ratio,
        kind=Limit.RATIO_AT_MOST,
        limit=1.1,
    )


def ping_row(setting: Setting) -> Iterator[Figure]:
    """Row 8: pairs a second."""
    n = min(60, setting.n)
    rates = measure(jobs.ping_star, n)
    yield Figure(
        row=8,
        what=f"ping_all of {n * (n - 1):,} pairs",
        unit="/s",
        measured=rates["rate"],
        beside=rates["loopback"],
        beside_what="blocking, over lo",
        ratio=rates["rate"] / rates["loopback"],
        kind=Limit.AT_LEAST,
        limit=2000,
    )


def routed_row(setting: Setting) -> Iterator[Figure]:
    """Rows 10 and 11: the largest real network, or one as sparse of as many routers as are measured here."""
    n = min(ROUTERS, setting.n)
    seen = measure(jobs.routed_network, n)
    yield Figure(
        row=10,
        what=f"routes a second, all of deploying {n} routers",
        unit="/s",
        measured=seen["routes"],
        beside=seen["plain"],
        beside_what="plain sends",
        ratio=seen["routes"] / seen["plain"],
        kind=Limit.AT_LEAST,
        limit=60_000,
    )
    yield Figure(
        row=11,
        what=f"pairs a second, checking {n} routers",
        unit="/s",
        measured=seen["pairs"],
        kind=Limit.AT_LEAST,
        limit=284_000 / 120,
    )
    for what, key in (("deploying", "late_deploy"), ("checking", "late_check")):
        yield Figure(
            row=10 if key == "late_deploy" else 11,
            what=f"1 ms ticker late at p99, {what} {n} routers",
            unit="ms",
            measured=seen[key] * 1e3,
            kind=Limit.AT_MOST,
            limit=5,
        )


@frozen(kw_only=True)
class _Star:
    row: int
    times: int  # of the workers that are measured elsewhere
    shape: str
    arguments: tuple[str, ...]
    limit: float


_STARS = (
    _Star(row=12, times=1, shape="exec", arguments=("sleep", "600"), limit=1.25),
    _Star(row=13, times=1, shape="passive", arguments=("passive",), limit=1.25),
    _Star(row=14, times=5, shape="passive", arguments=("passive",), limit=1.3),
)


def star_row(star: _Star, setting: Setting) -> Iterator[Figure]:
    """Rows 12 to 14: a star with a gateway, beside the C program's."""
    n = setting.n * star.times
    what = f"star of {n:,}, " + ("sleep, init=False" if star.shape == "exec" else "passive")
    floor = setting.floor
    if isinstance(floor, str):
        yield Figure(row=star.row, what=what, skipped=floor)
        return
    ours: list[dict[str, float]] = []
    theirs: list[tuple[float, float]] = []
    for number in range(setting.pairs):
        for turn in (0, 1):
            setting.settle()
            if (number + turn) % 2:
                theirs.append(floor.star(n, *star.arguments))
            else:
                ours.append(measure(jobs.star, n, star.shape, backend=_BACKENDS[number % 2]))
    for part, key, index, limit in (("made", "created", 0, star.limit), ("gone", "gone", 1, 1.3)):
        measured, beside, ratio = _medians([(a[key], b[index]) for a, b in zip(ours, theirs, strict=True)])
        yield Figure(
            row=star.row,
            what=f"{what}: {part}",
            unit="ms",
            measured=measured * 1e3,
            beside=beside * 1e3,
            beside_what="C",
            ratio=ratio,
            kind=Limit.RATIO_AT_MOST,
            limit=limit,
        )
    limits = {
        "to_gateway": ("all ping the gateway", 0.2 * max(1, n / 1000)),
        "at_random": (f"{n:,} random pairs ping", 2 * max(1, n / 5000)),
        "late": ("1 ms ticker late at p99", 0.005),
    }
    for key, (part, most) in limits.items():
        yield Figure(
            row=star.row,
            what=f"{what}: {part}",
            unit="ms",
            measured=statistics.median(found[key] for found in ours) * 1e3,
            kind=Limit.AT_MOST,
            limit=most * 1e3,
        )
    if star.shape == "passive":
        yield Figure(
            row=star.row,
            what=f"{what}: PSS of application and helpers",
            unit="MiB",
            measured=statistics.median(found["bytes"] for found in ours) / (1 << 20),
            kind=Limit.AT_MOST,
            limit=60 + 12 * n / 1024,
        )


def connection_row(setting: Setting) -> Iterator[Figure]:
    """Row 15: many short connections from all workers, beside as many over loopback."""
    count = 10 * setting.n
    seen = [measure(jobs.connections, setting.n, count) for _ in range(setting.pairs)]
    measured, beside, ratio = _medians([(found["inside"], found["outside"]) for found in seen])
    yield Figure(
        row=15,
        what=f"{count:,} TCP connections from {setting.n:,} workers",
        unit="ms",
        measured=measured * 1e3,
        beside=beside * 1e3,
        beside_what="over loopback",
        ratio=ratio,
        kind=Limit.RATIO_AT_MOST,
        limit=1.5,
    )


_LONG = 15.0
"""Seconds. What takes so long is measured once."""


def peer_row(setting: Setting) -> Iterator[Figure]:
    """Row 16: the same star by other tools."""
    for n in sorted({min(size, setting.n) for size in (100, 300)}):
        for peer in peers():
            what = f"star of {n:,}, " + ("a process each" if peer.processes else "passive")
            if peer.missing:
                yield Figure(row=16, what=what, skipped=f"{peer.name}: {peer.missing}")
                continue
            shape = "exec" if peer.processes else "passive"
            ours: list[dict[str, float]] = []
            theirs: list[dict[str, float]] = []
            for number in range(setting.pairs):
                setting.settle()
                ours.append(measure(jobs.star, n, shape, backend=_BACKENDS[number % 2]))
                setting.settle()
                try:
                    theirs.append(peer.star(n))
                except subprocess.CalledProcessError as exc:
                    yield Figure(row=16, what=what, failed=f"{peer.name} ended with status {exc.returncode}")
                    break
                if theirs[-1]["created"] > _LONG:
                    break
            if len(theirs) < len(ours):
                continue
            for part, key in (("made", "created"), ("gone", "gone")):
                measured, beside, ratio = _medians([(a[key], b[key]) for a, b in zip(ours, theirs, strict=True)])
                yield Figure(
                    row=16,
                    what=f"{what}: {part}",
                    unit="ms",
                    measured=measured * 1e3,
                    beside=beside * 1e3,
                    beside_what=peer.name,
                    ratio=ratio,
                )


def import_row(setting: Setting) -> Iterator[Figure]:
    """Row 9: what the import adds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as cache:
        times = jobs.import_times(2 * setting.pairs + 1, cache)
    before = statistics.median(anyio for anyio, _ in times)
    added = statistics.median(nsorch for _, nsorch in times)
    yield Figure(
        row=9,
        what="import nsorch after import anyio",
        unit="ms",
        measured=added * 1e3,
        beside=before * 1e3,
        beside_what="import anyio",
        ratio=added / before,
        kind=Limit.AT_MOST,
        limit=100,
    )


def _start(number: int) -> Callable[[Setting], Iterator[Figure]]:
    return lambda setting: start_row(_SHAPES[number], setting)


ROWS: dict[int, Callable[[Setting], Iterator[Figure]]] = {
    1: _start(0),
    2: _start(1),
    3: _start(2),
    4: ticker_row,
    5: memory_row,
    6: run_row,
    7: heap_row,
    8: ping_row,
    9: import_row,
    10: routed_row,
    12: partial(star_row, _STARS[0]),
    13: partial(star_row, _STARS[1]),
    14: partial(star_row, _STARS[2]),
    15: connection_row,
    16: peer_row,
    18: isolation_row,
}
