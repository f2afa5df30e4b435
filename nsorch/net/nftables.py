"""Messages of nf_tables, packed by hand: tables, chains, sets, and rules as lists of expressions.

Layouts and numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h; all numbers in attributes are big-endian.
An expression is the bytes of one NFTA_LIST_ELEM, a rule a sequence of them: each goes on to the next unless it doesn't
match. Registers are named by their 32-bit slots, of which an address of IPv6 takes four and everything else one.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.net.messages import attribute, message
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network

_SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 0x10, 0x11
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM, _DELSETELEM = 0, 2, 3, 6, 9, 12, 14
_CREATE, _APPEND = 0x400, 0x800
_OWNER = 2
_CONNTRACK, _CT_DELETE = 1, 2

INET, IPV4, BRIDGE, IPV6 = 1, 2, 7, 10  # NFPROTO_*; INET is both of IP's
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)
EQUAL, NOT_EQUAL = 0, 1
DROP, ACCEPT = 0, 1
ESTABLISHED, RELATED, NEW, INVALID = 2, 4, 8, 1  # bits of a connection's state
DESTINATION_CHANGED = 1 << 5  # IPS_DST_NAT, of a connection's status
ORIGINAL, REPLY = 0, 1  # direction of a packet in its connection
RANDOM, FULLY_RANDOM = 4, 16
#: first 32-bit register; a verdict has its own
R0 = 8
_VERDICT = 0
_NESTED = 0x8000
_ADMIN_PROHIBITED = 3
_IFNAMSIZ = 16

# Numbers of libnftables' data types, for people who list the rules; a concatenation has six bits for each.
_ADDRESS_TYPE, _ADDRESS6_TYPE, _HARDWARE_TYPE, _SERVICE_TYPE, _GROUP_TYPE = 7, 8, 9, 13, 35


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | _NESTED, b"".join(parts))


def _message(kind: int, flags: int, *attributes: bytes, family: int = INET) -> bytes:
    return message(_SUBSYSTEM << 8 | kind, flags, struct.pack(">BBH", family, 0, 0) + b"".join(attributes))


@frozen(eq=False, repr=False)
class Kind(Value):
    """Of keys or values of a set: some fields of four bytes each."""

    number: int
    size: int

    def __add__(self, other: Kind) -> Kind:
        return Kind(self.number << 6 | other.number, (self.size + 3 & ~3) + (other.size + 3 & ~3))


ADDRESS, SERVICE = Kind(_ADDRESS_TYPE, 4), Kind(_SERVICE_TYPE, 2)
ADDRESS6, HARDWARE = Kind(_ADDRESS6_TYPE, 16), Kind(_HARDWARE_TYPE, 6)
GROUP = Kind(_GROUP_TYPE, 4)  #: of interfaces


# -- objects


def batch_edge(kind: int) -> bytes:
    """BATCH_BEGIN or BATCH_END: what stands between them in a datagram is done at once, or not at all."""
    return message(kind, 0, struct.pack(">BBH", 0, 0, _SUBSYSTEM))


@frozen(eq=False, repr=False)
class Table(Value):
    """:ivar family: INET, IPV4, IPV6 or BRIDGE
    :ivar owned: it goes with the socket that has made it, and only that can change it (Linux 5.12)
    """

    name: str
    family: int = INET
    owned: bool = False

    def add(self) -> bytes:
        """No error where there is one."""
        flags = [_u32(2, _OWNER)] if self.owned else []
        return _message(_NEWTABLE, _CREATE, _text(1, self.name), *flags, family=self.family)

    def delete(self) -> bytes:
        """With all that is in it."""
        return _message(_DELTABLE, 0, _text(1, self.name), family=self.family)

    def add_chain(self, name: str, *, kind: str, hook: int, priority: int, policy: int = ACCEPT) -> bytes:
        """:param kind: ``"filter"``, or ``"nat"``, which sees only the first packet of each connection"""
        place = _nested(4, _u32(1, hook), attribute(2, struct.pack(">i", priority)))
        parts = [_text(1, self.name), _text(3, name), place, _u32(5, policy), _text(7, kind)]
        return _message(_NEWCHAIN, _CREATE, *parts, family=self.family)

    def add_rule(self, chain: str, expressions: Iterable[bytes]) -> bytes:
        parts = [_text(1, self.name), _text(2, chain), _nested(4, *expressions)]
        return _message(_NEWRULE, _CREATE | _APPEND, *parts, family=self.family)

    def add_set(
        self, name: str, *, number: int, key: Kind, value: Kind | None = None, timeout: float | None = None
    ) -> bytes:
        """A set, or with *value* a map.

        :param timeout: rules fill it, and what isn't renewed is forgotten after so many seconds; without, it has what
            :meth:`add_members` or :meth:`add_entries` give it
        """
        map_, expires, evaluated = 8, 0x10, 0x20
        flags = (0 if timeout is None else expires | evaluated) | (0 if value is None else map_)
        parts = [_text(1, self.name), _text(2, name), _u32(3, flags), _u32(4, key.number), _u32(5, key.size)]
        if value is not None:
            parts += [_u32(6, value.number), _u32(7, value.size)]
        parts.append(_u32(10, number))
        if timeout is not None:
            parts.append(attribute(11, struct.pack(">Q", int(timeout * 1000))))
        return _message(_NEWSET, _CREATE, *parts, family=self.family)

    def add_members(self, name: str, *, number: int, members: Iterable[bytes]) -> bytes:
        """Some thousands at most: an attribute has 64 KiB.

        :param number: of the set, which is made in the same transaction
        """
        elements = [_nested(1, _value(1, member)) for member in members]
        return self._elements(_NEWSETELEM, name, elements, _u32(4, number))

    def add_entries(self, name: str, entries: Iterable[tuple[bytes, bytes]]) -> bytes:
        """To a map that is there, a thousand at most: keys that it hasn't got, with their values."""
        return self._elements(
            _NEWSETELEM, name, [_nested(1, _value(1, key), _value(2, value)) for key, value in entries]
        )

    def delete_entries(self, name: str, keys: Iterable[bytes]) -> bytes:
        """From a map that has them, a thousand at most."""
        return self._elements(_DELSETELEM, name, [_nested(1, _value(1, key)) for key in keys])

    def _elements(self, kind: int, name: str, elements: list[bytes], *more: bytes) -> bytes:
        parts = [_text(1, self.name), _text(2, name), _nested(3, *elements), *more]
        return _message(kind, _CREATE if kind == _NEWSETELEM else 0, *parts, family=self.family)


