"""What tests of topology files write and load."""

from __future__ import annotations

import pathlib

import pytest

from nsorch import Topology, TopologyError


def load(text: str, path: pathlib.Path) -> Topology:
    path.write_text(text)
    return Topology.load(path)


def refusal(text: str, path: pathlib.Path) -> TopologyError:
    with pytest.raises(TopologyError) as raised:
        load(text, path)
    return raised.value


GRAPH = """<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key attr.name="Latitude" for="node" id="lat"/><key attr.name="Longitude" for="node" id="lon"/>
<key attr.name="hyperedge" for="node" id="h"/><key attr.name="LinkSpeedRaw" for="edge" id="s"/>
<key attr.name="label" for="node" id="l"/>
<graph edgedefault="undirected">%s</graph></graphml>"""


def node(name: str, **data: object) -> str:
    return (
        f'<node id="{name}">' + "".join(f'<data key="{key}">{value}</data>' for key, value in data.items()) + "</node>"
    )


def edge(a: str, b: str, **data: object) -> str:
    inner = "".join(f'<data key="{key}">{value}</data>' for key, value in data.items())
    return f'<edge source="{a}" target="{b}">{inner}</edge>'
