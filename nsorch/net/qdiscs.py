"""Queueing disciplines, packed by hand: netem for what a link does to packets, tbf where a kernel has no netem.

Layouts are those of linux/pkt_sched.h; the kernel's rules are those of net/sched/sch_netem.c and sch_tbf.c. A root
qdisc of the same kind and handle is changed in place, with the packets that it holds; what a message leaves out, netem
keeps as it was. So each message says everything.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import TYPE_CHECKING

from attrs import frozen

from nsorch.net.messages import attribute, attributes, message
from nsorch.values import Value

if TYPE_CHECKING:
    from collections.abc import Iterable

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
_CREATE, _REPLACE, _ECHO = 0x400, 0x100, 0x08
_ROOT = 0xFFFFFFFF
# Handles of their own: the kernel refuses to make one kind of another in place.
_NETEM_HANDLE, _TBF_HANDLE = 0x10000, 0x20000

_TC = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS, _STATISTICS, _QUEUE_STATISTICS = 1, 2, 7, 3
_NETEM = struct.Struct("=IIIIII")
_CORRELATION, _DISTRIBUTION, _REORDER, _CORRUPT, _LOSS, _RATE, _RATE64 = 1, 2, 3, 4, 5, 6, 8
_GILBERT_ELLIOTT = 2
_TICK_NS = 64  # PSCHED_SHIFT
_ALL = 0xFFFFFFFF
_SPEC = struct.Struct("=BBHhHI")  # struct tc_ratespec
_TBF_PARMS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_ETHERNET = 1  # as "linklayer": without it the kernel wants a table of rates

_SCALE = 8192  # NETEM_DIST_SCALE: a standard deviation
_ENTRIES = 2048
#: frames are reckoned so long where packets become bytes, or the other way round
FRAME = 1514
#: packets that wait for their turn to be sent, if nothing else is said
QUEUE = 1000
# What netem may hold where nothing limits the rate: memory is taken only by what is there.
_UNLIMITED = 1_000_000


@frozen(kw_only=True, eq=False, repr=False)
class LossStates(Value):
    """Gilbert and Elliott's: probabilities of changing to bad and to good, and of loss in either."""

    p: float
    r: float
    bad: float
    good: float


@frozen(kw_only=True, eq=False, repr=False)
class QdiscPlan(Value):
    """What packets go through that an interface sends.

    :ivar delay: seconds, as *jitter*
    :ivar distribution: of the jitter: ``"normal"``, ``"pareto"``, ``"paretonormal"``, else uniform
    :ivar rate: bits per second
    :ivar limit: packets that wait at most, or None for :data:`QUEUE`; where there is no rate, those that are delayed
    """

    delay: float = 0.0
    jitter: float = 0.0
    delay_correlation: float = 0.0
    distribution: str = "uniform"
    loss: float = 0.0
    loss_correlation: float = 0.0
    states: LossStates | None = None
    duplicate: float = 0.0
    corrupt: float = 0.0
    reorder: float = 0.0
    rate: float = 0.0
    limit: int | None = None

    @property
    def needs_netem(self) -> bool:
        """Whether it is more than a rate and the queue for it."""
        return bool(
            self.delay or self.jitter or self.loss or self.states or self.duplicate or self.corrupt or self.reorder
        )

    @property
    def is_nothing(self) -> bool:
        return not self.needs_netem and not self.rate

    @property
    def longest(self) -> float:
        """Seconds that a packet is delayed at most, without waiting in the queue."""
        sigmas = 1 if self.distribution == "uniform" else 4  # the tables reach no further
        return self.delay + sigmas * self.jitter

    @property
    def packets(self) -> int:
        """What netem may hold: those that wait, and those that are under way meanwhile, if they are long ones."""
        if not self.rate and self.limit is None:
            return _UNLIMITED
        under_way = math.ceil(self.longest * self.rate / 8 / FRAME)
        return min((self.limit or QUEUE) + under_way, _ALL)


def replace_netem(index: int, plan: QdiscPlan, *, table: bool = True) -> bytes:
    """Have interface *index* do as *plan* says, from the next packet on.

    :param table: say the distribution, too: a new netem without one has a uniform one
    """
    states = plan.states
    gap = 1 if plan.reorder else 0
    fixed = (plan.packets, _share(plan.loss), gap, _share(plan.duplicate))
    parts = [
        _NETEM.pack(_ticks(plan.delay), *fixed, _ticks(plan.jitter)),
        _shares(_CORRELATION, plan.delay_correlation, plan.loss_correlation, 0),
        # After the gap, which means all of them to the kernel.
        _shares(_REORDER, plan.reorder, 0),
        _shares(_CORRUPT, plan.corrupt, 0),
        attribute(_RATE, struct.pack("=IiIi", min(_octets(plan.rate), _ALL), 0, 0, 0)),
    ]
    if _octets(plan.rate) > _ALL:
        parts.append(attribute(_RATE64, struct.pack("=Q", _octets(plan.rate))))
    if states is not None:
        model = struct.pack("=IIII", _share(states.p), _share(states.r), _ALL - _share(states.bad), _share(states.good))
        parts.append(attribute(_LOSS, attribute(_GILBERT_ELLIOTT, model)))
    if plan.jitter and table:
        parts.append(attribute(_DISTRIBUTION, _table(plan.distribution)))
    return _replace(index, _NETEM_HANDLE, b"netem\0", b"".join(parts))


