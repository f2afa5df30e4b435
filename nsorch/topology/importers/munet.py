"""Files of munet (munet.yaml), its nodes in namespaces: https://munet.readthedocs.io/, munet/munet-schema.json."""

from __future__ import annotations

import contextlib
import os
from ipaddress import IPv4Interface, IPv6Interface, ip_interface, ip_network
from typing import TYPE_CHECKING, Any

from nsorch.topology.importers.building import Building, read
from nsorch.topology.kinds import shown
from nsorch.topology.names import interface_problem
from nsorch.topology.specs import End, LinkSpec, To

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

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
    numbered = topology.get("networks-autonumber") is True
    keys = ("ip", "ipv6") if numbered and topology.get("ipv6-enable") is True else ("ip",) if numbered else ()
    building.leave(
        "topology", topology, ("networks", "nodes", *(("networks-autonumber", "ipv6-enable") if keys else ()))
    )
    networks = _named(building, topology.get("networks"), "topology.networks")
    nodes = _named(building, topology.get("nodes"), "topology.nodes")
    plan = _Plan(networks, nodes, keys)
    for number, (name, network) in enumerate(networks.items(), 1):
        _add_network(building, f"topology.networks.{name}", name, network, plan, number)
    for number, (name, node) in enumerate(nodes.items(), 1):
        _Node(building, f"topology.nodes.{name}", name, node, plan, number).add()
    return building.finish()


