"""How value classes show themselves."""

from __future__ import annotations

import nsorch


def test_only_what_is_not_as_by_default_is_shown() -> None:
    assert repr(nsorch.WorkerSpec(name="w", links=["lan"])) == "WorkerSpec(name='w', links=(To(bridge='lan'),))"
    assert repr(nsorch.Limits()) == "Limits()"
    link = nsorch.LinkSpec(a="a", b=nsorch.End("b", name="eth1"), mtu=9000)
    assert repr(link) == "LinkSpec(a=End(worker='a'), b=End(worker='b', name='eth1'), mtu=9000)"


def test_keys_are_not_shown() -> None:
    peer = nsorch.WireGuardPeer(worker="b", preshared_key="YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=")
    assert repr(peer) == "WireGuardPeer(worker='b')"
