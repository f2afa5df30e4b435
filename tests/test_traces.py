"""Links that follow a trace."""

from __future__ import annotations

import pathlib

import anyio
import pytest
from kernel_support import missing_in_kernel

import nsorch
from nsorch import Emulation, GilbertElliott, Trace
from nsorch.topology.emulation import PROFILE_NAMES, changed, directions
from nsorch.topology.profiles import PROFILES


def test_steps() -> None:
    trace = Trace([(0, {"rate": "5mbit"}), ("2.5s", {"rate": "1mbit", "loss": "1%"})])
    assert [(step.time, step.emulation) for step in trace] == [
        (0, Emulation(rate=5e6)),
        (2.5, Emulation(rate=1e6, loss=0.01)),
    ]
    assert trace.length == 2.5
    assert Trace(trace.steps, length="4s").length == 4


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ([], "no steps"),
        ([(0, {"rate": "fast"})], r'trace\[0\]\.rate: "fast" is not a rate'),
        ([(0, {}), (0, {})], r"trace\[1\]: 0 s is not after the step before"),
        ([(0, {"speed": 1})], r"trace\[0\]: .*speed"),
        ([3], r"trace\[0\]: 3 is not a time"),
        ("x", 'trace: "x" is no list of times'),
        (None, "trace: None is no list of times"),
    ],
)
def test_wrong_steps(steps, text) -> None:
    with pytest.raises(nsorch.TopologyError, match=text):
        Trace(steps)


