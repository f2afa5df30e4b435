"""Nothing imports upwards: cli → {supervisor, host, images} → {core, net, topology, events} → errors; all may
use values."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from typing import Any

import pytest

import nsorch
import nsorch.events
import nsorch.topology

pytestmark = pytest.mark.once

TOP = pathlib.Path(nsorch.__file__).parent
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "values": set(),
    "later": set(),
    "core": {"errors"},
    "net": {"errors"},
    "topology": {"errors"},
    "events": {"errors"},
    "host": {"errors", "core", "topology"},
    "images": {"errors", "topology"},
    "services": {"errors"},
    "supervisor": {"errors", "core", "net", "topology", "events", "services"},
}
FILES = sorted(TOP.rglob("*.py"))


def layer_of(path: pathlib.Path) -> str:
    return path.relative_to(TOP).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Absolute names of all that *path* imports, also in functions."""
    package = ["nsorch", *path.relative_to(TOP).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TOP)))
def test_imports(path: pathlib.Path) -> None:
    layer = layer_of(path)
    if layer not in ALLOWED:
        if layer == "cli":
            names = {name for name in imported(path) if name.startswith("nsorch.")}
            names = {name for name in names if not name.startswith("nsorch.cli")}
            assert names <= {f"nsorch.{public}" for public in (*nsorch.__all__, "__version__")}
        return
    used = {name.split(".")[1] for name in imported(path) if name.startswith("nsorch.")}
    assert used - {layer, "values", "later"} <= ALLOWED[layer]  # which all may use
    if "spawner" in path.relative_to(TOP).parts:
        outside = {name for name in imported(path) if not name.startswith("nsorch.core.spawner")}
        assert {name.split(".")[0] for name in outside} <= set(sys.stdlib_module_names)


def test_heavy_packages_are_imported_when_needed() -> None:
    program = """if True:
        import nsorch, sys
        nsorch.Supervisor(); nsorch.Topology().worker("w")
        print(*{"cattrs", "click", "rich", "networkx", "yaml", "pyroute2"} & sys.modules.keys())
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# A program that uses none of it doesn't wait for it.
OF_FEW = (
    *("core.seccomp", "core.usage", "events.rare", "host", "images", "net.filters"),
    *("net.interfaces", "net.nftables", "net.packets", "net.partition", "net.ping", "net.qdiscs", "net.shaping"),
    *("net.wireguard", "services", "supervisor.confining", "supervisor.deployment", "supervisor.readiness"),
    *("supervisor.statistics", "supervisor.traffic", "supervisor.users", "supervisor.wiring.devices"),
    *("supervisor.wiring.filter_plans", "supervisor.wiring.interfaces", "supervisor.wiring.leases"),
    *("supervisor.wiring.partitions", "supervisor.wiring.routers", "supervisor.wiring.services"),
    *("supervisor.wiring.tunnels", "supervisor.wiring.uplinks", "topology.bursts", "topology.checks"),
    *("topology.difference", "topology.filters", "topology.home", "topology.interfaces", "topology.limits"),
    *("topology.model", "topology.mounts", "topology.presets", "topology.privileges", "topology.profiles"),
    *("topology.ready", "topology.services", "topology.traces", "topology.tunnels", "topology.uplinks"),
)


def test_what_few_use_is_imported_when_it_is_used() -> None:
    program = f"""if True:
        import nsorch, sys
        print(*sys.modules.keys() & {{f"nsorch.{{name}}" for name in {OF_FEW}}})
        assert set(nsorch.__all__) <= set(dir(nsorch))
        print(*(name for name in nsorch.__all__ if not getattr(nsorch, name)))
        try:
            nsorch.nothing
        except AttributeError as exc:
            print(exc)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n\nmodule 'nsorch' has no attribute 'nothing'\n"


def test_what_few_use_can_be_imported_in_any_order() -> None:
    program = f"""if True:
        import importlib, nsorch, os
        for name in {OF_FEW}:
            if not os.fork():
                importlib.import_module(f"nsorch.{{name}}")
                os._exit(0)
            assert os.wait()[1] == 0, name
    """
    subprocess.run([sys.executable, "-c", program], cwd=TOP.parent, check=True)


def test_a_plain_program_imports_nothing_of_nsorch_in_its_loop(anyio_backend_name: str) -> None:
    program = f"""if True:
        import anyio, nsorch, sys

        async def main():
            before = set(sys.modules)
            async with nsorch.Supervisor() as sup, sup.events() as events:
                lan = await sup.bridge("lan", subnet="10.0.0.0/24")
                spec = nsorch.WorkerSpec(name="a", command=["sleep", "60"], links=[lan])
                a, b = await sup.start("b", links=[lan]), *await sup.start_all([spec])
                link = await sup.link(a, nsorch.End(b, address="10.1.0.2"), subnet="10.1.0.0/30")
                await b.run(["true"])
                await link.set(mtu=1400)
                await link.remove()
                await events.receive()
            print(*(name for name in sys.modules.keys() - before if name.split(".")[0] in ("nsorch", "anyio", "attr")))

        anyio.run(main, backend={anyio_backend_name!r})
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=TOP.parent, capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("package", [nsorch, nsorch.topology, nsorch.events])
def test_type_checkers_know_each_name_and_no_other(package: Any) -> None:
    body = ast.parse(pathlib.Path(package.__file__).read_text()).body
    assert not [node for node in body if isinstance(node, ast.FunctionDef)]  # __getattr__ has a type for any name
    checking = next(node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.name: node.module for node in checking.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == package.LATER
    assert set(seen) <= set(package.__all__)
