"""What links do to packets, as a kernel does it: delays, losses and rates each way, at creation and changed."""

from __future__ import annotations

import math
import statistics

import anyio
import pytest
from kernel_support import missing_in_kernel, needs_kernel

import nsorch
from bench.trains import about, binomial, send_train

pytestmark = pytest.mark.anyio
# An emulated processor, and others on the machine, add to each delay; nothing takes from it.
EARLY, LATE = 0.0005, 0.009
netem = [pytest.mark.vm, needs_kernel("sch_netem")]


def vm(test):
    for mark in netem:
        test = mark(test)
    return test


class Delay:
    """Equal to what is measured of so many seconds; fractions of the value are those of the promise."""

    def __init__(self, seconds, late=LATE) -> None:
        self.low, self.high = seconds * 0.98 - EARLY, seconds * 1.02 + late

    def __eq__(self, seen):
        return self.low <= seen <= self.high

    __hash__ = None

    def __repr__(self) -> str:
        return f"{self.low:.4f} to {self.high:.4f}"


async def undisturbed(measure) -> None:
    """Once in a few tries it must hold, however busy the machine is."""
    for _ in range(4):
        try:
            return await measure()
        except AssertionError:
            pass
    return await measure()


def address(worker, index=0):
    return worker.addresses[index].ip


async def pair(sup, **emulation):
    a, b = await sup.start("a"), await sup.start("b")
    return a, b, await sup.link("a", "b", **emulation)


async def rtt(sup, a, b):
    """The least of several: load only adds."""
    results = [await sup.ping_all([(a, b)], attempts=3, timeout=5) for _ in range(5)]
    assert all(result.ok for result in results)
    return min(probe.rtt for result in results for probe in result.pairs.values())


# -- on any kernel


async def test_rates_hold_each_way_on_any_kernel() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, rate="8mbit")

        async def both_alike() -> None:
            train = await send_train(a, b, address(b), count=200, size=1000)
            assert train.lost == 0
            assert train.rate in about(8e6, share=0.1)

        async def each_its_own() -> None:
            there = await send_train(a, b, address(b), count=150, size=1000)
            back = await send_train(b, a, address(a), count=200, size=1000)
            assert there.rate in about(4e6, share=0.1)
            assert back.rate in about(8e6, share=0.1)

        await undisturbed(both_alike)
        await link.set(rate="4mbit", end="a")
        await undisturbed(each_its_own)
        async with sup.events(kinds=[nsorch.LinkChanged]) as events:
            await link.set(rate=None)
            event = await events.receive()
        assert event.changes == (("rate", "none"),)
        assert link.emulation == (nsorch.Emulation(), nsorch.Emulation())


async def test_changes_at_the_same_time_are_all_done() -> None:
    async with nsorch.Supervisor() as sup:
        _, _, link = await pair(sup)

        async def set_rate(end: str, rate: str) -> None:
            await link.set(rate=rate, end=end)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_rate, "a", "1mbit")
            tasks.start_soon(set_rate, "b", "2mbit")
        assert [way.rate for way in link.emulation] == [1e6, 2e6]


async def test_a_missing_netem_is_one_error_before_anything_is_made() -> None:
    if not missing_in_kernel("sch_netem"):
        pytest.skip("this kernel has netem")
    topology = nsorch.Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("a", links=[nsorch.To("lan", delay="1ms")])
    topology.worker("b", links=[nsorch.To("lan", rate="1mbit")])
    topology.link("a", "b", loss="1%")
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.UnsupportedError, match=r"workers\.a\.links\[0\], links\[0\].*sch_netem"):
            await sup.deploy(topology)
        assert not sup.workers
        assert not sup.bridges
        lan = await sup.bridge("lan", "10.0.0.0/24")
        with pytest.raises(nsorch.UnsupportedError, match=r"workers\.c\.links\[0\].*modprobe sch_netem"):
            await sup.start("c", links=[nsorch.To(lan, jitter="1ms")])
        _, _, link = await pair(sup, rate="1mbit")
        with pytest.raises(nsorch.UnsupportedError, match=r"links\.a:eth0-b:eth0.*sch_netem"):
            await link.set(delay="20ms")
        assert link.emulation[0] == nsorch.Emulation(rate="1mbit")
        with pytest.raises(nsorch.UnsupportedError, match=r"links\.a-lan"):
            await sup.link(nsorch.End("a", corrupt=0.1), lan)
        assert set(sup.workers) == {"a", "b"}
        assert list(sup.links) == ["a:eth0-b:eth0"]


