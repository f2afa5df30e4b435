"""What no request of a program's may do: end the others' workers, or change the host."""

from __future__ import annotations

import io
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

import nsorch

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.anyio

Attempt = "Callable[[nsorch.Supervisor, nsorch.Worker], Coroutine[Any, Any, object]]"


def closed_file() -> object:
    with open(os.devnull) as file:
        return file


ATTEMPTS: list[tuple[type[Exception], str, Attempt]] = [
    (nsorch.TopologyError, "null", lambda sup, _: sup.start("x", ["true"], cwd="/\0")),
    (nsorch.TopologyError, "null", lambda sup, _: sup.start("x", ["true"], hostname="a\0b")),
    (nsorch.TopologyError, "null", lambda sup, _: sup.start("x", ["true"], stdout="/tmp/\0")),
    (nsorch.TopologyError, "name of a sysctl", lambda sup, _: sup.start("x", sysctls={"net.\0": 1})),
    (nsorch.SetupError, "EINVAL", lambda sup, _: sup.start("x", sysctls={"net.ipv4.ip_forward": "1\0"})),
    (nsorch.SetupError, "streams stdout=9999: .*EBADF", lambda sup, _: sup.start("x", ["true"], stdout=9999)),
    (nsorch.TopologyError, "stdout: .*no open", lambda sup, _: sup.start("x", ["true"], stdout=io.BytesIO())),
    (nsorch.TopologyError, "stdin: .*no open", lambda _, worker: worker.run(["true"], stdin=closed_file())),
    (nsorch.TopologyError, "^stdout: STDOUT", lambda sup, _: sup.start("x", ["true"], stdout=subprocess.STDOUT)),
    (nsorch.TopologyError, "^stdin: STDOUT", lambda _, worker: worker.run(["true"], stdin=subprocess.STDOUT)),
    (nsorch.SetupError, "/nowhere/file", lambda sup, _: sup.start("x", ["true"], stdout="/nowhere/file")),
    (nsorch.TopologyError, "not a descriptor", lambda sup, _: sup.start("x", namespaces={"net": 1 << 40})),
    (nsorch.TopologyError, "not a pid", lambda sup, _: sup.start("x", namespaces={"net": nsorch.Pid(-1)})),
    (nsorch.TopologyError, "null", lambda sup, _: sup.start("x", namespaces={"net": "/proc/\0"})),
    (ValueError, "null", lambda _, worker: worker.run(["true"], cwd="/\0")),
    (ValueError, "environment variable", lambda _, worker: worker.run(["true"], env={"A=B": "1"})),
    (ValueError, "environment variable", lambda _, worker: worker.run(["true"], env={"": "1"})),
    (nsorch.SetupError, "E2BIG", lambda _, worker: worker.run(["echo", "x" * 3_000_000])),
    (nsorch.TopologyError, "not a number from 0", lambda _, worker: worker.run(["true"], user=1 << 33)),
    (nsorch.SetupError, "stdout=9999: .*EBADF", lambda _, worker: worker.run(["true"], stdout=9999)),
    (nsorch.SetupError, "too large", lambda _, worker: worker.open_socket(1 << 40, socket.SOCK_STREAM)),
    (ValueError, "absolute", lambda sup, worker: sup.pin(worker, folder="/run/\0")),
]


@pytest.mark.parametrize("number", range(len(ATTEMPTS)))
async def test_the_others_live_on(number: int) -> None:
    error, text, attempt = ATTEMPTS[number]
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w", ["sleep", "60"])
        with pytest.raises(error, match=text):
            await attempt(sup, worker)
        assert (await worker.run(["echo", "alive"])).stdout == b"alive\n"
        assert set(sup.workers) == {"w"}


async def test_a_descriptor_may_be_closed_after_the_call() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        ours, theirs = os.pipe()
        process = await worker.popen(["sh", "-c", "sleep 0.1; echo hello"], stdout=theirs)
        os.close(theirs)
        assert await process.wait() == 0
        await process.aclose()
        assert os.read(ours, 100) == b"hello\n"
        os.close(ours)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"sysctls": {"vm.swappiness": 60}}, r"workers\.x\.sysctls\.vm\.swappiness: belongs to no namespace"),
        ({"sysctls": {"kernel/pid_max": 99999}}, "belongs to no namespace"),
        ({"sysctls": {"net.ipv4.ip_forward": 1}, "namespaces": ["mnt"]}, "no net namespace of its own"),
        ({"sysctls": {"net.ipv4.ip_forward": 1}, "namespaces": {"net": "/proc/1/ns/net"}}, "no net namespace of its"),
        ({"sysctls": {"kernel.shmmax": 1}, "namespaces": ["net"]}, "no ipc namespace of its own"),
        ({"sysctls": {"net/../vm/swappiness": 60}}, "not the name of a sysctl"),
        ({"sysctls": {"": 1}}, "not the name of a sysctl"),
        ({"sysctls": {"net.ipv4.ip_forward": True}}, "neither a string nor a number"),
        ({"hostname": "elsewhere", "namespaces": ["net"]}, r"workers\.x\.hostname: would be set outside"),
    ],
)
async def test_nothing_of_the_host_is_set(options: dict[str, Any], path: str) -> None:
    with pytest.raises(nsorch.TopologyError, match=path):
        nsorch.WorkerSpec(name="x", **options)


async def test_what_belongs_to_its_namespaces_is_set() -> None:
    async with nsorch.Supervisor() as sup:
        with pytest.raises(nsorch.PermissionDeniedError, match=r"mc_forwarding: .*: it is read-only, or"):
            await sup.start("other", sysctls={"net.ipv4.conf.all.mc_forwarding": 1})
        sysctls = {"kernel.shmmax": 12345, "fs.mqueue.msg_max": 17}
        worker = await sup.start("w", sysctls=sysctls, hostname="other")
        done = await worker.run(["cat", *(f"/proc/sys/{name.replace('.', '/')}" for name in sysctls)])
        assert done.stdout.split() == [b"12345", b"17"]
        assert (await worker.run(["hostname"])).stdout == b"other\n"
