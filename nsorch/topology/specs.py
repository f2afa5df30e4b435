"""The parts of a description, as frozen values that have been checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address
from typing import TYPE_CHECKING, Any

from attrs import Attribute, evolve, field, fields, frozen

from nsorch import topology  # noqa: TC001 - for typing.get_type_hints: what few have is imported with the first
from nsorch.errors import AddressError, TopologyError
from nsorch.topology.conditions import ready
from nsorch.topology.converters import (
    addresses,
    among,
    checked,
    named,
    networks,
    to_interface_name,
    to_mac,
    to_mtu,
    to_network,
    to_vlans,
    valid_name,
    vlan_subnets,
    within,
)
from nsorch.topology.emulation import Emulation
from nsorch.topology.few import (
    to_capabilities,
    to_cgroup_namespace,
    to_firewall,
    to_gid_map,
    to_groups,
    to_interfaces,
    to_limits,
    to_masked,
    to_mounts,
    to_nat,
    to_no_new_privs,
    to_readonly_paths,
    to_readonly_root,
    to_rlimits,
    to_rootfs,
    to_score,
    to_seccomp,
    to_service,
    to_time_offsets,
    to_uid_map,
    to_uplink,
    to_user,
)
from nsorch.topology.kinds import each, flag, is_text, shown, string, to_command, to_path
from nsorch.topology.names import interface_problem
from nsorch.topology.namespaces import NamespaceSet, New, to_namespaces
from nsorch.topology.plain import PRESETS, is_plain
from nsorch.topology.sysctls import sysctl_problems
from nsorch.topology.units import duration
from nsorch.values import Value

if TYPE_CHECKING:
    from types import ModuleType


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


class _Plugged:
    """What may be on a bridge."""

    __slots__ = ()
    vlan: int | None
    tagged: tuple[int, ...]

    @property
    def pvid(self) -> int | None:
        """The VLAN of its untagged frames, on a VLAN-aware bridge; None where all have tags."""
        return 1 if self.vlan is None and not self.tagged else self.vlan


@frozen(eq=False, repr=False)
class End(_Plugged, Emulation):
    """One end of a link: ``nsorch.End(worker, name="up0", address="10.0.0.1", mac=…, mtu=…)``.

    :ivar worker: name of a worker, or of a bridge
    :ivar name: of the interface; the next free ``ethN`` if None
    :ivar address: of the link's subnet; the next free ones if empty
    :ivar mtu: in bytes
    :ivar vlan: that its untagged frames are in, on a VLAN-aware bridge; 1 if neither this nor *tagged* is given
    :ivar tagged: VLANs that it hears and sends with a tag, as :class:`Vlan` interfaces on it do
    :ivar dhcp: its IPv4 address comes from a DHCP server on the link
    """

    vlan: int | None = field(kw_only=True, default=None, validator=within(1, 4094))
    tagged: tuple[int, ...] = field(kw_only=True, default=(), converter=to_vlans)
    dhcp: bool = field(kw_only=True, default=False, validator=_dhcp)
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


@frozen(eq=False, repr=False)
class To(_Plugged, Emulation):
    """A link to a bridge, in a worker's ``links``: ``nsorch.To(lan, address=…, name=…)``; the rest as :class:`End`."""

    vlan: int | None = field(kw_only=True, default=None, validator=within(1, 4094))
    tagged: tuple[int, ...] = field(kw_only=True, default=(), converter=to_vlans)
    dhcp: bool = field(kw_only=True, default=False, validator=_dhcp)
    bridge: str = field(converter=_to_bridge)
    name: str | None = field(kw_only=True, default=None, converter=to_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=addresses)
    mac: str | None = field(kw_only=True, default=None, converter=to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=to_mtu)


@frozen(kw_only=True, eq=False, repr=False)
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
        network = to_network("routes.to", to)
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
    return each("links", value, "bridges", _link)


def _link(path: str, value: Any) -> To:
    try:
        return value if isinstance(value, To) else To(value)
    except TopologyError as exc:
        raise TopologyError(*(f"{path}: {problem.removeprefix('bridge: ')}" for problem in exc.problems)) from None


def to_routes(value: Any) -> tuple[Route, ...]:
    """From mappings, too."""
    return each("routes", value, "routes", _route)


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
    wrong = {key: text for key, text in value.items() if not isinstance(text, str) or not is_text(text + key)}
    if wrong:
        raise TopologyError(
            *(f"env.{key}: {shown(text)} is not a string without null characters" for key, text in wrong.items())
        )
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


