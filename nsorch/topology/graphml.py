"""Graphs of other tools: GraphML, as the Internet Topology Zoo has it, and networkx."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from attrs import field, frozen

from nsorch.errors import TopologyError
from nsorch.topology.model import Topology

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"


@frozen
class _Graph:
    name: str
    nodes: Mapping[str, Mapping[str, str]]
    edges: Iterable[tuple[str, str, Mapping[str, str]]]
    notes: list[str] = field(factory=list)


def parse(text: str, source: str) -> Topology:
    """Routers for the nodes, links for the edges; ids become ``n0``, ``n1``, …, labels stay labels.

    :raises TopologyError: it is no GraphML, or refers to nodes that it hasn't
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise TopologyError("document type and entity declarations are not allowed", source=source)
    try:
        root = ET.fromstring(text)  # noqa: S314 - without declarations there are no entities to expand
    except ET.ParseError as exc:
        raise TopologyError(f"is not XML: {exc}", source=source) from None
    graph = root.find(f"{_NAMESPACE}graph") if root.tag == f"{_NAMESPACE}graphml" else None
    if graph is None:
        raise TopologyError("is XML, but has no graph of GraphML", source=source)
    keys = {key.get("id", ""): key.get("attr.name", "") for key in root.iter(f"{_NAMESPACE}key")}
    nodes: dict[str, dict[str, str]] = {}
    problems = []
    for node in graph.iter(f"{_NAMESPACE}node"):
        name = node.get("id")
        if name is None or name in nodes:
            problems.append(f"node {name!r}: its id is missing or used twice")
        else:
            nodes[name] = _data(node, keys)
    edges = []
    for number, edge in enumerate(graph.iter(f"{_NAMESPACE}edge")):
        ends = edge.get("source", ""), edge.get("target", "")
        problems += [f'edge {number}: there is no node "{end}"' for end in ends if end not in nodes]
        edges.append((*ends, _data(edge, keys)))
    if problems:
        raise TopologyError(*problems, source=source)
    name = os.path.splitext(os.path.basename(source))[0]
    own = {keys.get(item.get("key", ""), ""): item.text for item in graph.findall(f"{_NAMESPACE}data")}
    return _build(_Graph(own.get("Network") or name, nodes, edges), source)


def _data(element: ET.Element, keys: Mapping[str, str]) -> dict[str, str]:
    items = element.findall(f"{_NAMESPACE}data")
    return {keys.get(item.get("key", ""), ""): item.text or "" for item in items}


def from_networkx(graph: Any) -> Topology:
    """See :meth:`Topology.from_networkx`."""
    nodes = {str(node): {key: str(value) for key, value in data.items()} for node, data in graph.nodes(data=True)}
    edges = [(str(a), str(b), {k: str(v) for k, v in data.items()}) for a, b, data in graph.edges(data=True)]
    return _build(_Graph(str(graph.name or "graph"), nodes, edges), None)


def _build(graph: _Graph, source: str | None) -> Topology:
    topology = Topology(graph.name, routing="shortest-path")
    names: dict[str, str] = {}
    segments = {node for node, data in graph.nodes.items() if data.get("hyperedge") == "1"}
    for number, (node, data) in enumerate(graph.nodes.items()):
        names[node] = f"n{number}"
        label = data.get("label")
        if node in segments:
            topology.bridge(names[node], f"100.{127 - number // 256}.{number % 256}.0/24", label=label)
        else:
            topology.worker(names[node], forward=True, label=label)
    notes = []
    for a, b, data in graph.edges:
        if a == b:
            notes.append(f"the edge of node {a} to itself was left out")
            continue
        if a in segments and b in segments:
            notes.append(f"the edge between the segments {a} and {b} was left out")
            continue
        topology.link(names[a], names[b], label=data.get("LinkLabel"), weight=_weight(data, a, b, source))
    topology.notes = tuple(notes)
    return topology


def _weight(data: Mapping[str, str], a: str, b: str, source: str | None) -> float:
    text = data.get("weight")
    if text is None:
        return 1.0
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0 < weight < 1e9:
        raise TopologyError(f'edge {a}-{b}: its weight "{text}" is not a number above 0', source=source)
    return weight
