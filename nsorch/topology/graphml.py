"""Graphs of other tools: GraphML, as the Internet Topology Zoo has it, and networkx."""

from __future__ import annotations

import collections
import math
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from attrs import field, frozen

from nsorch.errors import TopologyError, printable
from nsorch.topology.bursts import GILBERT_ELLIOTT_KEYS
from nsorch.topology.emulation import EMULATION_KEYS
from nsorch.topology.export import CREATOR, SOURCE, TARGET
from nsorch.topology.kinds import of_kind, shown
from nsorch.topology.model import Topology
from nsorch.topology.routing import connected
from nsorch.topology.specs import End, LinkSpec
from nsorch.topology.units import duration
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_NAMESPACE = "{http://graphml.graphdrawing.org/xmlns}"


@frozen(eq=False, repr=False)
class _Graph(Value):
    name: str
    nodes: Mapping[str, Mapping[str, str]]
    edges: Iterable[tuple[str, str, Mapping[str, str]]]
    notes: list[str] = field(factory=list)
    own: bool = False  #: made by nsorch, which says more of its links


_DIRECTED = "the edges' directions are left out: each is a link both ways"
EARTH_RADIUS = 6371.0  # km, the mean of WGS 84
SPEED = 200_000.0  # km/s: light in fibre


@frozen(kw_only=True, eq=False, repr=False)
class GraphOptions(Value):
    """What to make of a graph's attributes.

    :ivar delay: ``"geo"``: of each link by the great circle between ``Latitude`` and ``Longitude`` of its nodes, at
        200 km per ms
    :ivar missing: the delay (seconds) of a link that has a node without coordinates; ``"none"`` for none of it,
        ``"error"`` to refuse the graph
    :ivar rate: ``"label"``: of each link that has a ``LinkSpeedRaw`` (bit/s)
    """

    delay: str | None = None
    missing: str | float = "error"
    rate: str | None = None

    def __attrs_post_init__(self) -> None:
        problems = []
        if self.delay not in (None, "geo"):
            problems.append(f'delay: "{self.delay}" is not "geo"')
        if self.rate not in (None, "label"):
            problems.append(f'rate: "{self.rate}" is not "label"')
        if self.missing not in ("error", "none"):
            try:
                object.__setattr__(self, "missing", duration(self.missing))
            except ValueError as exc:
                problems.append(f'missing: {exc}, nor "error" or "none"')
        if self.missing != "error" and self.delay is None:
            problems.append('missing: is of the delay by coordinates, which delay="geo" asks for')
        if problems:
            raise TopologyError(*problems)


def parse(text: str, source: str, options: GraphOptions = GraphOptions()) -> Topology:
    """Routers for the nodes, links for the edges; ids become ``n0``, ``n1``, …, labels stay labels.

    :raises TopologyError: it is no GraphML, or refers to nodes that it hasn't
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise TopologyError("document type and entity declarations are not allowed", source=source)
    try:
        root = ET.fromstring(text)  # noqa: S314 - without declarations there are no entities to expand
    except ET.ParseError as exc:
        raise TopologyError(f"is not XML: {exc}", source=source) from None
    file = _File(root)
    if file.graph is None:
        raise TopologyError("is XML, but has no graph of GraphML", source=source)
    nodes: dict[str, dict[str, str]] = {}
    problems = []
    for node in file.all("node"):
        name = node.get("id")
        if name is None or name in nodes:
            problems.append(f"node {shown(name)}: its id is missing or used twice")
        else:
            nodes[name] = file.data(node)
    edges = []
    for number, edge in enumerate(file.all("edge")):
        ends = edge.get("source", ""), edge.get("target", "")
        problems += [f"edge {number}: there is no node {shown(end)}" for end in ends if end not in nodes]
        edges.append((*ends, file.data(edge)))
    for number, shared in enumerate(file.all("hyperedge")):
        segment = f"hyperedge {number}"
        members = [end.get("node", "") for end in shared.findall(file.tag("endpoint"))]
        problems += [f"{segment}: there is no node {shown(end)}" for end in members if end not in nodes]
        edges += [(segment, end, {}) for end in members]
        nodes[segment] = file.data(shared) | {"hyperedge": "1"}
    if problems:
        raise TopologyError(*problems, source=source)
    name = os.path.splitext(os.path.basename(source))[0]
    notes = [f"of {file.graphs} graphs only the first was read"] if file.graphs > 1 else []
    notes += [
        f"the nodes of the graph in node {shown(node.get('id'))} stand beside it"
        for node in file.all("node")
        if node.find(file.tag("graph")) is not None
    ]
    if file.directed:
        notes.append(_DIRECTED)
    said = file.data(file.graph)
    own = said.get("Creator") == CREATOR
    return _build(_Graph(said.get("Network") or name, nodes, edges, notes, own), source, options)


class _File:
    """The parts of a GraphML file, with or without the namespace that GraphML's schema wants."""

    def __init__(self, root: ET.Element) -> None:
        self._namespace = _NAMESPACE if root.tag == f"{_NAMESPACE}graphml" else ""
        graphs = root.findall(self.tag("graph")) if root.tag == self.tag("graphml") else []
        self.graph = graphs[0] if graphs else None
        self.graphs = len(graphs)
        self._names: dict[str, str] = {}
        self._defaults: dict[str, dict[str, str]] = {}  # by the kind of element
        for key in root.iter(self.tag("key")):
            name = self._names[key.get("id", "")] = key.get("attr.name", "")
            default = key.find(self.tag("default"))
            if default is not None:
                kind = key.get("for", "all")
                for element in ("graph", "node", "edge", "hyperedge") if kind == "all" else (kind,):
                    self._defaults.setdefault(self.tag(element), {})[name] = default.text or ""

    def tag(self, name: str) -> str:
        return f"{self._namespace}{name}"

    def all(self, name: str) -> Iterator[ET.Element]:
        return iter(()) if self.graph is None else self.graph.iter(self.tag(name))

    @property
    def directed(self) -> bool:
        """Whether any of its edges has a direction."""
        usual = "true" if self.graph is not None and self.graph.get("edgedefault") == "directed" else "false"
        return any(edge.get("directed", usual) == "true" for edge in self.all("edge"))

    def data(self, element: ET.Element) -> dict[str, str]:
        """By the names of the keys; their defaults where it has none of its own."""
        items = element.findall(self.tag("data"))
        own = {self._names.get(item.get("key", ""), ""): item.text or "" for item in items}
        return self._defaults.get(element.tag, {}) | own


