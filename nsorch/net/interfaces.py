"""Interfaces other than veth pairs and bridges: rare messages, encoded by pyroute2, which is imported when first
needed. Synchronous, for the thread that waits for the kernel."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from nsorch.errors import NetlinkError
from nsorch.net import messages
from nsorch.net.engine import Engine
from nsorch.net.mac import link_local as link_local_address
from nsorch.net.messages import RTM_DELADDR, RTM_DELNEIGH, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWNEIGH
from nsorch.net.netlink import Netlink, Request
from nsorch.net.solicited import await_joined
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from nsorch.net.messages import LinkState
    from nsorch.net.netlink import NetnsHandle
    from nsorch.net.plan import IPAddress, IPInterface

_CARRIER_DEADLINE = 5.0
_CREATE_EXCLUSIVE = 0x400 | 0x200
_PROBE = "nsorch-probe"
#: kernels without the option of the last one ignore what asks for it
VLAN_FILTERING = "bridge VLAN filtering"


@frozen(kw_only=True, eq=False, repr=False)
class InterfacePlan(Value):
    """An interface in a network namespace that is no end of a veth pair.

    :ivar kind: as the kernel calls it
    :ivar data: its own attributes, as pyroute2 names them
    :ivar index: ifindex to be given, or None to let the kernel choose
    :ivar parent: the interface that it is above
    :ivar ports: interfaces that become ports of it
    :ivar carrier: whether it has any without a program's doing, and is waited for
    :ivar link_local: whether it has a link-local address with IPv6 ones
    """

    ifname: str
    kind: str
    data: tuple[tuple[str, Any], ...] = ()
    index: int | None = None
    parent: str | None = None
    ports: tuple[str, ...] = ()
    mac: bytes | None = None
    mtu: int | None = None
    addresses: tuple[IPInterface, ...] = ()
    carrier: bool = True
    link_local: bool = True


def create(plan: InterfacePlan, parent: int | None) -> bytes:
    """The message that makes it. *parent*: the ifindex of ``plan.parent``."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

    info: list[list[Any]] = [["IFLA_INFO_KIND", plan.kind]]
    if plan.data:
        info.append(["IFLA_INFO_DATA", {"attrs": [[name, value] for name, value in plan.data]}])
    attributes: list[list[Any]] = [["IFLA_IFNAME", plan.ifname], ["IFLA_LINKINFO", {"attrs": info}]]
    if parent is not None:
        attributes.append(["IFLA_LINK", parent])
    if plan.mac is not None:
        attributes.append(["IFLA_ADDRESS", plan.mac.hex(":")])
    if plan.mtu is not None:
        attributes.append(["IFLA_MTU", plan.mtu])
    message = ifinfmsg()
    message["index"] = plan.index or 0
    message["attrs"] = attributes
    message["header"]["type"] = RTM_NEWLINK
    message["header"]["flags"] = messages.NLM_F_REQUEST | _CREATE_EXCLUSIVE
    message.encode()
    return bytes(message.data)


def make(handle: NetnsHandle, plan: InterfacePlan) -> LinkState:
    """Make the interface, give it its ports and addresses, and set it up; returns when it has carrier.

    :raises NetlinkError: the kernel refused; what was made is undone
    """
    netlink = Netlink(handle.sock, handle.name)
    parent = None if plan.parent is None else Engine.link_state(netlink, plan.parent).index
    ports = [Engine.link_state(netlink, port) for port in plan.ports]
    netlink.execute([Request(create(plan, parent), "create interface", plan.ifname)])
    try:
        made = Engine.link_state(netlink, plan.ifname)
        for port in ports:
            if plan.kind == "bond":  # which takes only ports that are down, and sets them up itself
                down = Request(messages.set_link(port.index, up=False), "set down", port.name)
                netlink.execute([down, Request(messages.set_link(port.index, master=made.index), "bond", port.name)])
            else:
                join = messages.set_link(port.index, master=made.index)
                netlink.execute([Request(join, f"make a port of {plan.ifname}", port.name)])
        set_up(handle, plan.ifname, plan.addresses, carrier=plan.carrier, link_local=plan.link_local)
        return Engine.link_state(netlink, plan.ifname)
    except NetlinkError:
        with contextlib.suppress(NetlinkError):
            delete(handle, [plan.ifname])
        raise


