"""A topology for other programs: networkx, GraphML, and drawings by Graphviz and Mermaid."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.errors import UnsupportedError
from nsorch.topology.bursts import GILBERT_ELLIOTT_KEYS
from nsorch.topology.emulation import NO_EMULATION, given
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nsorch.topology.emulation import Emulation
    from nsorch.topology.model import Topology

# What no XML can hold, and what would only confuse a drawing: XML 1.0, section 2.2.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_ENDS = ("\n", "\x85", "\u2028", "\u2029")
_MERMAID = str.maketrans(
    {'"': "#quot;", "#": "#35;", "<": "#lt;", ">": "#gt;", "&": "#amp;", "`": "#96;", "\r": "", "\t": " "}
    | dict.fromkeys(_LINE_ENDS, "<br>")
)
_DOT = str.maketrans({'"': r"\"", "\\": r"\\", "\r": "", "\t": " "} | dict.fromkeys(_LINE_ENDS, r"\n"))
_RATES = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1.0, "bit/s"))
#: Before the name of what one end says: the prefix of which end it is.
SOURCE, TARGET = "source_", "target_"
#: Who made a graph, as the Topology Zoo has it: whose units are known.
CREATOR = "nsorch"
_GRAPHML = "http://graphml.graphdrawing.org/xmlns"


@frozen(eq=False, repr=False)
class _Edge(Value):
    a: str
    b: str
    label: str | None
    weight: float
    emulation: tuple[Emulation, Emulation, Emulation]  #: of the link, then of its ends
    subnets: tuple[str, ...] = ()

    @property
    def data(self) -> dict[str, Any]:
        """What graphs have of its emulation. Not all that read them tell an edge's source from its target."""
        parts = zip(("", SOURCE, TARGET), self.emulation, strict=True)
        said = {f"{prefix}{key}": value for prefix, emulation in parts for key, value in _given(emulation).items()}
        return {"source": self.a, **said} if said else said

    @property
    def text(self) -> str:
        """What a drawing shows."""
        parts = [self.label or "", *self.subnets]
        parts += [
            ", ".join(f"{key} {_quantity(key, value)}" for key, value in _given(emulation).items())
            for emulation in self.emulation
        ]
        return "\n".join(part for part in parts if part)


def _given(emulation: Emulation) -> dict[str, Any]:
    """What was said, as numbers and words."""
    said = given(emulation)
    loss = said.pop("gilbert_elliott", None)
    if loss is not None:
        said |= {f"gilbert_elliott_{key}": getattr(loss, key) for key in GILBERT_ELLIOTT_KEYS}
    return said


