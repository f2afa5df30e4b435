"""Graphs of other tools as topologies: GraphML, networkx, their attributes, and random ones."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import networkx as nx
import pytest
from files_support import GRAPH, edge, node

import nsorch
from nsorch import Topology, TopologyError

pytestmark = pytest.mark.once

TOP = pathlib.Path(__file__).parent.parent
TOPOLOGIES = TOP.parent / "shared" / "topologies"
needs_topologies = pytest.mark.skipif(not TOPOLOGIES.is_dir(), reason="../shared/topologies is not here")


def graph(path: pathlib.Path, *parts: str, **options: Any) -> Topology:
    path.write_text(GRAPH % "".join(parts))
    return Topology.load(path, **options)


def test_delay_by_coordinates(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "g.graphml"
    # A quarter of the way round the earth: 10,007.5 km, 50.04 ms.
    parts = (node("0", lat=0, lon=0), node("1", lat=0, lon=90), node("2"), edge("0", "1", s=1e9), edge("1", "2"))
    assert [link.delay for link in graph(path, *parts).links] == [None, None]
    for missing, expected in (("5ms", 0.005), (0.25, 0.25), ("none", None)):
        one, other = graph(path, *parts, delay="geo", missing=missing).links
        assert one.delay == pytest.approx(math.pi / 2 * 6371 / 200_000, abs=1e-9)
        assert other.delay == expected
    with pytest.raises(TopologyError, match="node 2 has no coordinates"):
        graph(path, *parts, delay="geo")
    assert [link.rate for link in graph(path, *parts, rate="label").links] == [1e9, None]
    same = (node("0", lat=1, lon=2), node("1", lat=1, lon=2), edge("0", "1"))
    assert graph(path, *same, delay="geo").links[0].delay is None


@pytest.mark.parametrize(
    ("part", "options", "problem"),
    [
        (node("1"), {"missing": "5ms"}, 'missing: is of the delay by coordinates, which delay="geo" asks for'),
        (node("1", lat="x", lon=0), {"delay": "geo"}, 'node 1: its Latitude "x"'),
        (node("1", lat=91, lon=0), {"delay": "geo"}, 'node 1: its Latitude "91"'),
        (node("1", lat=0, lon="nan"), {"delay": "geo"}, 'node 1: its Longitude "nan"'),
        (node("1", lat=0), {"delay": "geo"}, 'node 1: its Longitude ""'),
        (node("1") + edge("1", "0", s="-5"), {"rate": "label"}, 'edge 1-0: its LinkSpeedRaw "-5"'),
        (node("1") + edge("1", "0", s="inf"), {"rate": "label"}, 'edge 1-0: its LinkSpeedRaw "inf"'),
        (node("1"), {"delay": "far"}, 'delay: "far" is not "geo"'),
        (node("1"), {"delay": "geo", "missing": "soon"}, 'missing: "soon" is not a duration'),
        (node("1"), {"rate": "x"}, 'rate: "x" is not "label"'),
    ],
)
def test_wrong_attributes(part: str, options: dict[str, Any], problem: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(TopologyError) as raised:
        graph(tmp_path / "g.graphml", node("0"), part, **options)
    assert problem in str(raised.value)


def test_linked_segments_are_linked_bridges(tmp_path: pathlib.Path) -> None:
    parts = [
        node("0"),
        node("1", h=1),
        node("2", h=1),
        node("3"),
        edge("0", "1"),
        edge("1", "2"),
        edge("2", "3"),
        edge("3", "3"),
        edge("2", "1"),
        edge("2", "2"),
    ]
    topology = graph(tmp_path / "g.graphml", *parts)
    topology.validate()
    assert list(topology.bridges) == ["n1", "n2"]
    assert topology.trunks() == [("n1", "n2")]
    assert topology.components() == [{"n0", "n3"}]
    assert topology.notes == (
        "the edge of node 3 to itself was left out",
        "the edge 2-1 was left out: the segments are linked already, frames would go round for ever",
        "the edge of node 2 to itself was left out",
    )


def test_links_between_bridges_come_back(tmp_path: pathlib.Path) -> None:
    before = Topology()
    before.bridge("a", "10.0.0.0/24")
    before.bridge("b")
    before.worker("w", links=["a"])
    before.worker("v", links=["b"])
    before.link("a", "b", delay="20ms")
    path = tmp_path / "g.graphml"
    path.write_text(before.to_graphml())
    after = Topology.load(path)
    assert [link.delay for link in after.links if link.delay] == [0.02]
    assert len(after.bridges) == 2
    after.validate()


@pytest.mark.anyio
async def test_linked_segments_are_routed_through() -> None:
    drawn = nx.Graph([(0, 1), (1, 2), (2, 3), (3, 4)])
    nx.set_node_attributes(drawn, {1: 1, 2: 1}, "hyperedge")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.from_networkx(drawn))
        assert (await sup.ping_all()).ok


@pytest.mark.parametrize("options", [{"delay": "geo"}, {"rate": "label"}, {"missing": "x"}])
@pytest.mark.parametrize("name", ["lab.toml", "lab.clab.yml"])
def test_options_are_for_graphs_alone(options: dict[str, str], name: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / name
    path.write_text("")
    with pytest.raises(TopologyError, match="GraphML alone"):
        Topology.load(path, **options)  # type: ignore[arg-type]


@needs_topologies
@pytest.mark.parametrize("path", sorted(TOPOLOGIES.glob("*.graphml")), ids=lambda path: path.stem)
def test_real_networks(path: pathlib.Path) -> None:
    source = nx.read_graphml(path, force_multigraph=True)
    topology = Topology.load(path, delay="geo", missing="1ms", rate="label")
    loops = sum(a == b for a, b, _ in source.edges)
    assert len(topology.workers) + len(topology.bridges) == source.number_of_nodes()
    assert len(topology.links) == source.number_of_edges() - loops
    assert len(topology.components()) == nx.number_connected_components(source)
    assert all(link.delay is None or 0 < link.delay < 0.11 for link in topology.links)
    assert sum("itself" in note for note in topology.notes) == loops


# -- random graphs


def test_random_graphs() -> None:
    for make in (
        lambda seed: Topology.erdos_renyi(20, 0.3, seed=seed),
        lambda seed: Topology.barabasi_albert(20, 2, seed=seed),
        lambda seed: Topology.watts_strogatz(20, 4, 0.5, seed=seed),
        lambda seed: Topology.waxman(20, beta=0.9, alpha=0.5, seed=seed),
        lambda seed: Topology.random_regular(20, 3, seed=seed),
    ):
        assert make(1) == make(1)
        assert make(1) != make(2)
        assert len(make(1).workers) == 20
        make(1).validate()
    assert len(Topology.random_regular(20, 3).links) == 30
    for wrong in (
        lambda: Topology.random_regular(5, 3),
        lambda: Topology.barabasi_albert(3, 9),
        lambda: Topology.waxman(0),
        lambda: Topology.waxman(5, alpha=0),
        lambda: Topology.waxman(5, beta=-1),
        lambda: Topology.erdos_renyi(5, 2),
        lambda: Topology.erdos_renyi(5, "x"),  # type: ignore[arg-type]
        lambda: Topology.watts_strogatz(5, 2, 3),
        lambda: Topology.watts_strogatz(5, 0, 0.5),
        lambda: Topology.random_regular(4, 1.0),  # type: ignore[arg-type]
    ):
        with pytest.raises(TopologyError):
            wrong()


# -- GraphML


def graphml(body: str, namespace: str = ' xmlns="http://graphml.graphdrawing.org/xmlns"') -> str:
    return f'<?xml version="1.0"?><graphml{namespace}>{body}</graphml>'


PAIR = '<graph edgedefault="undirected"><node id="a"/><node id="b"/><edge source="a" target="b"/></graph>'


def load_graphml(text: str, tmp_path: pathlib.Path) -> Topology:
    (tmp_path / "x.graphml").write_text(text)
    return Topology.load(tmp_path / "x.graphml")


def test_graphml_without_its_namespace(tmp_path: pathlib.Path) -> None:
    topology = load_graphml(graphml(PAIR, ""), tmp_path)
    assert list(topology.workers) == ["n0", "n1"]
    assert len(topology.links) == 1


def test_defaults_of_graphml_keys(tmp_path: pathlib.Path) -> None:
    keys = (
        '<key id="k" for="edge" attr.name="weight"><default>7</default></key>'
        '<key id="l" for="node" attr.name="label"><default>nobody</default></key>'
    )
    topology = load_graphml(
        graphml(keys + PAIR.replace('<node id="b"/>', '<node id="b"><data key="l">B</data></node>')), tmp_path
    )
    assert topology.links[0].weight == 7
    assert [worker.label for worker in topology.workers.values()] == ["nobody", "B"]


def test_hyperedges_are_segments(tmp_path: pathlib.Path) -> None:
    ends = "".join(f'<endpoint node="{name}"/>' for name in "ab")
    topology = load_graphml(graphml(PAIR.replace("</graph>", f"<hyperedge>{ends}</hyperedge></graph>")), tmp_path)
    assert list(topology.bridges) == ["n2"]
    assert sorted(link.b.worker for link in topology.links if link.a.worker == "n2") == ["n0", "n1"]
    with pytest.raises(TopologyError, match='hyperedge 0: there is no node "z"'):
        load_graphml(graphml(PAIR.replace("</graph>", '<hyperedge><endpoint node="z"/></hyperedge></graph>')), tmp_path)
    key = '<key id="h" for="node" attr.name="hyperedge" attr.type="double"/>'
    pseudo = PAIR.replace('<node id="b"/>', '<node id="b"><data key="h">1.0</data></node>')
    assert list(load_graphml(graphml(key + pseudo), tmp_path).bridges) == ["n1"]


def test_large_segments_have_large_subnets() -> None:
    graph = nx.Graph()
    for hub, size in (("x", 3), ("y", 1500), ("z", 254)):
        graph.add_node(hub, hyperedge=1)
        graph.add_edges_from((hub, f"{hub}{number}") for number in range(size))
    topology = Topology.from_networkx(graph)
    topology.validate()
    subnets = [bridge.subnet[0] for bridge in topology.bridges.values()]
    assert [subnet.prefixlen for subnet in subnets] == [24, 21, 24]
    assert not any(a.overlaps(b) for a in subnets for b in subnets if a is not b)


def test_of_several_graphs_the_first(tmp_path: pathlib.Path) -> None:
    topology = load_graphml(graphml(PAIR + PAIR), tmp_path)
    assert topology.notes == ("of 2 graphs only the first was read",)


def test_empty_attributes_are_none(tmp_path: pathlib.Path) -> None:
    text = """<graphml><key id="l" for="node" attr.name="label"/><key id="w" for="edge" attr.name="weight"/>
        <graph edgedefault="undirected"><node id="a"><data key="l"/></node><node id="b"/>
        <edge source="a" target="b"><data key="w"/></edge></graph></graphml>"""
    path = tmp_path / "lab.graphml"
    path.write_text(text)
    topology = Topology.load(path)
    assert [worker.label for worker in topology.workers.values()] == ["a", "b"]
    assert topology.links[0].weight == 1.0


def test_directions_and_nested_graphs_are_noted(tmp_path: pathlib.Path) -> None:
    directed = PAIR.replace('edgedefault="undirected"', 'edgedefault="directed"')
    topology = load_graphml(graphml(directed), tmp_path)
    assert topology.notes == ("the edges' directions are left out: each is a link both ways",)
    nested = PAIR.replace('<node id="b"/>', '<node id="b"><graph id="b:"><node id="b::0"/></graph></node>')
    topology = load_graphml(graphml(nested), tmp_path)
    assert topology.notes == ('the nodes of the graph in node "b" stand beside it',)
    assert [worker.label for worker in topology.workers.values()] == ["a", "b", "b::0"]


def test_nodes_of_networkx_stay_apart_and_none_is_no_attribute() -> None:
    graph: nx.Graph[Any] = nx.Graph()
    graph.add_node(1, label=None, Latitude=None)
    graph.add_node("1", label="x")
    graph.add_edge(1, "1", weight=None, LinkSpeedRaw=None, LinkLabel=None)
    topology = Topology.from_networkx(graph, delay="geo", missing="none", rate="label")
    assert [worker.label for worker in topology.workers.values()] == ["0: 1", "x"]
    assert [(link.weight, link.rate, link.label) for link in topology.links] == [(1.0, None, None)]
    assert Topology.from_networkx(nx.DiGraph([(0, 1)])).notes[0].startswith("the edges' directions")


def test_labels_that_no_file_can_hold_are_not_dumped(tmp_path: pathlib.Path) -> None:
    for label in ("\ud800", "x\0"):
        topology = Topology()
        topology.worker("a", label=label)
        for suffix in ("toml", "yaml", "json"):
            with pytest.raises(TopologyError, match=r"workers\.a\.label: "):
                topology.dump(tmp_path / f"x.{suffix}")
            assert not (tmp_path / f"x.{suffix}").exists()
