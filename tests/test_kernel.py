"""The kernel under test is one that has what tests may ask it for: also a check of the virtual machine itself."""

from __future__ import annotations

import os

import pytest
from kernel_support import IN_VM, missing_in_kernel, needs_kernel

import nsorch

#: what the virtual machine is there for
MODULES = ("sch_netem", "sch_tbf", "8021q", "wireguard", "vrf", "dummy", "bonding", "ipvlan", "macvlan", "vxlan", "tun")


def test_what_is_missing_is_named() -> None:
    assert missing_in_kernel("veth", "nonsense", "sch_nonsense") == ("nonsense", "sch_nonsense")
    if not IN_VM:
        mark = needs_kernel("nonsense").mark
        assert mark.args == (True,)
        assert mark.kwargs["reason"] == "needs nonsense: make test-vm"


@pytest.mark.vm
@needs_kernel(*MODULES)
def test_the_kernel_has_everything() -> None:
    assert missing_in_kernel(*MODULES) == ()


@pytest.mark.vm
@needs_kernel("sch_netem")
@pytest.mark.anyio
async def test_a_delay_by_hand(anyio_backend: str) -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", links=[lan])
        await sup.start("b", links=[lan])
        await a.run(["tc", "qdisc", "add", "dev", "eth0", "root", "netem", "delay", "20ms"])
        done = await sup.ping_all([("a", "b")])
        assert done.ok
        assert os.path.exists("/sys/module/sch_netem")
