"""Nothing imports upwards: cli → {supervisor, host, images} → {core, net, topology, events} → errors; all may
use values."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys

import pytest

import nsorch

pytestmark = pytest.mark.once

TOP = pathlib.Path(nsorch.__file__).parent
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "values": set(),
    "core": {"errors"},
    "net": {"errors"},
    "topology": {"errors"},
    "events": {"errors"},
    "host": {"errors", "core"},
    "images": {"errors"},
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
    assert used - {layer, "values"} <= ALLOWED[layer]  # which all may use
    if "spawner" in path.relative_to(TOP).parts:
        outside = {name for name in imported(path) if not name.startswith("nsorch.core.spawner")}
        assert {name.split(".")[0] for name in outside} <= set(sys.stdlib_module_names)


def test_heavy_packages_are_imported_when_needed() -> None:
    program = """if True:
        import nsorch, sys
        nsorch.Supervisor(); nsorch.Topology().worker("w")
        print(*{"cattrs", "click", "rich", "networkx", "yaml", "pyroute2"} & sys.modules.keys())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_what_few_use_is_imported_when_it_is_used() -> None:
    program = """if True:
        import nsorch, sys
        later = [f"nsorch.{name}" for name in (
            "core.usage", "host", "images", "net.filters", "net.nftables", "net.packets", "net.partition", "net.ping",
            "supervisor.traffic.capture", "supervisor.wiring.filter_plans", "supervisor.wiring.routers", "supervisor.wiring.uplinks",
            "topology.filters", "topology.home",
        )]
        print(*sys.modules.keys() & set(later))
        assert set(nsorch.__all__) <= set(dir(nsorch))
        print(*(name for name in nsorch.__all__ if not getattr(nsorch, name)))
        try:
            nsorch.nothing
        except AttributeError as exc:
            print(exc)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n\nmodule 'nsorch' has no attribute 'nothing'\n"


def test_type_checkers_know_each_name_and_no_other() -> None:
    body = ast.parse((TOP / "__init__.py").read_text()).body
    assert not [node for node in body if isinstance(node, ast.FunctionDef)]  # __getattr__ has a type for any name
    checking = next(node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {
        alias.name: node.module for node in checking.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == nsorch._LATER
