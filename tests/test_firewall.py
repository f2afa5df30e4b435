"""Firewalls of workers, seen from sockets; and what files say of routers."""

from __future__ import annotations

import shutil
import socket
from contextlib import asynccontextmanager

import anyio
import pytest
from kernel_support import needs_kernel

import nsorch
from nsorch.net.filters import FirewallPlan, ForwardPlan, NatPlan, RulePlan, firewall_requests, nat_requests
from nsorch.net.netlink import Netlink

SECONDS = 30
needs_nf_tables = needs_kernel("nf_tables")


@asynccontextmanager
async def lab_with(**router):
    """Host a inside, x outside, router r between; x knows the way to the inside, so that only r's rules decide."""
    topology = nsorch.Topology()
    topology.bridge("home", ["10.0.0.0/24", "fd01::/64"], gateway="r")
    topology.bridge("internet", ["203.0.113.0/24", "fd02::/64"], gateway="r")
    topology.worker("r", links=["internet", "home"], forward=True, **router)
    topology.worker("a", links=["home"])
    topology.worker("x", links=["internet"])
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lab = await sup.deploy(topology)
        for name in ("r", "a", "x"):
            await tasks.start(lab.workers[name].serve, answer, 80)
            await tasks.start(lab.workers[name].serve, answer, 22)
        yield sup, lab
        tasks.cancel_scope.cancel()


async def answer(stream):
    async with stream:
        await stream.send(b"hello")


async def opens(client, server, port, version=4, seconds=0.4):
    """``"yes"``, ``"refused"``, or ``"no"`` where nothing comes back in so many seconds."""
    host = next(str(a.ip) for a in server.addresses if a.version == version)
    try:
        with anyio.fail_after(seconds):
            async with await client.connect_tcp(host, port) as stream:
                return "yes" if await stream.receive() == b"hello" else "?"
    except TimeoutError:
        return "no"
    except OSError:
        return "refused"


async def is_silent(client, server, port, version=4):
    """For that there is nothing to wait for: what answers does so within a millisecond."""
    return await opens(client, server, port, version, seconds=0.2) == "no"


async def is_refused(client, server, port, version=4):
    return await opens(client, server, port, version, seconds=SECONDS) == "refused"


async def certainly_opens(client, server, port, **options):
    with anyio.fail_after(SECONDS):
        while await opens(client, server, port, **options) != "yes":
            pass


@pytest.mark.anyio
@needs_nf_tables
@pytest.mark.parametrize("version", [4, 6])
async def test_home(version):
    """What the inside asks for comes in, and nothing else."""
    async with lab_with(firewall={"preset": "home", "outside": "internet"}) as (_, lab):
        r, a, x = (lab.workers[name] for name in "rax")
        await certainly_opens(a, x, 80, version=version)
        await certainly_opens(a, r, 80, version=version)
        await certainly_opens(r, x, 80, version=version)
        assert await is_silent(x, a, 80, version)
        assert await is_silent(x, r, 80, version)
        await r.set_firewall(None)
        await certainly_opens(x, a, 80, version=version)
        await r.set_firewall(nsorch.Firewall("home", outside="eth0"))
        assert await is_silent(x, a, 80, version)


@pytest.mark.anyio
@needs_nf_tables
@pytest.mark.vm
async def test_home_with_forwards_and_exceptions():
    nat = nsorch.Nat("internet", forwards=[nsorch.Forward(8080, to="a:80")])
    rules = [
        nsorch.Rule("accept", protocol="tcp", port=22, source="203.0.113.0/24"),
        {"action": "accept", "protocol": "icmp"},
        {"action": "accept", "protocol": "icmpv6"},
    ]
    async with lab_with(nat=nat, firewall=nsorch.Firewall("home", rules=rules)) as (sup, lab):
        r, a, x = (lab.workers[name] for name in "rax")
        await certainly_opens(x, r, 8080)  # forwarded
        await certainly_opens(x, r, 22)
        assert await is_silent(x, r, 80)
        assert await is_silent(x, a, 80)
        assert (await sup.ping_all([("x", "r")])).ok
        await certainly_opens(a, x, 80)


@pytest.mark.anyio
@needs_nf_tables
async def test_web_only_and_closed():
    async with lab_with(firewall={"preset": "web-only", "outside": "internet"}) as (_, lab):
        r, a, x = (lab.workers[name] for name in "rax")
        await certainly_opens(a, x, 80)
        assert await is_refused(a, x, 22)
        assert await is_silent(x, a, 80)
        await a.set_firewall("closed")
        assert await is_silent(r, a, 80)
        await certainly_opens(a, x, 80)
        await r.set_firewall("closed")
        assert await is_silent(a, x, 80)
        await certainly_opens(r, x, 80)