def replace_tbf(index: int, plan: QdiscPlan) -> bytes:
    """As :func:`replace_netem`, of nothing but a rate."""
    rate = _octets(plan.rate)
    # So many bytes may leave at once: two frames, or what the rate gives in the 2 ms that a timer may be late.
    burst = max(rate // 500, 2 * FRAME)
    limit = min((plan.limit or QUEUE) * FRAME, _ALL)
    spec = _SPEC.pack(0, _ETHERNET, 0, 0, 0, min(rate, _ALL))
    parms = spec + bytes(_SPEC.size) + struct.pack("=III", limit, 0, 0)
    parts = [attribute(_TBF_PARMS, parms), attribute(_TBF_BURST, struct.pack("=I", min(burst, _ALL)))]
    if rate > _ALL:
        parts.append(attribute(_TBF_RATE64, struct.pack("=Q", rate)))
    return _replace(index, _TBF_HANDLE, b"tbf\0", b"".join(parts))


def _replace(index: int, handle: int, kind: bytes, options: bytes) -> bytes:
    body = _TC.pack(0, index, handle, _ROOT, 0) + attribute(_KIND, kind) + attribute(_OPTIONS, options)
    return message(RTM_NEWQDISC, _CREATE | _REPLACE, body)


def delete(index: int) -> bytes:
    """Back to what the kernel gives an interface by itself. Packets that wait are lost."""
    return message(RTM_DELQDISC, 0, _TC.pack(0, index, 0, _ROOT, 0))


def ask_for_netem(index: int) -> bytes:
    """Changes nothing: netem without options is refused (EINVAL); a kernel that has no netem says ENOENT."""
    return message(RTM_NEWQDISC, _CREATE, _TC.pack(0, index, _NETEM_HANDLE, _ROOT, 0) + attribute(_KIND, b"netem\0"))


def get(index: int, *, netem: bool) -> bytes:
    """Ask for the state of what :func:`replace_netem`, or else :func:`replace_tbf`, has made."""
    return message(
        RTM_GETQDISC,
        _ECHO,  # else the answer goes to listeners only
        _TC.pack(0, index, _NETEM_HANDLE if netem else _TBF_HANDLE, 0, 0),
    )


def _ticks(seconds: float) -> int:
    return min(round(seconds * 1e9 / _TICK_NS), _ALL)


def _share(fraction: float) -> int:
    return round(fraction * _ALL)


def _shares(kind: int, *fractions: float) -> bytes:
    return attribute(kind, struct.pack(f"={len(fractions)}I", *map(_share, fractions)))


def _octets(rate: float) -> int:
    """A second; 0 is no limit to netem, so less than one is one."""
    return max(round(rate / 8), 1) if rate else 0


def queued(data: bytes) -> int:
    """Packets that a qdisc holds; *data* is what answers :func:`get`, without its header."""
    statistics = attributes(attributes(data, _TC.size).get(_STATISTICS, b""), 0)
    return int(struct.unpack_from("=I", statistics.get(_QUEUE_STATISTICS, bytes(4)))[0])


# -- distributions


@functools.cache
def _table(distribution: str) -> bytes:
    """Values as likely as each other, from which the kernel draws one for each packet."""
    makers = {"normal": _normal, "pareto": _pareto, "paretonormal": _pareto_normal}
    values = _standard(makers[distribution]()) if distribution in makers else _uniform()
    return struct.pack(f"={_ENTRIES}h", *(round(value * _SCALE) for value in values))


def _standard(values: Iterable[float]) -> Iterable[float]:
    """With mean 0 and standard deviation 1, though the kernel's 16 bits end at four of them."""
    for _ in range(6):
        values = [max(-4.0, min(3.999, value)) for value in values]
        from statistics import fmean, pstdev

        mean, deviation = fmean(values), pstdev(values)
        values = [(value - mean) / deviation for value in values]
    return (max(-4.0, min(3.999, value)) for value in values)


def _middles(count: int) -> Iterable[float]:
    return ((number + 0.5) / count for number in range(count))


def _uniform() -> Iterable[float]:
    return (2 * share - 1 for share in _middles(_ENTRIES))


def _normal() -> Iterable[float]:
    from statistics import NormalDist

    return map(NormalDist().inv_cdf, _middles(_ENTRIES))


def _pareto() -> list[float]:
    return [_pareto_value(share) for share in _middles(_ENTRIES)]


def _pareto_value(share: float) -> float:
    """Of a Pareto distribution of shape 3, as iproute2's: mean 3/2, variance 3/4."""
    return (math.pow(1 - share, -1 / 3) - 1.5) / math.sqrt(0.75)


def _pareto_normal() -> list[float]:
    """A quarter normal and three quarters Pareto, as iproute2's, with standard deviation 1."""
    shorter = 32
    from statistics import NormalDist

    normal = [NormalDist().inv_cdf(share) for share in _middles(shorter)]
    pareto = [_pareto_value(share) for share in _middles(_ENTRIES // shorter)]
    deviation = math.hypot(0.25, 0.75)
    return [(0.25 * a + 0.75 * b) / deviation for a in normal for b in pareto]
