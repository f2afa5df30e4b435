"""Loss in bursts, as a frozen value that has been checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import Factory, field, fields, frozen

from nsorch.errors import TopologyError
from nsorch.topology.kinds import noted, shown
from nsorch.topology.units import fraction
from nsorch.topology.values import made
from nsorch.values import Value


def _share(name: str, value: Any) -> float:
    try:
        return fraction(value)
    except ValueError as exc:
        raise TopologyError(f"gilbert_elliott.{name}: {exc}") from None


def _to_p(value: Any) -> float:
    return _share("p", value)


def _to_r(value: Any) -> float:
    return _share("r", value)


def _to_bad(value: Any) -> float:
    return _share("bad", value)


def _to_good(value: Any) -> float:
    return _share("good", value)


@frozen(eq=False, repr=False)
class GilbertElliott(Value):
    """Loss in bursts: the link is in a good or a bad state, and changes between them from packet to packet.

    All are fractions, or such as ``"1%"``; see tc-netem(8), ``loss gemodel``.

    :ivar p: how likely a good link gets bad
    :ivar r: how likely a bad link gets good; 1 - p if not given
    :ivar bad: loss in the bad state
    :ivar good: loss in the good state
    """

    p: float = field(converter=_to_p)
    r: float = field(default=Factory(lambda self: 1 - self.p, takes_self=True), converter=_to_r)
    bad: float = field(default=1.0, kw_only=True, converter=_to_bad)
    good: float = field(default=0.0, kw_only=True, converter=_to_good)

    @property
    def mean(self) -> float:
        """Loss in the long run."""
        if not self.p:
            return self.good
        return (self.r * self.good + self.p * self.bad) / (self.p + self.r)


GILBERT_ELLIOTT_KEYS = tuple(item.name for item in fields(GilbertElliott))


def to_gilbert_elliott(value: Any) -> GilbertElliott:
    if isinstance(value, GilbertElliott):
        return value
    if not isinstance(value, Mapping):
        raise TopologyError(f"gilbert_elliott: {shown(value)} is not {{ p = …, r = …, bad = …, good = … }}")
    unknown = [key for key in value if key not in GILBERT_ELLIOTT_KEYS]
    problems = [f"gilbert_elliott.{key}: unknown key; there are {', '.join(GILBERT_ELLIOTT_KEYS)}" for key in unknown]
    if "p" not in value:
        problems.append("gilbert_elliott.p: is missing")
    with noted(problems):
        checked = made(GilbertElliott, {"p": 0} | {key: item for key, item in value.items() if key not in unknown})
    if problems:
        raise TopologyError(*problems)
    return checked
