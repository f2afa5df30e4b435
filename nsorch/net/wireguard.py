"""WireGuard's own generic netlink family, see linux/wireguard.h: messages by pyroute2, which is imported when first
needed. Synchronous, for the thread that waits for the kernel."""

from __future__ import annotations

import base64
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.net.messages import NLM_F_DUMP, NLM_F_REQUEST, attribute, attributes, message
from nsorch.net.netlink import Netlink, Request
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsorch.net.plan import IPAddress, IPNetwork

_CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 0x10, 3, 1, 2  # linux/genetlink.h
_GENERIC = struct.Struct("=BBH")  # command, version, reserved
_GET_DEVICE, _SET_DEVICE = 0, 1
_IFNAME, _PUBLIC_KEY = 2, 4
_REMOVE, _REPLACE_ALLOWED = 1, 2


@frozen(kw_only=True, eq=False, repr=False)
class Peer(Value):
    """Keys in Base64; *keepalive* in seconds."""

    public_key: str
    endpoint: tuple[IPAddress, int] | None = None
    allowed_ips: tuple[IPNetwork, ...] = ()
    preshared_key: str | None = None
    keepalive: int | None = None


def generate_key() -> str:
    """A private key, in Base64: 32 random bytes, which the kernel clamps (RFC 7748)."""
    return base64.b64encode(os.urandom(32)).decode()


class WireGuardSocket:
    """:param sock: of NETLINK_GENERIC, in the interface's network namespace; it stays its owner's"""

    def __init__(self, sock: socket.socket, worker: str) -> None:
        self._netlink = Netlink(sock, worker)
        body = _GENERIC.pack(_GET_FAMILY, 1, 0) + attribute(_FAMILY_NAME, b"wireguard\0")
        answer = self._netlink.ask(Request(message(_CONTROLLER, 0, body), "look up", "wireguard"))
        (self._family,) = struct.unpack("=H", attributes(answer, _GENERIC.size)[_FAMILY_ID])

    def configure(self, name: str, private_key: str, port: int) -> str:
        """Give interface *name* its key and UDP port. Returns its public key, which the kernel works out."""
        own: list[list[Any]] = [["WGDEVICE_A_PRIVATE_KEY", private_key], ["WGDEVICE_A_LISTEN_PORT", port]]
        self._set(name, own, "configure")
        body = _GENERIC.pack(_GET_DEVICE, 1, 0) + attribute(_IFNAME, name.encode() + b"\0")
        request = Request(message(self._family, NLM_F_REQUEST | NLM_F_DUMP, body), "look at", name)
        found = self._netlink.dump(request, self._family)
        return base64.b64encode(attributes(found[0], _GENERIC.size)[_PUBLIC_KEY]).decode()

    def set_peers(self, name: str, peers: Sequence[Peer]) -> None:
        """Add *peers*, or change them; others stay."""
        for peer in peers:
            self._set(name, [["WGDEVICE_A_PEERS", [{"attrs": _attributes(peer)}]]], "add a peer to")

    def remove_peers(self, name: str, public_keys: Sequence[str]) -> None:
        for key in public_keys:
            gone = [["WGPEER_A_PUBLIC_KEY", key], ["WGPEER_A_FLAGS", _REMOVE]]
            self._set(name, [["WGDEVICE_A_PEERS", [{"attrs": gone}]]], "remove a peer from")

    def _set(self, name: str, changes: list[list[Any]], operation: str) -> None:
        data = set_device(self._family, name, changes)
        self._netlink.execute([Request(data, operation, name)])


def set_device(family: int, name: str, changes: list[list[Any]]) -> bytes:
    from pyroute2.netlink.generic.wireguard import wgmsg

    made = wgmsg()
    made["cmd"], made["version"] = _SET_DEVICE, 1
    made["attrs"] = [["WGDEVICE_A_IFNAME", name], *changes]
    made["header"]["type"] = family
    made["header"]["flags"] = NLM_F_REQUEST
    made.encode()
    return bytes(made.data)


def _attributes(peer: Peer) -> list[list[Any]]:
    found: list[list[Any]] = [["WGPEER_A_PUBLIC_KEY", peer.public_key], ["WGPEER_A_FLAGS", _REPLACE_ALLOWED]]
    if peer.preshared_key is not None:
        found.append(["WGPEER_A_PRESHARED_KEY", peer.preshared_key])
    if peer.endpoint is not None:
        host, port = peer.endpoint
        found.append(["WGPEER_A_ENDPOINT", {"addr": str(host), "port": port}])
    if peer.keepalive is not None:
        found.append(["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL", peer.keepalive])
    found.append(["WGPEER_A_ALLOWEDIPS", [{"attrs": _allowed(network)} for network in peer.allowed_ips]])
    return found


def _allowed(network: IPNetwork) -> list[list[Any]]:
    return [
        ["WGALLOWEDIP_A_FAMILY", socket.AF_INET if network.version == 4 else socket.AF_INET6],
        ["WGALLOWEDIP_A_IPADDR", network.network_address.packed],
        ["WGALLOWEDIP_A_CIDR_MASK", network.prefixlen],
    ]
