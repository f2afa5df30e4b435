"""Interfaces, VLANs and options of bridges as values, in files and in messages: nothing here asks a kernel for them."""

from __future__ import annotations

import base64
from ipaddress import ip_address, ip_interface, ip_network

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import wgmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

import nsorch
from nsorch import AddressError, Bond, Dummy, Ipvlan, Macvlan, Topology, TopologyError, Tun, Vlan, Vrf, Vxlan, WireGuard
from nsorch.net import interfaces as net
from nsorch.net import messages
from nsorch.net.interfaces import InterfacePlan
from nsorch.net.wireguard import Peer, _attributes, set_device
from nsorch.topology.difference import difference

pytestmark = pytest.mark.once

KEY = base64.b64encode(bytes(range(32))).decode()


def described() -> Topology:
    """Every kind, with everything that isn't a default."""
    topology = Topology("objects")
    topology.bridge(
        "trunk",
        "10.0.0.0/24",
        vlan_aware=True,
        vlans={10: "10.0.10.0/24", 20: ("10.0.20.0/24", "fd20::/64")},
        stp=True,
        forward_delay="4s",
        ageing="20s",
        multicast_snooping=True,
    )
    topology.worker(
        "r",
        links=[nsorch.To("trunk", tagged=[20, 10], vlan=1), nsorch.To("trunk", name="up0", tagged=20)],
        interfaces=[
            Vlan("eth0.10", parent="eth0", id=10, protocol="802.1AD", address="10.0.10.9/24", mtu=1400),
            Macvlan("mv", parent="eth0", mode="private", mac="02:00:00:00:00:09"),
            Ipvlan("iv", parent="eth0", mode="l3s"),
            Dummy("d0", address=["10.9.0.1/32", "fd09::1/128"]),
            Vxlan("vx", id=7, remote=["w", "10.0.0.77"], local="10.0.0.1", port=8472),
            Vrf("red", table=10, ports=["up0"]),
            Dummy("p0"),
            Dummy("p1"),
            Bond(
                "bond0",
                mode="802.3ad",
                ports=["p0", "p1"],
                miimon="50ms",
                xmit_hash_policy="layer3+4",
                lacp_rate="fast",
            ),
            Tun("tap0", mode="tap", mac="02:00:00:00:00:0a"),
            WireGuard(
                "wg0",
                address="10.8.0.1/24",
                private_key=KEY,
                port=1234,
                peers=[
                    "w",
                    {"public_key": KEY, "endpoint": "[fd00::1]:99", "allowed_ips": ["10.8.9.0/24"], "keepalive": 25},
                    nsorch.WireGuardPeer(worker="r2", preshared_key=KEY, endpoint="10.0.0.1:7"),
                ],
            ),
        ],
    )
    for name in ("w", "r2"):
        topology.worker(name, links=[nsorch.To("trunk", vlan=20)], interfaces=[WireGuard("wg0", peers=["r"])])
    return topology


