"""Which addresses are given to whom: pure book-keeping, before anything is made."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import TYPE_CHECKING

from nsorch.errors import AddressError, SubnetFullError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

# 100.64.0.0/10 is for networks that nobody routes to (RFC 6598), fd00::/8 for everybody's own (RFC 4193).
_LINKS_4, _LOOPBACKS_4 = IPv4Network("100.64.0.0/11"), IPv4Network("100.96.0.0/11")
_LINKS_6, _LOOPBACKS_6 = IPv6Network("fd6e:736f:7263::/48"), IPv6Network("fd6e:736f:7264::/48")


class Segment:
    """The subnets of one layer-2 segment, at most one of each family, and who has which address of them.

    :param where: what it belongs to, for errors
    """

    def __init__(self, networks: Iterable[IPNetwork], where: str) -> None:
        self.networks = tuple(networks)
        self._where = where
        # By packed addresses: the garbage collector needn't look at these.
        self._owners: dict[bytes, str] = {}
        self._kept: dict[bytes, str] = {}  # for a gateway that comes later
        self._next = {network: _first(network) for network in self.networks}
        if len({network.version for network in self.networks}) < len(self.networks):
            raise AddressError(f"{where}: more than one subnet of a family: {', '.join(map(str, self.networks))}")

    def reserve(self, address: IPAddress | IPInterface | str, owner: str, *, gateway: str | None = None) -> IPInterface:
        """Give *owner* this address, and return it with its subnet's length.

        :param gateway: the worker's name: it may be one that is kept for this gateway
        :raises AddressError: it is in none of the subnets, is no host's, or is taken
        """
        try:
            given = ip_interface(str(address))
        except ValueError:
            raise AddressError(f'{self._where}: "{address}" is not an IP address') from None
        ip = given.ip
        for network in self.networks:
            if ip in network:
                break
        else:
            names = " and ".join(map(str, self.networks)) or "without subnet"
            raise AddressError(f"{self._where}: {ip} of {owner} is outside of the subnet {names}")
        if given.network.prefixlen not in (network.prefixlen, network.max_prefixlen):
            raise AddressError(f"{self._where}: {given} of {owner} has another length than its subnet {network}")
        if not _first(network) <= int(ip) <= _last(network):
            raise AddressError(f"{self._where}: {ip} of {owner} is no host's address in {network}")
        if ip.packed in self._owners and not self._is_kept_for(gateway, ip.packed):
            raise AddressError(f"{self._where}: {ip} of {owner} is used by {self._owners[ip.packed]} already")
        self._owners[ip.packed] = owner
        return _interface(network, int(ip))

    def retake(self, addresses: Iterable[IPInterface], owner: str) -> None:
        """They stay those of *owner*, who may be called otherwise now: nobody else has had a chance to get them."""
        self._owners.update((address.packed, owner) for address in addresses)

    def absorb(self, other: Segment) -> None:
        """Take over the addresses of *other*, which has the same subnets, or none.

        :raises AddressError: one of them is used by two; nothing was taken
        """
        for packed in other._owners.keys() & self._owners.keys():
            if self._owners[packed] != other._owners[packed]:  # else it is kept for their gateway
                raise AddressError(
                    f"{self._where}: {ip_address(packed)} is used by {self._owners[packed]} and {other._owners[packed]}"
                )
        self._owners |= other._owners
        self._kept |= other._kept

    def is_free(self, ip: IPAddress) -> bool:
        """Whether it could be reserved."""
        return ip.packed not in self._owners and any(
            ip in network and _first(network) <= int(ip) <= _last(network) for network in self.networks
        )

    def owner_of(self, ip: IPAddress) -> str:
        """Who has reserved it, or an empty text."""
        return self._owners.get(ip.packed, "")

    def _is_kept_for(self, gateway: str | None, packed: bytes) -> bool:
        return gateway is not None and self._kept.get(packed) == self._owners.get(packed) == gateway

    def reserve_first(self, gateway: str) -> tuple[IPInterface, ...]:
        """Keep the first address of each subnet for worker *gateway*, whenever it comes."""
        kept = tuple(self.reserve(network[_first_offset(network)], gateway) for network in self.networks)
        self._kept.update((address.packed, gateway) for address in kept)
        return kept

    def allocate(
        self,
        owner: str,
        *,
        gateway: str | None = None,
        without: Collection[int] = (),
        avoid: Collection[bytes] = (),
    ) -> tuple[IPInterface, ...]:
        """The next free address of each subnet; those kept for it if *gateway* is the segment's.

        :param without: IP versions of which none is wanted
        :param avoid: packed addresses that others are going to reserve
        :raises SubnetFullError: there is none
        """
        given: list[IPInterface] = []
        have = set(without)
        for network in self.networks:
            first = _first(network)
            packed = _packed(network, first)
            if self._is_kept_for(gateway, packed) and packed not in avoid and network.version not in have:
                self._owners[packed] = owner
                given.append(_interface(network, first))
                have.add(network.version)
        try:
            for network in self.networks:
                if network.version not in have:
                    given.append(self._allocate(network, owner, avoid))  # noqa: PERF401 - what is given counts after an error
        except SubnetFullError:
            self.release(given)
            raise
        return tuple(given)

    def _allocate(self, network: IPNetwork, owner: str, avoid: Collection[bytes]) -> IPInterface:
        last = _last(network)
        first = _first(network)
        number = self._next[network]
        for wrapped in (False, True):
            while number <= last:
                packed = _packed(network, number)
                number += 1
                if packed not in self._owners and packed not in avoid:
                    self._owners[packed] = owner
                    self._next[network] = number
                    return _interface(network, number - 1)
            if not wrapped:
                # Once round: addresses that were given back.
                number = first
        raise SubnetFullError(f"{self._where}: no address is left in {network} for {owner}")

    def release(self, addresses: Iterable[IPInterface]) -> None:
        """Take back *addresses* that were given; a gateway's are kept for the next worker of its name."""
        for address in addresses:
            packed = address.packed
            if packed in self._kept:
                self._owners[packed] = self._kept[packed]
                continue
            del self._owners[packed]
            for network in self.networks:
                if address.ip in network:
                    self._next[network] = min(self._next[network], int(address))


