"""The parts of a description, as frozen values that have been checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen

from nsorch.errors import AddressError, TopologyError
from nsorch.topology.converters import (
    addresses,
    checked,
    named,
    networks,
    to_interface_name,
    to_mac,
    to_mtu,
    to_vlans,
    valid_name,
    vlan_subnets,
)
from nsorch.topology.emulation import Emulated
from nsorch.topology.interface_files import to_interfaces
from nsorch.topology.interfaces import InterfaceSpec, order_problems, within
from nsorch.topology.kinds import flag, is_text, items, shown, string, to_path
from nsorch.topology.limits import Limits, to_limits
from nsorch.topology.mounts import Mount, Overlay, to_masked, to_mounts, to_readonly_paths, to_rootfs
from nsorch.topology.names import interface_problem
from nsorch.topology.namespaces import NamespaceSet, New, to_namespaces
from nsorch.topology.presets import PRESETS, is_plain, isolation_of
from nsorch.topology.privileges import (
    Capabilities,
    CapabilityChange,
    IdRange,
    to_capabilities,
    to_cgroup_namespace,
    to_gid_map,
    to_groups,
    to_no_new_privs,
    to_readonly_root,
    to_rlimits,
    to_score,
    to_seccomp,
    to_time_offsets,
    to_uid_map,
    to_user,
)
from nsorch.topology.ready import ExecReady, TcpReady, ready, to_command
from nsorch.topology.services import (
    PROGRAMS,
    TAYGA_INTERFACE,
    Frr,
    Service,
    Tayga,
    forwards,
    own_interfaces,
    to_service,
)
from nsorch.topology.sysctls import sysctl_problems
from nsorch.topology.units import duration
from nsorch.topology.uplinks import UplinkSpec, to_uplink
from nsorch.values import Value

if TYPE_CHECKING:
    from nsorch.topology.filters import Firewall, Nat
else:  # for typing.get_type_hints: what few workers have is imported with the first
    Firewall = Nat = Any


def _to_gateway(value: Any) -> str | None:
    return None if value is None else named("gateway", value)


def _to_worker(value: Any) -> str:
    return named("worker", value)


def _to_bridge(value: Any) -> str:
    return named("bridge", value)


def _dhcp(instance: Any, attribute: Attribute[bool], value: Any) -> None:
    flag(instance, attribute, value)
    if value and any(address.version == 4 for address in instance.address):
        raise TopologyError("dhcp: it has an IPv4 address already")


@frozen(kw_only=True, repr=False)
class _Plugged(Emulated):
    """What may be on a bridge."""

    vlan: int | None = field(default=None, validator=within(1, 4094))
    tagged: tuple[int, ...] = field(default=(), converter=to_vlans)
    dhcp: bool = field(default=False, validator=_dhcp)

    @property
    def pvid(self) -> int | None:
        """The VLAN of its untagged frames, on a VLAN-aware bridge; None where all have tags."""
        return 1 if self.vlan is None and not self.tagged else self.vlan


@frozen(repr=False)
class End(_Plugged):
    """One end of a link: ``nsorch.End(worker, name="up0", address="10.0.0.1", mac=…, mtu=…)``.

    :ivar worker: name of a worker, or of a bridge
    :ivar name: of the interface; the next free ``ethN`` if None
    :ivar address: of the link's subnet; the next free ones if empty
    :ivar mtu: in bytes
    :ivar vlan: that its untagged frames are in, on a VLAN-aware bridge; 1 if neither this nor *tagged* is given
    :ivar tagged: VLANs that it hears and sends with a tag, as :class:`Vlan` interfaces on it do
    :ivar dhcp: its IPv4 address comes from a DHCP server on the link
    """

    worker: str = field(converter=_to_worker)
    name: str | None = field(kw_only=True, default=None, converter=to_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=addresses)
    mac: str | None = field(kw_only=True, default=None, converter=to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=to_mtu)

    @classmethod
    def parse(cls, text: str) -> End:
        """From ``"r1"`` or ``"r1:up0"``."""
        worker, colon, name = text.partition(":")
        return End(worker, name=name if colon else None)


@frozen(repr=False)
class To(_Plugged):
    """A link to a bridge, in a worker's ``links``: ``nsorch.To(lan, address=…, name=…)``; the rest as :class:`End`."""

    bridge: str = field(converter=_to_bridge)
    name: str | None = field(kw_only=True, default=None, converter=to_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=addresses)
    mac: str | None = field(kw_only=True, default=None, converter=to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=to_mtu)


