"""Topologies of other tools, and what is said of the parts that can't be carried over."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import nsorch
from nsorch import Topology, TopologyError

if TYPE_CHECKING:
    import pathlib


class Topo:
    """Mininet's Topo, as far as its users see it."""

    def __init__(self) -> None:
        self.nodes_: dict[str, dict[str, Any]] = {}
        self.links_: list[tuple[str, str, dict[str, Any]]] = []
        self.ports: dict[str, int] = {}

    def addHost(self, name: str, **options: Any) -> str:  # noqa: N802
        self.nodes_[name] = options
        return name

    def addSwitch(self, name: str, **options: Any) -> str:  # noqa: N802
        self.nodes_[name] = {"isSwitch": True, **options}
        self.ports[name] = 1
        return name

    def addLink(self, a: str, b: str, **options: Any) -> None:  # noqa: N802
        for number, node in ((1, a), (2, b)):
            options.setdefault(f"port{number}", self.ports.get(node, 0))
            options[f"node{number}"] = node
            self.ports[node] = self.ports.get(node, 0) + 1
        self.links_.append((a, b, options))

    def hosts(self, sort: bool = True) -> list[str]:
        return [name for name, options in self.nodes_.items() if not options.get("isSwitch")]

    def switches(self, sort: bool = True) -> list[str]:
        return [name for name, options in self.nodes_.items() if options.get("isSwitch")]

    def links(self, sort: bool = False, withKeys: bool = False, withInfo: bool = False) -> list[Any]:  # noqa: N803
        # Mininet sorts the two names of a link, whatever the order they were given in.
        return [(*sorted((a, b)), options) for a, b, options in self.links_] if withInfo else []

    def nodeInfo(self, name: str) -> dict[str, Any]:  # noqa: N802
        return self.nodes_[name]


def two_switches() -> Topo:
    topo = Topo()
    for name in ("s1", "s2"):
        topo.addSwitch(name, protocols="OpenFlow13") if name == "s2" else topo.addSwitch(name)
    topo.addHost("h1")
    topo.addHost("h2", ip="10.0.0.22/8", mac="02:00:00:00:00:22", defaultRoute="via 10.0.0.1", cpu=0.5)
    topo.addHost("h_3", inNamespace=False)
    topo.addLink("s1", "h1", bw=10, delay="5ms", loss=1, max_queue_size=100, use_htb=True, params2={"delay": "1ms"})
    topo.addLink("h2", "s2", delay="250", intfName1="up0")
    topo.addLink("h_3", "s2", addr1="02:00:00:00:00:33", speedup=3)
    topo.addLink("s1", "s2", bw=5)
    return topo


def test_mininet() -> None:
    topology = Topology.from_mininet(two_switches())
    assert list(topology.workers) == ["h1", "h2", "h-3"]
    assert list(topology.bridges) == ["s1"]
    assert str(topology.bridges["s1"].subnet[0]) == "10.0.0.0/8"
    one, two, three = topology.links
    # The link's own values act both ways, params2 where h1 sends: h1 is its second node.
    host = one.a if one.a.worker == "h1" else one.b
    assert (one.rate, one.delay, one.loss, one.limit, host.delay) == (10e6, 0.005, 0.01, 100, 0.001)
    assert (host.name, str(host.address[0])) == ("h1-eth0", "10.0.0.1/8")
    assert (two.delay, {two.a.name, two.b.name} - {None}) == (0.00025, {"up0"})
    assert str(topology.workers["h2"].routes[0].via) == "10.0.0.1"
    assert "02:00:00:00:00:33" in (three.a.mac, three.b.mac)
    notes = "\n".join(topology.notes)
    for part in (
        "switches.s1: is one segment with s2",
        "switches.s2.protocols: is not carried over",
        "hosts.h2.cpu: is not carried over",
        "hosts.h_3.inNamespace: the host's network is not joined",
        '"h_3" is called h-3',
        "links[2].speedup: is not carried over",
        "links[3].bw: is lost",
    ):
        assert part in notes, part
    assert Topology.from_dict(topology.to_dict()) == topology