def flush_connections() -> bytes:
    """Forget all connections of the network namespace."""
    return message(_CONNTRACK << 8 | _CT_DELETE, 0, struct.pack(">BBH", 0, 0, 0))


# -- expressions


def _expression(name: str, *attributes: bytes) -> bytes:
    return _nested(1, _text(1, name), _nested(2, *attributes))


def _value(kind: int, data: bytes) -> bytes:
    return _nested(kind, attribute(1, data))


def compare(data: bytes, *, register: int = R0, operation: int = EQUAL) -> bytes:
    return _expression("cmp", _u32(1, register), _u32(2, operation), _value(3, data))


def _between(first: bytes, last: bytes, register: int = R0) -> bytes:
    return _expression("range", _u32(1, register), _u32(2, EQUAL), _value(3, first), _value(4, last))


def _masked(mask: bytes, register: int = R0) -> bytes:
    xor = _value(5, bytes(len(mask)))
    return _expression("bitwise", _u32(1, register), _u32(2, register), _u32(3, len(mask)), _value(4, mask), xor)


def load(data: bytes, register: int = R0) -> bytes:
    return _expression("immediate", _u32(1, register), _value(2, data))


def _payload(base: int, offset: int, size: int, register: int = R0) -> bytes:
    return _expression("payload", _u32(1, register), _u32(2, base), _u32(3, offset), _u32(4, size))


