"""What a probe of the host answers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from attrs import asdict, field, frozen

from nsorch.values import Value


def _frozen_copy(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(values))


@frozen(kw_only=True, eq=False, repr=False)
class Feature(Value):
    """Something that a lab may use.

    :ivar name: such as ``"netem"`` or ``"time namespace"``
    :ivar group: ``"host"``, ``"namespaces"``, ``"mounts"``, ``"interfaces"``, ``"queueing"``, ``"cgroups"``,
        ``"confinement"``, ``"users"`` or ``"programs"``
    :ivar available: whether this process can use it now
    :ivar purpose: what it is for
    :ivar needed: no lab runs without it
    :ivar detail: what was seen
    :ivar forbidden_by: the sysctl, security module, missing module, limit or cgroup version that forbids it, or ``""``
    :ivar remedy: the command, or the change, that would allow it, or ``""`` where none is known
    """

    name: str
    group: str
    available: bool
    purpose: str = ""
    needed: bool = False
    detail: str = ""
    forbidden_by: str = ""
    remedy: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class Capacity(Value):
    """How much of something there is.

    :ivar name: such as ``"open files"``
    :ivar limit: the number that the host allows, or None where there is no limit or it can't be seen
    :ivar unit: what is counted
    :ivar source: the limit's name, such as ``"user.max_net_namespaces"``
    :ivar workers: for how many workers it is enough, or None where it doesn't limit them
    :ivar advisory: beyond it things get slow, but no worker is refused
    :ivar detail: how that was counted
    :ivar remedy: the command that would raise it
    """

    name: str
    limit: int | None
    unit: str
    source: str
    workers: int | None = None
    advisory: bool = False
    detail: str = ""
    remedy: str = ""


@frozen(kw_only=True, eq=False, repr=False)
class HostReport(Value):
    """What :func:`nsorch.probe` found.

    :ivar kernel: its release
    :ivar rootless: whether a supervisor of this process works below a user namespace
    :ivar features: by name
    :ivar capacity: by name
    """

    kernel: str
    rootless: bool
    features: Mapping[str, Feature] = field(converter=_frozen_copy)
    capacity: Mapping[str, Capacity] = field(converter=_frozen_copy)

    @property
    def ready(self) -> bool:
        """Whether a lab can run at all."""
        return all(feature.available for feature in self.features.values() if feature.needed)

    @property
    def workers(self) -> int | None:
        """How many workers the tightest limit allows, advisory ones aside; 0 where no lab can run."""
        if not self.ready:
            return 0
        return None if self.tightest is None else self.tightest.workers

    @property
    def tightest(self) -> Capacity | None:
        """The limit that allows the fewest workers, advisory ones aside."""
        limits = [each for each in self.capacity.values() if each.workers is not None and not each.advisory]
        return min(limits, key=lambda each: each.workers or 0, default=None)

    def has(self, name: str) -> bool:
        """Whether feature *name* is available.

        :raises KeyError: there is no such feature
        """
        return self.features[name].available

    def to_dict(self) -> dict[str, Any]:
        """In types that :mod:`json` writes."""
        return {
            "kernel": self.kernel,
            "rootless": self.rootless,
            "ready": self.ready,
            "workers": self.workers,
            "features": [asdict(feature) for feature in self.features.values()],
            "capacity": [asdict(each) for each in self.capacity.values()],
        }