def test_files_give_back_what_they_were_written_from(tmp_path: object) -> None:
    topology = described()
    topology.validate()
    jsonschema.validate(topology.to_dict(), Topology.json_schema())
    for suffix in ("toml", "yaml", "json"):
        path = f"{tmp_path}/lab.{suffix}"
        topology.dump(path)
        read = Topology.load(path)
        assert read == topology
        assert read.workers == topology.workers
        assert read.bridges == topology.bridges
        assert not difference(topology, read)


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (lambda: Vlan("v", parent="eth0", id=4095), "id: 4095 is not a whole number from 1 to 4094"),
        (lambda: Vlan("v", parent="eth0", id=True), "id: True is not"),
        (lambda: Vlan("v", parent="eth0", id=1, protocol="x"), 'protocol: "x" is none of 802.1q, 802.1ad'),
        (lambda: Vlan("v" * 16, parent="eth0", id=1), "name: .* is not an interface name"),
        (lambda: Vlan("v", parent="a/b", id=1), "parent: .* can't be"),
        (lambda: Vlan("eth%d", parent="eth0", id=1), "name: .* can't be"),
        (lambda: Vlan("\u00e0", parent="eth0", id=1), "name: .* can't be"),
        (lambda: Macvlan("m", parent="eth0", mode="x"), 'mode: "x" is none of'),
        (lambda: Ipvlan("m", parent="eth0", mac="02:00:00:00:00:01"), "mac: an ipvlan"),
        (lambda: Vxlan("x", id=1 << 24), "id: 16777216"),
        (lambda: Vxlan("x", id=1, remote=["10.0.0.1", "fd00::1"]), "remote: addresses of both families"),
        (lambda: Vxlan("x", id=1, remote="no worker"), 'remote: "no worker" is neither'),
        (lambda: Vrf("r", table=254), "table: 254 is the kernel's own"),
        (lambda: Bond("b", ports=["eth0", "eth0"]), "ports: one is named twice"),
        (lambda: Bond("b", lacp_rate="fast"), "lacp_rate: only for mode 802.3ad"),
        (lambda: Bond("b", miimon="5 parsecs"), 'miimon: "5 parsecs" is not a duration'),
        (lambda: Tun("t", mac="02:00:00:00:00:01"), "mac: a tun interface has none"),
        (lambda: WireGuard("w", private_key="x"), "private_key: a key is 32 bytes"),
        (lambda: WireGuard("w", peers=[{"worker": "a", "endpoint": "10.0.0.1"}]), r"peers\[0\].endpoint"),
        (lambda: WireGuard("w", peers=["a", {"nonsense": 1}]), r"peers\[1\].nonsense: unknown key"),
        (lambda: WireGuard("w", peers=["a", {"keepalive": 1}]), r"peers\[1\].worker: a peer is either"),
        (lambda: WireGuard("w", peers=["a", "a"]), "peers: a worker is named twice"),
        (lambda: Dummy("d", address="10.0.0.300"), "address: .* is not an IP address"),
        (lambda: nsorch.To("lan", vlan=0), "vlan: 0 is not"),
        (lambda: nsorch.To("lan", tagged=[5, 5]), "tagged: a VLAN is named twice"),
        (lambda: nsorch.BridgeSpec(name="b", vlans={10: "10.0.0.0/24"}), "vlans: only a bridge with vlan_aware"),
        (lambda: nsorch.BridgeSpec(name="b", vlan_aware=True, vlans={"x": "10.0.0.0/24"}), 'vlans: "x"'),
        (lambda: nsorch.BridgeSpec(name="b", vlan_aware=True, vlans={5: "10.0.0.1/24"}), r"vlans\.5"),
        (lambda: nsorch.BridgeSpec(name="b", vlan_aware=True, arp="static"), "arp: "),
        (lambda: nsorch.BridgeSpec(name="b", forward_delay=4), "forward_delay: it is of stp"),
        (lambda: nsorch.BridgeSpec(name="b", stp=True, forward_delay=1), "forward_delay: 1 is not from 2"),
        (lambda: nsorch.BridgeSpec(name="b", stp="yes"), 'stp: "yes" is neither true nor false'),
        (lambda: nsorch.WorkerSpec(name="w", interfaces=[Dummy("d"), Dummy("d")]), 'name: "d" is used twice'),
        (lambda: nsorch.WorkerSpec(name="w", interfaces=["d"]), "is not an interface such as"),
        (lambda: nsorch.WorkerSpec(name="w", interfaces="d"), "is not a list of interfaces"),
        (lambda: nsorch.WorkerSpec(name="w", interfaces=[{"kind": "x"}]), r'interfaces\[0\].kind: "x" is none of'),
        (lambda: nsorch.WorkerSpec(name="w", interfaces={"kind": "vlan", "x": 1}), r"interfaces\[0\].x: unknown key"),
        (
            lambda: nsorch.WorkerSpec(name="w", interfaces={"kind": "vrf", "name": "r", "table": 0}),
            r"interfaces\[0\]\.table: 0 is not",
        ),
        (
            lambda: nsorch.WorkerSpec(name="w", interfaces=[Vlan("v", parent="d", id=1), Dummy("d")]),
            '"d" must stand before "v"',
        ),
        (
            lambda: nsorch.WorkerSpec(name="w", links=[nsorch.To("lan", name="d")], interfaces=[Dummy("d")]),
            '"d" is a link\'s already',
        ),
        (
            lambda: nsorch.WorkerSpec(
                name="w", interfaces=[Dummy("d"), Vrf("r", table=5, ports="d"), Bond("b", ports="d")]
            ),
            '"d" is a port of "r" already',
        ),
    ],
)
def test_bad_values_are_refused(spec: object, problem: str) -> None:
    with pytest.raises((TopologyError, AddressError), match=problem):
        spec()  # type: ignore[operator]


def test_mappings_are_read_as_files_are() -> None:
    spec = nsorch.WorkerSpec(name="w", interfaces=[{"kind": "dummy", "name": "d", "address": "10.9.0.1"}])
    assert spec.interfaces == (Dummy("d", address="10.9.0.1/32"),)
    assert hash(spec.interfaces) == hash((Dummy("d", address="10.9.0.1"),))
    assert len({nsorch.BridgeSpec(name="b", vlan_aware=True, vlans={1: "10.0.0.0/24"})}) == 1


