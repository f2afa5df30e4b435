"""The parts of a description, as frozen values that have been checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_address, ip_interface, ip_network
from operator import attrgetter
from typing import Any, TypeVar

from attrs import field, fields, frozen

from nsorch.errors import AddressError, TopologyError
from nsorch.topology.filters import Firewall, Nat, to_firewall, to_nat
from nsorch.topology.mounts import Mount, Overlay, to_masked, to_mounts, to_readonly_paths, to_rootfs
from nsorch.topology.names import interface_problem, name_problem
from nsorch.topology.namespaces import NamespaceSet, New
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
from nsorch.topology.sysctls import sysctl_problems
from nsorch.topology.units import count, duration, fraction, rate

T = TypeVar("T")


def _checked(path: str, convert: Callable[[Any], T], value: Any) -> T | None:
    if value is None:
        return None
    try:
        return convert(value)
    except ValueError as exc:
        if isinstance(exc, TopologyError | AddressError):
            raise
        raise TopologyError(f"{path}: {exc}") from None


def _name(value: Any) -> str:
    if problem := name_problem(value):
        raise TopologyError(f"name: {problem}")
    return str(value)


def _named(value: Any) -> str:
    return _name(value if isinstance(value, str) else getattr(value, "name", value))


def _interface_name(value: Any) -> str:
    if problem := interface_problem(value):
        raise TopologyError(f"name: {problem}")
    return str(value)


def _mtu(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 68 <= value <= 65535:
        raise ValueError(f"{value!r} is not a number of bytes from 68 to 65535")
    return value


def _one_or_many(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return list(value) if isinstance(value, list | tuple | set | frozenset) else [value]


def _networks(value: Any) -> tuple[IPv4Network | IPv6Network, ...]:
    found = []
    for item in _one_or_many(value):
        try:
            network = item if isinstance(item, IPv4Network | IPv6Network) else ip_network(str(item))
        except ValueError as exc:
            raise AddressError(f'subnet: "{item}" is not a network: {exc}') from None
        found.append(network)
    if len({network.version for network in found}) < len(found):
        raise AddressError(f"subnet: more than one of a family: {', '.join(map(str, found))}")
    return tuple(found)


def _addresses(value: Any) -> tuple[IPv4Interface | IPv6Interface, ...]:
    found = []
    for item in _one_or_many(value):
        try:
            found.append(ip_interface(str(item)))
        except ValueError:
            raise AddressError(f'address: "{item}" is not an IP address') from None
    return tuple(found)


def _mac(value: Any) -> str:
    parts = str(value).split(":")
    if len(parts) != 6 or not all(len(part) == 2 and _is_hex(part) for part in parts):
        raise AddressError(f'mac: "{value}" is not a MAC address such as 02:00:00:00:00:01')
    if int(parts[0], 16) & 1 or not int("".join(parts), 16):
        raise AddressError(f"mac: \"{value}\" can't be one interface's: it is a group's, or zero")
    return str(value).lower()


def _is_hex(text: str) -> bool:
    return all(letter in "0123456789abcdefABCDEF" for letter in text)


def _to_delay(value: Any) -> float | None:
    return _checked("delay", duration, value)


def _to_jitter(value: Any) -> float | None:
    return _checked("jitter", duration, value)


def _to_loss(value: Any) -> float | None:
    return _checked("loss", fraction, value)


def _to_duplicate(value: Any) -> float | None:
    return _checked("duplicate", fraction, value)


def _to_corrupt(value: Any) -> float | None:
    return _checked("corrupt", fraction, value)


def _to_reorder(value: Any) -> float | None:
    return _checked("reorder", fraction, value)


def _to_rate(value: Any) -> float | None:
    return _checked("rate", rate, value)


def _to_limit(value: Any) -> int | None:
    return _checked("limit", count, value)


def _to_interface_name(value: Any) -> str | None:
    return _checked("name", _interface_name, value)


def _to_mac(value: Any) -> str | None:
    return _checked("mac", _mac, value)


def _to_mtu(value: Any) -> int | None:
    return _checked("mtu", _mtu, value)


def _to_gateway(value: Any) -> str | None:
    return _checked("gateway", _named, value)


@frozen(kw_only=True)
class Emulation:
    """What a link does to packets.

    :ivar delay: seconds, as *jitter*
    :ivar loss: a fraction, as *duplicate*, *corrupt* and *reorder*
    :ivar rate: bits per second
    :ivar limit: queue length in packets
    """

    delay: float | None = field(default=None, converter=_to_delay)
    jitter: float | None = field(default=None, converter=_to_jitter)
    loss: float | None = field(default=None, converter=_to_loss)
    duplicate: float | None = field(default=None, converter=_to_duplicate)
    corrupt: float | None = field(default=None, converter=_to_corrupt)
    reorder: float | None = field(default=None, converter=_to_reorder)
    rate: float | None = field(default=None, converter=_to_rate)
    limit: int | None = field(default=None, converter=_to_limit)

    @property
    def active(self) -> bool:
        return _emulation(self) != _NO_EMULATION


EMULATION_KEYS = tuple(item.name for item in fields(Emulation))
_emulation = attrgetter(*EMULATION_KEYS)
_NO_EMULATION = (None,) * len(EMULATION_KEYS)


@frozen(kw_only=True)
class _Emulated(Emulation):
    @property
    def emulation(self) -> Emulation:
        return Emulation(**{key: getattr(self, key) for key in EMULATION_KEYS})


@frozen
class End(_Emulated):
    """One end of a link: ``nsorch.End(worker, name="up0", address="10.0.0.1", mac=…, mtu=…)``.

    :ivar worker: name of a worker, or of a bridge
    :ivar name: of the interface; the next free ``ethN`` if None
    :ivar address: of the link's subnet; the next free ones if empty
    :ivar mtu: in bytes
    """

    worker: str = field(converter=_named)
    name: str | None = field(kw_only=True, default=None, converter=_to_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=_addresses)
    mac: str | None = field(kw_only=True, default=None, converter=_to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=_to_mtu)

    @classmethod
    def parse(cls, text: str) -> End:
        """From ``"r1"`` or ``"r1:up0"``."""
        worker, colon, name = text.partition(":")
        return End(worker, name=name if colon else None)


@frozen
class To(_Emulated):
    """A link to a bridge, in a worker's ``links``: ``nsorch.To(lan, address=…, name=…)``; the rest as :class:`End`."""

    bridge: str = field(converter=_named)
    name: str | None = field(kw_only=True, default=None, converter=_to_interface_name)
    address: tuple[IPv4Interface | IPv6Interface, ...] = field(kw_only=True, default=(), converter=_addresses)
    mac: str | None = field(kw_only=True, default=None, converter=_to_mac)
    mtu: int | None = field(kw_only=True, default=None, converter=_to_mtu)