def set_up(
    handle: NetnsHandle,
    name: str,
    addresses: Iterable[IPInterface],
    *,
    carrier: bool,
    link_local: bool = True,
    mac: bytes | None = None,
    mtu: int | None = None,
) -> None:
    """Set it up, and give it those of *addresses* that it hasn't got.

    :param carrier: whether to wait for it
    :param link_local: with IPv6 addresses it has a link-local one as well
    """
    netlink = Netlink(handle.sock, handle.name)
    if mac is not None or mtu is not None:
        netlink.execute([Request(messages.set_link(name=name, mac=mac, mtu=mtu), "change", name)])
    state = Engine.link_state(netlink, name)
    requests = [
        Request(messages.set_link(state.index, no_ipv6_addresses=True), "turn off IPv6 addresses of", name),
        Request(messages.set_link(state.index, up=True), "set up", name),
    ]
    own = list(addresses)
    if link_local and len(state.mac) == 6 and any(address.version == 6 for address in own):
        own.append(link_local_address(state.mac))
    requests += [
        Request(messages.address(RTM_NEWADDR, state.index, address), f"add {address} to", name) for address in own
    ]
    for error in netlink.transact(requests):
        no_ipv6 = error.operation.startswith("turn off") and error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
        if not no_ipv6 and error.errno != errno.EEXIST:
            raise error
    deadline = time.monotonic() + _CARRIER_DEADLINE
    while carrier and not Engine.link_state(netlink, name).running:
        if time.monotonic() > deadline:
            raise NetlinkError("wait for carrier of", name, errno=errno.ETIMEDOUT, worker=handle.name)
        time.sleep(0.002)
    await_joined(netlink, [(state.index, address) for address in own])


def strip(handle: NetnsHandle, name: str, addresses: Sequence[IPInterface]) -> None:
    """Take from a port of a bond what addresses it had; those that are gone are no error."""
    netlink = Netlink(handle.sock, handle.name)
    index = Engine.link_state(netlink, name).index
    requests = [
        Request(messages.address(RTM_DELADDR, index, address), f"remove {address} of", name) for address in addresses
    ]
    for error in netlink.transact(requests):
        if error.errno != errno.EADDRNOTAVAIL:
            raise error


def delete(handle: NetnsHandle, names: Sequence[str]) -> None:
    """Those that are gone are no error."""
    netlink = Netlink(handle.sock, handle.name)
    requests = [Request(messages.delete_link(name=name), "remove interface", name) for name in names]
    for error in netlink.transact(requests):
        if error.errno != errno.ENODEV:
            raise error


def change_ends(handle: NetnsHandle, name: str, *, add: Sequence[IPAddress], remove: Sequence[IPAddress]) -> None:
    """Have a VXLAN interface send to other ends, and forget which hosts it has learned to be behind those that go."""
    netlink = Netlink(handle.sock, handle.name)
    index = Engine.link_state(netlink, name).index
    entries = [(RTM_DELNEIGH, address, bytes(6)) for address in remove]
    if remove:
        gone = {address.packed: address for address in remove}
        for body in netlink.dump(Request(messages.dump_forwarding(), "list", "forwarding entries"), RTM_NEWNEIGH):
            where, mac, end = messages.parse_forwarding(body)
            if where == index and end in gone and any(mac):
                entries.append((RTM_DELNEIGH, gone[end], mac))
    entries += [(RTM_NEWNEIGH, address, bytes(6)) for address in add]
    requests = [
        Request(messages.tunnel_end(kind, index, address, mac), f"set the far ends of {name}:", str(address))
        for kind, address, mac in entries
    ]
    for error in netlink.transact(requests):
        if error.errno not in (errno.EEXIST, errno.ENOENT):
            raise error


def look_at(handle: NetnsHandle, name: str) -> LinkState:
    return Engine.link_state(Netlink(handle.sock, handle.name), name)


def supports(netlink: Netlink, kind: str) -> bool:
    """Whether this kernel knows interfaces of *kind*, if need be after loading a module. Tried out: nothing is left."""
    if kind == VLAN_FILTERING:
        data = messages.create_bridge(_PROBE, vlan_aware=True)
    else:
        data = messages.create_of_kind(_PROBE, kind)
    errors = netlink.transact([Request(data, "try", kind)])
    if errors:  # known kinds want more than a name
        return errors[0].errno != errno.EOPNOTSUPP
    try:
        if kind == VLAN_FILTERING:
            return messages.is_vlan_aware(netlink.ask(Request(messages.get_link(name=_PROBE), "look at", _PROBE)))
        return True
    finally:
        netlink.execute([Request(messages.delete_link(name=_PROBE), "remove", _PROBE)])
