"""Messages of queueing disciplines are those of pyroute2, as far as it knows them, and of linux/pkt_sched.h."""

from __future__ import annotations

import statistics
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsorch.net import qdiscs
from nsorch.net.messages import attributes
from nsorch.net.qdiscs import LossStates, QdiscPlan

pytestmark = pytest.mark.once

shares = st.floats(0, 1)
times = st.floats(0, 200)
plans = st.builds(
    QdiscPlan,
    delay=times,
    jitter=times,
    delay_correlation=shares,
    loss=shares,
    loss_correlation=shares,
    duplicate=shares,
    corrupt=shares,
    reorder=shares,
    rate=st.one_of(st.just(0.0), st.floats(8, 30e9)),
    limit=st.one_of(st.none(), st.integers(1, 1_000_000)),
)


def decode(data):
    from pyroute2.netlink.rtnl.tcmsg import tcmsg

    message = tcmsg(data)
    message.decode()
    return message


@settings(deadline=None)
@given(plans)
def test_netem_is_pyroute2s(plan: QdiscPlan) -> None:
    message = decode(qdiscs.replace_netem(7, plan, table=False))
    header = message["header"]
    assert (header["type"], header["flags"]) == (36, 0x1 | 0x400 | 0x100)
    assert (message["index"], message["handle"], message["parent"]) == (7, 0x10000, 0xFFFFFFFF)
    assert message.get_attr("TCA_KIND") == "netem"
    options = message.get_attr("TCA_OPTIONS")
    assert options["delay"] * 64e-9 == pytest.approx(plan.delay, abs=33e-9)
    assert options["jitter"] * 64e-9 == pytest.approx(plan.jitter, abs=33e-9)
    assert options["limit"] == plan.packets
    assert options["gap"] == bool(plan.reorder)
    full = 0xFFFFFFFF
    assert options["loss"] / full == pytest.approx(plan.loss, abs=1e-9)
    assert options["duplicate"] / full == pytest.approx(plan.duplicate, abs=1e-9)
    correlations = options.get_attr("TCA_NETEM_CORR")
    assert correlations["delay_corr"] / full == pytest.approx(plan.delay_correlation, abs=1e-9)
    assert correlations["loss_corr"] / full == pytest.approx(plan.loss_correlation, abs=1e-9)
    assert options.get_attr("TCA_NETEM_REORDER")["prob_reorder"] / full == pytest.approx(plan.reorder, abs=1e-9)
    assert options.get_attr("TCA_NETEM_CORRUPT")["prob_corrupt"] / full == pytest.approx(plan.corrupt, abs=1e-9)
    rate = options.get_attr("TCA_NETEM_RATE")["rate"]
    assert rate == (max(1, round(plan.rate / 8)) if plan.rate else 0)


@settings(deadline=None)
@given(st.floats(8, 400e9), st.one_of(st.none(), st.integers(1, 100_000)))
def test_tbf_is_pyroute2s(rate: float, limit: int | None) -> None:
    data = qdiscs.replace_tbf(7, QdiscPlan(rate=rate, limit=limit))
    message = decode(data)
    assert message.get_attr("TCA_KIND") == "tbf"
    assert (message["handle"], message["parent"]) == (0x20000, 0xFFFFFFFF)
    parms = message.get_attr("TCA_OPTIONS").get_attr("TCA_TBF_PARMS")
    own = max(1, round(rate / 8))
    assert parms["rate"] == min(own, 0xFFFFFFFF)
    assert parms["limit"] == min((limit or 1000) * 1514, 0xFFFFFFFF)
    options = attributes(attributes(data, 36)[2], 0)
    assert options.get(4) == (struct.pack("=Q", own) if own > 0xFFFFFFFF else None)
    assert struct.unpack("=I", options[6])[0] >= 2 * 1514


def netem_options(plan, **options):
    return attributes(attributes(qdiscs.replace_netem(1, plan, **options), 36)[2], 24)


def test_what_pyroute2_does_not_know() -> None:
    states = LossStates(p=0.25, r=0.5, bad=1.0, good=0.0)
    loss = attributes(netem_options(QdiscPlan(states=states))[5], 0)
    # tc: loss gemodel 25% 50% 100% 0%, where the kernel keeps 1-h as what is not lost
    assert struct.unpack("=IIII", loss[2]) == (0x40000000, 0x80000000, 0, 0)
    fast = netem_options(QdiscPlan(rate=80e9))
    assert struct.unpack("=IiIi", fast[6])[0] == 0xFFFFFFFF
    assert struct.unpack("=Q", fast[8])[0] == 10_000_000_000
    assert 8 not in netem_options(QdiscPlan(rate=8e9))


@pytest.mark.parametrize(
    ("distribution", "deviation"), [("uniform", 0.577), ("normal", 1.0), ("pareto", 1.0), ("paretonormal", 1.0)]
)
def test_distributions_are_standard(distribution: str, deviation: float) -> None:
    data = netem_options(QdiscPlan(jitter=1.0, distribution=distribution))[2]
    values = [value / 8192 for value in struct.unpack(f"={len(data) // 2}h", data)]
    assert len(values) <= 16384
    assert statistics.mean(values) == pytest.approx(0, abs=0.03)
    assert statistics.pstdev(values) == pytest.approx(deviation, rel=0.15)
    assert 2 not in netem_options(QdiscPlan(jitter=1.0, distribution=distribution), table=False)


def test_the_queue_does_not_drop_what_is_under_way() -> None:
    assert QdiscPlan(delay=0.1).packets == 1_000_000
    assert QdiscPlan(delay=0.1, limit=50).packets == 50
    assert QdiscPlan(rate=10e6).packets == 1000
    plan = QdiscPlan(delay=0.1, rate=10e6, limit=50)
    assert plan.packets == 50 + -(-10e6 * 0.1 / 8 // 1514)
    assert QdiscPlan(delay=0.1, jitter=0.1, distribution="normal").longest == pytest.approx(0.5)
