"""The measurements of nsorch itself. Each runs in a process of its own: ``python -m bench.jobs JOB ARGUMENTS``."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from functools import partial
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import anyio
from attrs import evolve

import nsorch
from nsorch.net import messages

from .networks import sparse
from .processes import descendants, parent_of, proportional_size
from .ticker import percentile, ticker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_COMMAND = ["sleep", "600"]


def _specs(n: int, shape: str) -> list[nsorch.WorkerSpec]:
    """*shape*: ``exec`` (the command is PID 1), ``init`` (below an init), or ``passive`` (a netns alone)."""
    if shape == "passive":
        return [nsorch.WorkerSpec(name=f"w{number}", namespaces=["net"]) for number in range(n)]
    return [nsorch.WorkerSpec(name=f"w{number}", command=_COMMAND, init=shape == "init") for number in range(n)]


async def start(n: int, shape: str) -> dict[str, float]:
    """Seconds from the first request until the last exec is confirmed."""
    specs = _specs(n, shape)
    async with nsorch.Supervisor(grace=0) as sup:
        begin = time.perf_counter()
        await sup.start_all(specs)
        seconds = time.perf_counter() - begin
    return {"seconds": seconds}


_SEVEN = ["user", "net", "mnt", "uts", "ipc", "pid", "cgroup"]


def _isolated(name: str, rootfs: str) -> nsorch.WorkerSpec:
    return nsorch.WorkerSpec(name=name, command=["/bin/true"], namespaces=_SEVEN, rootfs=rootfs, init=False)


async def isolated(n: int, rootfs: str) -> dict[str, float]:
    """Medians (seconds) of *n* starts one after the other: until the exec is confirmed, and until the end is known."""
    started, ended = [], []
    async with nsorch.Supervisor() as sup:
        for number in range(n):
            begin = time.perf_counter()
            (worker,) = await sup.start_all([_isolated(f"w{number}", rootfs)])
            started.append(time.perf_counter() - begin)
            await worker.wait()
            ended.append(time.perf_counter() - begin)
            await worker.remove()
    return {"started": statistics.median(started), "ended": statistics.median(ended)}


async def isolated_together(n: int, rootfs: str) -> dict[str, float]:
    """How many a second, of *n* started at once, until the last has ended."""
    specs = [_isolated(f"w{number}", rootfs) for number in range(n)]
    async with nsorch.Supervisor() as sup:
        begin = time.perf_counter()
        for worker in await sup.start_all(specs):
            await worker.wait()
        return {"rate": n / (time.perf_counter() - begin)}


async def tick_during_start(n: int, shape: str) -> dict[str, float]:
    """Lateness (seconds) of a 1 ms ticker in the same loop."""
    specs = _specs(n, shape)
    async with nsorch.Supervisor(grace=0) as sup, ticker() as lateness:
        await sup.start_all(specs)
    return {"p99": percentile(lateness, 0.99), "max": max(lateness)}


async def tick_beside(*command: str) -> dict[str, float]:
    """The same while *command* runs instead, until it prints something."""
    async with await anyio.open_process(command) as process:
        assert process.stdout is not None
        async with ticker() as lateness:
            await process.stdout.receive()
        await process.wait()
    return {"p99": percentile(lateness, 0.99), "max": max(lateness)}


async def passive_memory(n: int) -> dict[str, float]:
    """Bytes of this process and of nsorch's helpers, for each of *n* passive workers."""
    first, *others = _specs(n + 1, "passive")
    async with nsorch.Supervisor() as sup:
        await sup.start_all([first])  # what is imported and set up once isn't theirs
        before = _own_size()
        await sup.start_all(others)
        added = _own_size() - before  # with a helper that came for these
    return {"bytes": added / n}


def _own_size() -> int:
    """PSS in bytes, of this process and all below."""
    return sum(map(proportional_size, [os.getpid(), *descendants(os.getpid())]))


async def init_memory(n: int) -> dict[str, float]:
    """PSS in bytes, for each of *n* workers: of its init, of its command, and all that it adds but for its command."""
    async with nsorch.Supervisor() as sup:
        await sup.start("first", _COMMAND)  # what is imported and set up once isn't theirs
        before = _without_commands(sup)
        commands = [worker.pid for worker in await sup.start_all(_specs(n, "init"))]
        inits = [proportional_size(parent_of(pid)) for pid in commands if pid]
        own = [proportional_size(pid) for pid in commands if pid]
        added = (_without_commands(sup) - before) / n
    return {"init": statistics.mean(inits), "command": statistics.mean(own), "added": added}


def _without_commands(sup: nsorch.Supervisor) -> int:
    commands = {worker.pid for worker in sup.workers.values()}
    helpers = [pid for pid in descendants(os.getpid()) if pid not in commands]
    return sum(map(proportional_size, [os.getpid(), *helpers]))


