"""Limits as values: read, checked, written, compared. What the kernel makes of them is tested in the virtual machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsorch
from nsorch.topology.limits import limits_to_dict, to_limits
from nsorch.topology.units import size

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (4096, 4096), ("4096", 4096), ("512MiB", 512 << 20), ("512M", 512 << 20), ("64k", 64 << 10), ("1.5GiB", 3 << 29),
        ("10MB", 10_000_000), ("2 TiB", 2 << 40), (0, 0),
    ],
)  # fmt: skip
def test_sizes(text: object, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "lots", "5 parsecs", -1, True, None, "1.0001k", "9999999999TiB", "nan"])
def test_wrong_sizes(text: object) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        size(text)


def test_files() -> None:
    limits = nsorch.Limits(memory="64MiB", swap=0, cpus=1.5, cpu_weight=50, cpuset="0-1, 3", pids=10)
    assert limits.files() == {
        "memory.max": str(64 << 20), "memory.swap.max": "0", "cpu.max": "150000 100000", "cpu.weight": "50",
        "cpuset.cpus": "0-1,3", "pids.max": "10",
    }  # fmt: skip
    assert set(limits.controllers()) == {"memory", "cpu", "cpuset", "pids"}
    io = nsorch.Limits(io={"/dev/vda": {"rbps": "1MiB", "wiops": 5}}).io["/dev/vda"]
    assert io.line() == "rbps=1048576 wbps=max riops=max wiops=5"
    assert not nsorch.Limits()
    assert nsorch.WorkerSpec(name="w", limits=nsorch.Limits()).limits is None


WRONG = {
    "memory": ["much", 0, 100, True],
    "memory_high": [-5],
    "swap": ["x"],
    "cpus": [0, -1, "two", True, 1e9],
    "cpu_weight": [0, 10_001, 1.5],
    "cpuset": ["", "a", "3-1", 5, "1,,2"],
    "pids": [0, -1, "max", 1.5],
    "io": [5, {"vda": {"rbps": 1}}, {"/dev/vda": {}}, {"/dev/vda": {"speed": 1}}, {"7:0": {"wiops": 0}}, {"7:0": 5}],
    "colour": ["red"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG.items() for value in values])
def test_wrong_limits(key: str, value: object) -> None:
    with pytest.raises(nsorch.TopologyError, match=rf"^limits\.{key}"):
        to_limits({key: value})
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"workers": {"w": {"limits": {key: value}}}})
    assert caught.value.problems[0].startswith(f"workers.w.limits.{key}")


def test_no_mapping() -> None:
    with pytest.raises(nsorch.TopologyError, match=r"^workers\.w\.limits"):
        nsorch.Topology.from_dict({"workers": {"w": {"limits": "512MiB"}}})


SIZES = st.integers(4096, 1 << 40)
LIMITS = st.builds(
    nsorch.Limits,
    memory=st.none() | SIZES,
    memory_high=st.none() | SIZES,
    swap=st.none() | SIZES,
    cpus=st.none() | st.floats(0.01, 100),
    cpu_weight=st.none() | st.integers(1, 10_000),
    cpuset=st.none() | st.sampled_from(["0", "0-3", "1,5-7"]),
    pids=st.none() | st.integers(1, 1 << 22),
    io=st.dictionaries(
        st.sampled_from(["/dev/vda", "7:0"]),
        st.dictionaries(st.sampled_from(["rbps", "wbps", "riops", "wiops"]), st.integers(1, 1 << 40), min_size=1),
    ),
)


@given(LIMITS)
def test_round_trip(limits: nsorch.Limits) -> None:
    topology = nsorch.Topology("x")
    topology.worker("w", limits=limits)
    assert nsorch.Topology.from_dict(topology.to_dict()).workers == topology.workers
    assert to_limits(limits_to_dict(limits)) == (limits or None)


def test_difference_is_set_while_it_runs() -> None:
    from nsorch.topology.difference import difference

    old, new = nsorch.Topology("x"), nsorch.Topology("x")
    old.worker("w", ["sleep", "9"], limits={"pids": 10})
    new.worker("w", ["sleep", "9"], limits={"pids": 20})
    assert [str(change) for change in difference(old, new).changes] == ["set worker w (limits)"]