@frozen(kw_only=True)
class Route:
    """To network *to*, by gateway *via* or through interface *dev*; ``"default"`` is 0.0.0.0/0 or ::/0 as *via* is."""

    to: IPv4Network | IPv6Network
    via: Any = None
    dev: str | None = None

    def __init__(self, to: Any, via: Any = None, dev: str | None = None) -> None:
        try:
            gateway = None if via is None else ip_address(str(via))
        except ValueError:
            raise AddressError(f'routes.via: "{via}" is not an IP address') from None
        if str(to) == "default":
            to = "::/0" if gateway is not None and gateway.version == 6 else "0.0.0.0/0"
        try:
            network = ip_network(str(to))
        except ValueError as exc:
            raise AddressError(f'routes.to: "{to}" is not a network: {exc}') from None
        if gateway is None and dev is None:
            raise TopologyError(f"routes: {network} has neither via nor dev")
        if gateway is not None and gateway.version != network.version:
            raise AddressError(f"routes: {network} via {gateway}: not of one family")
        self.__attrs_init__(to=network, via=gateway, dev=_checked("routes.dev", _interface_name, dev))  # type: ignore[attr-defined]


@frozen(kw_only=True)
class TcpReady:
    """See :func:`tcp_ready`."""

    port: int
    host: str | None = None
    timeout: float = 30.0
    interval: float = 0.02


@frozen(kw_only=True)
class ExecReady:
    """See :func:`exec_ready`."""

    command: tuple[str, ...]
    timeout: float = 30.0
    interval: float = 0.1