async def run_true(n: int) -> dict[str, float]:
    """Median seconds of ``run(["true"])`` in a live and a passive worker, and of ``nsenter`` from here."""
    async with nsorch.Supervisor() as sup:
        live, passive = await sup.start("live", _COMMAND), await sup.start("passive")
        runs: dict[str, Callable[[], Awaitable[Any]]] = {
            "live": lambda: live.run(["true"]),
            "passive": lambda: passive.run(["true"]),
        }
        if os.geteuid() == 0:
            runs["nsenter"] = lambda: anyio.run_process(["nsenter", "-t", str(live.pid), "-a", "true"])
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(n):
            for name, run in runs.items():
                begin = time.perf_counter()
                await run()
                seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


async def enter_and_start(n: int, resident: int) -> dict[str, float]:
    """Seconds to enter a supervisor and start *n* workers, for a caller with so many *resident* bytes more."""
    with mmap.mmap(-1, max(resident, mmap.PAGESIZE)) as heap:
        # Many pages, as a heap of small objects has them: huge ones would make a fork cheap.
        heap.madvise(mmap.MADV_NOHUGEPAGE)
        for page in range(0, resident, mmap.PAGESIZE):
            heap[page] = 1
        begin = time.perf_counter()
        async with nsorch.Supervisor() as sup:
            for spec in _specs(n, "init"):
                await sup.start(spec.name, spec.command)
            seconds = time.perf_counter() - begin
    return {"seconds": seconds}


async def ping_star(n: int) -> dict[str, float]:
    """Pairs a second of a star of *n* workers; beside it, echoes a second over loopback by blocking calls."""
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", subnet="10.0.0.0/16")
        await sup.start_all([nsorch.WorkerSpec(name=f"w{number}", links=[lan]) for number in range(n)])
        begin = time.perf_counter()
        reached = await sup.ping_all()
        seconds = time.perf_counter() - begin
        assert reached.ok, f"{len(reached.failed)} pairs did not answer"
        result = {"rate": len(reached.pairs) / seconds}
        with await sup.workers["w0"].open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as echo:
            echo.setblocking(True)
            result["loopback"] = _loopback_rate(echo)
    return result


def _star(n: int, shape: str) -> nsorch.Topology:
    topology = nsorch.Topology("star")
    topology.bridge("lan", "10.0.0.0/8", gateway="w0")
    for spec in _specs(n, shape):
        topology.add(evolve(spec, links=["lan"]))
    return topology


async def star(n: int, shape: str) -> dict[str, float]:
    """Seconds to deploy a star with a gateway, and until its last interface is gone from the fabric; of another one,
    those of first pings: of all to the gateway, and of *n* random pairs; how late a 1 ms ticker is through all that
    happens to this one; the memory.

    The first one is taken down before anything was sent, as the C program's is: what the kernel frees late after that
    (sockets, neighbours) keeps the interfaces for some 0.3 s.
    """
    topology = _star(n, shape)
    choose = random.Random(n)
    names = list(topology.workers)
    pairs = [tuple(choose.sample(names, 2)) for _ in range(n)]
    async with nsorch.Supervisor() as sup:
        await sup.start("first")  # what is imported and set up once isn't the star's
        stub = (await sup.wait_event(nsorch.SupervisorStarted, since=0)).pid
        helpers = [pid for pid in descendants(stub) if parent_of(pid) == stub]
        begin = time.perf_counter()
        deployment = await sup.deploy(topology)
        created = time.perf_counter()
        await deployment.remove()
        await _none_left(helpers[0])
        gone = time.perf_counter()
        async with ticker() as late:
            deployment = await sup.deploy(topology)
            ready = time.perf_counter()
            to_gateway = await sup.ping_all([(name, "w0") for name in names[1:]])
            asked = time.perf_counter()
            at_random = await sup.ping_all(pairs)
            answered = time.perf_counter()
            size = await anyio.to_thread.run_sync(lambda: sum(map(proportional_size, [os.getpid(), stub, *helpers])))
            await deployment.remove()
            await _none_left(helpers[0])
    assert to_gateway.ok
    assert at_random.ok, f"{len(at_random.failed)} pairs did not answer"
    return {
        "created": created - begin,
        "to_gateway": asked - ready,
        "at_random": answered - asked,
        "gone": gone - created,
        "late": percentile(late, 0.99),
        "bytes": size,
    }


async def _none_left(fabric: int) -> None:
    """Wait until the kernel has freed all ends of workers' links."""
    while await anyio.to_thread.run_sync(_ports, fabric):
        await anyio.sleep(0.005)


def _ports(pid: int) -> bool:
    """Whether the network namespace of process *pid*, the fabric, has ends of workers' links."""
    with open(f"/proc/{pid}/net/dev") as file:
        return any(line.lstrip().startswith("p") for line in file)