_STDOUT = -2  # of subprocess


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
        if value == _STDOUT and path != "stderr":
            raise TopologyError(f"{path}: STDOUT is for stderr alone")
    elif value is not None and not callable(getattr(value, "fileno", None)):
        raise TopologyError(f"{path}: {shown(value)} is neither a descriptor nor a path nor a file")
    elif value is not None:
        try:
            value.fileno()
        except (OSError, ValueError):  # of those in memory, and of closed ones
            raise TopologyError(f"{path}: {shown(value)} has no open descriptor") from None


@frozen(kw_only=True, eq=False, repr=False)
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
    rootfs: str | topology.Overlay | None = field(default=None, converter=to_rootfs)
    mounts: tuple[topology.Mount, ...] = field(default=(), converter=to_mounts)
    readonly_root: bool | None = field(default=None, converter=to_readonly_root)
    masked: tuple[str, ...] | None = field(default=None, converter=to_masked)
    readonly_paths: tuple[str, ...] | None = field(default=None, converter=to_readonly_paths)
    capabilities: topology.Capabilities | topology.CapabilityChange | None = field(
        default=None, converter=to_capabilities
    )
    no_new_privs: bool | None = field(default=None, converter=to_no_new_privs)
    seccomp: str | bytes | int | None = field(default=None, converter=to_seccomp)
    rlimits: Mapping[str, tuple[int, int]] = field(factory=dict, converter=to_rlimits)
    oom_score_adj: int | None = field(default=None, converter=to_score)
    limits: topology.Limits | None = field(default=None, converter=to_limits)
    cgroup_namespace: bool | None = field(default=None, converter=to_cgroup_namespace)
    time_offsets: Mapping[str, float] = field(factory=dict, converter=to_time_offsets)
    uid_map: tuple[topology.IdRange, ...] = field(default=(), converter=to_uid_map)
    gid_map: tuple[topology.IdRange, ...] = field(default=(), converter=to_gid_map)
    domainname: str | None = field(default=None, validator=_host_name)
    hostname: str | None = field(default=None, validator=_host_name)
    init: bool = field(default=True, validator=flag)
    ready: topology.TcpReady | topology.ExecReady | None = field(default=None, validator=ready)
    critical: bool = field(default=False, validator=flag)
    stdin: Any = field(default=None, validator=_stream)
    stdout: Any = field(default=None, validator=_stream)
    stderr: Any = field(default=None, validator=_stream)
    sysctls: Mapping[str, str | int] = field(factory=dict, converter=_sysctls)
    routes: tuple[Route, ...] = field(default=(), converter=to_routes)
    forward: bool = field(default=False, validator=flag)
    nat: topology.Nat | None = field(default=None, converter=to_nat)
    firewall: topology.Firewall | None = field(default=None, converter=to_firewall)
    interfaces: tuple[topology.InterfaceSpec, ...] = field(default=(), converter=to_interfaces)
    service: topology.Service | None = field(default=None, converter=to_service)
    uplink: topology.UplinkSpec | None = field(default=None, converter=to_uplink)
    label: str | None = field(default=None, validator=string)

    def __attrs_post_init__(self) -> None:
        if self.service is not None:
            object.__setattr__(self, "command", _program(self))  # its arguments are made of its links, later
        if self.nat is not None or (self.service is not None and _services().forwards(self.service)):
            object.__setattr__(self, "forward", True)
        problems = list(dict.fromkeys(_problems_of(self)))
        if problems:
            raise TopologyError(*(f"workers.{self.name}.{problem}" for problem in problems))

    @property
    def all_interfaces(self) -> tuple[topology.InterfaceSpec, ...]:
        """With that of its service."""
        own = () if self.service is None else _services().own_interfaces(self.service)
        return (*self.interfaces, *own)

    @property
    def all_routes(self) -> tuple[Route, ...]:
        """With those of its service."""
        own = () if self.service is None else _services().own_routes(self.service)
        return (*self.routes, *(Route(to=network, dev=dev) for network, dev in own))


def _services() -> ModuleType:
    """Imported with the first."""
    from nsorch.topology import services

    return services


def _program(spec: WorkerSpec) -> tuple[str, ...]:
    """Of its service, alone."""
    program = (_services().PROGRAMS[type(spec.service)][0],)
    if spec.command not in (None, program):
        raise TopologyError(f"workers.{spec.name}.command: its service gives it one")
    if spec.ready is not None:
        raise TopologyError(f"workers.{spec.name}.ready: its service says when it is ready")
    return program


