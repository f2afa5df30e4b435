"""Files of munet (munet.yaml), its nodes in namespaces: https://munet.readthedocs.io/, munet/munet-schema.json."""

from __future__ import annotations

import os
from ipaddress import ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from nsorch.topology.importers.building import Building, read
from nsorch.topology.specs import End, LinkSpec, To

if TYPE_CHECKING:
    from nsorch.topology.model import Topology

# With our name, and in what unit munet has it.
_EMULATED = {
    "delay": ("delay", 1e-6),
    "jitter": ("jitter", 1e-6),
    "jitter-correlation": ("delay_correlation", 0.01),
    "loss": ("loss", 0.01),
    "loss-correlation": ("loss_correlation", 0.01),
    "rate": ("rate", 1.0),
}
_CONNECTION = ("to", "ip", "ipv6", "name", "remote-name", "mtu", *_EMULATED)
_PREFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def from_munet(path: str) -> Topology:
    """See :meth:`Topology.from_munet`."""
    data = read(path)
    building = Building(os.path.basename(path).partition(".")[0], path)
    building.leave("", data, ("topology", "version"))
    topology = building.table(data.get("topology"), "topology")
    building.leave("topology", topology, ("networks", "nodes"))
    networks = _named(building, topology.get("networks"), "topology.networks")
    nodes = _named(building, topology.get("nodes"), "topology.nodes")
    for name, network in networks.items():
        _add_network(building, f"topology.networks.{name}", name, network)
    links: dict[frozenset[tuple[str, str]], None] = {}
    for name, node in nodes.items():
        _Node(building, f"topology.nodes.{name}", name, node, networks, nodes).add(links)
    return building.finish()


def _named(building: Building, value: Any, path: str) -> dict[str, dict[str, Any]]:
    """A list of tables with a ``name``, or a table of tables: munet takes both."""
    if isinstance(value, dict):
        return {str(name): building.table(item, f"{path}.{name}") for name, item in value.items()}
    found = {}
    for number, item in enumerate(building.sequence(value, path)):
        table = building.table(item, f"{path}[{number}]")
        name = table.pop("name", None)
        if not isinstance(name, str) or name in found:
            building.refuse(f"{path}[{number}].name", "is missing, or used twice")
        else:
            found[name] = table
    return found


def _add_network(building: Building, where: str, original: str, network: dict[str, Any]) -> None:
    building.leave(where, network, ("ip", "ipv6", "mtu"))
    subnets = []
    for key in ("ip", "ipv6"):
        text = building.text(network.get(key), f"{where}.{key}")
        if text and text != "auto":
            subnet = building.add(f"{where}.{key}", ip_network, text, strict=False)
            subnets += [] if subnet is None else [subnet]
    name = building.name(original, where)
    building.add(where, building.topology.bridge, name, subnets or None, mtu=network.get("mtu"))


class _Node:
    def __init__(
        self,
        building: Building,
        where: str,
        original: str,
        node: dict[str, Any],
        networks: dict[str, dict[str, Any]],
        nodes: dict[str, dict[str, Any]],
    ) -> None:
        self._building = building
        self._where = where
        self._original = original
        self._node = node
        self._networks, self._nodes = networks, nodes
        self._name = building.name(original, where)

    def add(self, links: dict[frozenset[tuple[str, str]], None]) -> None:
        building, node, where = self._building, self._node, self._where
        building.leave(where, node, ("cmd", "shell", "env", "connections"))
        wires: list[To] = []
        for number, value in enumerate(building.sequence(node.get("connections"), f"{where}.connections")):
            path = f"{where}.connections[{number}]"
            table = {"to": value} if isinstance(value, str) else building.table(value, path)
            building.leave(path, table, _CONNECTION)
            target = table.get("to")
            options = self._options(path, table, f"eth{number}")
            if target in self._networks:
                to = building.add(path, To, building.name(str(target), path), **options)
                wires += [] if to is None else [to]
            elif target in self._nodes:
                self._link(path, str(target), table, options, links)
            else:
                building.refuse(f"{path}.to", f'there is no network or node "{target}"')
        env = {key: str(item) for key, item in building.table(node.get("env"), f"{where}.env").items()}
        env = {"PATH": os.defpath, **env} if env else {}
        building.add(
            where, building.topology.worker, self._name, self._command(), links=wires, forward=True, env=env or None
        )

    def _command(self) -> list[str] | None:
        """munet runs it by a shell: the node's, or /bin/bash; ``shell: false`` executes it."""
        text = self._building.text(self._node.get("cmd"), f"{self._where}.cmd")
        if not text or not text.strip():
            return None
        shell = self._node.get("shell", "/bin/sh")
        return text.split() if shell is False else [shell if isinstance(shell, str) else "/bin/sh", "-c", text]

    def _options(self, path: str, table: dict[str, Any], name: str) -> dict[str, Any]:
        building = self._building
        options: dict[str, Any] = {"name": table.get("name", name), "mtu": table.get("mtu")}
        addresses = []
        for key in ("ip", "ipv6"):
            text = building.text(table.get(key), f"{path}.{key}")
            if text and text not in ("auto", "none"):
                address = building.add(f"{path}.{key}", ip_interface, text)
                addresses += [] if address is None else [address]
        options["address"] = tuple(addresses)
        for key, (ours, scale) in _EMULATED.items():
            value = table.get(key)
            if key == "rate" and isinstance(value, dict):
                building.leave(f"{path}.rate", value, ("rate",))
                value = value.get("rate")
            if value is not None:
                number = building.add(f"{path}.{key}", _number, value)
                options[ours] = None if number is None else number * scale
        return options

    def _link(
        self,
        path: str,
        target: str,
        table: dict[str, Any],
        options: dict[str, Any],
        links: dict[frozenset[tuple[str, str]], None],
    ) -> None:
        """Both nodes may describe a link: it is made once, and what the second adds is noted."""
        remote = table.get("remote-name")
        ends = frozenset({(self._original, str(options["name"])), (target, str(remote))})
        if remote is not None and ends in links:
            self._building.note(path, "describes a link that was made from its other end")
            return
        links[ends] = None
        building = self._building
        other = building.name(target, path)
        networks = [address.network for address in options["address"]] or None
        made = building.add(path, End, self._name, **options), building.add(path, End, other, name=remote)
        if None not in made:
            spec = building.add(path, LinkSpec, a=made[0], b=made[1], subnet=networks)
            if spec is not None:
                building.topology.add(spec)


def _number(value: Any) -> float:
    """munet's numbers: ``10``, ``"10M"``, ``"10Mi"``."""
    text = str(value).strip()
    for prefix, factor in (_BINARY | _PREFIXES).items():
        if prefix and text.endswith(prefix):
            return float(text[: -len(prefix)]) * factor
    return float(text)