@pytest.mark.anyio
@needs_nf_tables
@pytest.mark.parametrize("version", [4, 6])
async def test_rules_by_name(version):
    rules = [
        nsorch.Rule("reject", chain="forward", protocol="tcp", port="1-79", source="a", destination="internet"),
        nsorch.Rule("drop", chain="forward", outgoing="home", protocol="tcp", port=80),
        nsorch.Rule("drop", chain="output", destination=["x", "192.0.2.0/24"], protocol="tcp"),
        nsorch.Rule("reject", incoming="eth1"),
    ]
    async with lab_with(firewall=nsorch.Firewall(rules=rules)) as (sup, lab):
        r, a, x = (lab.workers[name] for name in "rax")
        await certainly_opens(a, x, 80, version=version)
        assert await is_refused(a, x, 22, version)
        assert await is_silent(x, a, 80, version)
        await certainly_opens(x, a, 22, version=version)
        assert await is_silent(r, x, 80, version)
        await certainly_opens(r, a, 80, version=version)
        assert await is_refused(a, r, 80, version)
        await certainly_opens(x, r, 80, version=version)
        # The worker moves to another address, and the rule about it goes along.
        link = sup.links["a:eth0-home"]
        await link.set(address="10.0.0.77" if version == 4 else "fd01::77")
        assert await is_refused(a, x, 22, version)
        await certainly_opens(a, x, 80, version=version)


@pytest.mark.anyio
@needs_nf_tables
async def test_set_before_the_command_runs():
    """The rules are there before the worker's own process is."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        await sup.start(
            "w", ["sh", "-c", "cat /proc/net/nf_conntrack >/dev/null && sleep 60"], links=[lan], firewall="closed"
        )
        c = await sup.start("c", links=[lan])
        async with anyio.create_task_group() as tasks:
            await tasks.start(sup.workers["w"].serve, answer, 80)
            assert await is_silent(c, sup.workers["w"], 80)
            await sup.workers["w"].set_firewall(None)
            await certainly_opens(c, sup.workers["w"], 80)
            tasks.cancel_scope.cancel()


def test_files_and_errors(tmp_path):
    text = """
[bridges.lan]
subnet = "10.0.0.0/24"

[workers.r]
links = ["lan", { to = "lan", name = "up0" }]
firewall = { preset = "home", input = "drop", rules = [{ action = "accept", protocol = "tcp", port = "22-23", source = ["lan", "10.9.0.0/16"] }] }

[workers.r.nat]
outside = "up0"
kind = "full-cone"
forwards = [{ port = 80, to = "web:8080" }, { port = "9000-9010", to = "10.0.0.7", protocol = "udp" }]
prefixes = { "fd00:1::/48" = "2001:db8:1::/48" }
timeout = 2.5