def from_networkx(graph: Any, options: GraphOptions) -> Topology:
    """See :meth:`Topology.from_networkx`."""
    import networkx as nx

    of_kind("graph", graph, "a networkx.Graph", nx.Graph)
    same = {text for text, times in collections.Counter(map(str, graph.nodes)).items() if times > 1}  # 1 and "1"
    ids = {node: f"{number}: {node!r}" if str(node) in same else str(node) for number, node in enumerate(graph.nodes)}
    nodes = {ids[node]: _texts(data) for node, data in graph.nodes(data=True)}
    edges = [(ids[a], ids[b], _texts(data)) for a, b, data in graph.edges(data=True)]
    own = graph.graph.get("Creator") == CREATOR
    if own:  # of undirected graphs, edges may be the other way round
        edges = [(b, a, data) if data.get("source") == b else (a, b, data) for a, b, data in edges]
    notes = [_DIRECTED] if graph.is_directed() and edges else []
    return _build(_Graph(str(graph.name or "graph"), nodes, edges, notes, own), None, options)


def _texts(data: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in data.items() if value is not None}


def _build(graph: _Graph, source: str | None, options: GraphOptions) -> Topology:
    topology = Topology(graph.name, routing="shortest-path")
    names: dict[str, str] = {}
    segments = _segments(graph)
    sizes = collections.Counter(segments[end] for a, b, _ in graph.edges for end in (a, b) if end in segments)
    subnets = _Subnets()
    for number, (node, data) in enumerate(graph.nodes.items()):
        label = data.get("label") or (None if node in (str(number), f"n{number}") else node)
        if node not in segments:
            names[node] = f"n{number}"
            topology.worker(names[node], forward=True, label=label)
        else:  # of those that are linked, the first gives all their subnet
            names[node] = f"n{number}"
            subnet = (subnets.take(sizes[node]), f"fd6e:736f:7265:{number:x}::/64") if segments[node] == node else None
            topology.bridge(names[node], subnet, label=label)
    notes = list(graph.notes)
    loops = _loops((a, b) for a, b, _ in graph.edges if a in segments and b in segments)
    problems: list[str] = []
    delays = _Delays(graph, options, problems)
    for a, b, data in graph.edges:
        if a == b:
            notes.append(f"the edge of node {a} to itself was left out")
            continue
        if a in segments and b in segments and next(loops):
            notes.append(
                f"the edge {a}-{b} was left out: the segments are linked already, frames would go round for ever"
            )
            continue
        said, source_says, target_says = said_of(data) if graph.own else ({}, {}, {})
        if options.delay is not None:
            said["delay"] = delays.of(a, b)
        if options.rate or graph.own:
            said.setdefault("rate", _rate(data, a, b, problems))
        try:
            topology.add(
                LinkSpec(
                    a=End(names[a], **source_says),
                    b=End(names[b], **target_says),
                    label=data.get("LinkLabel"),
                    weight=_weight(data, a, b, problems),
                    **said,
                )
            )
        except TopologyError as exc:
            problems += [f"edge {a}-{b}: {problem}" for problem in exc.problems]
    if not graph.own and (known := {key for *_, data in graph.edges for key in data if key in EMULATION_KEYS}):
        notes.append(f"{', '.join(sorted(known))} of the edges: left out, as only nsorch's own graphs tell the units")
    if problems:
        raise TopologyError(*dict.fromkeys(problems), source=source)
    topology.notes = tuple(map(printable, notes))
    return topology