def _meta(key: int, register: int = R0) -> bytes:
    return _expression("meta", _u32(1, register), _u32(2, key))


def _connection(key: int, register: int = R0, direction: int | None = None) -> bytes:
    parts = [_u32(1, register), _u32(2, key)]
    if direction is not None:
        parts.append(attribute(3, bytes((direction,))))
    return _expression("ct", *parts)


def _interface(key: int, name: str, operation: int) -> list[bytes]:
    return [_meta(key), compare(name.encode().ljust(_IFNAMSIZ, b"\0"), operation=operation)]


def incoming(name: str, operation: int = EQUAL) -> list[bytes]:
    """Match the interface that a packet came by."""
    return _interface(6, name, operation)


def outgoing(name: str, operation: int = EQUAL) -> list[bytes]:
    return _interface(7, name, operation)


def family(number: int) -> list[bytes]:
    return [_meta(15), compare(bytes((number,)))]


def protocol(number: int) -> list[bytes]:
    """Match IP's protocol number, whatever extension headers there are."""
    return [_meta(16), compare(bytes((number,)))]


def load_source(version: int, register: int = R0) -> bytes:
    return _payload(1, 12, 4, register) if version == 4 else _payload(1, 8, 16, register)


def load_destination(version: int, register: int = R0) -> bytes:
    return _payload(1, 16, 4, register) if version == 4 else _payload(1, 24, 16, register)


def load_hardware_source(register: int = R0) -> list[bytes]:
    """Of frames of Ethernet, on which what follows goes on."""
    ethernet = 1
    return [_meta(8), compare(struct.pack("=H", ethernet)), _payload(0, 6, 6, register)]


def load_group(register: int = R0) -> bytes:
    """The group of the interface that it came by, in the machine's byte order."""
    return _meta(21, register)


def set_hardware_destination(register: int) -> bytes:
    """Of a frame, before a bridge decides where it goes."""
    return _expression("payload", _u32(5, register), _u32(2, 0), _u32(3, 0), _u32(4, 6))


def solicitation(register: int = R0) -> list[bytes]:
    """Match neighbour solicitations (RFC 4861, 4.3) in frames without a VLAN tag; their target goes to *register*."""
    return [*_frames_of_icmpv6(135), _payload(1, 48, 16, register)]


def router_solicitation() -> list[bytes]:
    """Match these (RFC 4861, 4.1) in frames without a VLAN tag."""
    return _frames_of_icmpv6(133)


def _frames_of_icmpv6(kind: int) -> list[bytes]:
    ethertype = struct.pack(">H", 0x86DD)
    return [
        *(_payload(0, 12, 2), compare(ethertype)),
        *(_payload(1, 6, 1), compare(bytes((ICMPV6,)))),
        *(_payload(1, 40, 1), compare(bytes((kind,)))),
    ]


def load_source_port(register: int = R0) -> bytes:
    return _payload(2, 0, 2, register)


def load_destination_port(register: int = R0) -> bytes:
    return _payload(2, 2, 2, register)


def _network(loaded: bytes, network: IPNetwork) -> list[bytes]:
    parts = [*family(IPV4 if network.version == 4 else IPV6)]
    if network.prefixlen:
        parts.append(loaded)
        if network.prefixlen < network.max_prefixlen:
            parts.append(_masked(network.netmask.packed))
        parts.append(compare(network.network_address.packed))
    return parts


def source(network: IPNetwork) -> list[bytes]:
    """Match packets from *network*, and so of its family."""
    return _network(load_source(network.version), network)


def destination(network: IPNetwork) -> list[bytes]:
    return _network(load_destination(network.version), network)


