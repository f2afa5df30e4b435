"""Ends of links with addresses by DHCP: a client asks, nsorch sets and writes down what it is told."""

from __future__ import annotations

import shutil
import subprocess
from ipaddress import ip_address

import anyio
import jsonschema
import pytest
from kernel_support import needs_kernel, needs_program

import nsorch
from nsorch.events import LinkChanged
from nsorch.services import udhcpc
from nsorch.services.udhcpc import Told

SECONDS = 20
needs_dnsmasq, needs_udhcpc = needs_program("dnsmasq", "dnsmasq-base"), needs_program("udhcpc", "udhcpc")
of_kernel = pytest.mark.vm(one_backend=True)


def lab():
    topology = nsorch.Topology("lab")
    topology.bridge("lan", ["192.168.7.0/24", "fd07::/64"])
    service = nsorch.Dnsmasq("lan", range="192.168.7.100-192.168.7.199", ra=False)
    topology.worker("r", links=[nsorch.To("lan", address="192.168.7.1")], forward=True, service=service)
    topology.worker("a", links=[nsorch.To("lan", dhcp=True)])
    show = ["sh", "-c", "cat /proc/net/route; exec sleep 1000"]
    topology.worker("b", show, stdout=subprocess.PIPE, links=[nsorch.To("lan", dhcp=True, name="up0")])
    return topology


def leased(worker):
    """Its IPv4 address, as the record and the kernel have it."""
    (address,) = (address for address in worker.addresses if address.version == 4)
    return address


async def default_routes(worker):
    table = (await worker.run(["cat", "/proc/net/route"])).stdout.decode().splitlines()[1:]
    return [(line.split()[0], line.split()[2]) for line in table if line.split()[1] == "00000000"]


@pytest.mark.anyio
@of_kernel
@needs_dnsmasq
@needs_udhcpc
async def test_addresses_are_there_first():
    """When it is up they are there: in the record, in the kernel, in names, and before commands run."""
    async with nsorch.Supervisor() as sup, sup.events(kinds=[LinkChanged]) as heard:
        workers = (await sup.deploy(lab())).workers
        assert leased(workers["a"]) != leased(workers["b"])
        for name, interface in (("a", "eth0"), ("b", "up0")):
            own = leased(workers[name])
            assert ip_address("192.168.7.100") <= own.ip <= ip_address("192.168.7.199")
            assert own in workers[name].interfaces[interface].addresses
            assert len(workers[name].addresses) == 2
            router = f"{int.from_bytes(ip_address('192.168.7.1').packed, 'little'):08X}"
            assert await default_routes(workers[name]) == [(interface, router)]
            hosts = (await workers["r"].run(["cat", "/etc/hosts"])).stdout.decode()
            assert [str(own.ip), name] in [line.split()[:2] for line in hosts.splitlines()]
        assert b"\t00000000\t" in await workers["b"].stdout.receive()
        assert (await sup.ping_all(version=4)).ok
        assert (await sup.ping_all(version=6)).ok
        told = [await anext(heard) for _ in range(2)]
        assert {event.link for event in told} == {"a:eth0-lan", "b:up0-lan"}
        for event in told:
            assert str(leased(workers[event.link[0]]).ip) in dict(event.changes)["address"]

        # What was taken isn't given to those that come later, and comes free again.
        late = await sup.start("late", links=[nsorch.To("lan", dhcp=True)])
        assert leased(late).ip not in {leased(workers[name]).ip for name in "ab"}
        await late.remove()
        assert not any(name.startswith("late") for name in sup.workers)


@pytest.mark.anyio
@of_kernel
@needs_dnsmasq
@needs_udhcpc
async def test_links_that_come_and_go():
    async with nsorch.Supervisor() as sup:
        await sup.deploy(lab())
        w = await sup.start("w")
        link = await sup.link(nsorch.End("w", dhcp=True), "lan")
        before = leased(w)
        assert (await sup.ping_all([("w", "r")], version=4)).ok
        assert any(name.startswith("w-dhcp") for name in sup.workers)
        await link.down()
        await link.up()
        assert leased(w) == before
        assert len(await default_routes(w)) == 1
        await link.remove()
        with anyio.fail_after(SECONDS):
            while any(name.startswith("w-dhcp") for name in sup.workers):
                await anyio.sleep(0.02)
        await sup.link(nsorch.End("w", dhcp=True), "lan")
        assert ip_address("192.168.7.1") in leased(w).network


@pytest.mark.anyio
@of_kernel
@needs_dnsmasq
@needs_udhcpc
async def test_to_another_bridge():
    """It asks anew there."""
    async with nsorch.Supervisor() as sup:
        workers = (await sup.deploy(lab())).workers
        other = await sup.bridge("other", "10.5.0.0/24")
        await sup.start("s", links=[other], service=nsorch.Dnsmasq(other))
        await sup.links["a:eth0-lan"].set(bridge=other)
        with anyio.fail_after(SECONDS):
            while not any(ip_address("10.5.0.1") in a.network for a in workers["a"].addresses):
                await anyio.sleep(0.02)
        assert (await sup.ping_all([("a", "s")], version=4)).ok