def said_of(data: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What an edge of nsorch's own graphs has of the link's emulation, and of those of its ends."""
    return _said(data, ""), _said(data, SOURCE), _said(data, TARGET)


def _said(data: Mapping[str, str], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in (*EMULATION_KEYS, *(f"gilbert_elliott_{key}" for key in GILBERT_ELLIOTT_KEYS)):
        if (text := data.get(f"{prefix}{key}")) is not None:
            number = _number(text)
            value: Any = text if number is None else int(number) if key == "limit" else number
            if key.startswith("gilbert_elliott_"):
                found.setdefault("gilbert_elliott", {})[key.removeprefix("gilbert_elliott_")] = value
            else:
                found[key] = value
    return found


def _loops(pairs: Iterable[tuple[str, str]]) -> Iterator[bool]:
    """Of each pair that isn't one with itself, whether those before have linked the two."""
    linked: dict[str, set[str]] = {}
    for a, b in pairs:
        if a != b:
            here, there = linked.setdefault(a, {a}), linked.setdefault(b, {b})
            yield here is there
            here |= there
            linked |= dict.fromkeys(there, here)


def _segments(graph: _Graph) -> dict[str, str]:
    """The pseudo-nodes, each with the first of those that are linked to one another: they are one segment."""
    nodes = [node for node, data in graph.nodes.items() if _is_true(data.get("hyperedge", ""))]
    among = set(nodes)
    pairs = [(a, b) for a, b, _ in graph.edges if a in among and b in among]
    joined: dict[str, str] = {}
    for component in connected(nodes, pairs):
        first = next(node for node in nodes if node in component)
        joined |= dict.fromkeys(component, first)
    return {node: joined[node] for node in nodes}


def _is_true(text: str) -> bool:
    return text.lower() == "true" or bool(_number(text))


class _Subnets:
    """Of the segments: a /24 each, from the end of the range for networks that nobody routes to (RFC 6598), or what a
    larger segment needs."""

    def __init__(self) -> None:
        self._end = int(ip_address("100.128.0.0"))

    def take(self, ends: int) -> str:
        size = max(256, 1 << (ends + 1).bit_length())
        self._end = (self._end - size) // size * size
        return f"{ip_address(self._end)}/{33 - size.bit_length()}"


class _Delays:
    def __init__(self, graph: _Graph, options: GraphOptions, problems: list[str]) -> None:
        self._options = options
        self._problems = problems
        self._places: dict[str, tuple[float, float] | None] = {}
        if options.delay is not None:
            self._places = {node: self._place(node, data) for node, data in graph.nodes.items()}

    def _place(self, node: str, data: Mapping[str, str]) -> tuple[float, float] | None:
        """Latitude and longitude in radians."""
        texts = [data.get(key, "") for key in ("Latitude", "Longitude")]
        if not any(texts):
            return None
        place = []
        for text, most, what in zip(texts, (90, 360), ("Latitude", "Longitude"), strict=True):
            value = _number(text)
            if value is None or abs(value) > most:
                self._problems.append(f'node {node}: its {what} "{text}" is not a number of degrees')
                return None
            place.append(math.radians(value))
        return place[0], place[1]

    def of(self, a: str, b: str) -> float | None:
        """Seconds, or None for no delay."""
        if self._options.delay is None:
            return None
        one, other = self._places[a], self._places[b]
        if one is not None and other is not None:
            # No link needs an emulation of no delay.
            return round(great_circle(one, other) / SPEED, 9) or None
        if self._options.missing == "none":
            return None
        if self._options.missing == "error":
            self._problems += [
                f"node {node} has no coordinates, which delay needs; missing= says what to do"
                for node in (a, b)
                if self._places[node] is None
            ]
            return None
        return float(self._options.missing) or None


def great_circle(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Kilometres between two places (latitude, longitude, in radians), by the haversine formula."""
    half = math.sin((b[0] - a[0]) / 2) ** 2 + math.cos(a[0]) * math.cos(b[0]) * math.sin((b[1] - a[1]) / 2) ** 2
    return 2 * EARTH_RADIUS * math.asin(min(1.0, math.sqrt(half)))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _weight(data: Mapping[str, str], a: str, b: str, problems: list[str]) -> float:
    text = data.get("weight")
    if not text:
        return 1.0
    weight = _number(text)
    if weight is None or not 0 < weight < 1e9:
        problems.append(f'edge {a}-{b}: its weight "{text}" is not a number above 0')
        return 1.0
    return weight


def _rate(data: Mapping[str, str], a: str, b: str, problems: list[str]) -> float | None:
    """Bits per second; an edge without speed, or with none of it, has no limit."""
    text = data.get("LinkSpeedRaw")
    if not text:
        return None
    speed = _number(text)
    if speed is None or speed < 0:
        problems.append(f'edge {a}-{b}: its LinkSpeedRaw "{text}" is not a number of bits per second')
        return None
    return speed or None