def _problems_of(spec: WorkerSpec) -> Iterator[str]:
    """What of it doesn't go together."""
    if spec.ready is not None and spec.command is None:
        yield "ready: a worker without a command is never ready"
    yield from _told(_check_interface_names, spec)
    try:
        namespaces = NamespaceSet.parse(spec.namespaces, passive=spec.command is None)
    except TopologyError as exc:
        yield from exc.problems
        return
    if spec.sysctls:
        yield from sysctl_problems(spec.sysctls, namespaces)
    if spec.hostname is not None and not isinstance(namespaces.uts, New):
        yield "hostname: would be set outside: the worker has no uts namespace of its own"
    for key in ("nat", "firewall", "uplink"):
        if getattr(spec, key) is not None and not isinstance(namespaces.net, New):
            yield f"{key}: only in a network namespace of its own"
    if spec.service is not None:
        yield from _told(_services().check_worker, spec, spec.service, namespaces)
    if spec.isolation not in PRESETS:
        yield f'isolation: "{spec.isolation}" is none of {", ".join(PRESETS)}'
    elif not is_plain(spec):
        from nsorch.topology.presets import isolation_of

        yield from _told(isolation_of, spec)


def _told(check: Callable[..., object], *args: object) -> Sequence[str]:
    try:
        check(*args)
    except TopologyError as exc:
        return exc.problems
    return ()


def _check_interface_names(spec: WorkerSpec) -> None:
    taken: set[str] = set()
    for number, to in enumerate(spec.links):
        if to.name is not None and to.name in taken:
            raise TopologyError(f'links[{number}].name: "{to.name}" is used twice')
        taken.add(to.name or "")
    if spec.interfaces:
        from nsorch.topology.interfaces import order_problems

        problems = order_problems(spec.interfaces)
        problems += [
            f'interfaces[{number}].name: "{interface.name}" is a link\'s already'
            for number, interface in enumerate(spec.interfaces)
            if interface.name in taken
        ]
        if problems:
            raise TopologyError(*problems)
    taken.update(interface.name for interface in spec.interfaces)
    if spec.uplink is not None and spec.uplink.name in taken:
        raise TopologyError(f'uplink.name: "{spec.uplink.name}" is another interface already')
    if spec.uplink is not None and any(to.dhcp for to in spec.links):
        raise TopologyError("uplink: a link with dhcp gives it a default route already")
    for interface in spec.all_interfaces[len(spec.interfaces) :]:
        if interface.name in taken:
            raise TopologyError(f'service: "{interface.name}" is the name of its own interface')


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


@frozen(kw_only=True, eq=False, repr=False)
class BridgeSpec(Value):
    """Description of a bridge; the fields of :meth:`nsorch.Supervisor.bridge`."""

    name: str = field(converter=valid_name)
    subnet: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=networks)
    gateway: str | None = field(default=None, converter=_to_gateway)
    mtu: int | None = field(default=None, converter=to_mtu)
    arp: str = field(default="auto", validator=among(ARP))
    vlan_aware: bool = field(default=False, validator=flag)
    vlans: Mapping[int, tuple[IPv4Network | IPv6Network, ...]] = field(default=(), converter=vlan_subnets, hash=False)
    stp: bool = field(default=False, validator=flag)
    forward_delay: float | None = field(default=None, converter=_forward_delay)
    ageing: float | None = field(default=None, converter=_ageing)
    multicast_snooping: bool = field(default=False, validator=flag)
    label: str | None = field(default=None, validator=string)

    def __attrs_post_init__(self) -> None:
        problems = []
        if self.vlans and not self.vlan_aware:
            problems.append("vlans: only a bridge with vlan_aware has them")
        if self.vlan_aware and self.arp == "static":
            problems.append("arp: the kernel's bridges don't answer ARP within VLANs")
        if self.forward_delay is not None and not self.stp:
            problems.append("forward_delay: it is of stp, which is off")
        if self.gateway is not None and not self.subnet and not any(self.vlans.values()):
            problems.append("gateway: a bridge without subnet has no gateway")
        if problems:
            raise TopologyError(*(f"bridges.{self.name}.{problem}" for problem in problems))


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


@frozen(kw_only=True, eq=False, repr=False)
class LinkSpec(Emulation):
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


#: workers and interfaces of both ends, as given, and which of several alike
LinkKey = tuple[str, str | None, str, str | None, int]


def as_link(key: LinkKey, spec: LinkSpec | To) -> LinkSpec:
    """A worker's own link as any other."""
    if isinstance(spec, LinkSpec):
        return spec
    end = End(key[0], name=spec.name, address=spec.address or None, mac=spec.mac, mtu=spec.mtu)
    other = {attribute.name for attribute in fields(End)} - {"worker", "name", "address", "mac", "mtu"}
    return LinkSpec(a=evolve(end, **{name: getattr(spec, name) for name in other}), b=End(spec.bridge))