@pytest.mark.anyio
@needs_dnsmasq
@needs_udhcpc
async def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("nsorch.supervisor.readiness.LeaseReady.__init__.__defaults__", (1.0, 0.01))
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "192.168.7.0/24")
        with pytest.raises(nsorch.NotReadyError, match="no DHCP server gives an address to a:eth0") as caught:
            await sup.start("a", links=[nsorch.To("lan", dhcp=True)])
        assert "discover" in caught.value.detail
        assert not sup.workers


@pytest.mark.anyio
@of_kernel
@needs_dnsmasq
@needs_udhcpc
@needs_kernel("nf_tables")
async def test_a_home_router_that_gets_its_outside_address():
    """Those behind it wait for it, while it waits for the provider."""
    topology = nsorch.Topology()
    topology.bridge("internet", "203.0.113.0/24")
    topology.bridge("home", "192.168.1.0/24", gateway="router")
    topology.worker("provider", links=["internet"], service=nsorch.Dnsmasq("internet"))
    topology.worker("laptop", links=[nsorch.To("home", dhcp=True)])
    links = [nsorch.To("home"), nsorch.To("internet", dhcp=True)]
    topology.worker("router", links=links, nat="internet", service=nsorch.Dnsmasq("home"))
    async with nsorch.Supervisor() as sup:
        workers = (await sup.deploy(topology)).workers
        assert {str(address.network) for address in workers["router"].addresses} == {"192.168.1.0/24", "203.0.113.0/24"}
        assert (await sup.ping_all([("laptop", "provider"), ("laptop", "router")])).ok


@pytest.mark.anyio
async def test_a_client_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        with pytest.raises(nsorch.UnsupportedError, match=r"a: udhcpc isn't installed \(Debian: udhcpc\)"):
            await sup.start("a", links=[nsorch.To("lan", dhcp=True)])
        await sup.start("b")
        with pytest.raises(nsorch.UnsupportedError, match="udhcpc isn't installed"):
            await sup.link(nsorch.End("b", dhcp=True), "lan")
        assert set(sup.workers) == {"b"}
        assert not sup.links


# -- what needs no kernel


def test_what_the_client_tells():
    told = udhcpc.parse("bound|10.0.0.5|24|10.0.0.1 10.0.0.2")
    assert told is not None
    assert (str(told.address), str(told.router)) == ("10.0.0.5/24", "10.0.0.1")
    renewed = udhcpc.parse("renew|10.0.0.5|24|")
    assert renewed is not None
    assert renewed.router is None
    assert udhcpc.parse("deconfig|||") == Told()
    assert udhcpc.parse("leasefail|||") is udhcpc.parse("") is None
    with pytest.raises(ValueError, match="10.0.0"):
        udhcpc.parse("bound|10.0.0|24|")


def test_files(tmp_path):
    topology = nsorch.Topology()
    topology.bridge("lan", "10.0.0.0/24")
    topology.worker("r")
    topology.worker("a", links=[nsorch.To("lan", dhcp=True)])
    topology.link(nsorch.End("r", dhcp=True), "a")
    topology.dump(tmp_path / "lab.toml")
    again = nsorch.Topology.load(tmp_path / "lab.toml")
    assert again.workers == topology.workers
    assert again.links == topology.links
    assert topology.to_dict()["workers"]["a"] == {"links": [{"to": "lan", "dhcp": True}]}
    jsonschema.validate(topology.to_dict(), nsorch.Topology.json_schema())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"workers": {"w": {"links": [{"to": "lan", "dhcp": 1}]}}}, "workers.w.links[0].dhcp: 1 is neither"),
        (
            {"workers": {"w": {"links": [{"to": "lan", "dhcp": True, "address": "10.0.0.9"}]}}},
            "workers.w.links[0].dhcp: it has an IPv4 address already",
        ),
        (
            {"routing": "shortest-path", "workers": {"w": {"links": [{"to": "lan", "dhcp": True}]}}},
            'workers.w.links[0].dhcp: with routing "shortest-path" others have routes by its address',
        ),
        (
            {"bridges": {"lan": {"gateway": "w"}}, "workers": {"w": {"links": [{"to": "lan", "dhcp": True}]}}},
            'workers.w.links[0].dhcp: the gateway of "lan" has the first address',
        ),
        (
            {"workers": {"w": {"uplink": True, "links": [{"to": "lan", "dhcp": True}]}}},
            "workers.w.uplink: a link with dhcp gives it a default route already",
        ),
        (
            {"workers": {"w": {}}, "links": [{"ends": ["w", {"worker": "lan", "dhcp": True}]}]},
            "links[0].ends[1].dhcp: a bridge has no address",
        ),
    ],
)
def test_wrong(data, message):
    lan = {"subnet": "10.0.0.0/24"} | data.pop("bridges", {}).get("lan", {})
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"bridges": {"lan": lan}, **data})
    (problem,) = caught.value.problems
    assert problem.startswith(message)
