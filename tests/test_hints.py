"""Annotations of what is public, as other programs read them at run time."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import nsorch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.once

ALONE = """
import sys, typing, nsorch
assert not {"nsorch.topology.filters", "nsorch.supervisor.deployment", "ssl", "subprocess"} & sys.modules.keys()
assert typing.get_type_hints(nsorch.WorkerSpec)["nat"] == nsorch.Nat | None
assert typing.get_type_hints(nsorch.Supervisor.deploy)["return"].__name__ == "Deployment"
"""


@pytest.mark.parametrize("name", nsorch.__all__)
def test_hints_are_there(name: str) -> None:
    public = getattr(nsorch, name)
    if not inspect.isclass(public) and not inspect.isfunction(public):
        pytest.skip("neither a class nor a function")
    typing.get_type_hints(public)
    made_by_others = inspect.isclass(public) and (attrs.has(public) or issubclass(public, Exception))
    if made_by_others and public is not nsorch.Uplink:
        typing.get_type_hints(public.__init__)


def methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in nsorch.__all__:
        public = getattr(nsorch, name)
        for own, value in vars(public).items() if inspect.isclass(public) else ():
            function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
            if inspect.isfunction(function) and (not own.startswith("_") or own in ("__init__", "__aenter__")):
                yield f"{name}.{own}", function


METHODS = dict(methods())


@pytest.mark.parametrize("name", [name for name in METHODS if not name.endswith("__init__")])
def test_hints_of_methods_are_there(name: str) -> None:
    typing.get_type_hints(METHODS[name])
    inspect.signature(METHODS[name], eval_str=True)


def test_hints_are_right() -> None:
    hints = typing.get_type_hints(nsorch.WorkerSpec)
    assert hints["links"] == tuple[nsorch.To, ...]
    assert hints["env"] == Mapping[str, str] | None
    assert hints["mounts"] == tuple[nsorch.Bind | nsorch.Tmpfs, ...]
    assert hints["interfaces"] == tuple[nsorch.InterfaceSpec, ...]
    assert hints["service"] == nsorch.Dnsmasq | nsorch.Frr | nsorch.Tayga | None
    assert typing.get_type_hints(nsorch.LinkSpec)["gilbert_elliott"] == nsorch.GilbertElliott | None
    assert typing.get_type_hints(nsorch.Supervisor.deploy)["return"] is nsorch.Deployment
    assert typing.get_type_hints(nsorch.Worker.set_limits)["limits"] == nsorch.Limits | Mapping[str, Any] | None
    assert typing.get_type_hints(nsorch.Vlan)["address"] == tuple[IPv4Interface | IPv6Interface, ...]


def test_hints_are_imported_when_somebody_asks() -> None:
    assert subprocess.run([sys.executable, "-c", ALONE], check=False).returncode == 0
