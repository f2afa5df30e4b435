"""Uplinks to the outside. The outside is simulated: a worker stands for the host, and runs a lab of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

import anyio
import jsonschema
import pytest
from kernel_support import needs_kernel, needs_program, needs_tun

import nsorch

pytestmark = pytest.mark.anyio
needs = needs_kernel("nf_tables", "tun")
needs_pasta = needs_program("pasta", "passt")
of_kernel = pytest.mark.vm(one_backend=True)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SERVER = "203.0.113.9"
SECONDS = 60

# What the inner application does; it tells on standard output, and waits for standard input to end.
INNER = """
import subprocess, sys
import anyio, nsorch

async def main():
    async with nsorch.Supervisor(rootless={rootless}) as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24", gateway="r")
        r = await sup.start("r", links=[lan], nat="up0", firewall={{"preset": "home"}})
        a = await sup.start("a", links=[lan])
        try:
            await a.connect_tcp("{server}", 80)
        except OSError as exc:
            print("before:", type(exc).__name__, flush=True)
        uplink = await sup.uplink(r, method={method!r})
        print("method:", uplink.method, uplink.interface, flush=True)
        async with await a.connect_tcp("{server}", 80) as stream:
            print("seen:", (await stream.receive()).decode(), flush=True)
        try:
            await sup.uplink(r)
        except nsorch.TopologyError as exc:
            print("twice:", exc, flush=True)
        b = await sup.start("b")
        await sup.link(r, b)  # its interface's number is behind the uplink's
        if {remove}:
            await uplink.remove()
            await uplink.remove()
            await sup.uplink(r, method={method!r}, name="up1") if {method!r} == "pasta" else None
        await r.remove()
        print("workers:", *sup.workers, flush=True)
        keep = await sup.start("keep")
        await sup.uplink(keep, method={method!r})
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.read)

anyio.run(main, backend="{backend}")
"""

# The same by a description; the router's own command reaches the outside, too, before the router is ready.
DESCRIBED = """
import sys
import anyio, nsorch

COMMAND = '''
import socket, time
socket.create_connection((%r, 80), 10)
with socket.create_server(("", 99)):
    time.sleep(999)
'''

async def main():
    router = {{"links": ["lan"], "nat": "up0", "uplink": {method!r}, "ready": {{"tcp": 99}}}}
    data = {{"bridges": {{"lan": {{"subnet": "10.0.0.0/24", "gateway": "r"}}}}, "workers": {{"a": {{"links": ["lan"]}}}}}}
    data["workers"]["r"] = router | {{"command": [sys.executable, "-c", COMMAND % {server!r}]}}
    topology = nsorch.Topology.from_dict(data)
    async with nsorch.Supervisor(rootless={rootless}) as sup:
        lab = await sup.deploy(topology)
        async with await lab.workers["a"].connect_tcp({server!r}, 80) as stream:
            print("seen:", (await stream.receive()).decode(), flush=True)
        del data["workers"]["r"]["uplink"]
        data["workers"]["r"]["nat"] = "lan"
        print("changes:", *(await lab.apply(nsorch.Topology.from_dict(data))).changes, flush=True)
        try:
            await lab.workers["r"].connect_tcp({server!r}, 80)
        except OSError as exc:
            print("after:", type(exc).__name__, flush=True)
        await lab.apply(topology)
        async with await lab.workers["a"].connect_tcp({server!r}, 80) as stream:
            print("again:", (await stream.receive()).decode(), flush=True)

