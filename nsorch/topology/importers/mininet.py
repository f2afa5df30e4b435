"""Mininet's ``Topo``, by its methods alone: nothing is imported from Mininet (mininet/topo.py, mininet/link.py)."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv4Network, ip_interface
from typing import TYPE_CHECKING, Any

from attrs import evolve

from nsorch.errors import TopologyError
from nsorch.topology.importers.building import Building
from nsorch.topology.kinds import shown
from nsorch.topology.routing import connected
from nsorch.topology.specs import End, LinkSpec
from nsorch.topology.units import duration

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nsorch.topology.model import Topology

_BASE = IPv4Network("10.0.0.0/8")  # Mininet's ipBase
_LINK = ("bw", "delay", "jitter", "loss", "max_queue_size")
_END = ("intfName1", "intfName2", "addr1", "addr2", "params1", "params2", "port1", "port2", "node1", "node2")
_SILENT = ("use_htb", "use_tbf", "use_hfsc", "isSwitch")  # how, not what


def from_mininet(topo: Any) -> Topology:
    """See :meth:`Topology.from_mininet`."""
    if not all(hasattr(topo, name) for name in ("hosts", "switches", "links")):
        raise TopologyError(f"topo: {shown(topo)} is not a mininet.topo.Topo")
    building = Building(type(topo).__name__)
    hosts, switches = [str(name) for name in topo.hosts()], [str(name) for name in topo.switches()]
    links = [(str(a), str(b), dict(info)) for a, b, info in topo.links(sort=True, withInfo=True)]
    importer = _Mininet(building, topo, hosts, switches, links)
    importer.add_switches()
    importer.add_hosts()
    for number, link in enumerate(links):
        importer.add_link(f"links[{number}]", *link)
    return building.finish()


class _Mininet:
    def __init__(
        self,
        building: Building,
        topo: Any,
        hosts: list[str],
        switches: list[str],
        links: list[tuple[str, str, dict[str, Any]]],
    ) -> None:
        self._building = building
        self._topo = topo
        self._hosts, self._switches, self._links = hosts, switches, links
        self._segment: dict[str, str] = {}  # the bridge that stands for a switch
        self._address: dict[str, IPv4Interface | None] = {}
        self._wired: set[str] = set()  # hosts whose first interface is there: the one with the address

    def add_switches(self) -> None:
        pairs = [(a, b) for a, b, _ in self._links if a in self._switches and b in self._switches]
        self._find_addresses()
        for group in connected(self._switches, pairs):
            first, *others = [switch for switch in self._switches if switch in group]
            name = self._building.name(first, f"switches.{first}")
            self._segment |= dict.fromkeys(group, name)
            if others:
                self._building.note(
                    f"switches.{first}", f"is one segment with {', '.join(others)}, which it is linked to"
                )
            subnet = self._subnet(group)
            self._building.add(f"switches.{first}", self._building.topology.bridge, name, subnet)
            for switch in group:
                self._building.leave(f"switches.{switch}", self._topo.nodeInfo(switch), _SILENT)

    def _find_addresses(self) -> None:
        """As Mininet gives them: the next of 10.0.0.0/8 to each host in order, unless it has its own."""
        for number, host in enumerate(self._hosts, 1):
            given = self._topo.nodeInfo(host).get("ip", f"{_BASE[number]}/{_BASE.prefixlen}")
            if not given or str(given).partition("/")[0] in ("0.0.0.0", "no ip defined"):  # noqa: S104 - as Mininet's NAT has it
                self._address[host] = None
                continue
            text = str(given) if "/" in str(given) else f"{given}/{_BASE.prefixlen}"
            self._address[host] = self._building.add(f"hosts.{host}.ip", ip_interface, text)

    def _subnet(self, group: set[str]) -> str:
        """Of the hosts on a segment, those with their first interface there; of Mininet's base without any."""
        for a, b, _ in self._links:
            host = a if b in group else b if a in group else None
            if host in self._address and (address := self._address[str(host)]) is not None:
                return str(address.network)
        return str(_BASE)

    def add_hosts(self) -> None:
        for host in self._hosts:
            path = f"hosts.{host}"
            info = dict(self._topo.nodeInfo(host))
            if info.pop("inNamespace", True) is False:
                self._building.note(f"{path}.inNamespace", "the host's network is not joined: it gets its own")
            routes = self._routes(path, info.pop("defaultRoute", None))
            self._building.leave(path, info, ("ip", "mac", *_SILENT))
            name = self._building.name(host, path)
            self._building.add(path, self._building.topology.worker, name, routes=routes)

    def _routes(self, path: str, text: Any) -> list[dict[str, Any]]:
        words = str(text or "").split()
        if not words:
            return []
        if len(words) >= 2 and words[0] == "via":
            return [{"to": "default", "via": words[1]}]
        self._building.note(f"{path}.defaultRoute", f'"{text}" is not carried over')
        return []

    def add_link(self, path: str, a: str, b: str, info: dict[str, Any]) -> None:
        building = self._building
        if a in self._segment and b in self._segment:
            building.leave(
                path, info, (*_SILENT, "port1", "port2", "node1", "node2"), "is lost: both switches are one segment"
            )
            return
        # Mininet numbers a link's ends by its nodes, which links() may give the other way round.
        ends = (1, 2) if str(info.get("node1", a)) == a else (2, 1)
        options = self._emulation(path, info)
        own = [
            self._emulation(f"{path}.params{n}", building.table(info.get(f"params{n}"), f"{path}.params{n}"))
            for n in ends
        ]
        building.leave(path, info, (*_LINK, *_END, *_SILENT))
        made = [self._end(path, node, info, n, extra) for node, n, extra in zip((a, b), ends, own, strict=True)]
        subnet = None
        if a not in self._segment and b not in self._segment:
            addresses = [end.address[0].network for end in made if end is not None and end.address]
            if len(addresses) == 2 and addresses[0] == addresses[1]:
                subnet = addresses[0]
            elif addresses:
                building.note(path, "its ends get addresses of their own: those given are in no common network")
                made = [None if end is None else evolve(end, address=()) for end in made]
        if None not in made:
            spec = building.add(path, LinkSpec, a=made[0], b=made[1], subnet=subnet, **options)
            if spec is not None:
                building.topology.add(spec)

    def _end(self, path: str, node: str, info: Mapping[str, Any], number: int, emulation: dict[str, Any]) -> End | None:
        if node in self._segment:
            return self._building.add(path, End, self._segment[node], **emulation)  # type: ignore[no-any-return]
        first = node not in self._wired
        self._wired.add(node)
        name = info.get(f"intfName{number}") or f"{node}-eth{info.get(f'port{number}', 0)}"
        if len(name.encode()) > 15:
            self._building.note(
                f"{path}.intfName{number}", f'"{name}" is too long for an interface: it gets a short one'
            )
            name = None
        address = self._address.get(node) if first else None
        mac = info.get(f"addr{number}") or (self._topo.nodeInfo(node).get("mac") if first else None)
        worker = self._building.name(node, f"hosts.{node}")
        given = () if address is None else (address,)
        return self._building.add(path, End, worker, name=name, address=given, mac=mac, **emulation)  # type: ignore[no-any-return]

    def _emulation(self, path: str, info: Mapping[str, Any]) -> dict[str, Any]:
        """Mininet's units: Mbit/s, tc's times (a bare number is of microseconds), percent, packets."""
        found: dict[str, Any] = {}
        for key, value in info.items():
            if value is None or key not in _LINK:
                continue
            if key == "bw":
                found["rate"] = self._building.add(f"{path}.bw", _scaled, value, 1e6)
            elif key == "loss":
                found["loss"] = self._building.add(f"{path}.loss", _scaled, value, 0.01) or None
            elif key == "max_queue_size":
                found["limit"] = value
            else:
                text = f"{value}us" if str(value).replace(".", "", 1).isdigit() else str(value)
                found[key] = self._building.add(f"{path}.{key}", duration, text)
        if "limit" in found and not found.get("rate") and not found.get("delay"):
            self._building.note(f"{path}.max_queue_size", "is left out: without bw or delay nothing waits")
            del found["limit"]
        return {key: value for key, value in found.items() if value is not None}


def _scaled(value: Any, factor: float) -> float:
    return float(value) * factor
