"""What value classes share: how they show themselves, and when two are equal."""

from __future__ import annotations

import pickle

import attrs
import pytest

import nsorch
from nsorch.topology.namespaces import Host, New, OfWorker, Shared
from nsorch.values import Value


def test_only_what_is_not_as_by_default_is_shown() -> None:
    assert repr(nsorch.WorkerSpec(name="w", links=["lan"])) == "WorkerSpec(name='w', links=(To(bridge='lan'),))"
    assert repr(nsorch.Limits()) == "Limits()"
    link = nsorch.LinkSpec(a="a", b=nsorch.End("b", name="eth1"), mtu=9000)
    assert repr(link) == "LinkSpec(a=End(worker='a'), b=End(worker='b', name='eth1'), mtu=9000)"


def test_keys_are_not_shown() -> None:
    peer = nsorch.WireGuardPeer(worker="b", preshared_key="YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXphYmNkZWY=")
    assert repr(peer) == "WireGuardPeer(worker='b')"


def test_those_of_one_class_with_equal_fields_are_equal() -> None:
    one, same = (nsorch.End("a", address="10.0.0.1/24") for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one != attrs.evolve(one, name="eth1")
    assert attrs.evolve(one, name="eth1") == nsorch.End("a", address="10.0.0.1/24", name="eth1")
    assert one == pickle.loads(pickle.dumps(one))


def test_those_of_two_classes_never_are() -> None:
    assert OfWorker("a") != nsorch.Pid("a")  # type: ignore[arg-type]
    assert len({New(), New(), Shared(), Host()}) == 3
    assert nsorch.End("a").__eq__("a") is NotImplemented


def test_a_field_may_stand_aside_in_the_hash_alone() -> None:
    one, other = (nsorch.BridgeSpec(name="b", vlan_aware=True, vlans={vlan: "10.0.0.0/24"}) for vlan in (7, 8))
    assert hash(one) == hash(other)
    assert one != other


def test_a_value_without_a_hash_has_none() -> None:
    with pytest.raises(TypeError):
        hash(nsorch.WorkerSpec(name="w", env={"A": "1"}))


def _below(kind: type) -> list[type]:
    return [each for direct in kind.__subclasses__() for each in (direct, *_below(direct))]


def test_nothing_of_this_is_compiled_for_each_class() -> None:
    assert all(getattr(nsorch, name) for name in nsorch.__all__)  # imports what has them
    kinds = _below(Value)
    assert nsorch.WorkerSpec in kinds
    assert not [kind for kind in kinds if {"__eq__", "__hash__", "__repr__"} & vars(kind).keys()]
