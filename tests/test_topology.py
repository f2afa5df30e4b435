"""Descriptions: files, their errors, and routes. Pure."""

from __future__ import annotations

import json
import pathlib

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nsorch
from nsorch import Topology, TopologyError
from nsorch.topology.routing import first_edges, whole_costs
from nsorch.topology.units import duration, fraction, rate

pytestmark = pytest.mark.once

TOP = pathlib.Path(__file__).parent.parent
TOPOLOGIES = TOP.parent / "shared" / "topologies"

OFFICE = """
name = "office"
[bridges.lan]
subnet = "10.0.0.0/24"
gateway = "r1"
[workers.web]
command = ["python3", "-m", "http.server", "80"]
ready = { tcp = 80 }
links = ["lan"]
[workers.client]
links = [{ to = "lan", delay = "20ms", rate = "10mbit", loss = "1%" }]
[workers.r1]
forward = true
links = ["lan"]
[workers.outside]
[[links]]
ends = ["r1:up0", "outside:eth0"]
subnet = "10.1.0.0/30"
"""


def load(text: str | bytes, tmp_path: pathlib.Path, suffix: str = ".toml") -> Topology:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Topology.load(path)


def problems(text: str | bytes, tmp_path: pathlib.Path, suffix: str = ".toml") -> tuple[str, ...]:
    with pytest.raises(TopologyError) as raised:
        load(text, tmp_path, suffix)
    return raised.value.problems


# A segment of two bridges, and another link beside it.
ROUTED = """
[bridges.l]
subnet='10.0.0.0/23'
[bridges.k]
[bridges.m]
subnet='10.1.0.0/16'
[workers.a]
links=['k','m']
routes=[{{to='172.16.0.0/12',{}}}]
[workers.b]
"""


def test_office(tmp_path: pathlib.Path) -> None:
    topology = load(OFFICE, tmp_path)
    assert topology.name == "office"
    assert topology.workers["web"].ready == nsorch.tcp_ready(80)
    emulation = topology.workers["client"].links[0].emulation
    assert (emulation.delay, emulation.rate, emulation.loss) == (0.02, 10e6, 0.01)
    assert topology.emulated() == ["workers.client.links[0]"]
    assert topology.links[0].a.name == "up0"
    for suffix in ("toml", "json", "yaml"):
        path = tmp_path / f"again.{suffix}"
        topology.dump(path)
        assert Topology.load(path) == topology


def test_every_error_at_once(tmp_path: pathlib.Path) -> None:
    text = """
        nonsense = 1
        routing = "fastest"
        [bridges.lan]
        subnet = "10.0.0.1/24"
        [bridges.9lan]
        [workers.web]
        comand = ["x"]
        command = "x"
        init = "yes"
        links = [{ to = "lan", delay = "20 parsecs", loss = "150%", mac = "zz" }, { too = "lan" }]
        ready = { tcp = 99999 }
        env = { A = 1 }
        routes = [{ to = "10.0.0.0/8" }, { to = "x", via = "10.0.0.1" }]
        [[links]]
        ends = ["web"]
    """
    found = "\n".join(problems(text, tmp_path))
    for expected in (
        "nonsense: unknown key",
        'routing: "fastest"',
        "bridges.lan.subnet: ",
        'bridges.9lan: "9lan" is not a name',
        'workers.web.comand: unknown key; did you mean "command"?',
        "workers.web.command: ",
        'workers.web.init: "yes" is neither true nor false',
        'workers.web.links[0].delay: "20 parsecs" is not a duration',
        'workers.web.links[0].loss: "150%" is not a fraction',
        "workers.web.links[0].mac: ",
        "workers.web.links[1].too: unknown key",
        "workers.web.ready",
        "workers.web.env",
        "workers.web.routes[0]",
        "workers.web.routes[1]",
        "links[0].ends: a link has two ends, not 1",
    ):
        assert expected in found, f"{expected!r} is not in\n{found}"


