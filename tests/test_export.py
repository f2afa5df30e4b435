"""Topologies for other programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nsorch
from nsorch import Topology
from nsorch.topology.emulation import EMULATION_KEYS
from nsorch.topology.graphml import parse

if TYPE_CHECKING:
    import pathlib

pytestmark = pytest.mark.once

LABELS = st.text(max_size=20)


def lab(label: str = "web server", name: str = "lab") -> Topology:
    topology = Topology(name)
    topology.bridge("lan", "10.0.0.0/24", label=label)
    topology.worker("end", links=[nsorch.To("lan", delay="20ms", rate="10mbit")], label=label)
    topology.worker("b")
    topology.link("end", "b", weight=2.5, label=label, loss="1%")
    topology.link("end", "b")
    return topology


def shape(topology: Topology) -> tuple[object, ...]:
    names = [*topology.workers, *topology.bridges]
    label = {name: spec.label for name, spec in {**topology.workers, **topology.bridges}.items()}
    edges = [(to.bridge, name, None, 1.0) for name, worker in topology.workers.items() for to in worker.links]
    edges += [(link.a.worker, link.b.worker, link.label, link.weight) for link in topology.links]
    ends = sorted(
        (*sorted((str(label[a] or a), str(label[b] or b))), str(text), weight) for a, b, text, weight in edges
    )
    return sorted(str(label[name] or name) for name in names), ends, len(topology.bridges)


@given(LABELS, LABELS)
def test_dot_has_a_string_for_each_label(label: str, name: str) -> None:
    text = lab(label, name).to_dot()
    assert text.startswith('graph "')
    # Without its strings nothing but the language is left: no label escapes.
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', "S", text, flags=re.DOTALL)
    assert re.fullmatch(r"[A-Za-z \[\]{}=,;\n-]*", rest), rest
    assert rest.count("S -- S") == 3


@given(LABELS)
def test_mermaid_has_a_string_for_each_label(label: str) -> None:
    lines = lab(label).to_mermaid().splitlines()
    assert lines[0] == "graph LR"
    string = r'"[^"<>&`]*(?:(?:<br>)[^"<>&`]*)*"'
    for line in lines[1:]:
        assert re.fullmatch(rf" +n\d+(\[{string}\]|\(\[{string}\]\)| ---(\|{string}\|)? n\d+)", line), line
    assert sum("---" in line for line in lines) == 3


@given(LABELS)
def test_graphml_again(label: str) -> None:
    topology = lab(label)
    again = nx.parse_graphml(topology.to_graphml(), force_multigraph=True)
    assert again.number_of_nodes() == 3
    assert again.number_of_edges() == 3
    assert nx.is_isomorphic(nx.MultiGraph(again), nx.MultiGraph(topology.to_networkx()))


def test_graphml_is_loaded_as_it_was(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.graphml"
    path.write_text(lab().to_graphml())
    assert shape(Topology.load(path)) == shape(lab())


def test_networkx_and_back() -> None:
    graph = lab().to_networkx()
    assert isinstance(graph, nx.MultiGraph)
    assert graph.nodes["lan"]["kind"] == "bridge"
    assert graph.edges["end", "lan", 0]["source"] == "end"
    assert graph.edges["end", "lan", 0]["source_delay"] == 0.02
    assert graph.edges["end", "b", 0]["weight"] == 2.5
    assert shape(Topology.from_networkx(graph)) == shape(lab())


SHARES = st.none() | st.floats(0, 1)
SECONDS = st.none() | st.floats(1e-9, 274)
EMULATIONS = st.fixed_dictionaries(
    {},
    optional={
        "profile": st.sampled_from(list(nsorch.PROFILES)),
        "delay": SECONDS,
        "jitter": SECONDS,
        "delay_correlation": SHARES,
        "distribution": st.sampled_from(["uniform", "pareto"]),
        "loss": SHARES,
        "loss_correlation": SHARES,
        "gilbert_elliott": st.builds(nsorch.GilbertElliott, st.floats(0, 1), bad=st.floats(0, 1), good=st.floats(0, 1)),
        "duplicate": SHARES,
        "corrupt": SHARES,
        "reorder": SHARES,
        "rate": st.none() | st.floats(1, 1e12),
        "limit": st.none() | st.integers(1, 2**32 - 1),
    },
)
TEXTS = st.none() | st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=8)


@st.composite
def topologies(draw: Any) -> Topology:
    topology = Topology("lab")
    workers, bridges = [f"w{n}" for n in range(draw(st.integers(2, 4)))], ["lan", "wan"]
    for name in bridges:
        topology.bridge(name, label=draw(TEXTS))
    for name in workers:
        links = [
            nsorch.To(bridge, **draw(EMULATIONS)) for bridge in draw(st.lists(st.sampled_from(bridges), max_size=2))
        ]
        topology.worker(name, links=links, label=draw(TEXTS))
    for _ in range(draw(st.integers(0, 3))):
        a, b = draw(st.permutations(workers))[0], draw(st.sampled_from([*workers, *bridges]))
        if a != b:
            ends = [nsorch.End(name, **draw(EMULATIONS)) for name in draw(st.permutations([a, b]))]
            weight = draw(st.floats(0.001, 1e6))
            topology.link(*ends, label=draw(TEXTS), weight=weight, **draw(EMULATIONS))
    return topology


def parts(topology: Topology) -> tuple[object, ...]:
    """Labels of the nodes, and of each link the labels of its ends and all that is said of it."""
    named = {**topology.bridges, **topology.workers}
    label = {name: spec.label or name for name, spec in named.items()}
    links = [nsorch.LinkSpec(a=as_end(n, to), b=to.bridge) for n, w in topology.workers.items() for to in w.links]
    said = []
    for link in (*links, *topology.links):
        ends = [(label[end.worker], end.emulation) for end in (link.a, link.b)]
        emulated = link.active or link.a.active or link.b.active
        said.append([*(ends if emulated else sorted(ends, key=repr)), link.label, link.weight, link.emulation])
    return sorted((text, name in topology.bridges) for name, text in label.items()), sorted(said, key=repr)


def as_end(worker: str, to: nsorch.To) -> nsorch.End:
    return nsorch.End(worker, **{key: getattr(to, key) for key in EMULATION_KEYS})


@settings(max_examples=50, deadline=None)
@given(topologies())
def test_graphs_are_read_as_they_were_written(topology: Topology) -> None:
    for again in (
        parse(topology.to_graphml(), "lab.graphml"),
        Topology.from_networkx(topology.to_networkx()),
        Topology.from_networkx(nx.parse_graphml(topology.to_graphml(), force_multigraph=True)),
    ):
        assert parts(again) == parts(topology)


def test_a_wrong_attribute_of_an_own_graph(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.graphml"
    path.write_text(lab().to_graphml().replace(">0.02<", ">soon<"))
    with pytest.raises(nsorch.TopologyError, match='edge end-lan: delay: "soon" is not a duration'):
        Topology.load(path)


def test_attributes_in_units_of_others_are_left_out() -> None:
    graph = lab().to_networkx()
    del graph.graph["Creator"]
    again = Topology.from_networkx(graph)
    assert not again.emulated()
    assert again.notes == ("loss of the edges: left out, as only nsorch's own graphs tell the units",)


def test_drawings_say_what_a_link_does() -> None:
    for text in (lab().to_dot(), lab().to_mermaid()):
        for part in ("10.0.0.0/24", "delay 20 ms, rate 10 Mbit/s", "loss 1 %"):
            assert part in text
    assert Topology().to_dot() == 'graph "lab" {\n  node [shape=box, style=rounded];\n}\n'
    assert Topology().to_mermaid() == "graph LR\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nsorch", "graph", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command(tmp_path: pathlib.Path) -> None:
    source = tmp_path / "lab.toml"
    lab().dump(source)
    assert run(str(source)).stdout == lab().to_dot()
    assert run(str(source), "-f", "mermaid").stdout == lab().to_mermaid()
    target = tmp_path / "out.graphml"
    assert run(str(source), "-o", str(target)).returncode == 0
    assert target.read_text() == lab().to_graphml()
    assert run(str(source), "-o", str(tmp_path / "out.xyz")).returncode == 2
    missing = run(str(tmp_path / "nothing.toml"))
    assert (missing.returncode, "nothing.toml" in missing.stderr) == (125, True)


@pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
def test_svg() -> None:
    assert "<svg" in lab().to_svg()


@pytest.mark.skipif(shutil.which("dot") is not None, reason="Graphviz is installed")
def test_svg_without_graphviz() -> None:
    with pytest.raises(nsorch.UnsupportedError, match="Graphviz"):
        lab().to_svg()
