"""``python -m bench.fidelity``: how truly links are emulated, as a table. Exit status 1 if a figure is outside of what
it should be: delay within 1 ms + 2 %, loss within a 99 % binomial interval, rate within 5 %; each way by itself.

It needs a kernel with netem; ``make fidelity`` runs it in a virtual machine. There, the processor is emulated and slow:
the row "nothing" says what it adds by itself, and rates are low.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from attrs import asdict, field, frozen

import nsorch

from .trains import Interval, about, binomial, send_train

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from .trains import Train

_TRIES = 3
# Round trips of many links: so many pairs ask at once, and those that were late again, so often.
_AT_ONCE, _ROUNDS = 10, 5


@frozen(kw_only=True)
class Row:
    """*wanted* is None for what is only shown."""

    what: str
    way: str
    seen: float
    wanted: Interval | None = field(default=None)
    unit: str = "ms"

    @property
    def ok(self) -> bool:
        return self.wanted is None or self.seen in self.wanted


def _delay(what: str, way: str, train: Train, seconds: float, floor: float) -> Row:
    """*floor*: of the way without emulation, on this machine."""
    wanted = about(seconds * 1000, share=0.02, plus=1.0)
    return Row(what=what, way=way, seen=(train.delay - floor) * 1000, wanted=wanted)


async def _both(sup: nsorch.Supervisor, **options: Any) -> dict[str, Train]:
    a, b = sup.workers["a"], sup.workers["b"]
    return {
        "a to b": await send_train(a, b, b.addresses[0].ip, **options),
        "b to a": await send_train(b, a, a.addresses[0].ip, **options),
    }


async def _until_quiet(measure: Callable[[], AsyncIterator[Row]], show: Callable[[Row], None]) -> list[Row]:
    """Again, if other work on the machine has disturbed it."""
    for _ in range(_TRIES):
        rows = [row async for row in measure()]
        if all(row.ok for row in rows):
            break
    for row in rows:
        show(row)
    return rows


async def delays(sup: nsorch.Supervisor, link: nsorch.Link) -> AsyncIterator[Row]:
    options = {"count": 60, "interval": 0.01}
    await link.set(emulation=None)
    floors = {way: train.delay for way, train in (await _both(sup, **options)).items()}
    for way, floor in floors.items():
        yield Row(what="nothing", way=way, seen=floor * 1000)
    for there, back in ((0.005, 0.02), (0.05, 0.1)):
        await link.set(delay=there, end="a")
        await link.set(delay=back, end="b")
        for (way, train), seconds in zip((await _both(sup, **options)).items(), (there, back), strict=True):
            yield _delay(f"delay {seconds * 1000:g} ms", way, train, seconds, floors[way])


async def losses(sup: nsorch.Supervisor, link: nsorch.Link) -> AsyncIterator[Row]:
    count = 1000
    for there, back in ((0.01, 0.1), (0.3, 0.02)):
        await link.set(emulation=None)
        await link.set(loss=there, end="a")
        await link.set(loss=back, end="b")
        trains = (await _both(sup, count=count, interval=0.001)).items()
        for (way, train), share in zip(trains, (there, back), strict=True):
            wanted = binomial(count, share)
            yield Row(what=f"loss {share:.0%} of {count}", way=way, seen=train.lost, wanted=wanted, unit="packets")


async def rates(sup: nsorch.Supervisor, link: nsorch.Link) -> AsyncIterator[Row]:
    for delay in (None, "20ms"):
        for there, back in ((0.5, 2.0), (3.0, 1.0)):
            await link.set(emulation=None)
            await link.set(delay=delay, rate=there * 1e6)
            await link.set(rate=back * 1e6, end="b")
            trains = (await _both(sup, count=150, size=1400)).items()
            for (way, train), rate in zip(trains, (there, back), strict=True):
                text = f"rate {rate:g} Mbit/s" + (f", delay {delay}" if delay else "")
                yield Row(what=text, way=way, seen=train.rate / 1e6, wanted=about(rate, share=0.05), unit="Mbit/s")


async def by_tbf_below(sup: nsorch.Supervisor, link: nsorch.Link) -> AsyncIterator[Row]:
    """The same as :func:`rates`, made by hand of a tbf below a netem: only shown."""
    await link.set(emulation=None)
    a, b = sup.workers["a"], sup.workers["b"]
    netem = ["root", "handle", "1:", "netem", "delay", "20ms", "limit", "1000"]
    tbf = ["parent", "1:1", "handle", "10:", "tbf", "rate", "1mbit", "burst", "3028", "limit", "1500000"]
    try:
        for words in (netem, tbf):
            await a.run(["tc", "qdisc", "add", "dev", "eth0", *words])
    except nsorch.CommandNotFoundError:
        return
    train = await send_train(a, b, b.addresses[0].ip, count=150, size=1400)
    yield Row(what="rate 1 Mbit/s by tbf below netem", way="a to b", seen=train.rate / 1e6, unit="Mbit/s")
    await a.run(["tc", "qdisc", "del", "dev", "eth0", "root"])


async def round_trips(pairs: int) -> AsyncIterator[Row]:
    """Of *pairs* links at once, each with a delay of its own: how many are within 1 ms + 2 % each way."""
    topology = nsorch.Topology()
    delays = {}
    for number in range(pairs):
        topology.worker(f"a{number}")
        topology.worker(f"b{number}")
        delays[f"a{number}", f"b{number}"] = 0.02 + number * 0.0005
        topology.link(f"a{number}", f"b{number}", delay=delays[f"a{number}", f"b{number}"])
    async with nsorch.Supervisor() as sup:
        start = anyio.current_time()
        deployment = await sup.deploy(topology)
        yield Row(what=f"{pairs} links come up", way="", seen=(anyio.current_time() - start) * 1000)
        least = dict.fromkeys(delays, 9.9)
        left = list(delays)
        for _ in range(_ROUNDS):
            for start in range(0, len(left), _AT_ONCE):  # more answers at once are late by the processor
                found = await sup.ping_all(left[start : start + _AT_ONCE], timeout=2)
                for pair, result in found.pairs.items():
                    least[pair] = min(least[pair], result.rtt or 9.9)
            left = [pair for pair, d in delays.items() if abs(least[pair] - 2 * d) > 2 * (0.001 + 0.02 * d)]
        late = sorted(least[pair] - 2 * delay for pair, delay in delays.items())
        within = pairs - len(left)
        yield Row(what=f"{pairs} links: round trip longer by, median", way="both", seen=late[pairs // 2] * 1000)
        yield Row(what=f"{pairs} links: round trip longer by, worst", way="both", seen=late[-1] * 1000)
        yield Row(
            what=f"{pairs} links: round trips within 2 ms + 2 %",
            way="both",
            seen=within,
            wanted=Interval(pairs, pairs),
            unit="links",
        )
        await deployment.remove()


async def measure(links: int, show: Callable[[Row], None]) -> list[Row]:
    rows: list[Row] = []
    async with nsorch.Supervisor() as sup:
        await sup.start("a")
        await sup.start("b")
        link = await sup.link("a", "b")
        for part in (delays, losses, rates, by_tbf_below):
            rows += await _until_quiet(partial(part, sup, link), show)
    rows += await _until_quiet(partial(round_trips, links), show)
    return rows


def show(row: Row) -> None:
    wanted = "" if row.wanted is None else f"{row.wanted} {row.unit}"
    verdict = "" if row.wanted is None else "ok" if row.ok else "NOT"
    print(f"| {row.what} | {row.way} | {row.seen:.4g} {row.unit} | {wanted} | {verdict} |", flush=True)


def _keep(_row: Row) -> None:
    """Nothing is shown before the end."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fidelity")
    parser.add_argument("--links", type=int, default=100, help="at once")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if not arguments.json:
        print(f"Linux {platform.release()}\n\n| emulation | way | seen | wanted | |\n|---|---|---|---|---|", flush=True)
    try:
        rows = anyio.run(measure, arguments.links, _keep if arguments.json else show)
    except nsorch.UnsupportedError as exc:
        print(exc, file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps([asdict(row) | {"ok": row.ok} for row in rows]))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