def test_what_is_wrong_between_parts_is_told_beside_other_errors(tmp_path: pathlib.Path) -> None:
    text = """
        [bridges.lan]
        subnet = "10.0.0.0/24"
        [bridges.web]
        [workers.wrong]
        colour = "red"
        [workers.web]
        command = []
        [workers.a]
        links = [{ to = "lan", address = "10.9.0.5" }]
        [workers.b]
        links = [{ to = "lan", address = "10.0.0.5" }]
        [workers.c]
        links = [{ to = "lan", address = "10.0.0.5" }]
        [workers.d]
        namespaces = { net = "worker:e" }
        [workers.e]
        namespaces = { net = "worker:d" }
        [[links]]
        ends = [{ worker = "b", address = "10.3.0.1" }, "c"]
        subnet = "10.1.0.0/30"
    """
    found = problems(text, tmp_path)
    assert sorted(found) == [
        "links[0].ends[0].address: 10.3.0.1 is outside of the subnet 10.1.0.0/30",
        "workers.a.links[0].address: 10.9.0.5 is outside of the subnet 10.0.0.0/24",
        "workers.c.links[0].address: 10.0.0.5 is used by workers.b.links[0] already",
        "workers.d.namespaces: a loop of joined namespaces: d → e → d",
        "workers.web.command: [] is not a list of strings, the program first",
        'workers.web: there is a worker or bridge "web" already',
        "workers.wrong.colour: unknown key",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        '[bridges.lan]\nsubnet = "10.0.0.0/33"\n[bridges.far]\n[[links]]\nends = ["lan", "far"]',
        '[bridges.lan]\nsubnet = "10.0.0.0/24"\n[bridges.far]\n[[links]]\nends = ["lan", "far"]\nmtu = 1',
    ],
)
def test_no_error_follows_from_another(wrong: str, tmp_path: pathlib.Path) -> None:
    text = f"""
        {wrong}
        [workers.a]
        links = [{{ to = "far", address = "10.0.0.5" }}]
    """
    assert len(problems(text, tmp_path)) == 1


def test_all_that_does_not_go_together_in_a_worker_is_told() -> None:
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.WorkerSpec(
            name="w", namespaces=["net"], hostname="x", sysctls={"kernel.nothing": "1"}, ready=nsorch.tcp_ready(80)
        )
    assert [problem.partition(": ")[0] for problem in caught.value.problems] == [
        "workers.w.ready",
        "workers.w.sysctls.kernel.nothing",
        "workers.w.hostname",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[workers.a]\nlinks = ['lan']", 'workers.a.links[0]: there is no bridge "lan"'),
        ("[workers.a]\n[[links]]\nends = ['a', 'b']", 'links[0].ends: there is no worker or bridge "b"'),
        ("[workers.a]\n[[links]]\nends = ['a', 'a']", "itself"),
        ("[workers.a]\nnamespaces = { net = 'worker:b' }\n[workers.b]\nnamespaces = { net = 'worker:a' }", "loop"),
        ("[workers.a]\nnamespaces = { net = 'worker:c' }", 'there is no worker "c"'),
        ("[bridges.a]\n[workers.a]", "already"),
        ("[bridges.a]\nsubnet = '10.0.0.0/24'\ngateway = 'r'", 'bridges.a.gateway: there is no worker "r"'),
        ("[bridges.l]\nsubnet='10.0.0.0/30'\n[workers.a]\nlinks=['l']\n[workers.b]\nlinks=['l']\n[workers.c]\nlinks=['l']", "2 addresses for 3"),
        ("[bridges.l]\nsubnet='10.0.0.0/24'\n[workers.a]\nlinks=[{to='l',address='10.0.1.1'}]", "workers.a.links[0].address: 10.0.1.1 is outside"),
        ("[bridges.l]\nsubnet='10.0.0.0/24'\n[workers.a]\nlinks=[{to='l',address='10.0.0.1'}]\n[workers.b]\nlinks=[{to='l',address='10.0.0.1'}]", "used by"),
        ("[workers.a]\nroutes=[{to='default',via='10.0.0.9'}]", "workers.a.routes[0]: 10.0.0.9 is on none of its links"),
        (ROUTED.format("via='10.0.9.9'"), "workers.a.routes[0]: 10.0.9.9 is on none of its links"),
        (ROUTED.format("via='fd00::1'").replace("172.16.0.0/12", "default"), "fd00::1 is on none of its links"),
        (ROUTED.format("via='10.1.255.255'"), "10.1.255.255 is all of 10.1.0.0/16, and nobody's address"),
        (ROUTED.format("dev='eth2'"), "workers.a.routes[0]: eth2 is on none of its links"),
    ],
)  # fmt: skip
def test_relations(text: str, expected: str, tmp_path: pathlib.Path) -> None:
    assert expected in "\n".join(problems(text, tmp_path))


