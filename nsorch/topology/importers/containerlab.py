"""Files of containerlab (``*.clab.yml``), as far as they need no images: https://containerlab.dev/manual/topo-def-file/."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Any

from nsorch.topology.importers.building import Building, read
from nsorch.topology.kinds import shown
from nsorch.topology.names import interface_problem
from nsorch.topology.specs import End, LinkSpec

if TYPE_CHECKING:
    from nsorch.topology.model import Topology

_BRIDGES = ("bridge", "ovs-bridge")
_OUTSIDE = ("host", "mgmt-net", "macvlan", "dummy", "vxlan", "vxlan-stitch")


def from_containerlab(path: str) -> Topology:
    """See :meth:`Topology.from_containerlab`."""
    data = read(path)
    building = Building(building_name(data, path), path)
    building.leave("", data, ("name", "topology"))
    topology = building.table(data.get("topology"), "topology")
    building.leave("topology", topology, ("nodes", "links", "defaults", "kinds", "groups"))
    parts = {key: building.table(topology.get(key), f"topology.{key}") for key in ("defaults", "kinds", "groups")}
    nodes = building.table(topology.get("nodes"), "topology.nodes")
    for name, value in nodes.items():
        where = f"topology.nodes.{name}"
        _add_node(building, where, name, _inherit(building, where, building.table(value, where), parts))
    for number, value in enumerate(building.sequence(topology.get("links"), "topology.links")):
        _add_link(building, f"topology.links[{number}]", value, nodes)
    return building.finish()


def building_name(data: dict[str, Any], path: str) -> str:
    name = data.get("name")
    return name if isinstance(name, str) else os.path.basename(path).partition(".")[0]


def _inherit(building: Building, where: str, own: dict[str, Any], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The node's own keys over its group's, its kind's and the defaults; ``env`` is merged, as containerlab does."""
    defaults = parts["defaults"]
    group = building.table(parts["groups"].get(str(own.get("group", defaults.get("group")))), f"{where}.group")
    kind = own.get("kind", group.get("kind", defaults.get("kind")))
    layers = [defaults, building.table(parts["kinds"].get(str(kind)), f"topology.kinds.{kind}"), group, own]
    merged: dict[str, Any] = {}
    env: dict[str, Any] = {}
    for layer in layers:
        env |= building.table(layer.get("env"), f"{where}.env")
        merged |= layer
    return merged | ({"env": env} if env else {})


def _add_node(building: Building, where: str, original: str, node: dict[str, Any]) -> None:
    kind = node.pop("kind", None)
    name = building.name(original, where)
    node.pop("group", None)
    if kind in _BRIDGES:
        if kind != "bridge":
            building.note(f"{where}.kind", "becomes a Linux bridge")
        building.leave(where, node, ())
        building.add(where, building.topology.bridge, name)
        return
    if kind != "linux":
        why = "is missing" if kind is None else f'"{kind}" needs its image'
        building.note(f"{where}.kind", f"{why}: a plain worker is in its place")
    command = building.text(node.pop("cmd", None), f"{where}.cmd")
    env = {key: str(value) for key, value in building.table(node.pop("env", None), f"{where}.env").items()}
    building.leave(where, node, ())
    arguments = building.add(f"{where}.cmd", shlex.split, command) if command else None
    building.add(where, building.topology.worker, name, arguments or None, env=_whole(env))


def _whole(env: dict[str, str]) -> dict[str, str] | None:
    """containerlab adds to the image's environment; here that is the one of every shell."""
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, **env} if env else None


def _add_link(building: Building, where: str, value: Any, nodes: dict[str, Any]) -> None:
    link = building.table(value, where)
    kind = link.pop("type", "veth")
    endpoints = building.sequence(link.pop("endpoints", None), f"{where}.endpoints")
    if kind != "veth":
        building.note(where, f'a link of type "{kind}" leads out of the lab, and is left out')
        return
    if len(endpoints) != 2:
        building.refuse(f"{where}.endpoints", f"a link has two ends, not {len(endpoints)}")
        return
    mtu = link.pop("mtu", None)
    building.leave(where, link, ())
    ends: list[End] = []
    for number, item in enumerate(endpoints):
        path = f"{where}.endpoints[{number}]"
        table = building.table(item, path) if isinstance(item, dict) else {}
        if isinstance(item, str):
            table = dict(zip(("node", "interface"), item.split(":", 1), strict=False))
        building.leave(path, table, ("node", "interface", "mac"))
        node, interface = str(table.get("node", "")), table.get("interface")
        if node in _OUTSIDE and node not in nodes:
            building.note(where, f'"{node}" is outside of the lab: the link is left out')
            return
        if node not in nodes:
            building.refuse(path, f'there is no node "{node}"')
            continue
        name = building.name(node, path)
        if name in building.topology.bridges:
            end = building.add(path, End, name)
        else:
            if interface and interface_problem(interface):  # a port of the image's system, such as 1/1/c1/1
                building.note(path, f"{shown(interface)} can't be an interface's name: it gets another")
                interface = None
            end = building.add(path, End, name, name=interface or None, mac=table.get("mac"))
        if end is not None:
            ends.append(end)
    if len(ends) == 2 and ends[0].worker == ends[1].worker:
        building.note(where, f"{ends[0].worker} is linked to itself: the link is left out")
        return
    spec = building.add(where, LinkSpec, a=ends[0], b=ends[1], mtu=mtu) if len(ends) == 2 else None
    if spec is not None:
        building.topology.add(spec)