@frozen(kw_only=True, repr=False)
class Route(Value):
    """To network *to*, by gateway *via* or through interface *dev*; ``"default"`` is 0.0.0.0/0 or ::/0 as *via* is."""

    to: IPv4Network | IPv6Network
    via: Any = None
    dev: str | None = None

    def __init__(self, to: Any, via: Any = None, dev: str | None = None) -> None:
        try:
            gateway = None if via is None else ip_address(str(via))
        except ValueError:
            raise AddressError(f"routes.via: {shown(via)} is not an IP address") from None
        if to == "default":
            to = "::/0" if gateway is not None and gateway.version == 6 else "0.0.0.0/0"
        try:
            network = ip_network(str(to))
        except ValueError as exc:
            raise AddressError(f"routes.to: {shown(to)} is not a network: {exc}") from None
        if gateway is None and dev is None:
            raise TopologyError(f"routes: {network} has neither via nor dev")
        if gateway is not None and gateway.version != network.version:
            raise AddressError(f"routes: {network} via {gateway}: not of one family")
        self.__attrs_init__(to=network, via=gateway, dev=_to_device(dev))  # type: ignore[attr-defined]


ROUTE_KEYS = ("to", "via", "dev")


def _to_device(value: Any) -> str | None:
    if value is not None and (problem := interface_problem(value)):
        raise TopologyError(f"routes.dev: {problem}")
    return None if value is None else str(value)


def _links(value: Any) -> tuple[To, ...]:
    if isinstance(value, str | To) or isinstance(getattr(value, "name", None), str):
        value = [value]
    return tuple(_link(f"links[{number}]", item) for number, item in enumerate(items("links", value, "bridges")))


def _link(path: str, value: Any) -> To:
    try:
        return value if isinstance(value, To) else To(value)
    except TopologyError as exc:
        raise TopologyError(*(f"{path}: {problem.removeprefix('bridge: ')}" for problem in exc.problems)) from None


def to_routes(value: Any) -> tuple[Route, ...]:
    """From mappings, too."""
    return tuple(_route(f"routes[{number}]", item) for number, item in enumerate(items("routes", value, "routes")))


def _route(path: str, value: Any) -> Route:
    if isinstance(value, Route):
        return value
    if not isinstance(value, Mapping) or "to" not in value or not value.keys() <= set(ROUTE_KEYS):
        raise TopologyError(
            f"{path}: {shown(value)} is neither nsorch.Route(…) nor a mapping of {', '.join(ROUTE_KEYS)}"
        )
    try:
        return Route(**value)
    except (TopologyError, AddressError) as exc:
        raise type(exc)(f"{path}{str(exc).removeprefix('routes')}") from None


def _environment(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and k and "=" not in k for k in value):
        raise TopologyError(f"env: {shown(value)} is not a mapping of names to strings")
    for key, text in value.items():
        if not isinstance(text, str) or not is_text(text) or not is_text(key):
            raise TopologyError(f"env.{key}: {shown(text)} is not a string without null characters")
    return dict(value)


def _sysctls(value: Any) -> Mapping[str, str | int]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TopologyError(f"sysctls: {shown(value)} is not a mapping of names to values")
    return dict(value)


def _to_cwd(value: Any) -> str | None:
    return None if value is None else to_path("cwd", value)