@pytest.mark.parametrize("way", ["via='10.0.0.255'", "via='10.1.0.1'", "via='100.65.1.2'", "dev='eth1'", "dev='tap'"])
def test_routes_that_lead_through_a_link(way: str, tmp_path: pathlib.Path) -> None:
    tap = "interfaces=[{name='tap',kind='tun'}]\nroutes="
    text = ROUTED.format(way).replace("routes=", tap if "tap" in way else "routes=")
    text += "\n[[links]]\nends=['l','k']\n[[links]]\nends=['a','b']"
    load(text, tmp_path).validate()


@pytest.mark.parametrize(
    ("text", "suffix", "expected"),
    [
        (b"name = '\xff'", ".toml", "is not UTF-8: byte 0xff in line 1"),
        ("a = 1\nname = ?", ".toml", "Invalid value"),
        ("{", ".json", "Expecting property name"),
        ('{"name": NaN}', ".json", "not a number"),
        ("[" * 100_000, ".json", "deep"),
        ("a: [", ".yaml", "expected the node content"),
        ("a: &a [1]\nb: *a", ".yaml", "aliases"),
        ("", ".txt", "suffix"),
        ("<a/>", ".graphml", "no graph"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><a/>", ".graphml", "not allowed"),
        ("<a", ".graphml", "not XML"),
        ("[]", ".json", "not a table"),
    ],
)
def test_unreadable(text: str | bytes, suffix: str, expected: str, tmp_path: pathlib.Path) -> None:
    assert expected in "\n".join(problems(text, tmp_path, suffix))
    for name in ("missing.toml", "missing"):
        with pytest.raises(TopologyError, match="can't be read: No such file"):
            Topology.load(tmp_path / name)
    with pytest.raises(TopologyError, match="can't be read: Is a directory"):
        Topology.load(tmp_path)
    for name in ("\0.toml", "\0"):
        with pytest.raises(TopologyError, match="can't be read: .*embedded null"):
            Topology.load(name)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**6) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["command", "links", "namespaces", "env", "ready", "sysctls", "routes", "init", "to", "tcp", "exec", "delay",
     "subnet", "gateway", "mtu", "ends", "a", "b", "name", "address", "user", "stdin", "weight"]
)  # fmt: skip
TABLE = st.dictionaries(KEYS, JSON | st.dictionaries(KEYS, JSON, max_size=3), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": JSON,
            "routing": JSON,
            "bridges": JSON | st.dictionaries(st.sampled_from("ab"), TABLE | JSON, max_size=2),
            "workers": JSON | st.dictionaries(st.sampled_from("cd"), TABLE | JSON, max_size=2),
            "links": JSON | st.lists(TABLE | JSON, max_size=2),
        },
    )
)
def test_any_mapping_loads_or_is_refused(data: dict[str, object]) -> None:
    try:
        topology = Topology.from_dict(data)
    except TopologyError as exc:
        assert all(exc.problems)
    else:
        assert Topology.from_dict(json.loads(json.dumps(topology.to_dict()))) == topology


@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.graphml")) or [None], ids=lambda p: p.stem if p else "none")
def test_real_networks(path: pathlib.Path | None, tmp_path: pathlib.Path) -> None:
    if path is None:
        pytest.skip(f"{TOPOLOGIES} is not there: real networks are kept beside the checkout")
    topology = Topology.load(path)
    topology.validate()
    graph = nx.parse_graphml(path.read_text(), node_type=str)
    loops = sum(a == b for a, b, *_ in graph.edges)
    assert len(topology.workers) + len(topology.bridges) == len(graph)
    assert len(topology.links) == graph.number_of_edges() - loops
    assert len(topology.notes) == loops
    for suffix in ("toml", "json", "yaml"):
        topology.dump(tmp_path / f"x.{suffix}")
        assert Topology.load(tmp_path / f"x.{suffix}") == topology


def test_generators() -> None:
    sizes = {
        "star": (Topology.star(5), 5, 0),
        "linear": (Topology.linear(5), 5, 4),
        "ring": (Topology.ring(5), 5, 5),
        "mesh": (Topology.mesh(5), 5, 10),
        "tree": (Topology.tree(2, 3), 13, 12),
        "fat tree": (Topology.fat_tree(4), 36, 48),
        "networkx": (Topology.from_networkx(nx.petersen_graph()), 10, 15),
    }
    for name, (topology, workers, links) in sizes.items():
        topology.validate()
        assert (len(topology.workers), len(topology.links)) == (workers, links), name
        assert len(topology.components()) == 1
    for make in (lambda: Topology.ring(2), lambda: Topology.star(0), lambda: Topology.fat_tree(3)):
        with pytest.raises(TopologyError):
            make()