[workers.web]
links = ["lan"]
firewall = "closed"
"""
    path = tmp_path / "lab.toml"
    path.write_text(text)
    topology = nsorch.Topology.load(path)
    r = topology.workers["r"]
    assert r.forward
    assert r.nat.forwards[0] == nsorch.Forward(80, to="web:8080")
    assert (r.nat.forwards[0].host, r.nat.forwards[0].to_port, r.nat.forwards[1].port) == ("web", 8080, (9000, 9010))
    assert r.firewall.rules == (nsorch.Rule("accept", protocol="tcp", port=(22, 23), source=["lan", "10.9.0.0/16"]),)
    topology.dump(tmp_path / "again.toml")
    again = nsorch.Topology.load(tmp_path / "again.toml")
    assert again == topology
    assert again.workers == topology.workers
    import jsonschema

    jsonschema.validate(topology.to_dict(), nsorch.Topology.json_schema())

    wrong = (
        text.replace('"up0"\nkind', '"up1"\nkind')
        .replace("web:8080", "wed:8080")
        .replace('"lan", "10.9', '"lam", "10.9')
    )
    path.write_text(wrong)
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.load(path)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "workers.r.nat.forwards[0].to",
        "workers.r.firewall.rules[0].source",
        "workers.r.nat.outside",
    ]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("nat", {"kind": "symmetric"}, "workers.w.nat.outside: is missing"),
        (
            "nat",
            {"outside": "up0", "forwards": [{"port": 0, "to": "x"}]},
            "workers.w.nat.forwards[0].port: 0 is neither a port",
        ),
        ("nat", {"outside": "up0", "forwards": [{"port": "1-2", "to": "x:3"}]}, "workers.w.nat.forwards[0].to: "),
        ("nat", {"outside": "up0", "forwards": {"port": 1}}, "workers.w.nat.forwards: "),
        (
            "nat",
            {"outside": "up0", "forwards": [{"port": "80-90", "to": "10.0.0.5"}, {"port": 85, "to": "10.0.0.6"}]},
            "workers.w.nat.forwards[1].port: forwards[0] has a port of it already",
        ),
        ("nat", {"outside": "up0", "prefixes": {"fd00::/80": "fd01::/80"}}, "workers.w.nat.prefixes: "),
        ("nat", {"outside": "up0", "prefixes": {"fd00::/64": "fd01::/48"}}, "workers.w.nat.prefixes: "),
        ("nat", {"outside": "up0", "timeout": "20 parsecs"}, "workers.w.nat.timeout: "),
        ("nat", {"outside": "up0", "ipv6": "yes"}, "workers.w.nat.ipv6: "),
        ("nat", 3, "workers.w.nat.outside: "),
        ("firewall", "hoem", 'workers.w.firewall.preset: "hoem" is none of home, web-only, closed'),
        ("firewall", {"input": "reject"}, "workers.w.firewall.input: "),
        ("firewall", {"rules": [{"chain": "input"}]}, "workers.w.firewall.rules[0].action: is missing"),
        ("firewall", {"rules": [{"action": "accept", "port": 80}]}, "workers.w.firewall.rules[0].port: "),
        (
            "firewall",
            {"rules": [{"action": "accept", "source": "10.0.0.0/99"}]},
            "workers.w.firewall.rules[0].source: ",
        ),
        (
            "firewall",
            {"rules": [{"action": "accept", "chain": "output", "incoming": "e"}]},
            "workers.w.firewall.rules[0].incoming: ",
        ),
        ("firewall", "home", "workers.w.firewall.outside: "),
    ],
)
def test_wrong(key, value, message):
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"workers": {"w": {key: value}}})
    (problem,) = caught.value.problems
    assert problem.startswith(message)


def test_a_port_goes_to_one_place_of_each_kind():
    four = nsorch.Forward(80, to="10.0.0.5")
    for other in (
        nsorch.Forward(81, to="10.0.0.6"),
        nsorch.Forward(80, to="fd00::6"),
        nsorch.Forward(80, to="10.0.0.6", protocol="udp"),
    ):
        nsorch.Nat("up0", forwards=[four, other], ipv6=True)
    with pytest.raises(nsorch.TopologyError, match=r"forwards\[1\]\.port"):
        nsorch.Nat("up0", forwards=[four, nsorch.Forward("79-80", to="web")])


def test_wrong_with_namespaces():
    for key, value in (("nat", "eth0"), ("firewall", "closed")):
        with pytest.raises(nsorch.TopologyError, match=f"workers.w.{key}: only in a network namespace of its own"):
            nsorch.WorkerSpec(name="w", namespaces=["mnt"], **{key: value})


# -- the encoding, as nft reads it

PLANS = {
    "nat": nat_requests(
        NatPlan(
            outside=("up0", "up1"),
            addresses=(nsorch.Route("192.0.2.1", dev="x").to.network_address,),
            kind="address-restricted",
            forwards=(
                ForwardPlan(
                    protocol="tcp", first=80, last=80, address=nsorch.Route("10.0.0.2", dev="x").to[0], port=8080
                ),
                ForwardPlan(protocol="udp", first=90, last=99, address=nsorch.Route("fd00::1", dev="x").to[0]),
            ),
            ipv6=True,
            timeout=2.5,
        )
    ),
    "firewall": firewall_requests(
        FirewallPlan(
            input="drop",
            rules=(
                RulePlan(
                    action="reject",
                    chain="forward",
                    protocol="tcp",
                    ports=(1, 79),
                    source=(nsorch.Route("10.0.0.0/9", dev="x").to,),
                    destination=(nsorch.Route("fd00::/65", dev="x").to, nsorch.Route("10.1.0.0/16", dev="x").to),
                ),
                RulePlan(action="drop", chain="forward", incoming="eth0", outgoing="eth1"),
                RulePlan(action="reject", chain="output", protocol="udp"),
            ),
        )
    ),
}
READ = {
    "nat": [
        'iifname "up1" meta nfproto ipv4 tcp dport 80 dnat ip to 10.0.0.2:8080',
        'iifname != "up0" iifname != "up1" ip daddr 192.0.2.1 tcp dport 80 dnat ip to 10.0.0.2:8080',
        'iifname "up0" meta nfproto ipv6 udp dport 90-99 dnat ip6 to fd00::1',
        'iifname "up0" udp dport . ip saddr @peers dnat ip to udp dport map @inbound',
        'iifname "up0" meta nfproto ipv4 udp dport @ports drop',
        'oifname "up0" meta nfproto ipv4 udp sport != @ports masquerade',
        'oifname "up0" meta nfproto ipv4 meta l4proto udp masquerade to :ip saddr . udp sport map @outbound',
        'oifname "up1" meta nfproto ipv6 masquerade',
        "timeout 2s500ms",
    ],
    "firewall": [
        "type filter hook input priority filter; policy drop;",
        "ct state established,related accept",
        "tcp dport 1-79 ip saddr 10.0.0.0/9 ip daddr 10.1.0.0/16 reject with tcp reset",
        'iifname "eth0" oifname "eth1" drop',
        "reject with icmpx admin-prohibited",
    ],
}


@pytest.mark.anyio
@needs_nf_tables
@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is not installed (Debian: nftables)")
@pytest.mark.parametrize("part", PLANS)
async def test_nft_reads_what_is_written(part):
    async with nsorch.Supervisor() as sup:
        w = await sup.start("w")
        for _ in range(2):  # the second replaces the first
            with await w.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
                await anyio.to_thread.run_sync(lambda sock=sock: Netlink(sock).commit(PLANS[part]))
            listed = (await w.run(["nft", "list", "ruleset"])).stdout.decode()
            for line in READ[part]:
                assert line in listed, listed