async def test_contradictions_are_refused() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        with pytest.raises(nsorch.TopologyError, match=r"workers\.x\.links\[0\]\.reorder: means nothing without delay"):
            await sup.start("x", links=[nsorch.To(lan, reorder=0.1)])
        _, _, link = await pair(sup)
        with pytest.raises(nsorch.TopologyError, match="limit: means nothing without rate or delay"):
            await link.set(limit=10)
        with pytest.raises(nsorch.TopologyError, match=r'links\.a:eth0-b:eth0\.delay: "soon" is not a duration'):
            await link.set(delay="soon")
        with pytest.raises(nsorch.TopologyError, match=r"links\.a:eth0-b:eth0\.reorder: means nothing without delay"):
            await link.set(emulation=nsorch.Emulation(reorder=0.1))
        with pytest.raises(nsorch.TopologyError, match=r'emulation: "fast" is not an Emulation'):
            await link.set(emulation="fast")
        with pytest.raises(nsorch.TopologyError, match='no end "c"'):
            await link.set(rate="1mbit", end="c")
        assert link.emulation == (nsorch.Emulation(), nsorch.Emulation())


# -- where there is netem


@vm
async def test_delays_each_way_and_changes() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, delay="20ms")
        assert await rtt(sup, a, b) == Delay(0.040)
        await link.set(delay="50ms", end="b")
        there = await send_train(a, b, address(b), count=30, interval=0.005)
        back = await send_train(b, a, address(a), count=30, interval=0.005)
        assert there.least == Delay(0.020)
        assert back.least == Delay(0.050)
        await link.set(emulation=None)
        assert await rtt(sup, a, b) == Delay(0)
        assert link.emulation == (nsorch.Emulation(), nsorch.Emulation())


@vm
async def test_changes_lose_nothing() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, delay="30ms")
        trains = []

        async def send() -> None:
            trains.append(await send_train(a, b, address(b), count=400, interval=0.005))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            for values in (
                {"delay": "60ms"},
                {"jitter": "5ms", "distribution": "normal"},
                {"distribution": None, "rate": "50mbit"},
                {"delay": "10ms", "jitter": None, "rate": None},
                {"delay": "20ms", "limit": 500},
                {"loss": "0%", "duplicate": "0%"},
            ):
                await anyio.sleep(0.2)
                await link.set(**values)
        assert trains[0].lost == 0


@vm
async def test_ends_of_their_own() -> None:
    """Two ends of 80 and 40 ms; two hops of 15 ms."""
    async with nsorch.Supervisor() as sup:
        a, b = await sup.start("a"), await sup.start("b")
        await sup.link(nsorch.End("a", delay="80ms"), nsorch.End("b", delay="40ms"))
        assert await rtt(sup, a, b) == Delay(0.120)
    topology = nsorch.Topology.linear(3)
    slow = nsorch.Topology(routing="shortest-path")
    for worker in topology.workers.values():
        slow.add(worker)
    for link in topology.links:
        slow.link(link.a, link.b, delay="15ms")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(slow)
        assert await rtt(sup, "n0", "n2") == Delay(0.060)


@vm
async def test_both_ends_of_a_link_to_a_bridge() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", links=[nsorch.To(lan, delay="30ms")])
        b = await sup.start("b")
        link = await sup.link(b, lan, delay="10ms")
        there = await send_train(a, b, address(b), count=20, interval=0.005)
        back = await send_train(b, a, address(a), count=20, interval=0.005)
        assert there.least == Delay(0.040)
        assert back.least == Delay(0.010)
        await link.set(delay="20ms", end=lan)
        there = await send_train(a, b, address(b), count=20, interval=0.005)
        back = await send_train(b, a, address(a), count=20, interval=0.005)
        assert there.least == Delay(0.050)
        assert back.least == Delay(0.010)


@vm
async def test_loss_duplication_reordering_corruption() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, loss="10%")
        there = await send_train(a, b, address(b), count=800)
        assert there.lost in binomial(800, 0.1, 0.9999)
        await link.set(loss=None, duplicate="20%")
        there = await send_train(a, b, address(b), count=400)
        assert there.lost == 0
        assert there.duplicates in binomial(400, 0.2, 0.9999)
        await link.set(duplicate=None, delay="20ms", reorder="30%")
        there = await send_train(a, b, address(b), count=200, interval=0.002)
        assert there.lost == 0
        # Those that overtake are early; the others are as late as said.
        early = sum(delay < 0.010 for delay in there.delays.values())
        assert early in binomial(200, 0.3, 0.9999)
        assert there.overtaken > 20
        await link.set(emulation=None, corrupt="50%")
        there = await send_train(a, b, address(b), count=200, size=1000)
        assert 0 < there.lost < 200  # the check sum of UDP finds them