def test_all_errors_of_a_file_at_once() -> None:
    data = {
        "bridges": {"lan": {"vlan_aware": "yes", "ageing": "x"}, "flat": {}},
        "workers": {
            "w": {
                "links": [{"to": "flat", "vlan": 5000}],
                "interfaces": [
                    {"kind": "vlan", "name": "v"},
                    {"kind": "vlan", "name": "v", "parent": "eth0", "id": 5000, "mtu": 1, "x": 1},
                    {"kind": "sausage", "name": "s"},
                    {"kind": "bond", "name": "b", "mode": "x"},
                    {"kind": "wireguard", "name": "b", "peers": [{"worker": "a", "keepalive": 0}]},
                ],
            }
        },
    }
    with pytest.raises(TopologyError) as caught:
        Topology.from_dict(data)
    paths = {problem.split(": ")[0] for problem in caught.value.problems}
    here = "workers.w.interfaces"
    assert paths == {
        "bridges.lan.vlan_aware",
        "bridges.lan.ageing",
        "workers.w.links[0].vlan",
        f"{here}[0].parent",
        f"{here}[0].id",
        f"{here}[1].x",
        f"{here}[1].id",
        f"{here}[1].mtu",
        f"{here}[2].kind",
        f"{here}[3].mode",
        f"{here}[4].peers[0].keepalive",
    }


def test_what_parts_say_of_each_other_is_checked() -> None:
    topology = Topology()
    topology.bridge("flat", "10.0.0.0/24")
    topology.bridge("aware", vlan_aware=True, vlans={10: "10.0.10.0/30"})
    topology.worker("a", links=["flat", nsorch.To("flat", vlan=3)], interfaces=[Vlan("x", parent="eth2", id=1)])
    topology.worker(
        "b", links=[nsorch.To("aware", vlan=5, tagged=[5])], interfaces=[WireGuard("wg", peers=["a", "c", "b"])]
    )
    for name in ("d", "e", "f"):
        topology.worker(name, links=[nsorch.To("aware", vlan=10)], interfaces=[Vlan("x", parent="eth0", id=1)])
    topology.link(nsorch.End("d", tagged=[3]), "e")
    topology.link("a", nsorch.End("aware", vlan=10))
    assert topology.problems() == [
        "workers.a.links[1].vlan: it isn't linked to a bridge that is vlan_aware",
        "workers.b.links[0].tagged: 5 is the VLAN of its untagged frames",
        "links[0].ends[0].tagged: it isn't linked to a bridge that is vlan_aware",
        "links[1].ends[1].vlan: it isn't linked to a bridge that is vlan_aware",
        'workers.b.interfaces[0].peers: "a" has no WireGuard interface',
        'workers.b.interfaces[0].peers: there is no worker "c"',
        'workers.b.interfaces[0].peers: "b" is the worker itself',
        "bridges.aware.vlans.10: 10.0.10.0/30 has 2 addresses for 3 ends",
    ]


def test_who_is_on_one_segment() -> None:
    topology = Topology()
    topology.bridge("sw", vlan_aware=True)
    for name, vlan in (("a", 10), ("b", 10), ("c", 20), ("d", None)):
        topology.worker(name, links=[nsorch.To("sw", vlan=vlan)])
    topology.worker("idle", links=[nsorch.To("sw", tagged=[10, 20])])
    assert topology.components() == [{"a", "b"}, {"c"}, {"d"}, {"idle"}]
    topology.worker("r", links=[nsorch.To("sw", tagged=[10, 20])], interfaces=[Vlan("v", parent="eth0", id=10)])
    assert topology.components()[0] == {"a", "b", "r"}
    other = Vlan("v", parent="eth0", id=20, protocol="802.1ad")  # tags that the bridge doesn't look at
    topology.worker("s", links=[nsorch.To("sw", tagged=[20])], interfaces=[other])
    assert {"s"} in topology.components()
    topology.worker("guest", namespaces={"net": "worker:d"})
    topology.worker("another", namespaces={"net": "worker:guest"})
    assert {"d", "guest", "another"} in topology.components()


def test_a_template_can_t_give_one_address_to_several() -> None:
    data = {"workers": {"w": {"count": 2, "interfaces": [{"kind": "dummy", "name": "d", "address": "10.0.0.1"}]}}}
    with pytest.raises(TopologyError, match=r"workers\.w\.interfaces\[0\]\.address: one can't be given"):
        Topology.from_dict(data)


# -- messages, as pyroute2 reads them


def decoded(data: bytes) -> ifinfmsg:
    message = ifinfmsg(data)
    message.decode()
    return message


