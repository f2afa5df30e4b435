"""Carries out plans: synchronous, for one thread of its own. The kernel works inside each send, without the lock of
the interpreter; between two sends there is little Python, so that an event loop in another thread gets its turn."""

from __future__ import annotations

import contextlib
import errno
import functools
import struct
import time
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from nsorch.errors import NetlinkError
from nsorch.net import messages
from nsorch.net.mac import link_local
from nsorch.net.messages import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    VethEnd,
)
from nsorch.net.netlink import Netlink, NetnsHandle, Request
from nsorch.net.solicited import await_joined

if TYPE_CHECKING:
    import socket
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from nsorch.net.messages import Hop, LinkState
    from nsorch.net.plan import (
        Batch,
        BridgePlan,
        EndPlan,
        IPAddress,
        IPInterface,
        LinkPlan,
        Netns,
        NodePlan,
        PortPlan,
        PortVlans,
        RouteGroup,
        RoutePlan,
    )
    from nsorch.net.shaping import Shaper

_CARRIER_DEADLINE = 5.0
# What becomes of IPv6's where it is off: another program, or an MTU that is too small for it, may leave it so.
_NO_IPV6 = (errno.EACCES, errno.EAFNOSUPPORT, errno.EINVAL, errno.ENXIO)
# The kernel joins groups one after the other: where so many namespaces have, all have.
_LATEST = 16
_LOOPBACK = 1
# The group that links join to be deleted together: nobody else's number. So many hold the kernel's lock for some 0.1 s.
_DYING, _DELETED_AT_ONCE = 0x6E736F72, 512
_HOST_4, _HOST_6 = IPv4Network("0.0.0.0/32"), IPv6Network("::/128")


_Undo = tuple[Netlink, Request]