async def connections(n: int, count: int) -> dict[str, float]:
    """Seconds to open and close *count* TCP connections from *n* workers to one, and the same over loopback from this
    process."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(anyio.EndOfStream):
                await stream.receive()

    async def through(connect: Callable[[int], Awaitable[anyio.abc.SocketStream]]) -> float:
        numbers = iter(range(count))

        async def work() -> None:
            for number in numbers:
                await (await connect(number)).aclose()

        begin = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(work)
        return time.perf_counter() - begin

    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        await sup.deploy(_star(n, "passive"))
        gateway = sup.workers["w0"]
        address = str(gateway.addresses[0].ip)
        await tasks.start(partial(gateway.serve, serve, 8000))
        workers = list(sup.workers.values())[1:]
        inside = await through(lambda number: workers[number % len(workers)].connect_tcp(address, 8000))
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, serve)
        outside = await through(lambda _: anyio.connect_tcp("127.0.0.1", port))
        tasks.cancel_scope.cancel()
    return {"inside": inside, "outside": outside}


async def routed_network(n: int) -> dict[str, float]:
    """A network of *n* routers: routes a second of its whole deployment, pairs a second of its check, and how late a
    1 ms ticker is meanwhile; beside it, routes a second of one thread of plain sends."""
    topology = sparse(n)
    async with nsorch.Supervisor() as sup:
        async with ticker() as late_deploy:
            begin = time.perf_counter()
            await sup.deploy(topology)
            deployed = time.perf_counter() - begin
        names = list(sup.workers)
        pairs = ((a, b) for number, a in enumerate(names) for b in names[number + 1 :])
        async with ticker() as late_check:
            begin = time.perf_counter()
            reached = await sup.ping_all(pairs)
            checked = time.perf_counter() - begin
        assert reached.ok, f"{len(reached.failed)} pairs did not answer"
        alone = await sup.start("alone")
        with await alone.open_socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
            sock.setblocking(True)
            plain = await anyio.to_thread.run_sync(_plain_routes, sock)
    return {
        "routes": 2 * n * (n - 1) / deployed,
        "plain": plain,
        "pairs": len(reached.pairs) / checked,
        "late_deploy": percentile(late_deploy, 0.99),
        "late_check": percentile(late_check, 0.99),
    }


def _plain_routes(sock: socket.socket, count: int = 50_000, together: int = 128) -> float:
    """Routes a second, packed before, by sends that nobody acknowledges."""
    template = messages.route(messages.RTM_NEWROUTE, ip_network("0.0.0.0/32"), [(None, 1)], replace=True)
    addresses = b"".join((0x0A000000 + number).to_bytes(4, "big") for number in range(count))
    size = 4 * together
    parts = [addresses[at : at + size] for at in range(0, len(addresses), size)]
    datagrams = [messages.copies(template, [messages.route_destinations(4, part)], 1) for part in parts]
    begin = time.perf_counter()
    for datagram in datagrams:
        sock.send(datagram)
        sock.recv(4096)
    return count / (time.perf_counter() - begin)


def _loopback_rate(echo: socket.socket, n: int = 2000) -> float:
    request = bytes.fromhex("0800f7ff00000000")
    begin = time.perf_counter()
    for _ in range(n):
        echo.sendto(request, ("127.0.0.1", 0))
        while echo.recv(64)[20] != 0:  # the request itself is heard, too
            pass
    return n / (time.perf_counter() - begin)


def import_times(n: int, cache: str) -> list[tuple[float, float]]:
    """Seconds that ``import anyio`` takes a fresh interpreter, and what ``import nsorch`` adds to it.

    With compiled bytecode, which is kept in *cache*: installers compile.
    """
    code = "from time import perf_counter as t; a = t(); import anyio; b = t(); import nsorch; print(b - a, t() - b)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    times = []
    for _ in range(n + 1):
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        before, added = map(float, done.stdout.split())
        times.append((before, added))
    return times[1:]  # the first one compiles


_JOBS: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
    job.__name__: job
    for job in (
        start,
        isolated,
        isolated_together,
        tick_during_start,
        tick_beside,
        passive_memory,
        init_memory,
        run_true,
        enter_and_start,
        ping_star,
        star,
        connections,
        routed_network,
    )
}


def measure(job: Callable[..., Awaitable[dict[str, float]]], *arguments: Any, backend: str = "asyncio") -> Any:
    """What *job* answers in a fresh process; its standard error is ours."""
    command = [sys.executable, "-m", "bench.jobs", job.__name__, backend, json.dumps(arguments)]
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    _, name, loop, values = sys.argv
    print(json.dumps(anyio.run(_JOBS[name], *json.loads(values), backend=loop)))