@given(st.integers(1, 4094) | st.none(), st.sets(st.integers(1, 4094), max_size=40), st.integers(1, 2**31 - 1))
def test_vlans_of_ports(pvid: int | None, tagged: set[int], port: int) -> None:
    tagged.discard(pvid)
    message = decoded(messages.port_vlans(messages.RTM_NEWLINK, port, pvid, sorted(tagged)))
    assert (message["family"], message["index"], message["header"]["type"]) == (7, port, 19)
    found, begin = set(), 0
    for info in message.get_attr("IFLA_AF_SPEC").get_attrs("IFLA_BRIDGE_VLAN_INFO"):
        if info["flags"] & 8:
            begin = info["vid"]
        elif info["flags"] & 16:
            found.update(range(begin, info["vid"] + 1))
        elif info["flags"]:
            assert (info["flags"], info["vid"]) == (6, pvid)
        else:
            found.add(info["vid"])
    assert found == tagged


@given(st.booleans(), st.none() | st.floats(2, 30), st.none() | st.floats(0, 1e6), st.booleans())
def test_options_of_bridges(aware: bool, delay: float | None, ageing: float | None, snooping: bool) -> None:
    message = decoded(
        messages.create_bridge("b0", vlan_aware=aware, forward_delay=delay, ageing=ageing, multicast_snooping=snooping)
    )
    data = message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    assert data.get_attr("IFLA_BR_MCAST_SNOOPING") == snooping
    assert data.get_attr("IFLA_BR_MCAST_QUERIER") == (1 if snooping else None)
    assert data.get_attr("IFLA_BR_VLAN_FILTERING") == (1 if aware else None)
    assert data.get_attr("IFLA_BR_VLAN_DEFAULT_PVID") == (0 if aware else None)
    assert data.get_attr("IFLA_BR_STP_STATE") == (None if delay is None else 1)
    assert data.get_attr("IFLA_BR_FORWARD_DELAY") == (None if delay is None else round(delay * 100))
    assert data.get_attr("IFLA_BR_AGEING_TIME") == (None if ageing is None else round(ageing * 100))


def test_static_entries_within_a_vlan() -> None:
    fields = messages.forwarding_entries(b"\1\0\0\0\2\0\0\0", bytes(range(12)), b"\x0a\0\x14\0")
    made = bytes(messages.copies(messages.forwarding(messages.RTM_NEWNEIGH, 0, bytes(6), 0), fields, 7))
    for number, (index, vlan) in enumerate([(1, 10), (2, 20)]):
        message = ndmsg(made[number * len(made) // 2 :])
        message.decode()
        assert (message["ifindex"], message.get_attr("NDA_VLAN")) == (index, vlan)
        assert message.get_attr("NDA_LLADDR") == bytes(range(6 * number, 6 * number + 6)).hex(":")


@pytest.mark.parametrize("address", ["10.0.0.7", "fd00::7"])
def test_far_ends_of_vxlan(address: str) -> None:
    message = ndmsg(messages.tunnel_end(messages.RTM_NEWNEIGH, 5, ip_address(address)))
    message.decode()
    assert (message["family"], message["ifindex"], message["state"], message["flags"]) == (7, 5, 0x80, 2)
    assert message.get_attr("NDA_LLADDR") == "00:00:00:00:00:00"
    assert message["header"]["flags"] & 0x800, "appended"


def test_an_interface_is_made_with_all_that_it_is_to_have() -> None:
    plan = InterfacePlan(
        ifname="v", kind="vlan", data=(("IFLA_VLAN_ID", 10),), index=9, mac=b"\2\0\0\0\0\1", mtu=1400,
        addresses=(ip_interface("10.0.0.1/24"),),
    )  # fmt: skip
    message = decoded(net.create(plan, 4))
    assert (message["index"], message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_LINK")) == (9, "v", 4)
    assert message.get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA").get_attr("IFLA_VLAN_ID") == 10
    assert message.get_attr("IFLA_ADDRESS") == "02:00:00:00:00:01"
    assert message.get_attr("IFLA_MTU") == 1400
    assert message["header"]["flags"] == 0x601


def test_peers_of_wireguard() -> None:
    peer = Peer(
        public_key=KEY,
        endpoint=(ip_address("fd00::1"), 51820),
        allowed_ips=(ip_network("10.0.0.0/8"), ip_network("fd00::/64")),
        keepalive=25,
    )
    message = wgmsg(set_device(33, "wg0", [["WGDEVICE_A_PEERS", [{"attrs": _attributes(peer)}]]]))
    message.decode()
    assert message.get_attr("WGDEVICE_A_IFNAME") == "wg0"
    (found,) = message.get_attr("WGDEVICE_A_PEERS")
    assert found.get_attr("WGPEER_A_PUBLIC_KEY").decode() == KEY
    assert found.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    assert [allowed["addr"] for allowed in found.get_attr("WGPEER_A_ALLOWEDIPS")] == ["10.0.0.0/8", "fd00::/64"]
    endpoint = found.get_attr("WGPEER_A_ENDPOINT")
    assert (endpoint["addr"], endpoint["port"]) == ("fd00::1", 51820)
