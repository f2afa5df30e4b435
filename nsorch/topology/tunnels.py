"""Interfaces of workers that lead to other workers, over what is there."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from attrs import Attribute, field, fields, frozen

from nsorch.errors import AddressError, TopologyError
from nsorch.topology.converters import allowed_networks, one_or_many, valid_interface_name, valid_name, within
from nsorch.topology.interfaces import InterfaceSpec
from nsorch.topology.kinds import shown
from nsorch.values import Value

IPAddress = IPv4Address | IPv6Address


def _name_of(value: Any) -> Any:
    """Of an object that has one."""
    return value if isinstance(value, str | IPv4Address | IPv6Address) else getattr(value, "name", value)


def _address(path: str, value: Any) -> IPAddress:
    try:
        return ip_address(str(value))
    except ValueError:
        raise AddressError(f"{path}: {shown(value)} is not an IP address") from None


def _local(value: Any) -> IPAddress | None:
    return None if value is None else _address("local", value)


def _remotes(value: Any) -> tuple[str | IPAddress, ...]:
    found: list[str | IPAddress] = []
    for item in map(_name_of, one_or_many(value)):
        try:
            found.append(ip_address(str(item)))
        except ValueError:
            try:
                found.append(valid_name(item))
            except TopologyError:
                raise TopologyError(f"remote: {shown(item)} is neither a worker nor an IP address") from None
    return tuple(found)


@frozen(kw_only=True, eq=False, repr=False)
class Vxlan(InterfaceSpec):
    """One end of an overlay network: frames travel in UDP (RFC 7348).

    :ivar id: of the network, 0 to 16777215
    :ivar remote: the other ends: workers, which may come later, or addresses
    :ivar local: the address to send from; the kernel's choice if None
    :ivar port: UDP
    """

    kind = "vxlan"
    id: int = field(validator=within(0, 0xFFFFFF))
    remote: tuple[str | IPAddress, ...] = field(default=(), converter=_remotes)
    local: IPAddress | None = field(default=None, converter=_local)
    port: int = field(default=4789, validator=within(1, 65535))

    def __attrs_post_init__(self) -> None:
        given = (self.local, *self.remote)
        if len({item.version for item in given if isinstance(item, IPv4Address | IPv6Address)}) > 1:
            raise TopologyError("remote: addresses of both families, with those of local")

    @property
    def version(self) -> int | None:
        """Of IP, that it travels in, where an address says so."""
        given = (self.local, *self.remote)
        return next((item.version for item in given if isinstance(item, IPv4Address | IPv6Address)), None)

    @property
    def workers(self) -> tuple[str, ...]:
        """Of the other ends."""
        return tuple(item for item in self.remote if isinstance(item, str))


def _worker(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return valid_name(_name_of(value))
    except TopologyError as exc:
        raise TopologyError(*(f"worker: {problem.removeprefix('name: ')}" for problem in exc.problems)) from None


def _interface(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return valid_interface_name(value)
    except TopologyError as exc:
        raise TopologyError(*(f"interface: {problem.removeprefix('name: ')}" for problem in exc.problems)) from None


def _endpoint(value: Any) -> tuple[IPAddress, int] | None:
    if value is None:
        return None
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], IPv4Address | IPv6Address):
        value = f"[{value[0]}]:{value[1]}"
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise AddressError(f"endpoint: {shown(value)} is not an address and a port such as 10.0.0.1:51820")
    return _address("endpoint", host.removeprefix("[").removesuffix("]")), int(port)


def _key(instance: Any, attribute: Attribute[Any], value: Any) -> None:  # noqa: ARG001
    if value is None:
        return
    try:
        if len(base64.b64decode(value, validate=True)) == 32:
            return
    except (binascii.Error, TypeError, ValueError):
        pass
    raise TopologyError(f"{attribute.name}: a key is 32 bytes in Base64")  # which isn't shown: it may be secret


@frozen(kw_only=True, eq=False, repr=False)
class WireGuardPeer(Value):
    """Another end of a :class:`WireGuard` tunnel.

    :ivar worker: that has a WireGuard interface, now or later: its key, endpoint and addresses are looked up there
    :ivar interface: its interface; if None, one that has this end's worker as peer, of the same name where it can be
    :ivar public_key: of an end that is no worker's, in Base64
    :ivar endpoint: ``"address:port"`` or ``"[address]:port"``; of a worker, its address nearest to here if None
    :ivar allowed_ips: networks behind it; the addresses of a worker's interface are allowed in any case
    :ivar preshared_key: in Base64
    :ivar keepalive: seconds between two packets that keep a NAT open
    """

    worker: str | None = field(default=None, converter=_worker)
    interface: str | None = field(default=None, converter=_interface)
    public_key: str | None = field(default=None, validator=_key)
    endpoint: tuple[IPAddress, int] | None = field(default=None, converter=_endpoint)
    allowed_ips: tuple[IPv4Network | IPv6Network, ...] = field(default=(), converter=allowed_networks)
    preshared_key: str | None = field(default=None, validator=_key, repr=False)
    keepalive: int | None = field(default=None, validator=within(1, 65535))

    def __attrs_post_init__(self) -> None:
        if (self.worker is None) == (self.public_key is None):
            raise TopologyError("worker: a peer is either a worker or a public_key")
        if self.interface is not None and self.worker is None:
            raise TopologyError("interface: only a worker has one")


PEER_KEYS = tuple(item.name for item in fields(WireGuardPeer))


def _peers(value: Any) -> tuple[WireGuardPeer, ...]:
    items = [value] if isinstance(value, Mapping) else one_or_many(value)
    found = tuple(_peer(number, item) for number, item in enumerate(items))
    ends = [(peer.worker, peer.interface) for peer in found if peer.worker is not None]
    if len(set(ends)) < len(ends):
        raise TopologyError("peers: a worker is named twice")
    return found


def _peer(number: int, item: Any) -> WireGuardPeer:
    if isinstance(item, WireGuardPeer):
        return item
    if not isinstance(item, Mapping):
        item = {"worker": item}
    unknown = [str(key) for key in item if key not in PEER_KEYS]
    if unknown:
        raise TopologyError(*(f"peers[{number}].{key}: unknown key" for key in unknown))
    try:
        return WireGuardPeer(**item)
    except TopologyError as exc:
        raise TopologyError(*(f"peers[{number}].{problem}" for problem in exc.problems)) from None
    except AddressError as exc:
        raise AddressError(f"peers[{number}].{exc}") from None


@frozen(kw_only=True, eq=False, repr=False)
class WireGuard(InterfaceSpec):
    """A WireGuard tunnel. Its key is generated unless given.

    :ivar peers: workers, or :class:`WireGuardPeer`
    :ivar private_key: in Base64
    :ivar port: UDP, to listen on
    """

    kind = "wireguard"
    peers: tuple[WireGuardPeer, ...] = field(default=(), converter=_peers)
    private_key: str | None = field(default=None, validator=_key, repr=False)
    port: int = field(default=51820, validator=within(1, 65535))

    def __attrs_post_init__(self) -> None:
        self._refuse_mac("a WireGuard interface has none")

    @property
    def workers(self) -> tuple[str, ...]:
        """Of the other ends."""
        return tuple(peer.worker for peer in self.peers if peer.worker is not None)