def test_wrong_mininet_values_are_named_all_at_once() -> None:
    topo = Topo()
    topo.addHost("h1", ip="10.0.0.999")
    topo.addHost("h2")
    topo.addSwitch("s1")
    topo.addLink("h1", "s1", delay="soon")
    topo.addLink("h2", "s1", bw="fast")
    with pytest.raises(TopologyError) as raised:
        Topology.from_mininet(topo)
    text = str(raised.value)
    for part in ("hosts.h1.ip", "links[0].delay", "links[1].bw"):
        assert part in text


@pytest.mark.anyio
async def test_mininet_hosts_reach_each_other() -> None:
    topo = Topo()
    topo.addSwitch("s1")
    for name in ("h1", "h2", "h3"):
        topo.addHost(name)
        topo.addLink(name, "s1")
    topo.addHost("h4", ip="192.168.1.1/24")
    topo.addHost("h5", ip="192.168.1.2/24")
    topo.addLink("h4", "h5")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.from_mininet(topo))
        assert [str(sup.workers[f"h{n}"].addresses[0]) for n in range(1, 5)] == [
            "10.0.0.1/8",
            "10.0.0.2/8",
            "10.0.0.3/8",
            "192.168.1.1/24",
        ]
        assert (await sup.ping_all([("h1", "h2"), ("h2", "h3"), ("h3", "h1"), ("h4", "h5")])).ok


CLAB = """
name: lab
prefix: ""
topology:
  defaults: {kind: linux, env: {A: "1"}}
  kinds:
    linux: {image: alpine, cmd: sleep 600}
  groups:
    quiet: {cmd: tail -f /dev/null}
  nodes:
    r1: &r
      env: {B: 2}
      exec: [ip addr add 10.0.0.1/24 dev eth1]
    r2: *r
    h1: {group: quiet, binds: ["x:/y"]}
    srl: {kind: nokia_srlinux, image: srl}
    bare: {kind: }
    br0: {kind: bridge}
  links:
    - endpoints: ["r1:eth1", "r2:eth1"]
      mtu: 1400
    - endpoints: ["h1:eth1", "br0:p1"]
    - type: veth
      endpoints:
        - {node: r1, interface: eth2, mac: "02:00:00:00:00:12"}
        - {node: br0, interface: p2}
    - endpoints: ["r1:eth9", "host:x"]
    - endpoints: ["srl:e1-1", "srl:e1-2"]
    - endpoints: ["srl:ethernet-1/1", "r2:eth4"]
    - {type: macvlan, endpoint: {node: r1, interface: eth3}}
"""


