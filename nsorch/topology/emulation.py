"""What a link does to packets, as frozen values that have been checked; and what each of its directions comes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from attrs import evolve, field, fields, frozen

from nsorch import topology  # noqa: TC001 - for typing.get_type_hints: what few have is imported with the first
from nsorch.errors import TopologyError
from nsorch.topology.converters import checked
from nsorch.topology.kinds import shown
from nsorch.topology.units import count, duration, fraction, rate
from nsorch.values import Value

if TYPE_CHECKING:
    from nsorch.topology.profiles import Profile

#: of the jitter; its standard deviation is the jitter, but for "uniform", which stays within it
DISTRIBUTIONS = ("uniform", "normal", "pareto", "paretonormal")
#: see :mod:`nsorch.topology.profiles`
PROFILE_NAMES = ("wifi", "3g", "4g", "5g", "dsl", "cable", "satellite-leo", "satellite-geo", "dialup")
# The kernel counts time in 64 ns, in 32 bits.
_LONGEST = 274.0
# And octets a second in 64.
_FASTEST = 1e20


def _time(value: Any) -> float:
    seconds = duration(value)
    if seconds > _LONGEST:
        raise ValueError(f"{shown(value)} is above {_LONGEST:g} s, the longest the kernel can count")
    return seconds


def _bits(value: Any) -> float:
    bits = rate(value)
    if bits > _FASTEST:
        raise ValueError(f"{shown(value)} is above {_FASTEST:g} bit/s, the most that the kernel can count")
    return bits


def _choice(value: Any, names: tuple[str, ...]) -> str:
    if value not in names:
        raise ValueError(f"{shown(value)} is none of {', '.join(names)}")
    return str(value)


def _to_delay(value: Any) -> float | None:
    return checked("delay", _time, value)


def _to_jitter(value: Any) -> float | None:
    return checked("jitter", _time, value)


def _to_delay_correlation(value: Any) -> float | None:
    return checked("delay_correlation", fraction, value)


def _to_distribution(value: Any) -> str | None:
    return checked("distribution", lambda given: _choice(given, DISTRIBUTIONS), value)


def _to_loss(value: Any) -> float | None:
    return checked("loss", fraction, value)


def _to_loss_correlation(value: Any) -> float | None:
    return checked("loss_correlation", fraction, value)


def _to_duplicate(value: Any) -> float | None:
    return checked("duplicate", fraction, value)


def _to_corrupt(value: Any) -> float | None:
    return checked("corrupt", fraction, value)


def _to_reorder(value: Any) -> float | None:
    return checked("reorder", fraction, value)


def _to_rate(value: Any) -> float | None:
    return checked("rate", _bits, value)


def _to_limit(value: Any) -> int | None:
    return checked("limit", count, value)


def _to_profile(value: Any) -> str | None:
    return checked("profile", lambda given: _choice(given, PROFILE_NAMES), value)


def _to_gilbert_elliott(value: Any) -> topology.GilbertElliott | None:
    if value is None:
        return None
    from nsorch.topology.bursts import to_gilbert_elliott

    return to_gilbert_elliott(value)


@frozen(kw_only=True, eq=False, repr=False)
class Emulation(Value):
    """What a link does to packets. None is what was not said, 0 is nothing.

    :ivar profile: a named kind of access link, for what else isn't said: :data:`PROFILES`
    :ivar delay: seconds, as *jitter*
    :ivar delay_correlation: of each packet's jitter with that of the one before, a fraction
    :ivar distribution: of the jitter, one of :data:`DISTRIBUTIONS`
    :ivar loss: a fraction, as *loss_correlation*, *duplicate*, *corrupt* and *reorder*
    :ivar gilbert_elliott: loss in bursts, instead of *loss*
    :ivar reorder: share of packets that are not delayed, and so overtake others
    :ivar rate: bits per second, of frames without their check sum
    :ivar limit: queue length in packets: those that wait for their turn by the *rate*, or, where there is none, those
        that are being delayed
    """

    profile: str | None = field(default=None, converter=_to_profile)
    delay: float | None = field(default=None, converter=_to_delay)
    jitter: float | None = field(default=None, converter=_to_jitter)
    delay_correlation: float | None = field(default=None, converter=_to_delay_correlation)
    distribution: str | None = field(default=None, converter=_to_distribution)
    loss: float | None = field(default=None, converter=_to_loss)
    loss_correlation: float | None = field(default=None, converter=_to_loss_correlation)
    gilbert_elliott: topology.GilbertElliott | None = field(default=None, converter=_to_gilbert_elliott)
    duplicate: float | None = field(default=None, converter=_to_duplicate)
    corrupt: float | None = field(default=None, converter=_to_corrupt)
    reorder: float | None = field(default=None, converter=_to_reorder)
    rate: float | None = field(default=None, converter=_to_rate)
    limit: int | None = field(default=None, converter=_to_limit)

    @property
    def active(self) -> bool:
        """Whether anything was said."""
        return _emulation(self) != _NOTHING

    @property
    def emulation(self) -> Emulation:
        """Without what else a link or an end of one has."""
        return self if type(self) is Emulation else Emulation(**{key: getattr(self, key) for key in EMULATION_KEYS})


EMULATION_KEYS = tuple(item.name for item in fields(Emulation))
_emulation = attrgetter(*EMULATION_KEYS)
_NOTHING = (None,) * len(EMULATION_KEYS)
NO_EMULATION = Emulation()
# What means nothing without others: the kernel would take it and do nothing.
_NEEDS = {
    "delay_correlation": ("jitter",),
    "distribution": ("jitter",),
    "loss_correlation": ("loss",),
    "reorder": ("delay",),
    "limit": ("rate", "delay"),
}


def given(emulation: Emulation) -> dict[str, Any]:
    """What was said."""
    return {key: value for key in EMULATION_KEYS if (value := getattr(emulation, key)) is not None}


def overlay(base: Emulation, over: Emulation) -> Emulation:
    """*base* with what *over* says; of the two kinds of loss, the one that was said last."""
    said = given(over)
    if "loss" in said and "gilbert_elliott" not in said:
        said["gilbert_elliott"] = None
    elif "gilbert_elliott" in said and "loss" not in said:
        said |= {"loss": None, "loss_correlation": None}
    return evolve(base.emulation, **said)


def changed(emulation: Emulation, changes: Mapping[str, Any]) -> Emulation:
    """*emulation* with other values; None takes one away, and what means nothing without it."""
    changes = dict(changes)
    for key, others in (("loss", ("gilbert_elliott",)), ("gilbert_elliott", ("loss", "loss_correlation"))):
        if changes.get(key) is not None:
            changes = dict.fromkeys(others) | changes
    for key, needed in _NEEDS.items():
        left = [changes.get(other, getattr(emulation, other)) for other in needed]
        if set(needed) & changes.keys() and not any(left):
            changes.setdefault(key, None)
    return evolve(emulation, **changes)


def contradictions(emulation: Emulation) -> Iterator[tuple[str, str]]:
    """Keys that contradict others, in all that is known of one direction, and why."""
    if emulation.loss is not None and emulation.gilbert_elliott is not None:
        yield "gilbert_elliott", "there is loss already, of another kind"
    for key, needed in _NEEDS.items():
        if getattr(emulation, key) and not any(getattr(emulation, other) for other in needed):
            yield key, f"means nothing without {' or '.join(needed)}"


def directions(a: Emulation, b: Emulation, both: Emulation = NO_EMULATION) -> tuple[Emulation, Emulation]:
    """What the packets go through that end *a* sends, and those that end *b* sends.

    What an end says counts for what it sends, and goes before what is said for *both*; but delays add up. A profile
    counts for what else isn't said: the end that names it is the subscriber's, and *a* where the link does.

    :raises TopologyError: it contradicts itself; the path is the key, below ``ends[n]`` if that end said it
    """
    if not (both.active or a.active or b.active):
        return NO_EMULATION, NO_EMULATION
    name, subscriber = both.profile, 0
    for number, end in enumerate((a, b)):
        if end.profile is not None:
            name, subscriber = end.profile, number
    profile = None if name is None else _profile(name)
    made = []
    wrong: dict[str, None] = {}
    for number, end in enumerate((a, b)):
        base = NO_EMULATION if profile is None else profile.up if number == subscriber else profile.down
        way = evolve(overlay(overlay(base, both), end), profile=None)
        if end.delay is not None and both.delay is not None:
            way = evolve(way, delay=end.delay + both.delay)
        for key, problem in contradictions(way):
            where = f"ends[{number}]." if getattr(end, key) is not None else ""
            wrong[f"{where}{key}: {problem}"] = None
        made.append(way)
    if wrong:
        raise TopologyError(*wrong)
    return made[0], made[1]


def _profile(name: str) -> Profile:
    from nsorch.topology.profiles import PROFILES  # which are made of emulations

    return PROFILES[name]
