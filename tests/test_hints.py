"""Annotations of what is public, as other programs read them at run time."""

from __future__ import annotations

import inspect
import subprocess
import sys
import typing
from collections.abc import Mapping
from ipaddress import IPv4Interface, IPv6Interface

import attrs
import pytest

import nsorch

pytestmark = pytest.mark.once

ALONE = """
import sys, typing, nsorch
assert "nsorch.topology.filters" not in sys.modules
assert typing.get_type_hints(nsorch.WorkerSpec)["nat"] == nsorch.Nat | None
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


def test_hints_are_right() -> None:
    hints = typing.get_type_hints(nsorch.WorkerSpec)
    assert hints["links"] == tuple[nsorch.To, ...]
    assert hints["env"] == Mapping[str, str] | None
    assert hints["mounts"] == tuple[nsorch.Bind | nsorch.Tmpfs, ...]
    assert hints["interfaces"] == tuple[nsorch.InterfaceSpec, ...]
    assert hints["service"] == nsorch.Dnsmasq | nsorch.Frr | nsorch.Tayga | None
    assert typing.get_type_hints(nsorch.LinkSpec)["gilbert_elliott"] == nsorch.GilbertElliott | None
    assert typing.get_type_hints(nsorch.Vlan)["address"] == tuple[IPv4Interface | IPv6Interface, ...]


def test_hints_are_imported_when_somebody_asks() -> None:
    assert subprocess.run([sys.executable, "-c", ALONE], check=False).returncode == 0
