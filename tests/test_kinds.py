"""Values of a wrong kind, in every field of every description: refused by an error that names the field."""

from __future__ import annotations

import inspect
import socket
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import nsorch
from nsorch.supervisor.readiness import LeaseReady, RouteReady
from nsorch.topology.kinds import shown
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.once

HUGE = 10**5000  # has more digits than Python writes


class Strange:
    def __repr__(self) -> str:
        return "<Strange>"


STRANGE: list[Any] = [
    *(None, True, False, 0, 5, -1, 1 << 31, 1 << 64, -HUGE, HUGE, 1.5, float("nan"), float("inf")),
    *("", "x", "1500", "\0", "\ud800", b"", b"x", Strange(), Strange, len, range(3)),
    *(
        [],
        (),
        set(),
        ["x"],
        ["\0"],
        ["\ud800"],
        [b"x"],
        [5],
        {5},
        [HUGE],
        [None],
        [True],
        [[]],
        [{}],
        [["x"]],
        [Strange()],
    ),
    *({}, {"x": 1}, {5: 5, "x": 5}, {None: None}, {b"x": b"y"}, {"x": []}, {"x": None}, {"x": "y"}, {"x": HUGE}),
    *({"x": {"y": 1}}, {"to": "10.0.0.0/8"}, {"kind": "dummy", "name": 5}, {"type": "tmpfs", "dst": 5}, {"p": []}),
]
#: what has to be given besides, of each description
NEEDED: dict[str, dict[str, Any]] = {
    "Bind": {"src": "/x", "dst": "/x"},
    "Bond": {"name": "b"},
    "BridgeSpec": {"name": "b", "subnet": "10.0.0.0/24"},
    "Capabilities": {},
    "CapabilityChange": {},
    "Dnsmasq": {"inside": "x"},
    "Dummy": {"name": "d"},
    "Emulation": {"delay": 1, "jitter": 1, "loss": 0.1},
    "End": {"worker": "w"},
    "ExecReady": {"command": ["x"]},
    "Firewall": {},
    "Forward": {"port": 80, "to": "w"},
    "Frr": {"protocols": "ospf"},
    "GilbertElliott": {"p": 0.1},
    "IoLimits": {},
    "Ipvlan": {"name": "i", "parent": "eth0"},
    "Limits": {},
    "LinkSpec": {"a": "a", "b": "b"},
    "Macvlan": {"name": "m", "parent": "eth0"},
    "Nat": {"outside": "x"},
    "Overlay": {"lower": "/x"},
    "Rule": {"action": "accept"},
    "Tayga": {"prefix": "64:ff9b::/96"},
    "TcpReady": {"port": 80},
    "Tmpfs": {"dst": "/x"},
    "To": {"bridge": "b"},
    "Tun": {"name": "t"},
    "UplinkSpec": {},
    "Vlan": {"name": "v", "parent": "eth0", "id": 5},
    "Vrf": {"name": "v", "table": 5},
    "Vxlan": {"name": "v", "id": 5},
    "WireGuard": {"name": "w"},
    "WireGuardPeer": {"worker": "w"},
    "WorkerSpec": {"name": "w", "command": ["x"], "namespaces": ["net", "mnt", "uts", "ipc", "pid", "user"]},
    "Topology": {},
    "Topology.bridge": {"name": "b"},
    "Topology.link": {"a": "a", "b": "b"},
    "Topology.worker": {"name": "w", "command": ["x"]},
    "Route": {"to": "10.0.0.0/8", "via": "10.9.9.9"},
    "bind": {"src": "/x"},
    "exec_ready": {"command": ["x"]},
    "tcp_ready": {"port": 80},
    "tmpfs": {"dst": "/x"},
}
#: what a field is called in files, where that is another word
FILES = {"ExecReady": "ready.exec", "exec_ready": "ready.exec", "Capabilities": "capabilities"}
FILES |= {"CapabilityChange": "capabilities"}
#: that other objects hold, or nsorch itself makes
UNCHECKED = {"Pid", "Trace", "Profile", "InterfaceSpec", "Change", "Difference"}


def maker(description: str) -> Any:
    kind, _, method = description.partition(".")
    return getattr(nsorch.Topology(), method) if method else getattr(nsorch, kind)


def fields(description: str) -> Iterator[str]:
    make = maker(description)
    if inspect.isclass(make) and attrs.has(make) and make is not nsorch.Route:
        yield from (field.name for field in attrs.fields(make))
    else:
        yield from inspect.signature(make).parameters


FIELDS = [(description, name) for description in NEEDED for name in fields(description)]


def test_all_descriptions_are_here() -> None:
    public = {name: getattr(nsorch, name) for name in nsorch.__all__}
    kinds = {name for name, kind in public.items() if inspect.isclass(kind) and issubclass(kind, Value)}
    described = {name for name in kinds if public[name].__module__.startswith("nsorch.topology")}
    assert described - UNCHECKED == NEEDED.keys() & kinds