class Engine:
    """:param fabric: a NETLINK_ROUTE socket of the fabric; it stays its owner's"""

    def __init__(self, fabric: socket.socket) -> None:
        self.fabric = Netlink(fabric)

    @functools.cached_property
    def shaper(self) -> Shaper:
        """Imported with the first link that is emulated."""
        from nsorch.net.shaping import Shaper

        return Shaper(self.fabric)

    def execute(self, batch: Batch, namespaces: Mapping[Netns, NetnsHandle]) -> None:
        """Make all of *batch*; returns when every end has carrier.

        :raises NetlinkError: the first; what was made is undone
        """
        made: list[_Undo] = []
        try:
            for bridge in batch.bridges:
                self._make_bridge(bridge, made)
            for link in batch.links:
                self._make_link(link, namespaces, made)
            ends = _ends_by_netns(batch.links)
            nodes = _nodes_by_netns(batch.nodes)
            unready = {end.netns for link in batch.links for end in (link.a, link.b) if link.a.netns and link.b.netns}
            for netns in dict.fromkeys((*ends, *nodes)):
                if netns:
                    node = nodes.get(netns)
                    routes = () if node is None or netns in unready else node.routes
                    self._configure(namespaces[netns], ends.get(netns, []), node, routes)
            for number, (netns, own) in enumerate(ends.items(), 1):
                if netns:
                    there = self._await_running(namespaces[netns], [end for end in own if end.ipv6])
                    if number > len(ends) - _LATEST:
                        await_joined(Netlink(namespaces[netns].sock, namespaces[netns].name), there)
            for netns, node in nodes.items():
                if node.routes and netns in unready:  # not before: the other ends of links must be up
                    self.add_routes(namespaces[netns], node.routes)
                if node.groups:
                    self.add_groups(namespaces[netns], node.groups)
            self._join(batch.joining)
            self.fabric.execute(
                [Request(messages.set_link(index, up=True), "set up", str(index)) for index in batch.raised]
            )
        except NetlinkError as exc:
            self._undo(made, exc)
            raise

    def _make_bridge(self, plan: BridgePlan, made: list[_Undo]) -> None:
        data = messages.create_bridge(
            plan.ifname,
            index=plan.index,
            mtu=plan.mtu,
            mac=plan.mac,
            vlan_aware=plan.vlan_aware,
            forward_delay=plan.forward_delay,
            ageing=plan.ageing,
            multicast_snooping=plan.multicast_snooping,
        )
        self.fabric.execute([Request(data, "create bridge", plan.name)])
        made.append((self.fabric, Request(messages.delete_link(plan.index), "remove bridge", plan.name)))

    def _make_link(self, plan: LinkPlan, namespaces: Mapping[Netns, NetnsHandle], made: list[_Undo]) -> None:
        first, second = plan.a, plan.b
        if first.netns and (not second.netns or first.index is None):
            # The end in the fabric is the one that can be created up, and by which the pair is undone. The kernel heeds
            # the second's number only where the first has one (veth_newlink).
            first, second = second, first
        data = messages.create_veth(
            _veth_end(first, namespaces, up=not first.netns), _veth_end(second, namespaces, up=False)
        )
        requests = [Request(data, "create link", plan.name)]
        if not second.netns and second.master is not None and second.index is not None:
            # The kernel gives only the first end its master.
            data = messages.set_link(second.index, master=second.master)
            requests.append(Request(data, "make a port of", second.ifname))
        for end in (first, second):
            if end.vlans and end.index:
                requests.append(_port_vlans(RTM_NEWLINK, end.index, end.vlans))
            if not end.netns and end.index is not None and end.qdisc is not None:
                requests += self.shaper.requests(end.index, end.qdisc, end.ifname)
        self.fabric.execute(requests)
        if not first.netns and first.index is not None:
            made.append((self.fabric, Request(messages.delete_link(first.index), "remove link", plan.name)))
        elif first.netns:
            handle = namespaces[first.netns]
            request = Request(messages.delete_link(name=first.ifname), "remove link", plan.name)
            made.append((Netlink(handle.sock, handle.name), request))

    def _join(self, ports: Iterable[PortPlan]) -> None:
        """Those that are gone are no error."""
        requests = []
        for plan in ports:
            data = messages.set_link(plan.port, master=plan.master)
            requests.append(Request(data, "make a port of", str(plan.port)))
            if plan.vlans:
                requests.append(_port_vlans(RTM_NEWLINK, plan.port, plan.vlans))
        _raise_first(self.fabric.transact(requests))

    def _configure(
        self, handle: NetnsHandle, ends: Sequence[EndPlan], node: NodePlan | None, routes: Sequence[RoutePlan]
    ) -> None:
        """One datagram, where the indices are known in advance."""
        netlink = Netlink(handle.sock, handle.name)
        requests = []
        if node is not None and node.loopback:  # up already, unless the namespace is somebody else's
            requests.append(Request(messages.set_link(_LOOPBACK, up=True), "set up", "lo"))
            requests += [_add(_LOOPBACK, address, "lo") for address in node.loopback]
        indices = {}
        for end in ends:
            index = indices[end.ifname] = end.index or self._index(netlink, end.ifname)
            requests.append(
                Request(messages.set_link(index, no_ipv6_addresses=True), "turn off IPv6 addresses of", end.ifname)
            )
            # First up: of addresses that were there before, the kernel adds routes later, without a word if it can't.
            requests.append(Request(messages.set_link(index, up=True), "set up", end.ifname))
            requests += [_add(index, address, end.ifname) for address in end.all_addresses]
            requests += [_neighbour(index, ip, mac) for ip, mac in end.neighbours]
            if end.qdisc is not None:
                requests += self.shaper.requests(index, end.qdisc, end.ifname)
        for route in routes:
            for hop in route.nexthops:
                if hop.dev not in indices:
                    indices[hop.dev] = self._index(netlink, hop.dev)
            requests.append(_route(RTM_NEWROUTE, "add route to", route, indices))
        # A kernel without IPv6 has no address generation to turn off.
        failed = [
            error
            for error in netlink.transact(requests)
            if not (error.operation.startswith("turn off") and error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP))
        ]
        if failed:
            raise failed[0]

    def _await_running(self, handle: NetnsHandle, ends: Collection[EndPlan]) -> list[tuple[int, IPInterface]]:
        """Carrier is there with the answer that both ends are up; the kernel's own notice of it, for which IPv6 waits,
        comes later. Gives all their addresses, by ifindex."""
        netlink = Netlink(handle.sock, handle.name)
        deadline = time.monotonic() + _CARRIER_DEADLINE
        there = []
        for end in ends:
            while not (state := self.link_state(netlink, end.ifname)).running:
                if time.monotonic() > deadline:
                    raise NetlinkError("wait for carrier of", end.ifname, errno=errno.ETIMEDOUT, worker=handle.name)
                time.sleep(0.001)
            there += [(state.index, address) for address in end.all_addresses]
        return there

    def await_ports(self, ports: Iterable[int]) -> None:
        """A bridge lets nothing through a port before the kernel's own notice of its carrier."""
        deadline = time.monotonic() + _CARRIER_DEADLINE
        for index in ports:
            request = Request(messages.get_link(index), "look at", str(index))
            with contextlib.suppress(NetlinkError):  # it may be gone already
                while time.monotonic() < deadline:
                    state = messages.parse_link(self.fabric.ask(request))
                    if state.running or not (state.up and state.carrier):
                        break
                    time.sleep(0.001)

    def _undo(self, made: list[_Undo], failure: NetlinkError) -> None:
        for netlink, request in reversed(made):
            with contextlib.suppress(NetlinkError):
                for error in netlink.transact([request]):
                    if error.errno != errno.ENODEV:
                        failure.add_note(str(error))

    @staticmethod
    def link_state(netlink: Netlink, name: str) -> LinkState:
        return messages.parse_link(netlink.ask(Request(messages.get_link(name=name), "look at", name)))

    def _index(self, netlink: Netlink, name: str) -> int:
        return self.link_state(netlink, name).index

    # -- changes at run time; a handle of None means the fabric

    def _netlink(self, handle: NetnsHandle | None) -> Netlink:
        return self.fabric if handle is None else Netlink(handle.sock, handle.name)

    def set_link(
        self,
        handle: NetnsHandle | None,
        name: str,
        *,
        up: bool | None = None,
        mtu: int | None = None,
        master: int | None = None,
    ) -> None:
        """Change a link.

        :raises NetlinkError: the kernel refused
        """
        data = messages.set_link(name=name, up=up, mtu=mtu, master=master)
        self._netlink(handle).execute([Request(data, "change link", name)])

    def delete_links(self, handle: NetnsHandle | None, links: Iterable[int | str]) -> None:
        """Delete links by ifindex or name, and their peers with them. Those that are gone are no error."""
        netlink = self._netlink(handle)
        links = list(links)
        for start in range(0, len(links), _DELETED_AT_ONCE):
            some = links[start : start + _DELETED_AT_ONCE]
            if len(some) == 1:
                name = some[0]
                data = messages.delete_link(name) if isinstance(name, int) else messages.delete_link(name=name)
                requests = [Request(data, "remove link", str(name))]
            else:
                requests = [self._into_group(name) for name in some]
                requests.append(Request(messages.delete_group(_DYING), "remove links", f"{some[0]} to {some[-1]}"))
            failed = [error for error in netlink.transact(requests) if error.errno != errno.ENODEV]
            if failed:
                raise failed[0]

    @staticmethod
    def _into_group(link: int | str) -> Request:
        index, name = (link, None) if isinstance(link, int) else (0, link)
        return Request(messages.set_link(index, name=name, group=_DYING), "remove link", str(link))

    def add_routes(self, handle: NetnsHandle, routes: Sequence[RoutePlan]) -> None:
        """Add routes, or replace those to the same destinations.

        :raises NetlinkError: the first that the kernel refused
        """
        self._route(handle, RTM_NEWROUTE, "add route to", routes)

    def remove_hosts(self, handle: NetnsHandle, destinations: Iterable[bytes]) -> None:
        """Remove the routes to hosts, by their packed addresses; those that aren't there are no error."""
        netlink = Netlink(handle.sock, handle.name)
        by_size: dict[int, list[bytes]] = {4: [], 16: []}
        for packed in destinations:
            by_size[len(packed)].append(packed)
        for size, version, network in ((4, 4, _HOST_4), (16, 6, _HOST_6)):
            packed = b"".join(by_size[size])
            if packed:
                template = messages.route(RTM_DELROUTE, network, [])
                fields = [messages.route_destinations(version, packed)]
                name = partial(_packed_address, packed, size)
                _raise_first(netlink.send_copies(template, fields, "remove route to", name))

    def add_groups(self, handle: NetnsHandle, groups: Sequence[RouteGroup]) -> None:
        """Add routes, or replace those to the same destinations, many in a datagram.

        :raises NetlinkError: the first that the kernel refused
        """
        netlink = Netlink(handle.sock, handle.name)
        indices = {name: self._index(netlink, name) for name in {hop.dev for group in groups for hop in group.nexthops}}
        for group in groups:
            size, network = (4, _HOST_4) if group.version == 4 else (16, _HOST_6)
            hops = [(hop.via, indices[hop.dev]) for hop in group.nexthops]
            template = messages.route(
                RTM_NEWROUTE, network, hops, source=group.source, hop_limit=group.hop_limit, replace=True
            )
            for error in netlink.send_copies(
                template,
                [messages.route_destinations(group.version, group.destinations)],
                "add route to",
                partial(_packed_address, group.destinations, size),
            ):
                raise error

    def restore_end(self, handle: NetnsHandle, end: EndPlan) -> None:
        """Give an end that was down what the kernel has dropped: its IPv6 addresses, unless IPv6 is off there, and its
        neighbours."""
        netlink = Netlink(handle.sock, handle.name)
        index = self._index(netlink, end.ifname)
        again = [address for address in end.all_addresses if address.version == 6]
        requests = []
        if again:  # with a short MTU meanwhile, the kernel has generated an address again
            requests.append(
                Request(messages.set_link(index, no_ipv6_addresses=True), "turn off IPv6 addresses of", end.ifname)
            )
            listed = netlink.dump(Request(messages.dump_addresses(), "list addresses of", end.ifname), RTM_NEWADDR)
            tentative = {messages.parse_tentative(body) for body in listed}
            requests += [
                Request(messages.address(RTM_DELADDR, index, address), f"remove {address} of", end.ifname)
                for address in again
                if (index, address.packed) in tentative
            ]
        requests += [_add(index, address, end.ifname) for address in again]
        requests += [_neighbour(index, ip, mac) for ip, mac in end.neighbours]
        failed = [error for error in netlink.transact(requests) if error.errno != errno.EEXIST]
        _raise_first([error for error in failed if error.errno not in _NO_IPV6])
        if not failed:
            await_joined(netlink, [(index, address) for address in again])

    def change_mac(self, handle: NetnsHandle, end: EndPlan, mac: bytes) -> None:
        """Give *end* another hardware address, and the link-local address that goes with it."""
        netlink = Netlink(handle.sock, handle.name)
        index = self._index(netlink, end.ifname)
        _raise_first(netlink.transact([Request(messages.set_link(index, mac=mac), "change the MAC of", end.ifname)]))
        if end.ipv6:
            requests = [_add(index, link_local(mac), end.ifname)]
            if end.mac is not None:
                old = messages.address(RTM_DELADDR, index, link_local(end.mac))
                requests.insert(0, Request(old, "remove the link-local address of", end.ifname))
            failed = [error for error in netlink.transact(requests) if error.errno != errno.EADDRNOTAVAIL]
            _raise_first([error for error in failed if error.errno not in _NO_IPV6])
            if not failed:
                await_joined(netlink, [(index, link_local(mac))])

    def remove_routes(self, handle: NetnsHandle, routes: Sequence[RoutePlan]) -> None:
        self._route(handle, RTM_DELROUTE, "remove route to", routes)

    def _route(self, handle: NetnsHandle, kind: int, operation: str, routes: Sequence[RoutePlan]) -> None:
        netlink = Netlink(handle.sock, handle.name)
        indices = {"lo": _LOOPBACK}
        for name in {hop.dev for plan in routes for hop in plan.nexthops} - indices.keys():
            indices[name] = self._index(netlink, name)
        slice_ = 64
        for start in range(0, len(routes), slice_):
            netlink.execute([_route(kind, operation, plan, indices) for plan in routes[start : start + slice_]])

    def change_addresses(
        self, handle: NetnsHandle, name: str, *, add: Iterable[IPInterface] = (), remove: Iterable[IPInterface] = ()
    ) -> None:
        """Give interface *name* other addresses.

        :raises NetlinkError: the first that the kernel refused
        """
        netlink = Netlink(handle.sock, handle.name)
        index = self._index(netlink, name)
        add = list(add)
        requests = [
            Request(messages.address(RTM_DELADDR, index, address), f"remove {address} of", name) for address in remove
        ]
        requests += [_add(index, address, name) for address in add]
        # Another program may have been faster.
        done = (errno.EADDRNOTAVAIL, errno.EEXIST)
        _raise_first([error for error in netlink.transact(requests) if error.errno not in done])
        await_joined(netlink, [(index, address) for address in add])

    def forget_neighbours(self, handle: NetnsHandle, neighbours: Iterable[tuple[int | str, IPAddress]]) -> None:
        """Drop (interface, address) from the neighbour tables; those that aren't there are no error."""
        netlink = Netlink(handle.sock, handle.name)
        requests = [
            Request(messages.delete_neighbour(self._resolve(netlink, link), ip), "forget neighbour", str(ip))
            for link, ip in neighbours
        ]
        _raise_first(netlink.transact(requests))

    def forget_asked(self, handle: NetnsHandle, name: str) -> None:
        """Drop the neighbours of interface *name* that it had to ask for, as a cable does that is pulled."""
        netlink = Netlink(handle.sock, handle.name)
        index = self._index(netlink, name)
        listed = netlink.dump(Request(messages.dump_neighbours(), "list neighbours of", name), RTM_NEWNEIGH)
        learnt = [messages.parse_learnt(body) for body in listed]
        self.forget_neighbours(handle, [found for found in learnt if found is not None and found[0] == index])

    def _resolve(self, netlink: Netlink, link: int | str) -> int:
        return self._index(netlink, link) if isinstance(link, str) else link

    # -- what bridges and gateways know, so that nobody has to ask

    def set_vlans(self, port: int, before: PortVlans | None, after: PortVlans) -> None:
        """Put the *port* of a VLAN-aware bridge into VLANs, instead of those that it was in *before*."""
        requests = [] if before is None else [_port_vlans(RTM_DELLINK, port, before)]
        self.fabric.execute([*requests, _port_vlans(RTM_NEWLINK, port, after)])

    def forward(self, kind: int, entries: Sequence[tuple[int, bytes, int]]) -> None:
        """Add or delete (*kind*) static entries of a bridge: (port, hardware address, VLAN, or 0 where it has none)."""
        if not entries:
            return
        indices = struct.pack(f"={len(entries)}I", *(port for port, _, _ in entries))
        macs = b"".join([mac for _, mac, _ in entries])
        vlans = struct.pack(f"={len(entries)}H", *(vlan for _, _, vlan in entries)) if entries[0][2] else b""
        _raise_first(
            self.fabric.send_copies(
                messages.forwarding(kind, 0, bytes(6), 0 if vlans else None),
                messages.forwarding_entries(indices, macs, vlans),
                "set the forwarding entry of",
                lambda number: entries[number][1].hex(":"),
            )
        )

    def tell_neighbours(
        self, handle: NetnsHandle | None, kind: int, link: int | str, known: Sequence[tuple[IPAddress, bytes]]
    ) -> None:
        """Add or delete (*kind*) permanent neighbours behind interface *link*: (address, hardware address). Where IPv6
        is off there are none of it."""
        netlink = self._netlink(handle)
        index = self._resolve(netlink, link)
        for version in (4, 6):
            some = [(ip, mac) for ip, mac in known if ip.version == version]
            if some:
                packed = b"".join([ip.packed for ip, _ in some])
                template = messages.neighbour(kind, index, IPv4Address(0) if version == 4 else IPv6Address(0), bytes(6))
                fields = messages.neighbours(version, packed, b"".join([mac for _, mac in some]))
                errors = netlink.send_copies(
                    template, fields, "set the neighbour", partial(_packed_address, packed, len(packed) // len(some))
                )
                _raise_first([error for error in errors if version == 4 or error.errno not in _NO_IPV6])

    def answer_arp(self, ports: Iterable[int]) -> None:
        """Have bridges answer for the hosts behind *ports* that they have been told of."""
        requests = [Request(messages.answer_arp(port), "answer ARP for port", str(port)) for port in ports]
        _raise_first(self.fabric.transact(requests))

    def join_group(self, links: Iterable[int], group: int) -> None:
        """Put links of the fabric into a *group*; those that are gone are no error."""
        requests = [Request(messages.set_link(link, group=group), "change the group of", str(link)) for link in links]
        _raise_first(self.fabric.transact(requests))

    def forget_learnt(self, ports: Iterable[int]) -> None:
        """Drop what bridges have learnt to be behind *ports*; those that are gone are no error."""
        requests = [Request(messages.forget_learnt(port), "flush port", str(port)) for port in ports]
        _raise_first(self.fabric.transact(requests))

    def list_links(self, handle: NetnsHandle | None) -> list[LinkState]:
        """All interfaces there."""
        found = self._netlink(handle).dump(Request(messages.dump_links(), "list", "links"), RTM_NEWLINK)
        return [messages.parse_link(body) for body in found]

    def list_host_routes(self, handle: NetnsHandle) -> dict[bytes, tuple[Hop, ...]]:
        """By the packed addresses of all hosts that there is a route to, to each alone."""
        netlink = Netlink(handle.sock, handle.name)
        found: dict[bytes, tuple[Hop, ...]] = {}
        for version in (4, 6):
            for body in netlink.dump(Request(messages.dump_routes(version), "list", "routes"), RTM_NEWROUTE):
                route = messages.parse_host_route(body)
                if route is not None:
                    found[route[0]] = (*found.get(route[0], ()), *route[1])  # IPv6 has equal paths one by one
        return found


def _raise_first(errors: Sequence[NetlinkError]) -> None:
    """But for what was to be deleted and isn't there."""
    for error in errors:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ESRCH):
            raise error