def test_units() -> None:
    assert [duration(text) for text in ("20ms", "1.5s", "10us", 2, "3")] == [0.02, 1.5, 1e-5, 2, 3]
    assert [rate(text) for text in ("10mbit", "64kbps", "1gbit", 5)] == [10e6, 512e3, 1e9, 5]
    assert [fraction(text) for text in ("1%", 0.5, "0.25")] == [0.01, 0.5, 0.25]
    for function, bad in (
        (duration, "20 parsecs"),
        (duration, -1),
        (rate, "0"),
        (rate, "fast"),
        (fraction, 2),
        (fraction, True),
    ):
        with pytest.raises(ValueError, match="is not a"):
            function(bad)  # type: ignore[operator]


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 14), st.data())
def test_routes_are_shortest(size: int, data: st.DataObject) -> None:
    pairs = [(a, b) for a in range(size) for b in range(a)]
    edges = data.draw(st.lists(st.tuples(st.sampled_from(pairs), st.integers(1, 4)), max_size=30))
    graph = nx.MultiGraph()
    graph.add_nodes_from(range(size))
    adjacent: list[list[tuple[int, int]]] = [[] for _ in range(size)]
    for (a, b), weight in edges:
        graph.add_edge(a, b, weight=weight)
        adjacent[a].append((b, weight))
        adjacent[b].append((a, weight))
    distances = dict(nx.all_pairs_dijkstra_path_length(graph))
    for source in range(size):
        first = adjacent[source]
        found = first_edges(adjacent, source, first)
        assert sorted(target for targets in found.values() for target in targets) == sorted(
            set(distances[source]) - {source}
        )
        for bits, targets in found.items():
            chosen = {number for number in range(len(first)) if bits >> number & 1}
            for target in targets:
                assert chosen == {
                    number
                    for number, (to, weight) in enumerate(first)
                    if weight + distances[to].get(target, 1e9) == distances[source][target]
                }


def test_transit_only_through_those_who_forward() -> None:
    line = [[(1, 1)], [(0, 1), (2, 1)], [(1, 1)]]
    assert first_edges(line, 0, line[0], transit={0, 2}) == {1: [1]}
    assert first_edges(line, 0, line[0], transit={1}) == {1: [1, 2]}


def test_equal_sums_are_equal() -> None:
    whole = whole_costs([0.1, 0.2, 0.3, 1e9, 1e-6, 0.1 + 0.2])
    assert whole[0.1] + whole[0.2] == whole[0.3] == whole[0.1 + 0.2]
    assert whole[1e9] == 10**15 * whole[1e-6]


def test_metrics() -> None:
    links = {}
    for metric in ("weight", "hops", "delay"):
        topology = Topology(routing="shortest-path", metric=metric)
        topology.worker("a")
        topology.worker("b")
        links[metric] = (topology, topology.link(nsorch.End("a", delay="2ms"), "b", weight=7, delay="1ms"))
    assert [topology.cost(link, "a") for topology, link in links.values()] == [7, 1, 0.003]
    assert [topology.cost(link, "b") for topology, link in links.values()] == [7, 1, 0.001]
    topology, _ = links["delay"]
    assert topology.cost(topology.link("a", "b"), "a") == 1e-6
    assert Topology.from_dict(topology.to_dict()) == topology
    with pytest.raises(TopologyError, match="metric"):
        Topology(metric="fun")
    with pytest.raises(TopologyError, match='^metric: "fun" is none of'):
        Topology.from_dict({"metric": "fun"})


def test_ends_of_bridges_have_neither_addresses_nor_names() -> None:
    topology = Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("a")
    topology.link(nsorch.End("lan", address="10.0.0.9", mac="02:00:00:00:00:01"), "a")
    topology.link("a", nsorch.End("lan", mtu=1400, rate="1mbit"))
    topology.link("a:up0", "lan:eth0")
    assert topology.problems() == [
        "links[0].ends[0].address: a bridge has no address",
        "links[0].ends[0].mac: the end on a bridge has none to be given",
        "links[2].ends[1].name: the end on a bridge has none to be given",
    ]