def test_mahimahi(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "trace"
    # 100 ms at a packet each ms, which is 12 Mbit/s; then 100 ms at one each 10 ms; then one after 100 ms.
    times = [*range(1, 101), *range(110, 201, 10), 300]
    path.write_text("".join(f"{time}\n" for time in times))
    trace = Trace.mahimahi(path)
    assert trace.length == pytest.approx(0.3)
    assert [step.time for step in trace] == pytest.approx([0, 0.1, 0.2])
    assert [step.emulation.rate for step in trace] == pytest.approx([12e6, 1.2e6, 120e3])
    # As many packets, whatever the interval.
    for interval in (0.005, 0.03, 0.3, 7):
        fine = Trace.mahimahi(path, interval=interval)
        ends = [step.time for step in fine.steps[1:]] + [fine.length]
        bits = sum(step.emulation.rate * (end - step.time) for step, end in zip(fine, ends, strict=True))
        assert bits == pytest.approx(len(times) * 12_000)
    for interval in (0, "soon", "10us"):
        with pytest.raises(nsorch.TopologyError, match=r"trace\.interval: "):
            Trace.mahimahi(path, interval=interval)
    for text in ("", "1\nx\n", "5\n3\n", "0\n", "-5\n2\n"):
        path.write_text(text)
        with pytest.raises(nsorch.TopologyError, match="no trace of mahimahi"):
            Trace.mahimahi(path)
    with pytest.raises(nsorch.TopologyError, match="no trace of mahimahi"):
        Trace.mahimahi(tmp_path / "missing")


@pytest.mark.anyio
async def test_a_link_follows(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        await sup.start("a")
        await sup.start("b")
        link = await sup.link("a", "b")
        rates = []
        async with sup.events(kinds=[nsorch.LinkChanged]) as events, anyio.create_task_group() as tasks:
            await link.follow(Trace([(0, {"rate": "5mbit"}), (0.05, {"rate": "1mbit"})]), end="b")
            assert [emulation.rate for emulation in link.emulation] == [None, 1e6]
            tasks.start_soon(lambda: link.follow(Trace([(0, {"rate": 2e6}), (0.02, {"rate": 3e6})]), repeat=True))
            while len(rates) < 8:
                rates += [value for key, value in (await events.receive()).changes if key.endswith("rate")]
            tasks.cancel_scope.cancel()
        assert rates[:2] == ["5000000.0", "1000000.0"]
        assert set(rates[2:]) == {"2000000.0", "3000000.0"}
        assert {emulation.rate for emulation in link.emulation} <= {2e6, 3e6}
        await link.follow([(0, {"rate": "4mbit"})])
        assert {emulation.rate for emulation in link.emulation} == {4e6}
        if missing_in_kernel("sch_netem"):
            with pytest.raises(nsorch.UnsupportedError, match="sch_netem"):
                await link.follow([(0, {"rate": "5mbit"}), ("10ms", {"profile": "dsl"})])
            assert {emulation.rate for emulation in link.emulation} == {4e6}, "nothing was changed"
        with pytest.raises(nsorch.TopologyError, match="no length"):
            await link.follow(Trace([(0, {"rate": 1e6})]), repeat=True)


# -- what is said, and what it comes to


def test_profiles_have_sources_and_two_ways() -> None:
    assert tuple(PROFILES) == PROFILE_NAMES
    for profile in nsorch.PROFILES.values():
        assert profile.source
        assert profile.up.rate is not None
        assert profile.down.rate is not None
        assert profile.up.rate <= profile.down.rate
        assert profile.up.delay
    assert PROFILES["satellite-geo"].up.delay == 0.279


def test_what_an_end_says_goes_first() -> None:
    nothing = Emulation()
    assert directions(Emulation(delay=0.01), Emulation(rate=1e6), Emulation(rate=5e6)) == (
        Emulation(delay=0.01, rate=5e6),
        Emulation(rate=1e6),
    )
    a, b = directions(Emulation(delay=0.01), nothing, Emulation(delay=0.02))
    assert (a.delay, b.delay) == (0.03, 0.02)
    bursts = GilbertElliott("1%", "10%")
    a, b = directions(Emulation(gilbert_elliott=bursts), nothing, Emulation(loss="5%", loss_correlation="10%"))
    assert a == Emulation(gilbert_elliott=bursts)
    assert b == Emulation(loss=0.05, loss_correlation=0.1)


def test_the_end_that_names_a_profile_is_the_subscribers() -> None:
    dsl = PROFILES["dsl"]
    assert directions(Emulation(), Emulation(), Emulation(profile="dsl")) == (dsl.up, dsl.down)
    up, down = directions(Emulation(), Emulation(profile="dsl"))[::-1]
    assert (up, down) == (dsl.up, dsl.down)
    faster = directions(Emulation(profile="dsl", rate="1mbit"), Emulation())
    assert (faster[0].rate, faster[0].delay, faster[1].rate) == (1e6, 0.025, 1.5e6)


def test_changes() -> None:
    before = Emulation(delay=0.1, jitter=0.01, distribution="normal", loss=0.1)
    assert changed(before, {"jitter": None}) == Emulation(delay=0.1, loss=0.1)
    bursts = GilbertElliott(p=0.1)
    assert bursts.r == 0.9
    assert changed(before, {"gilbert_elliott": bursts}).loss is None
    assert changed(Emulation(rate=1e6, limit=5), {"rate": None}) == Emulation()
    assert changed(Emulation(rate=1e6, delay=1, limit=5), {"rate": None}) == Emulation(delay=1, limit=5)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"distribution": "gauss"}, 'distribution: "gauss" is none of uniform, normal'),
        ({"profile": "isdn"}, 'profile: "isdn" is none of wifi'),
        ({"delay": 300}, "delay: 300 is above 274 s"),
        ({"gilbert_elliott": {"p": "2"}}, r'gilbert_elliott\.p: "2" is not a fraction'),
        ({"gilbert_elliott": {"r": 1}}, r"gilbert_elliott\.p: is missing"),
        ({"gilbert_elliott": {"p": 1, "q": 1}}, r"gilbert_elliott\.q: unknown key"),
        ({"gilbert_elliott": 3}, r"gilbert_elliott: 3 is not"),
        ({"delay_correlation": "x"}, r"delay_correlation: .*not a fraction"),
    ],
)
def test_wrong_values(values, text) -> None:
    with pytest.raises(nsorch.TopologyError, match=text):
        Emulation(**values)


def test_files(tmp_path: pathlib.Path) -> None:
    topology = nsorch.Topology("lab")
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("a", links=[nsorch.To("lan", profile="dsl", gilbert_elliott={"p": "1%", "bad": "50%"})])
    topology.worker("b")
    topology.link(
        nsorch.End("a", distribution="pareto"),
        "b",
        delay="20ms",
        jitter="5ms",
        delay_correlation="25%",
        loss="1%",
        loss_correlation="10%",
    )
    for suffix in ("toml", "json", "yaml"):
        path = tmp_path / f"lab.{suffix}"
        topology.dump(path)
        assert nsorch.Topology.load(path) == topology
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(
        'workers.a = {}\nworkers.b = {}\n[[links]]\nends = [{ worker = "a", reorder = "1%" }, "b"]\nlimit = 5\n'
    )
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.load(wrong).validate()
    assert caught.value.problems == (
        "links[0].ends[0].reorder: means nothing without delay",
        "links[0].limit: means nothing without rate or delay",
    )