def _packed_address(packed: bytes, size: int, number: int) -> str:
    return str(ip_address(packed[number * size : (number + 1) * size]))


def _port_vlans(kind: int, port: int, vlans: PortVlans) -> Request:
    return Request(messages.port_vlans(kind, port, vlans.pvid, vlans.tagged), "set the VLANs of port", str(port))


def _route(kind: int, operation: str, plan: RoutePlan, indices: Mapping[str, int]) -> Request:
    hops = [(hop.via, indices[hop.dev]) for hop in plan.nexthops]
    data = messages.route(
        kind, plan.destination, hops, source=plan.source, metric=plan.metric, table=plan.table, replace=True
    )
    return Request(data, operation, str(plan.destination))


def _neighbour(index: int, ip: IPAddress, mac: bytes) -> Request:
    return Request(messages.neighbour(RTM_NEWNEIGH, index, ip, mac), "add neighbour", str(ip))


def _add(index: int, address: IPInterface, name: str) -> Request:
    return Request(messages.address(RTM_NEWADDR, index, address), f"add {address} to", name)


def _veth_end(plan: EndPlan, namespaces: Mapping[Netns, NetnsHandle], *, up: bool) -> VethEnd:
    return VethEnd(
        ifname=plan.ifname,
        index=plan.index or 0,
        netns=namespaces[plan.netns].fd if plan.netns else None,
        mac=plan.mac,
        mtu=plan.mtu,
        master=plan.master,
        up=up,
    )


def _nodes_by_netns(nodes: Iterable[NodePlan]) -> dict[Netns, NodePlan]:
    """Several calls at one time may each have something for the same one."""
    found: dict[Netns, NodePlan] = {}
    for node in nodes:
        before = found.get(node.netns)
        found[node.netns] = node if before is None else before.and_also(node)
    return found


def _ends_by_netns(links: Iterable[LinkPlan]) -> dict[Netns, list[EndPlan]]:
    found: dict[Netns, list[EndPlan]] = {}
    for link in links:
        for end in (link.a, link.b):
            found.setdefault(end.netns, []).append(end)
    return found
