from __future__ import annotations

import os
import resource
import signal
import time
from typing import TYPE_CHECKING

import anyio
import pytest
from kernel_support import IN_VM

if TYPE_CHECKING:
    from collections.abc import Iterator

if not IN_VM:  # there, importing it takes seconds, and no test needs it
    from hypothesis import HealthCheck, settings

    # A loaded machine is slow, and that is no failure.
    settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("here")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-backend",
        action="store_true",
        help="on asyncio alone as root, on trio as an ordinary user, but for tests marked once: `make test` runs both",
    )


def pytest_configure() -> None:
    """Who runs them in the background may have SIGINT ignored, and so what they start would."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of what takes long, both users together run both backends; in the virtual machine of what asks the kernel, too."""
    other, one_backend = "asyncio" if os.geteuid() else "trio", config.getoption("one_backend")

    def has_one(item: pytest.Item) -> bool:
        if item.get_closest_marker("long") or (one_backend and not item.get_closest_marker("once")):
            return True
        vm = item.get_closest_marker("vm") if IN_VM else None
        return vm is not None and bool(vm.kwargs.get("one_backend"))

    def spared(item: pytest.Item) -> bool:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        return parameters.get("anyio_backend") == other and has_one(item)

    if deselected := [item for item in items if spared(item)]:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if not spared(item)]


def _descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if not target.startswith(("/proc/", "anon_inode:[eventpoll]")):
            found[name] = target
    return found


def _children() -> set[str]:
    found = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/children") as file:
                found |= set(file.read().split())
        except OSError:
            continue
    return found


def _host() -> tuple[list[str], list[str]]:
    with open("/proc/self/net/dev") as devices, open("/proc/self/mounts") as mounts:
        return [line.split(":")[0].strip() for line in devices], mounts.readlines()


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor, process, interface, mount or temporary file of nsorch's outlives a test."""
    descriptors, children, host = _descriptors(), _children(), _host()
    files = set(os.listdir("/tmp"))
    yield
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not _children() <= children:
        time.sleep(0.01)
    assert _children() <= children, "processes were left"
    left = {name: target for name, target in _descriptors().items() if descriptors.get(name) != target}
    assert not left, f"descriptors were left: {left}"
    assert _host() == host, "interfaces or mounts of the host were changed"
    assert not {name for name in set(os.listdir("/tmp")) - files if "nsorch" in name}, "files were left"


def needs_descriptors(count: int) -> pytest.MarkDecorator:
    """Skip where the hard limit of open files is lower."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return pytest.mark.skipif(hard < count, reason=f"RLIMIT_NOFILE is {hard}, not {count}")


def running(marker: str) -> list[int]:
    """Pids of processes with *marker* as one of their arguments."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    arguments = file.read().split(b"\0")
            except OSError:
                continue
            if marker.encode() in arguments:
                found.append(int(name))
    return found


async def shown(pid: int | None, what: str) -> bytes:
    """A process's ``cmdline`` or ``environ``; the kernel fills them in a moment after its parent goes on from vfork."""
    with anyio.fail_after(5):
        while not (text := await anyio.Path(f"/proc/{pid}/{what}").read_bytes()):
            await anyio.sleep(0.001)
    return text


@pytest.fixture
def marker() -> str:
    """A number of seconds that no other test sleeps."""
    return str(100_000_000 + int.from_bytes(os.urandom(3)))