@pytest.mark.parametrize(("description", "name"), FIELDS)
def test_a_wrong_kind_is_refused_by_name(description: str, name: str) -> None:
    refused = 0
    for value in STRANGE:
        given = NEEDED[description] | {name: value}
        try:
            made = maker(description)(**given)
        except (nsorch.TopologyError, nsorch.AddressError) as exc:
            refused += 1
            assert name in str(exc) or FILES.get(description, name) in str(exc), (shown(value), str(exc))
            assert len(str(exc)) < 500
        else:
            assert repr(made)
    assert refused > len(STRANGE) / 2


@pytest.mark.parametrize("value", [None, 5, "x", Strange(), nsorch.To("lan")], ids=repr)
def test_what_is_no_part_and_no_graph(value: Any) -> None:
    for take, name in (
        (nsorch.Topology().add, "spec"),
        (nsorch.Topology.from_networkx, "graph"),
        (nsorch.Topology.from_mininet, "topo"),
    ):
        with pytest.raises(nsorch.TopologyError, match=f"^{name}: .* is not a "):
            take(value)


def test_iterators_are_read_once() -> None:
    spec = nsorch.WorkerSpec(name="w", command=iter(["x"]), namespaces=iter(["net", "uts"]), links=iter(["lan"]))
    assert spec.command == ("x",)
    assert set(spec.namespaces) == {"net", "uts"}
    assert nsorch.Topology().worker("w", namespaces=iter(["net", "uts"])) == nsorch.WorkerSpec(
        name="w", namespaces=["net", "uts"]
    )


# -- what is made of descriptions


CALLS: dict[str, dict[str, Any]] = {
    "Supervisor": {},
    "sup.bridge": {"name": "b"},
    "sup.capture": {"links": []},
    "link.capture": {},
    "sup.deploy": {},
    "sup.link": {"a": "w", "b": "v"},
    "sup.start": {"name": "x"},
    "sup.start_all": {},
    "sup.events": {},
    "sup.wait_event": {"kind": "WorkerReady", "since": 0},
    "sup.ping_all": {"pairs": [("w", "v")]},
    "sup.pin": {"worker": "w"},
    "sup.uplink": {"worker": "w"},
    "sup.wait_converged": {},
    "link.set": {"end": "w"},
    "worker.add_interface": {},
    "worker.connect_tcp": {"host": "v", "port": 80},
    "worker.create_connected_udp_socket": {"host": "v", "port": 80},
    "worker.create_tcp_listener": {},
    "worker.create_udp_socket": {},
    "worker.open_socket": {"family": socket.AF_INET, "type": socket.SOCK_STREAM},
    "worker.open_tun": {"name": "t"},
    "worker.remove_interface": {},
    "worker.serve": {"handler": print, "port": 80},
    "worker.set_limits": {},
    "worker.popen": {"command": ["touch", "/proc/self/nothing"]},
    "worker.run": {"command": ["touch", "/proc/self/nothing"]},
    "worker.set_firewall": {},
    "worker.set_nat": {},
    "worker.set_routes": {},
    "worker.signal": {},
    "worker.stop": {},
    "worker.watch_stats": {},
    "nsorch.probe": {},
    "nsorch.unpack": {"image": "/nowhere", "directory": "/nowhere"},
}


NUMBERS = ("grace", "delay", "jitter", "ageing", "rate", "timeout", "interval", "happy_eyeballs_delay")


@pytest.mark.anyio
@pytest.mark.parametrize("call", CALLS)
async def test_calls_refuse_a_wrong_kind_by_name(call: str) -> None:
    async with nsorch.Supervisor() as sup:
        worker, other = await sup.start_all([nsorch.WorkerSpec(name=name) for name in ("w", "v")])
        link = await sup.link(worker, other)
        before = sup.bridges.keys() | sup.links.keys() | sup.workers.keys()
        owner, _, method = call.partition(".")
        objects = {"sup": sup, "link": link, "worker": worker, "nsorch": nsorch}
        func = getattr(objects[owner], method) if method else nsorch.Supervisor
        for name in inspect.signature(func).parameters:
            if name == "task_status":  # anyio's
                continue
            for value in (5.5, Strange(), [Strange()], -HUGE, {5: []}):
                if (name, value) in [(number, 5.5) for number in NUMBERS]:
                    continue
                with pytest.raises((nsorch.TopologyError, nsorch.AddressError), match=name):
                    done = func(**(CALLS[call] | {name: value}))
                    if inspect.isawaitable(done):
                        await done
        assert sup.bridges.keys() | sup.links.keys() | sup.workers.keys() == before


@pytest.mark.anyio
async def test_a_grace_of_another_kind_ends_nothing() -> None:
    async with nsorch.Supervisor(grace=0.1) as sup:
        worker = await sup.start("w", ["sleep", "60"])
        for grace in ("1", -1, float("nan"), HUGE, True):
            for call in (worker.stop, worker.restart):
                with pytest.raises(nsorch.TopologyError, match="grace: "):
                    await call(grace=grace)  # type: ignore[operator]
        link = await sup.link(worker, await sup.start("v"))
        with pytest.raises(nsorch.TopologyError, match=r"flap\.times: 1\.5 is not a whole number"):
            await link.flap(times=1.5)  # type: ignore[arg-type]
        assert link.is_up
        assert (worker.state, worker.incarnation) == (nsorch.State.RUNNING, 1)
        assert await worker.stop(grace=float("inf")) is not None