def _host_name(instance: Any, attribute: Attribute[str | None], value: Any) -> None:
    string(instance, attribute, value)
    if value is not None and (not is_text(value) or not 0 < len(os.fsencode(value)) <= 64):
        raise TopologyError(f"{attribute.name}: {shown(value)} is not 1 to 64 bytes, none of them null")


def _stream(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
    check_stream(attribute.name, value)


def check_stream(path: str, value: Any) -> None:
    """As :mod:`subprocess` has it, whose own words are negative numbers.

    :raises TopologyError: it is no standard stream
    """
    if isinstance(value, str | os.PathLike):
        to_path(path, value)
    elif isinstance(value, int):
        if isinstance(value, bool) or not -3 <= value < 1 << 31:
            raise TopologyError(f"{path}: {shown(value)} is not a descriptor")
    elif value is not None and not callable(getattr(value, "fileno", None)):
        raise TopologyError(f"{path}: {shown(value)} is neither a descriptor nor a path nor a file")


# Few workers have one: what checks it is imported with the first.


def _nat(value: Any) -> Nat | None:
    if value is None:
        return None
    from nsorch.topology.filters import to_nat

    return to_nat(value)


def _firewall(value: Any) -> Firewall | None:
    if value is None:
        return None
    from nsorch.topology.filters import to_firewall

    return to_firewall(value)


@frozen(kw_only=True, repr=False)
class WorkerSpec(Value):
    """Description of a worker; the fields of :meth:`nsorch.Supervisor.start`."""

    name: str = field(converter=valid_name)
    command: tuple[Any, ...] | None = field(default=None, converter=to_command)
    links: tuple[To, ...] = field(default=(), converter=_links)
    namespaces: Any = field(default=None, converter=to_namespaces)
    env: Mapping[str, str] | None = field(default=None, converter=_environment)
    cwd: str | None = field(default=None, converter=_to_cwd)
    user: str | int | None = field(default=None, converter=to_user)
    groups: tuple[str | int, ...] = field(default=(), converter=to_groups)
    isolation: str = field(default="network", validator=string)
    rootfs: str | Overlay | None = field(default=None, converter=to_rootfs)
    mounts: tuple[Mount, ...] = field(default=(), converter=to_mounts)
    readonly_root: bool | None = field(default=None, converter=to_readonly_root)
    masked: tuple[str, ...] | None = field(default=None, converter=to_masked)
    readonly_paths: tuple[str, ...] | None = field(default=None, converter=to_readonly_paths)
    capabilities: Capabilities | CapabilityChange | None = field(default=None, converter=to_capabilities)
    no_new_privs: bool | None = field(default=None, converter=to_no_new_privs)
    seccomp: str | bytes | int | None = field(default=None, converter=to_seccomp)
    rlimits: Mapping[str, tuple[int, int]] = field(factory=dict, converter=to_rlimits)
    oom_score_adj: int | None = field(default=None, converter=to_score)
    limits: Limits | None = field(default=None, converter=to_limits)
    cgroup_namespace: bool | None = field(default=None, converter=to_cgroup_namespace)
    time_offsets: Mapping[str, float] = field(factory=dict, converter=to_time_offsets)
    uid_map: tuple[IdRange, ...] = field(default=(), converter=to_uid_map)
    gid_map: tuple[IdRange, ...] = field(default=(), converter=to_gid_map)
    domainname: str | None = field(default=None, validator=_host_name)
    hostname: str | None = field(default=None, validator=_host_name)
    init: bool = field(default=True, validator=flag)
    ready: TcpReady | ExecReady | None = field(default=None, validator=ready)
    critical: bool = field(default=False, validator=flag)
    stdin: Any = field(default=None, validator=_stream)
    stdout: Any = field(default=None, validator=_stream)
    stderr: Any = field(default=None, validator=_stream)
    sysctls: Mapping[str, str | int] = field(factory=dict, converter=_sysctls)
    routes: tuple[Route, ...] = field(default=(), converter=to_routes)
    forward: bool = field(default=False, validator=flag)
    nat: Nat | None = field(default=None, converter=_nat)
    firewall: Firewall | None = field(default=None, converter=_firewall)
    interfaces: tuple[InterfaceSpec, ...] = field(default=(), converter=to_interfaces)
    service: Service | None = field(default=None, converter=to_service)
    uplink: UplinkSpec | None = field(default=None, converter=to_uplink)
    label: str | None = field(default=None, validator=string)

    def __attrs_post_init__(self) -> None:
        if self.service is not None:
            program = (PROGRAMS[type(self.service)][0],)
            if self.command not in (None, program):
                raise TopologyError(f"workers.{self.name}.command: its service gives it one")
            object.__setattr__(self, "command", program)  # its arguments are made of its links, later
            if self.ready is not None:
                raise TopologyError(f"workers.{self.name}.ready: its service says when it is ready")
        if self.nat is not None or forwards(self.service):
            object.__setattr__(self, "forward", True)
        try:
            namespaces = NamespaceSet.parse(self.namespaces, passive=self.command is None)
            if self.sysctls and (problems := sysctl_problems(self.sysctls, namespaces)):
                raise TopologyError(*problems)
            if self.hostname is not None and not isinstance(namespaces.uts, New):
                raise TopologyError("hostname: would be set outside: the worker has no uts namespace of its own")
            if self.isolation not in PRESETS:
                raise TopologyError(f'isolation: "{self.isolation}" is none of {", ".join(PRESETS)}')
            if not is_plain(self):
                isolation_of(self)
        except TopologyError as exc:
            raise TopologyError(*(f"workers.{self.name}.{problem}" for problem in exc.problems)) from None
        for key in ("nat", "firewall", "uplink"):
            if getattr(self, key) is not None and not isinstance(namespaces.net, New):
                raise TopologyError(f"workers.{self.name}.{key}: only in a network namespace of its own")
        if isinstance(self.service, Frr) and not (isinstance(namespaces.net, New) and isinstance(namespaces.mnt, New)):
            raise TopologyError(f"workers.{self.name}.service: only in network and mount namespaces of its own")
        if isinstance(self.service, Tayga) and not isinstance(namespaces.net, New):
            raise TopologyError(f"workers.{self.name}.service: only in a network namespace of its own")
        if forwards(self.service) and self.rootfs is not None:  # Python launches it
            _, package = PROGRAMS[type(self.service)]
            raise TopologyError(
                f"workers.{self.name}.service: {package} is the host's, which the worker's rootfs hides"
            )
        if self.ready is not None and self.command is None:
            raise TopologyError(f"workers.{self.name}.ready: a worker without a command is never ready")
        taken: set[str] = set()
        for number, to in enumerate(self.links):
            if to.name is not None and to.name in taken:
                raise TopologyError(f'workers.{self.name}.links[{number}].name: "{to.name}" is used twice')
            taken.add(to.name or "")
        if self.interfaces:
            problems = order_problems(self.interfaces)
            problems += [
                f'interfaces[{number}].name: "{interface.name}" is a link\'s already'
                for number, interface in enumerate(self.interfaces)
                if interface.name in taken
            ]
            if problems:
                raise TopologyError(*(f"workers.{self.name}.{problem}" for problem in problems))
        taken.update(interface.name for interface in self.interfaces)
        if self.uplink is not None and self.uplink.name in taken:
            raise TopologyError(f'workers.{self.name}.uplink.name: "{self.uplink.name}" is another interface already')
        if self.uplink is not None and any(to.dhcp for to in self.links):
            raise TopologyError(f"workers.{self.name}.uplink: a link with dhcp gives it a default route already")
        for interface in own_interfaces(self.service):
            if interface.name in taken:
                raise TopologyError(f'workers.{self.name}.service: "{interface.name}" is the name of its own interface')

    @property
    def all_interfaces(self) -> tuple[InterfaceSpec, ...]:
        """With that of its service."""
        return (*self.interfaces, *own_interfaces(self.service))

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """With those of its service."""
        if not isinstance(self.service, Tayga):
            return self.routes
        own = (self.service.prefix, self.service.pool)
        return (*self.routes, *(Route(to=network, dev=TAYGA_INTERFACE) for network in own))


#: who answers ARP on a bridge: the bridge itself where it has many ports, always, or never
ARP = ("auto", "static", "dynamic")


def _forward_delay(value: Any) -> float | None:
    seconds = checked("forward_delay", duration, value)
    if seconds is not None and not 2 <= seconds <= 30:
        raise TopologyError(f"forward_delay: {value} is not from 2 to 30 seconds")
    return seconds


def _ageing(value: Any) -> float | None:
    seconds = checked("ageing", duration, value)
    if seconds is not None and seconds > 1_000_000:
        raise TopologyError(f"ageing: {value} is above 1000000 seconds")
    return seconds


@frozen(kw_only=True, repr=False)
class BridgeSpec(Value):
    """Description of a bridge; the fields of :meth:`nsorch.Supervisor.bridge`."""

    name: str = field(converter=valid_name)
    subnet: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=networks)
    gateway: str | None = field(default=None, converter=_to_gateway)
    mtu: int | None = field(default=None, converter=to_mtu)
    arp: str = field(default="auto", validator=string)
    vlan_aware: bool = field(default=False, validator=flag)
    vlans: Mapping[int, tuple[IPv4Network | IPv6Network, ...]] = field(default=(), converter=vlan_subnets, hash=False)
    stp: bool = field(default=False, validator=flag)
    forward_delay: float | None = field(default=None, converter=_forward_delay)
    ageing: float | None = field(default=None, converter=_ageing)
    multicast_snooping: bool = field(default=False, validator=flag)
    label: str | None = field(default=None, validator=string)

    def __attrs_post_init__(self) -> None:
        where = f"bridges.{self.name}"
        if self.arp not in ARP:
            raise TopologyError(f'{where}.arp: "{self.arp}" is none of {", ".join(ARP)}')
        if self.vlans and not self.vlan_aware:
            raise TopologyError(f"{where}.vlans: only a bridge with vlan_aware has them")
        if self.vlan_aware and self.arp == "static":
            raise TopologyError(f"{where}.arp: the kernel's bridges don't answer ARP within VLANs")
        if self.forward_delay is not None and not self.stp:
            raise TopologyError(f"{where}.forward_delay: it is of stp, which is off")
        if self.gateway is not None and not self.subnet and not any(self.vlans.values()):
            raise TopologyError(f"bridges.{self.name}.gateway: a bridge without subnet has no gateway")


def _weight(instance: Any, attribute: Attribute[float], value: Any) -> None:  # noqa: ARG001
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise TopologyError(f"weight: {shown(value)} is not a number above 0")


def _to_a(value: Any) -> End:
    return to_end("a", value)


def _to_b(value: Any) -> End:
    return to_end("b", value)


def to_end(path: str, value: Any) -> End:
    if isinstance(value, End):
        return value
    try:
        return End.parse(value) if isinstance(value, str) else End(value)
    except TopologyError as exc:
        raise TopologyError(*(f"{path}: {problem.removeprefix('worker: ')}" for problem in exc.problems)) from None


@frozen(kw_only=True, repr=False)
class LinkSpec(Emulated):
    """Description of a link; the fields of :meth:`nsorch.Supervisor.link`."""

    a: End = field(converter=_to_a)
    b: End = field(converter=_to_b)
    subnet: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=networks)
    mtu: int | None = field(default=None, converter=to_mtu)
    weight: float = field(default=1.0, validator=_weight)
    label: str | None = field(default=None, validator=string)

    def __attrs_post_init__(self) -> None:
        if self.a.worker == self.b.worker:
            raise TopologyError(f"links: {self.a.worker} is linked to itself")