@vm
async def test_bursts_of_loss() -> None:
    model = nsorch.GilbertElliott(p="2%", r="20%")
    assert model.mean == pytest.approx(0.0909, abs=1e-4)
    async with nsorch.Supervisor() as sup:
        a, b, _ = await pair(sup, gilbert_elliott=model)
        train = await send_train(a, b, address(b), count=3000)
        lost = [number not in train.delays for number in range(3000)]
        bursts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
        assert train.lost / 3000 in about(model.mean, share=0.5)
        # The mean length of a burst is 1/r; by loss of single packets it would be 1.1.
        assert train.lost / bursts in about(5, share=0.5)


@vm
async def test_jitter_and_its_distributions() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, delay="50ms", jitter="20ms")
        for distribution in (None, "normal", "pareto", "paretonormal", "uniform"):
            await link.set(distribution=distribution)
            flat = distribution in (None, "uniform")

            async def spread(flat=flat) -> None:
                train = await send_train(a, b, address(b), count=200, interval=0.002)
                assert train.lost == 0
                values = list(train.delays.values())
                assert statistics.median(values) in about(0.048, plus=0.010)
                assert statistics.pstdev(values) in about(0.020 / (math.sqrt(3) if flat else 1), share=0.4)
                assert min(values) >= (0.0295 if flat else 0)

            await undisturbed(spread)
        # What the kernel makes of it can't be measured: it takes the lowest bits of correlated numbers.
        await link.set(delay_correlation="95%", distribution="normal")
        shown = (await a.run(["tc", "qdisc", "show", "dev", "eth0"])).stdout.decode()
        assert "delay 50ms  20ms 95%" in shown


@vm
async def test_rates_and_queues() -> None:
    async with nsorch.Supervisor() as sup:
        a, b = await sup.start("a"), await sup.start("b")
        link = await sup.link(nsorch.End("a", rate="1mbit"), nsorch.End("b", rate="3mbit"), delay="10ms", limit=20)
        there = await send_train(a, b, address(b), count=15, size=1400)
        assert there.lost == 0
        await link.set(limit=None)

        async def rates() -> None:
            there = await send_train(a, b, address(b), count=80, size=1400)
            back = await send_train(b, a, address(a), count=150, size=1400)
            assert there.rate in about(1e6, share=0.05)
            assert back.rate in about(3e6, share=0.05)
            assert there.least == Delay(0.010 + 1442 * 8 / 1e6)

        await undisturbed(rates)
        await link.set(limit=5, end="a")
        there = await send_train(a, b, address(b), count=60, size=1400)
        assert there.lost > 20  # more than the queue takes


@vm
async def test_a_link_follows_delays_and_losses() -> None:
    async with nsorch.Supervisor() as sup:
        a, b, link = await pair(sup, rate="50mbit")
        await link.follow([(0, {"delay": "80ms", "loss": "100%"}), (0.1, {"delay": "20ms", "loss": 0})], end="a")
        train = await send_train(a, b, address(b), count=20, interval=0.005)
        assert train.lost == 0
        assert train.least == Delay(0.020)
        assert link.emulation == (nsorch.Emulation(delay=0.02, loss=0, rate=50e6), nsorch.Emulation(rate=50e6))


@vm
async def test_profiles_at_run_time() -> None:
    dsl, cable = nsorch.PROFILES["dsl"], nsorch.PROFILES["cable"]
    async with nsorch.Supervisor() as sup:
        _, _, link = await pair(sup, profile="dsl", loss="1%")
        assert [way.rate for way in link.emulation] == [dsl.up.rate, dsl.down.rate]
        assert [way.loss for way in link.emulation] == [0.01, 0.01]
        await link.set(profile="cable")
        assert link.emulation == (cable.up, cable.down)
        await link.set(profile="dsl", delay=None, end="b")
        assert link.emulation == (cable.up, nsorch.Emulation(rate=dsl.up.rate))
        await link.set(profile=None)
        assert link.emulation == (nsorch.Emulation(), nsorch.Emulation())


@vm
async def test_a_deployment_changes_its_emulation() -> None:
    def lab(delay, loss=None):
        topology = nsorch.Topology()
        topology.bridge("lan", "10.0.0.0/24")
        topology.worker("a", links=[nsorch.To("lan", delay=delay)])
        topology.worker("b", links=["lan"])
        topology.link(nsorch.End("a", loss=loss), "b", rate="10mbit")
        return topology

    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(lab("20ms"))
        links = list(deployment.links.values())
        found = await deployment.apply(lab("40ms", loss="5%"))
        assert [str(change) for change in found.changes] == [
            "set link a-lan (ends[0].delay)",
            "set link a-b (ends[0].loss)",
        ]
        assert list(deployment.links.values()) == links
        train = await send_train(
            sup.workers["a"], sup.workers["b"], sup.workers["b"].addresses[0].ip, count=20, interval=0.01
        )
        assert train.least == Delay(0.040)
        assert links[2].emulation == (nsorch.Emulation(loss=0.05, rate=10e6), nsorch.Emulation(rate=10e6))