@pytest.mark.anyio
async def test_nobody_by_another_kind() -> None:
    async with nsorch.Supervisor() as sup:
        deployment = await sup.deploy(nsorch.Topology())
        for call in (
            lambda: sup.partition([5], ["w"]),
            lambda: sup.ping_all([(5, "w")]),
            lambda: sup.pin(5),
            lambda: sup.uplink(5),
            lambda: sup.vxlan(5, 6, id=1),
        ):
            with pytest.raises(nsorch.TopologyError, match="worker: 5 is neither a worker nor the name of one"):
                await call()  # type: ignore[operator]
        with pytest.raises(nsorch.TopologyError, match="topology: 5 is not a Topology"):
            await deployment.apply(5)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_names_of_nothing() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        worker = await sup.start("w", links=[lan])
        gone = await sup.link("w", await sup.start("v"))
        await gone.remove()
        for call in (
            lambda: sup.capture(["nothing"]),
            lambda: sup.capture([gone.name]),
            lambda: sup.capture([worker]),
            lambda: sup.ping_all([("w", "nothing")]),
            lambda: sup.pin("nothing"),
            lambda: sup.uplink("nothing"),
            lambda: sup.partition(["nothing"], ["w"]),
            lambda: worker.remove_interface("nothing"),
        ):
            with pytest.raises(nsorch.ClosedError, match=r'there is no (worker|link|interface) "'):
                await call()  # type: ignore[operator]
        for pairs in (["w"], ["wv"], [("w",)], [5], [None]):
            with pytest.raises(nsorch.TopologyError, match=r"pairs\[0\]: .* is not a \(source, target\) pair"):
                await sup.ping_all(pairs)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_ports_and_hosts() -> None:
    def calls(worker: nsorch.Worker, port: Any) -> list[Any]:
        return [
            worker.connect_tcp("v", port),
            worker.create_connected_udp_socket("v", port),
            worker.create_tcp_listener(local_port=port),
            worker.create_udp_socket(local_port=port),
            worker.serve(print, port),
        ]

    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        for port in (-1, 65536, "x", True, None, 80.5):
            for call in calls(worker, port):
                name = rf"{call.__name__}\.(local_)?port: .* is not a port: a whole number from [01] to 65535"
                with pytest.raises(nsorch.TopologyError, match=name):
                    await call
        for host in (5, b"v", ["v"]):
            for call in (
                worker.connect_tcp(host, 80),  # type: ignore[arg-type]
                worker.create_connected_udp_socket(host, 80),  # type: ignore[arg-type]
                worker.create_tcp_listener(local_host=host),  # type: ignore[arg-type]
                worker.create_udp_socket(local_host=host),  # type: ignore[arg-type]
                worker.serve(print, 80, local_host=host),  # type: ignore[arg-type]
                worker.connect_tcp("w", 80, local_host=host),  # type: ignore[arg-type]
            ):
                with pytest.raises(
                    nsorch.TopologyError, match=rf"{call.__name__}\.(local_)?host: .* is neither an add"
                ):
                    await call


@pytest.mark.anyio
async def test_objects_of_another_lab_and_of_before() -> None:
    """Else it would be those of the same name with which something is done."""
    async with nsorch.Supervisor() as other, nsorch.Supervisor() as sup:
        lan, w = await sup.bridge("lan", "10.0.0.0/24"), await sup.start("w")
        far_lan, far = await other.bridge("lan"), await other.start("w")
        far_link = await other.link(far, far_lan)
        old = await sup.start("v")
        await old.remove()
        await sup.start("v")
        link = await sup.link(w, lan)
        for call in (
            lambda: sup.link(far, lan),
            lambda: sup.link(w, far_lan),
            lambda: sup.link(old, lan),
            lambda: sup.start("x", links=[far_lan]),
            lambda: sup.start("x", namespaces={"net": far}),
            lambda: sup.bridge("y", "10.1.0.0/24", gateway=far),
            lambda: sup.pin(far),
            lambda: sup.ping_all([("w", far)]),
            lambda: sup.partition([far], ["v"]),
            lambda: sup.capture([far_link]),
            lambda: link.set(bridge=far_lan),
            lambda: link.set(mtu=1400, end=far),
            lambda: w.connect_tcp(far, 80),
            lambda: w.create_connected_udp_socket(old, 53),
            lambda: w.create_tcp_listener(local_host=far),
        ):
            with pytest.raises(nsorch.ClosedError, match="another supervisor's"):
                await call()  # type: ignore[operator]
        assert (list(sup.workers), list(sup.bridges), list(sup.links)) == (["w", "v"], ["lan"], [link.name])


@pytest.mark.parametrize("condition", [LeaseReady(None), RouteReady(None)])
def test_conditions_of_its_own_are_taken(condition: Any) -> None:
    assert nsorch.WorkerSpec(name="w", command=["x"], ready=condition).ready is condition
