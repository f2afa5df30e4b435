"""Topologies for other programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nsorch
from nsorch import Topology

if TYPE_CHECKING:
    import pathlib

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
    assert graph.edges["end", "lan", 0]["delay"] == 0.02
    assert graph.edges["end", "b", 0]["weight"] == 2.5
    assert shape(Topology.from_networkx(graph)) == shape(lab())


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