def test_containerlab(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.clab.yml"
    path.write_text(CLAB)
    topology = Topology.load(path)
    assert topology == Topology.from_containerlab(path)
    assert (topology.name, list(topology.workers), list(topology.bridges)) == (
        "lab",
        ["r1", "r2", "h1", "srl", "bare"],
        ["br0"],
    )
    assert topology.workers["r1"].command == ("sleep", "600")
    assert topology.workers["h1"].command == ("tail", "-f", "/dev/null")
    env = topology.workers["r1"].env
    assert env is not None
    assert (env["A"], env["B"], "PATH" in env) == ("1", "2", True)
    assert [(link.a.worker, link.b.worker, link.mtu) for link in topology.links] == [
        ("r1", "r2", 1400),
        ("h1", "br0", None),
        ("r1", "br0", None),
        ("srl", "r2", None),
    ]
    assert topology.links[3].a.name is None
    assert topology.links[2].a.mac == "02:00:00:00:00:12"
    notes = "\n".join(topology.notes)
    for part in (
        "prefix: is not carried over",
        "topology.nodes.r1.image",
        "topology.nodes.r1.exec",
        "topology.nodes.h1.binds",
        'topology.nodes.srl.kind: "nokia_srlinux" needs its image',
        "topology.nodes.bare.kind: is missing: a plain worker is in its place",
        'topology.links[3]: "host" is outside of the lab',
        "topology.links[4]: srl is linked to itself",
        "topology.links[5].endpoints[0]: \"ethernet-1/1\" can't be an interface's name: it gets another",
        'topology.links[6]: a link of type "macvlan"',
    ):
        assert part in notes, part


MUNET = """
version: 1
cli: {commands: []}
topology:
  ipv6-enable: true
  networks:
    - name: net0
      ip: 10.0.1.0/24
      external: true
  nodes:
    - name: r1
      cmd: |
        sleep 600
      image: frr
      connections:
        - {to: net0, ip: 10.0.1.1/24, name: eth0, delay: 5000, loss: 2, rate: {rate: 10M, burst: 5}}
        - {to: r2, name: eth1, remote-name: eth7, ip: 10.2.0.1/30, physical: x}
    - name: r2
      shell: /bin/bash
      connections:
        - net0
        - {to: r1, name: eth7, remote-name: eth1}
"""


def test_munet(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "munet.yaml"
    path.write_text(MUNET)
    topology = Topology.from_munet(path)
    r1, r2 = topology.workers.values()
    assert r1.command == ("/bin/sh", "-c", "sleep 600\n")
    assert r2.command is None
    (to,) = r1.links
    assert (to.bridge, to.name, to.delay, to.loss, to.rate, str(to.address[0])) == (
        "net0",
        "eth0",
        0.005,
        0.02,
        10e6,
        "10.0.1.1/24",
    )
    (link,) = topology.links
    assert (link.a.worker, link.a.name, link.b.worker, link.b.name) == ("r1", "eth1", "r2", "eth7")
    assert str(link.subnet[0]) == "10.2.0.0/30"
    notes = "\n".join(topology.notes)
    for part in (
        "cli: is not carried over",
        "topology.ipv6-enable",
        "topology.networks.net0.external",
        "topology.nodes.r1.image",
        "connections[0].rate.burst",
        "connections[1].physical",
    ):
        assert part in notes, part


NUMBERED = """
topology:
  networks-autonumber: true
  ipv6-enable: true
  networks: [{name: net0}, {name: net1, ip: 192.168.9.0/24}]
  nodes:
    - name: r1
      connections:
        - net0
        - {to: net1, name: GigabitEthernet1}
        - {to: r2, ip: 10.9.0.1/24, mtu: 1400, delay: 1000}
        - {name: nowhere, ip: 172.16.0.1/24}
    - name: r2
      env: [{name: A, value: b}]
      connections: [net0, {to: r1, name: p2p, ip: 10.9.0.7/24, ipv6: "fd00::1/128", loss: 1}, {to: r3, ip: 10.8.0.1/32}]
    - {name: r3, connections: [{to: r2, ip: 10.7.0.1/24}]}
"""


def test_munet_numbers_networks_and_both_ends_describe_a_link(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "munet.yaml"
    path.write_text(NUMBERED)
    topology = Topology.from_munet(path)
    assert [[str(subnet) for subnet in bridge.subnet] for bridge in topology.bridges.values()] == [
        ["10.0.1.0/24", "fc00:0:0:1::/64"],
        ["192.168.9.0/24", "fc00:0:0:2::/64"],
    ]
    r1, r2, _ = topology.workers.values()
    assert [(to.name, [str(address) for address in to.address]) for to in (*r1.links, *r2.links)] == [
        ("eth0", ["10.0.1.1/24", "fc00:0:0:1::1/64"]),
        (None, ["192.168.9.1/24", "fc00:0:0:2::1/64"]),
        ("eth0", ["10.0.1.2/24", "fc00:0:0:1::2/64"]),
    ]
    assert r2.env is not None
    assert r2.env["A"] == "b"
    link, other = topology.links
    assert (link.a.name, link.a.mtu, link.a.delay, link.b.name, link.b.loss) == ("eth2", 1400, 0.001, "p2p", 0.01)
    assert ([str(a) for a in link.a.address], [str(b) for b in link.b.address]) == (
        ["10.9.0.1/24"],
        ["10.9.0.7/24"],
    )
    assert (other.a.address, other.b.address, other.subnet) == ((), (), ())
    notes = "\n".join(topology.notes)
    for part in (
        'connections[1].name: "GigabitEthernet1" can\'t be',
        "topology.nodes.r1.connections[2]: its ends get IPv6 addresses of their own",
        "topology.nodes.r1.connections[3]: leads nowhere",
        "topology.nodes.r2.connections[2]: its ends get IPv4 addresses of their own",
    ):
        assert part in notes, part


def test_a_network_without_addresses_has_those_of_its_nodes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "munet.yaml"
    path.write_text("topology: {networks: [{name: n}], nodes: [{name: a, connections: [{to: n, ip: 10.1.1.9/24}]}]}")
    assert str(Topology.from_munet(path).bridges["n"].subnet[0]) == "10.1.1.0/24"


def test_lines_of_other_tools_files(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.clab.yml"
    path.write_text("topology:\n  nodes:\n    a: {kind: linux}\n  links:\n    - endpoints: [a:e, b:e]\n")
    with pytest.raises(TopologyError) as raised:
        Topology.load(path)
    assert raised.value.located() == [f'{path}:5: topology.links[0].endpoints[1]: there is no node "b"']


@pytest.mark.parametrize(
    ("reader", "text", "problem"),
    [
        (Topology.from_munet, "topology: {nodes: [{name: a, connections: [nowhere]}]}", 'no network or node "nowhere"'),
        (
            Topology.from_munet,
            "topology: {nodes: [{name: a, connections: [{to: []}]}]}",
            "connections[0].to: [] is no name",
        ),
        (Topology.from_munet, "topology: {nodes: [{connections: []}]}", "topology.nodes[0].name: is missing"),
        (Topology.from_munet, "topology: {networks: [{name: n, ip: x}]}", "topology.networks.n.ip"),
        (Topology.from_munet, "topology: {nodes: {a: {connections: [{to: a, delay: x}]}}}", "connections[0].delay"),
        (Topology.from_munet, "- 1", "holds no table"),
        (Topology.from_containerlab, "topology: {nodes: 5}", "topology.nodes: 5 is not a table"),
        (Topology.from_containerlab, "topology: {links: [{endpoints: [a]}]}", "two ends, not 1"),
        (
            Topology.from_containerlab,
            "topology: {nodes: {a: {kind: linux}}, links: [{endpoints: ['a:e', 'b:e']}]}",
            'no node "b"',
        ),
        (Topology.from_containerlab, 'topology: {nodes: {a: {kind: linux, cmd: "\'"}}}', "topology.nodes.a.cmd"),
        (Topology.from_containerlab, "topology: {nodes: {a: {kind: linux, cmd: 5}}}", "topology.nodes.a.cmd: 5 is not"),
        (Topology.from_containerlab, "{", "expected the node content"),
    ],
)
def test_wrong_files(reader: Any, text: str, problem: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(text)
    with pytest.raises(TopologyError) as raised:
        reader(path)
    assert problem in str(raised.value)
    assert raised.value.source == str(path)


@pytest.mark.anyio
async def test_an_imported_lab_runs(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.clab.yml"
    path.write_text(CLAB.replace("srl: {kind: nokia_srlinux, image: srl}", "srl: {kind: linux}"))
    async with nsorch.Supervisor() as sup:
        await sup.deploy(Topology.load(path))
        assert (await sup.ping_all([("r1", "r2")])).ok
        assert sup.workers["r1"].pid is not None


def test_the_command(tmp_path: pathlib.Path) -> None:
    source, target = tmp_path / "munet.yaml", tmp_path / "lab.toml"
    source.write_text(MUNET)
    base = [sys.executable, "-m", "nsorch", "import", "munet", str(source)]
    done = subprocess.run(base, capture_output=True, text=True, check=True)
    assert "nsorch: cli: is not carried over" in done.stderr
    target.write_text(done.stdout)
    again = Topology.load(target)
    again.name = "munet"
    assert again == Topology.from_munet(source)
    subprocess.run([*base, "-o", str(tmp_path / "out.json")], capture_output=True, check=True)
    assert Topology.load(tmp_path / "out.json").links == again.links