def tcp_ready(port: int, *, host: str | None = None, timeout: float = 30.0, interval: float = 0.02) -> TcpReady:
    """Ready when TCP *port* accepts a connection from inside the worker: at *host*, or any address of the worker.

    :param timeout: seconds until NotReadyError
    :param interval: seconds between two tries
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise TopologyError(f"ready.tcp: {port!r} is not a port")
    return TcpReady(port=port, host=host, timeout=duration(timeout), interval=duration(interval))


def exec_ready(command: Sequence[str], *, timeout: float = 30.0, interval: float = 0.1) -> ExecReady:
    """Ready when *command*, run in the worker, ends with status 0.

    :param timeout: seconds until NotReadyError
    :param interval: seconds between two tries
    """
    return ExecReady(command=_command(command) or (), timeout=duration(timeout), interval=duration(interval))


def _command(value: Any) -> tuple[Any, ...] | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TopologyError(f"command: {value!r} is not a list of strings")
    arguments = tuple(value)
    if not arguments or not all(isinstance(item, str | bytes | os.PathLike) for item in arguments):
        raise TopologyError(f"command: {value!r} is not a list of strings, the program first")
    if not os.fspath(arguments[0]):
        raise TopologyError("command: the program has no name")
    for item in arguments:
        if (b"\0" if isinstance(item, bytes) else "\0") in os.fspath(item):
            raise TopologyError(f"command: null character in {item!r}")
    return arguments


def _links(value: Any) -> tuple[To, ...]:
    if isinstance(value, str | To) or not isinstance(value, Iterable):
        value = [value]
    return tuple(item if isinstance(item, To) else To(item) for item in value)


def _routes(value: Any) -> tuple[Route, ...]:
    return tuple(item if isinstance(item, Route) else Route(**item) for item in value)


def _environment(value: Any) -> Mapping[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and k and "=" not in k for k in value):
        raise TopologyError(f"env: {value!r} is not a mapping of names to strings")
    for key, text in value.items():
        if not isinstance(text, str) or "\0" in text or "\0" in key:
            raise TopologyError(f"env.{key}: {text!r} is not a string")
    return dict(value)


@frozen(kw_only=True)
class WorkerSpec:
    """Description of a worker; the fields of :meth:`nsorch.Supervisor.start`."""

    name: str = field(converter=_name)
    command: tuple[Any, ...] | None = field(default=None, converter=_command)
    links: tuple[To, ...] = field(default=(), converter=_links)
    namespaces: Any = None
    env: Mapping[str, str] | None = field(default=None, converter=_environment)
    cwd: Any = None
    user: str | int | None = field(default=None, converter=to_user)
    groups: tuple[str | int, ...] = field(default=(), converter=to_groups)
    isolation: str = "network"
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
    cgroup_namespace: bool | None = field(default=None, converter=to_cgroup_namespace)
    time_offsets: Mapping[str, float] = field(factory=dict, converter=to_time_offsets)
    uid_map: tuple[IdRange, ...] = field(default=(), converter=to_uid_map)
    gid_map: tuple[IdRange, ...] = field(default=(), converter=to_gid_map)
    domainname: str | None = None
    hostname: str | None = None
    init: bool = True
    ready: TcpReady | ExecReady | None = None
    critical: bool = False
    stdin: Any = None
    stdout: Any = None
    stderr: Any = None
    sysctls: Mapping[str, str | int] = field(factory=dict)
    routes: tuple[Route, ...] = field(default=(), converter=_routes)
    forward: bool = False
    nat: Nat | None = field(default=None, converter=to_nat)
    firewall: Firewall | None = field(default=None, converter=to_firewall)
    label: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.nat is not None:  # there is nothing to translate where nothing is forwarded
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
        for key in ("nat", "firewall"):
            if getattr(self, key) is not None and not isinstance(namespaces.net, New):
                raise TopologyError(f"workers.{self.name}.{key}: only in a network namespace of its own")
        if self.ready is not None and self.command is None:
            raise TopologyError(f"workers.{self.name}.ready: a worker without a command is never ready")
        for key in ("hostname", "domainname"):
            text = getattr(self, key)
            if text is not None and not 0 < len(os.fsencode(text)) <= 64:
                raise TopologyError(f'workers.{self.name}.{key}: "{text}" is not 1 to 64 bytes long')
        for key in ("cwd", "hostname", "domainname", "stdin", "stdout", "stderr"):
            if isinstance(text := getattr(self, key), str) and "\0" in text:
                raise TopologyError(f"workers.{self.name}.{key}: null character in {text!r}")
        taken: set[str] = set()
        for number, to in enumerate(self.links):
            if to.name is not None and to.name in taken:
                raise TopologyError(f'workers.{self.name}.links[{number}].name: "{to.name}" is used twice')
            taken.add(to.name or "")


#: who answers ARP on a bridge: the bridge itself where it has many ports, always, or never
ARP = ("auto", "static", "dynamic")


@frozen(kw_only=True)
class BridgeSpec:
    """Description of a bridge; the fields of :meth:`nsorch.Supervisor.bridge`."""

    name: str = field(converter=_name)
    subnet: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=_networks)
    gateway: str | None = field(default=None, converter=_to_gateway)
    mtu: int | None = field(default=None, converter=_to_mtu)
    arp: str = "auto"
    label: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.arp not in ARP:
            raise TopologyError(f'bridges.{self.name}.arp: "{self.arp}" is none of {", ".join(ARP)}')
        if self.gateway is not None and not self.subnet:
            raise TopologyError(f"bridges.{self.name}.gateway: a bridge without subnet has no gateway")


def _to_end(value: Any) -> End:
    if isinstance(value, End):
        return value
    return End.parse(value) if isinstance(value, str) else End(value)


@frozen(kw_only=True)
class LinkSpec(_Emulated):
    """Description of a link; the fields of :meth:`nsorch.Supervisor.link`."""

    a: End = field(converter=_to_end)
    b: End = field(converter=_to_end)
    subnet: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=_networks)
    mtu: int | None = field(default=None, converter=_to_mtu)
    weight: float = 1.0
    label: str | None = None

    def __attrs_post_init__(self) -> None:
        if self.a.worker == self.b.worker:
            raise TopologyError(f"links: {self.a.worker} is linked to itself")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float) or not 0 < self.weight < 1e9:
            raise TopologyError(f"links.weight: {self.weight!r} is not a number above 0")