def _quantity(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if key in ("delay", "jitter"):
        return f"{value * 1000:g} ms"
    if key == "rate":
        size, unit = next((item for item in _RATES if value >= item[0]), _RATES[-1])
        return f"{value / size:g} {unit}"
    return f"{value:g}" if key == "limit" else f"{value * 100:g} %"


def _edges(topology: Topology) -> Iterator[_Edge]:
    for name, worker in topology.workers.items():
        for to in worker.links:
            subnets = tuple(str(address) for address in to.address)
            yield _Edge(name, to.bridge, None, 1.0, (NO_EMULATION, to.emulation, NO_EMULATION), subnets)
    for link in topology.links:
        emulation = (link.emulation, link.a.emulation, link.b.emulation)
        subnets = tuple(str(network) for network in link.subnet)
        yield _Edge(link.a.worker, link.b.worker, link.label, link.weight, emulation, subnets)


def _nodes(topology: Topology) -> Iterator[tuple[str, str, str]]:
    """Name, kind and label of each."""
    for name, worker in topology.workers.items():
        yield name, "worker", worker.label or name
    for name, bridge in topology.bridges.items():
        yield name, "bridge", bridge.label or name


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _drawn(name: str, label: str, topology: Topology) -> str:
    lines = [name] if label == name else [name, label]
    if name in topology.bridges:
        lines += [str(network) for network in topology.bridges[name].subnet]
    return _clean("\n".join(lines))


def to_networkx(topology: Topology) -> Any:
    """See :meth:`Topology.to_networkx`."""
    import networkx as nx

    graph: Any = nx.MultiGraph(name=topology.name or "", Creator=CREATOR)
    for name, kind, label in _nodes(topology):
        graph.add_node(name, kind=kind, label=label, **({"hyperedge": "1"} if kind == "bridge" else {}))
    for edge in _edges(topology):
        values = {"weight": edge.weight, **edge.data}
        graph.add_edge(edge.a, edge.b, **values, **({} if edge.label is None else {"LinkLabel": edge.label}))
    return graph


def to_dot(topology: Topology) -> str:
    """See :meth:`Topology.to_dot`."""
    lines = [f"graph {_dot(topology.name or 'lab')} {{", "  node [shape=box, style=rounded];"]
    for name, kind, label in _nodes(topology):
        shape = ", shape=ellipse, style=dashed" if kind == "bridge" else ""
        lines.append(f"  {_dot(name)} [label={_dot(_drawn(name, label, topology))}{shape}];")
    for edge in _edges(topology):
        text = f" [label={_dot(edge.text)}]" if edge.text else ""
        lines.append(f"  {_dot(edge.a)} -- {_dot(edge.b)}{text};")
    return "\n".join([*lines, "}"]) + "\n"


def _dot(text: str) -> str:
    return f'"{_clean(text).translate(_DOT)}"'


def to_mermaid(topology: Topology) -> str:
    """See :meth:`Topology.to_mermaid`."""
    # Names of its own: a worker may be called "end", which is a word of the language.
    ids = {name: f"n{number}" for number, (name, _, _) in enumerate(_nodes(topology))}
    lines = ["graph LR"]
    for name, kind, label in _nodes(topology):
        text = _mermaid(_drawn(name, label, topology))
        lines.append(f'  {ids[name]}(["{text}"])' if kind == "bridge" else f'  {ids[name]}["{text}"]')
    for edge in _edges(topology):
        text = f'|"{_mermaid(edge.text)}"|' if edge.text else ""
        lines.append(f"  {ids[edge.a]} ---{text} {ids[edge.b]}")
    return "\n".join(lines) + "\n"


def _mermaid(text: str) -> str:
    return _clean(text).translate(_MERMAID)


def to_graphml(topology: Topology) -> str:
    """See :meth:`Topology.to_graphml`."""
    from xml.etree import ElementTree as ET

    root = ET.Element("graphml", xmlns=_GRAPHML)
    keys: dict[tuple[str, str], str] = {}

    def put(element: ET.Element, owner: str, name: str, kind: str, value: object) -> None:
        if (owner, name) not in keys:
            keys[owner, name] = f"d{len(keys)}"
            key = ET.Element("key", {"id": keys[owner, name], "for": owner, "attr.name": name, "attr.type": kind})
            root.insert(len(keys) - 1, key)
        data = ET.SubElement(element, "data", key=keys[owner, name])
        data.text = _clean(str(value))

    graph = ET.SubElement(root, "graph", edgedefault="undirected")
    put(graph, "graph", "Creator", "string", CREATOR)
    if topology.name:
        put(graph, "graph", "Network", "string", topology.name)
    for name, kind, label in _nodes(topology):
        node = ET.SubElement(graph, "node", id=name)
        put(node, "node", "label", "string", label)
        if kind == "bridge":
            put(node, "node", "hyperedge", "int", 1)
    for edge in _edges(topology):
        element = ET.SubElement(graph, "edge", source=edge.a, target=edge.b)
        if edge.label is not None:
            put(element, "edge", "LinkLabel", "string", edge.label)
        if edge.weight != 1.0:
            put(element, "edge", "weight", "double", edge.weight)
        for key, value in edge.data.items():
            kind = "string" if isinstance(value, str) else "double"
            put(element, "edge", "LinkSpeedRaw" if key == "rate" else key, kind, value)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def to_svg(topology: Topology) -> str:
    """See :meth:`Topology.to_svg`."""
    import shutil
    import subprocess

    program = shutil.which("dot")
    if program is None:
        raise UnsupportedError("an SVG needs the program dot of Graphviz, which is not installed")
    done = subprocess.run([program, "-Tsvg"], input=to_dot(topology).encode(), capture_output=True, check=False)
    if done.returncode:
        raise UnsupportedError("dot failed", detail=done.stderr.decode(errors="replace").strip())
    return done.stdout.decode()