anyio.run(main, backend="{backend}")
"""


async def state_of(host):
    """What the inner application could change on its host: interfaces and rules."""
    links = (await host.run(["cat", "/proc/net/dev"])).stdout.decode()
    names = sorted(line.split(":")[0].strip() for line in links.splitlines()[2:])
    done = await host.run(["nft", "list", "tables"], check=False) if shutil.which("nft") else None
    return names, b"" if done is None else done.stdout


@contextlib.asynccontextmanager
async def outside():
    """A worker that stands for the host, which is left as it was, and beyond it a server that tells who asks."""

    async def show(stream):
        async with stream:
            await stream.send(str(stream.extra(anyio.abc.SocketAttribute.remote_address)[0]).encode())

    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        net = await sup.bridge("net", "203.0.113.0/24", gateway="server")
        server = await sup.start("server", links=[net])
        host = await sup.start("host", links=[net], forward=True)
        await server.run(["ip", "addr", "add", f"{SERVER}/24", "dev", "eth0"])
        await tasks.start(server.serve, show, 80)
        before = await state_of(host)
        yield host
        with anyio.fail_after(SECONDS):
            while await state_of(host) != before:
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()


@of_kernel
@needs
@pytest.mark.parametrize("ending", ["orderly", "killed"])
@pytest.mark.parametrize(
    ("method", "rootless"),
    [
        pytest.param("pasta", False, marks=[needs_pasta, needs_root]),
        pytest.param("pasta", True, marks=[needs_pasta, needs_tun]),
        pytest.param("nat", False, marks=needs_root),
    ],
)
async def test_a_lab_reaches_the_outside(anyio_backend, method, rootless, ending):
    """It does so only when asked to, as its host, and leaves nothing on that, also when it is killed."""
    async with outside() as host:
        program = INNER.format(
            rootless=rootless, method=method, server=SERVER, backend=anyio_backend, remove=ending == "orderly"
        )
        inner = await host.popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=None)
        async with inner:
            said = b""
            with anyio.fail_after(SECONDS):
                while not said.endswith(b"\nready\n"):
                    said += await inner.stdout.receive()
            lines = dict(line.split(": ", 1) for line in said.decode().splitlines()[:-1])
            assert lines["before"]
            assert lines["method"] == f"{method} up0"
            assert lines["seen"] == "203.0.113.2"
            assert lines["twice"] == "uplink: r has a default route already"
            assert lines["workers"] == "a b"
            if ending == "killed":
                inner.kill()
            await inner.stdin.aclose()
            with anyio.fail_after(SECONDS):
                await inner.wait()


@of_kernel
@needs
@pytest.mark.parametrize(
    ("method", "rootless"),
    [pytest.param("pasta", True, marks=[needs_pasta, needs_tun]), pytest.param("nat", False, marks=needs_root)],
)
async def test_a_described_uplink(anyio_backend, method, rootless):
    """It is there before the worker's command runs, and follows the description."""
    async with outside() as host:
        program = DESCRIBED.format(rootless=rootless, method=method, server=SERVER, backend=anyio_backend)
        with anyio.fail_after(SECONDS):
            done = await host.run([sys.executable, "-c", program])
        lines = dict(line.split(": ", 1) for line in done.stdout.decode().splitlines())
        assert lines["seen"] == lines["again"] == "203.0.113.2"
        assert lines["changes"] == "set worker r (nat, uplink)"
        assert lines["after"]


@needs
async def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    async with nsorch.Supervisor() as sup:
        w = await sup.start("w")
        with pytest.raises(nsorch.UnsupportedError, match=r"pasta isn't installed \(Debian: passt\)"):
            await sup.uplink(w, method="pasta")
        if sup.rootless:
            with pytest.raises(nsorch.UnsupportedError, match="needs root"):
                await sup.uplink(w, method="nat")
        with pytest.raises(nsorch.TopologyError, match=r"name: .*a/b"):
            await sup.uplink(w, name="a/b")
        topology = nsorch.Topology()
        topology.worker("r", uplink="pasta")
        with pytest.raises(nsorch.UnsupportedError, match=r"r: pasta isn't installed \(Debian: passt\)"):
            await sup.deploy(topology)
        await sup.link(nsorch.End("w", name="up0"), await sup.start("v"))
        with pytest.raises(nsorch.NameInUseError):
            await sup.uplink(w)
        assert set(sup.workers) == {"w", "v"}


@needs
@needs_pasta
@pytest.mark.skipif(os.access("/dev/net/tun", os.W_OK), reason="this user may open /dev/net/tun")
async def test_a_user_who_may_not():
    """Whatever pasta complains of first, it is told, and nothing is left."""
    async with nsorch.Supervisor() as sup:
        w = await sup.start("w")
        with pytest.raises(nsorch.SetupError, match="pasta ended") as caught:
            await sup.uplink(w, method="pasta")
        assert caught.value.detail
        assert set(sup.workers) == {"w"}


def test_files(tmp_path):
    topology = nsorch.Topology()
    for name, uplink in (("a", True), ("b", "pasta"), ("c", nsorch.UplinkSpec("nat", name="wan")), ("d", False)):
        topology.worker(name, uplink=uplink)
    plain = topology.to_dict()["workers"]
    assert [plain[name].get("uplink") for name in "abcd"] == [True, "pasta", {"name": "wan", "method": "nat"}, None]
    for suffix in ("toml", "yaml", "json"):
        topology.dump(tmp_path / f"lab.{suffix}")
        assert nsorch.Topology.load(tmp_path / f"lab.{suffix}").workers == topology.workers
    jsonschema.validate(topology.to_dict(), nsorch.Topology.json_schema())


@pytest.mark.parametrize(
    ("worker", "message"),
    [
        ({"uplink": "wifi"}, 'workers.w.uplink.method: "wifi" is none of pasta, nat'),
        ({"uplink": 5}, "workers.w.uplink: 5 is neither true, a method nor a table"),
        ({"uplink": {"name": "a/b"}}, "workers.w.uplink.name: "),
        ({"uplink": {"speed": 1}}, "workers.w.uplink.speed: unknown key"),
        ({"uplink": True, "namespaces": ["mnt"]}, "workers.w.uplink: only in a network namespace of its own"),
        (
            {"uplink": True, "interfaces": [{"kind": "tun", "name": "up0"}]},
            'workers.w.uplink.name: "up0" is another interface already',
        ),
    ],
)
def test_wrong(worker, message):
    with pytest.raises(nsorch.TopologyError) as caught:
        nsorch.Topology.from_dict({"workers": {"w": worker}})
    (problem,) = caught.value.problems
    assert problem.startswith(message)