def destination_ports(first: int, last: int) -> list[bytes]:
    """Match the ports *first* to *last*, of TCP or UDP: after :func:`protocol`."""
    low, high = struct.pack(">H", first), struct.pack(">H", last)
    return [load_destination_port(), compare(low) if first == last else _between(low, high)]


def icmp_types(first: int, last: int) -> list[bytes]:
    """Of ICMP or ICMPv6: after :func:`protocol`."""
    low, high = bytes((first,)), bytes((last,))
    return [_payload(2, 0, 1), compare(low) if first == last else _between(low, high)]


def _any_bit(loaded: bytes, bits: int) -> list[bytes]:
    # Of the machine's byte order, other than addresses and ports.
    return [loaded, _masked(struct.pack("=I", bits)), compare(bytes(4), operation=NOT_EQUAL)]


def connection_state(bits: int) -> list[bytes]:
    return _any_bit(_connection(0), bits)


def connection_status(bits: int) -> list[bytes]:
    return _any_bit(_connection(2), bits)


def direction(which: int) -> list[bytes]:
    return [_connection(1), compare(bytes((which,)))]


def load_connection_source(which: int, register: int = R0) -> bytes:
    """The IPv4 address that began it (ORIGINAL), or that it was to (REPLY), as the host itself knows it."""
    return _connection(19, register, which)


def load_connection_source_port(which: int, register: int = R0) -> bytes:
    return _connection(11, register, which)


def look_up(name: str, *, key: int = R0, value: int | None = None, absent: bool = False) -> bytes:
    """Match where set *name* has the key, or (*absent*) hasn't; a map's value goes to register *value*."""
    parts = [_text(1, name), _u32(2, key)]
    if value is not None:
        parts.append(_u32(3, value))
    return _expression("lookup", *parts, _u32(5, 1 if absent else 0))


def renew(name: str, *, key: int = R0, value: int | None = None) -> bytes:
    """Put the key, and a map's value, into set *name*, or begin its time again."""
    update = 1
    parts = [_text(1, name), _u32(3, update), _u32(4, key)]
    if value is not None:
        parts.append(_u32(5, value))
    return _expression("dynset", *parts)


def masquerade(*, flags: int = 0, port: int | None = None) -> bytes:
    """:param port: the register that has the port to be sent from"""
    parts = [] if not flags else [_u32(1, flags)]
    if port is not None:
        parts += [_u32(2, port), _u32(3, port)]
    return _expression("masq", *parts)


def change_destination(version: int, address: int, port: int | None = None) -> bytes:
    """By what registers *address* and *port* have."""
    parts = [_u32(1, 1), _u32(2, IPV4 if version == 4 else IPV6), _u32(3, address), _u32(4, address)]
    if port is not None:
        parts += [_u32(5, port), _u32(6, port)]
    return _expression("nat", *parts)


def verdict(code: int) -> bytes:
    """ACCEPT or DROP."""
    return _expression("immediate", _u32(1, _VERDICT), _nested(2, _nested(2, _u32(1, code))))


def refuse(*, tcp: bool) -> bytes:
    """With a reset, or with ICMP's "administratively prohibited"."""
    kind, code = (1, 0) if tcp else (2, _ADMIN_PROHIBITED)
    return _expression("reject", _u32(1, kind), attribute(2, bytes((code,))))


def translate_prefix(name: str, inside: IPv6Network, outside: IPv6Network) -> bytes:
    """One of the kernel's two NPTv6 targets (RFC 6296), ``"SNPT"`` or ``"DNPT"``: struct ip6t_npt_tginfo, in which the
    kernel fills in the last two fields."""
    networks = (inside, outside) if name == "SNPT" else (outside, inside)
    prefixes = b"".join(network.network_address.packed for network in networks)
    lengths = bytes(network.prefixlen for network in networks)
    data = prefixes + lengths + bytes(2)
    return _expression("target", _text(1, name), _u32(2, 0), attribute(3, data.ljust((len(data) + 7) & ~7, b"\0")))