class _Plan:
    """What a node must know of the rest.

    :ivar numbered: of ``ip`` and ``ipv6``, those that munet gives to all networks and their nodes by itself
    :ivar made: interfaces, by node and name, that a link made from its other end has
    """

    def __init__(
        self, networks: dict[str, dict[str, Any]], nodes: dict[str, dict[str, Any]], numbered: tuple[str, ...]
    ) -> None:
        self.networks, self.nodes, self.numbered = networks, nodes, numbered
        self.subnets: dict[tuple[str, str], IPv4Network | IPv6Network] = {}
        self.made: set[tuple[str, str]] = set()

    def connections(self, node: str) -> list[tuple[str, dict[str, Any]]]:
        """Of *node*, each with its path and ``name``; what is wrong is told where the node itself is added."""
        value = self.nodes[node].get("connections")
        items = [{"to": item} if isinstance(item, str) else item for item in (value if isinstance(value, list) else ())]
        return [
            (f"topology.nodes.{node}.connections[{number}]", {"name": f"eth{number}", **item})
            for number, item in enumerate(items)
            if isinstance(item, dict)
        ]

    def other_end(self, node: str, path: str, table: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The connection of the node that *table* leads to which describes the same link."""
        found = [item for item in self.connections(str(table.get("to"))) if item[1].get("to") == node]
        remote = table.get("remote-name")
        if remote is not None:
            return next((item for item in found if item[1]["name"] == remote), (path, {"name": remote}))
        return found[0] if found else (path, {})


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


def _add_network(
    building: Building, where: str, original: str, network: dict[str, Any], plan: _Plan, number: int
) -> None:
    building.leave(where, network, ("ip", "ipv6", "mtu"))
    subnets = []
    for key in ("ip", "ipv6"):
        text = building.text(network.get(key), f"{where}.{key}")
        if text == "auto" or (text is None and key in plan.numbered):
            text = f"10.{number >> 8}.{number & 255}.0/24" if key == "ip" else f"fc00:0:0:{number:x}::/64"
        subnet = building.add(f"{where}.{key}", ip_network, text, strict=False) if text else None
        subnet = subnet or _common(plan, original, key)
        if subnet is not None:
            plan.subnets[original, key] = subnet
            subnets.append(subnet)
    name = building.name(original, where)
    building.add(where, building.topology.bridge, name, subnets or None, mtu=network.get("mtu"))


def _common(plan: _Plan, network: str, key: str) -> IPv4Network | IPv6Network | None:
    """Of a network without addresses of its own: what the first of those is in that its nodes have there."""
    for node in plan.nodes:
        for _, table in plan.connections(node):
            if table.get("to") == network and isinstance(table.get(key), str):
                with contextlib.suppress(ValueError):
                    return ip_interface(table[key]).network
    return None


class _Node:
    def __init__(
        self,
        building: Building,
        where: str,
        original: str,
        node: dict[str, Any],
        plan: _Plan,
        number: int,
    ) -> None:
        self._building = building
        self._where = where
        self._original = original
        self._node = node
        self._plan = plan
        self._id = node["id"] if isinstance(node.get("id"), int) else number
        self._name = building.name(original, where)

    def add(self) -> None:
        building, node, where = self._building, self._node, self._where
        building.leave(where, node, ("id", "cmd", "shell", "env", "connections"))
        wires: list[To] = []
        for number, value in enumerate(building.sequence(node.get("connections"), f"{where}.connections")):
            path = f"{where}.connections[{number}]"
            table = {"to": value} if isinstance(value, str) else building.table(value, path)
            table.setdefault("name", f"eth{number}")
            building.leave(path, table, _CONNECTION)
            target = table.get("to")
            if target is None:
                building.note(path, "leads nowhere, and is left out")
            elif not isinstance(target, str | int):
                building.refuse(f"{path}.to", f"{shown(target)} is no name of a network or node")
            elif target in self._plan.networks:
                options = self._options(path, table)
                options["address"] = options["address"] or self._numbered(str(target), table)
                to = building.add(path, To, building.name(str(target), path), **options)
                wires += [] if to is None else [to]
            elif target in self._plan.nodes:
                self._link(path, str(target), table)
            else:
                building.refuse(f"{path}.to", f'there is no network or node "{target}"')
        env = self._environment()
        building.add(
            where, building.topology.worker, self._name, self._command(), links=wires, forward=True, env=env or None
        )

    def _environment(self) -> dict[str, str]:
        """From a table, or from a list of tables with a ``name`` and a ``value``: munet takes both."""
        where, value = f"{self._where}.env", self._node.get("env")
        if isinstance(value, list):
            items = [self._building.table(item, f"{where}[{number}]") for number, item in enumerate(value)]
            value = {str(item.get("name", "")): item.get("value", "") for item in items}
        env = {key: str(item) for key, item in self._building.table(value, where).items()}
        return {"PATH": os.defpath, **env} if env else {}

    def _numbered(self, network: str, table: dict[str, Any]) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The addresses that munet gives a node: its number within the network."""
        found = []
        for key in self._plan.numbered:
            subnet = self._plan.subnets.get((network, key))
            if key not in table and subnet is not None and self._id < subnet.num_addresses - 1:
                found.append(ip_interface(f"{subnet[self._id]}/{subnet.prefixlen}"))
        return tuple(found)

    def _command(self) -> list[str] | None:
        """munet runs it by a shell: the node's, or /bin/bash; ``shell: false`` executes it."""
        text = self._building.text(self._node.get("cmd"), f"{self._where}.cmd")
        if not text or not text.strip():
            return None
        shell = self._node.get("shell", "/bin/sh")
        return text.split() if shell is False else [shell if isinstance(shell, str) else "/bin/sh", "-c", text]

    def _options(self, path: str, table: dict[str, Any]) -> dict[str, Any]:
        building = self._building
        name = table.get("name")
        if name is not None and interface_problem(name):
            building.note(f"{path}.name", f"{shown(name)} can't be an interface's name: it gets another")
            name = None
        options: dict[str, Any] = {"name": name, "mtu": table.get("mtu")}
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

    def _link(self, path: str, target: str, table: dict[str, Any]) -> None:
        """Both nodes may describe a link: it is made once, of what each says of its end."""
        plan, building = self._plan, self._building
        if (self._original, str(table["name"])) in plan.made:
            return
        there, remote = plan.other_end(self._original, path, table)
        plan.made |= {(self._original, str(table["name"])), (target, str(remote.get("name")))}
        options, others = self._options(path, table), self._options(there, remote)
        networks = []
        for version in (4, 6):
            given = [
                address.network for end in (options, others) for address in end["address"] if address.version == version
            ]
            if len(set(given)) == 1 and given[0].num_addresses > 1:
                networks.append(given[0])
            elif given:
                building.note(
                    path, f"its ends get IPv{version} addresses of their own: those given are in no common network"
                )
                for end in (options, others):
                    end["address"] = tuple(address for address in end["address"] if address.version != version)
        other = building.name(target, path)
        made = building.add(path, End, self._name, **options), building.add(path, End, other, **others)
        if None not in made:
            spec = building.add(path, LinkSpec, a=made[0], b=made[1], subnet=networks or None)
            if spec is not None:
                building.topology.add(spec)


def _number(value: Any) -> float:
    """munet's numbers: ``10``, ``"10M"``, ``"10Mi"``."""
    text = str(value).strip()
    for prefix, factor in (_BINARY | _PREFIXES).items():
        if prefix and text.endswith(prefix):
            return float(text[: -len(prefix)]) * factor
    return float(text)