def _packed(network: IPNetwork, number: int) -> bytes:
    return number.to_bytes(network.max_prefixlen // 8)


def _interface(network: IPNetwork, number: int) -> IPInterface:
    """Address *number*, that is in *network*."""
    make = IPv4Interface if network.version == 4 else IPv6Interface
    interface: IPInterface = make((number, network.prefixlen))
    interface.network = network  # equal to its own, but one for all
    return interface


def _first_offset(network: IPNetwork) -> int:
    return 0 if network.prefixlen >= network.max_prefixlen - 1 else 1


def _first(network: IPNetwork) -> int:
    """The first host's address: not the network's own, but for /31, /32, /127 and /128 (RFC 3021, RFC 6164)."""
    return int(network.network_address) + _first_offset(network)


def _last(network: IPNetwork) -> int:
    last = int(network.broadcast_address)
    return last if network.version == 6 or network.prefixlen >= 31 else last - 1


class _Slices:
    """Subnets of one length out of a range, but for what is excluded; given back ones are used again last."""

    def __init__(self, range_: IPNetwork, length: int, excluded: list[IPNetwork]) -> None:
        self._range = range_
        self._excluded = excluded
        self._length = length
        self._step = 1 << (range_.max_prefixlen - length)
        self._next = int(range_.network_address) + (1 if self._step == 1 else 0)
        self._back: list[IPNetwork] = []

    def take(self, what: str) -> IPNetwork:
        while self._next <= int(self._range.broadcast_address):
            network: IPNetwork = ip_network((self._next, self._length))
            other = self._overlapping(network)
            if other is None:
                self._next += self._step
                return network
            # Behind it, however large it is.
            self._next += -(-(int(other.broadcast_address) + 1 - self._next) // self._step) * self._step
        while self._back:
            if self._overlapping(network := self._back.pop(0)) is None:
                return network
        raise SubnetFullError(f"no subnet is left in {self._range} for {what}")

    def _overlapping(self, network: IPNetwork) -> IPNetwork | None:
        return next((o for o in self._excluded if o.version == network.version and network.overlaps(o)), None)

    def give_back(self, network: IPNetwork) -> None:
        self._back.append(network)


class PointToPointPool:
    """A /31 and a /127 for each link without a subnet."""

    def __init__(self, ipv4: IPv4Network = _LINKS_4, ipv6: IPv6Network = _LINKS_6) -> None:
        self._excluded: list[IPNetwork] = []
        self._slices = (_Slices(ipv4, 31, self._excluded), _Slices(ipv6, 127, self._excluded))

    def exclude(self, network: IPNetwork) -> None:
        """Never give out what overlaps *network*, which the user has chosen."""
        self._excluded.append(network)

    def take(self, where: str) -> Segment:
        return Segment([slices.take(where) for slices in self._slices], where)


class LoopbackPool:
    """A /32 and a /128 for each routed worker."""

    def __init__(self, ipv4: IPv4Network = _LOOPBACKS_4, ipv6: IPv6Network = _LOOPBACKS_6) -> None:
        self._slices = (_Slices(ipv4, 32, []), _Slices(ipv6, 128, []))

    def take(self, worker: str) -> tuple[IPInterface, ...]:
        return tuple(ip_interface(str(slices.take(worker))) for slices in self._slices)
