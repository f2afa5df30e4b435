"""What links do to packets: from what is said of them to queueing disciplines, and changes at run time.

A qdisc acts on what its interface sends: that of a worker's end on what leaves the worker, that of a bridge's port on
what goes to the worker.
"""

from __future__ import annotations

import enum
from types import NoneType
from typing import TYPE_CHECKING, Any

from attrs import evolve

from nsorch import events
from nsorch.errors import TopologyError, UnsupportedError
from nsorch.topology.emulation import (
    EMULATION_KEYS,
    NO_EMULATION,
    Emulation,
    changed,
    contradictions,
    directions,
    given,
)
from nsorch.topology.kinds import name_of, of_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nsorch.net.qdiscs import QdiscPlan
    from nsorch.supervisor.wiring.kernel import Kernel
    from nsorch.supervisor.wiring.network import Bridge, Link, Side
    from nsorch.supervisor.wiring.wiring import Wiring
    from nsorch.supervisor.worker import Worker

_SHOWN = 5


class Unset(enum.Enum):
    """Of what stays as it is, where None means something else."""

    UNSET = "unset"


UNSET = Unset.UNSET


def qdisc_plan(emulation: Emulation) -> QdiscPlan:
    from nsorch.net.qdiscs import LossStates, QdiscPlan

    states = emulation.gilbert_elliott
    return QdiscPlan(
        delay=emulation.delay or 0.0,
        jitter=emulation.jitter or 0.0,
        delay_correlation=emulation.delay_correlation or 0.0,
        distribution=emulation.distribution or "uniform",
        loss=emulation.loss or 0.0,
        loss_correlation=emulation.loss_correlation or 0.0,
        states=None if states is None else LossStates(p=states.p, r=states.r, bad=states.bad, good=states.good),
        duplicate=emulation.duplicate or 0.0,
        corrupt=emulation.corrupt or 0.0,
        reorder=emulation.reorder or 0.0,
        rate=emulation.rate or 0.0,
        limit=emulation.limit,
    )


async def require_netem(kernel: Kernel, paths: Sequence[str]) -> None:
    """*paths*: of links that need it.

    :raises UnsupportedError: the kernel has none
    """
    if paths and not await kernel.in_thread(kernel.engine.shaper.has_netem):
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        raise UnsupportedError(
            f"{', '.join(paths[:_SHOWN])}{more}: this kernel has no netem, which emulation of more than a rate "
            "needs: its module is sch_netem (as root: modprobe sch_netem)",
            stage="link",
        )


def needs_netem(*ways: Emulation) -> bool:
    return any(way.active and qdisc_plan(way).needs_netem for way in ways)


def plan_emulation(
    link: Link, emulation: Emulation | Unset | None, changes: Mapping[str, Any], end: Worker | Bridge | str | None
) -> tuple[Emulation, Emulation] | None:
    """What the two ways of *link* are to be, or None where nothing was said of it.

    :param emulation: to begin with, instead of what there is
    :param changes: those of its values that change; a profile is another beginning
    :raises TopologyError: a wrong value, or one that contradicts others, or no such end
    """
    if emulation is UNSET and not changes:
        return None
    where = f"links.{link.name}"
    wanted = None if end is None else name_of(f"{where}.end", end, "a worker, a bridge")
    meant = [wanted is None or _is_meant(side, wanted) for side in link._sides]
    if not any(meant):
        raise TopologyError(f'{where}: it has no end "{wanted}"')
    of_kind(f"{where}.emulation", emulation, "an Emulation", Emulation, Unset, NoneType)
    try:
        said = given(Emulation(**changes))  # checked, and converted
        beginning = emulation if isinstance(emulation, Emulation) else NO_EMULATION
        if "profile" in said:
            beginning = evolve(beginning.emulation, profile=said.pop("profile"))
        # Who alone is meant is the subscriber of a profile.
        ways = directions(NO_EMULATION, NO_EMULATION, beginning)
    except TopologyError as exc:
        raise TopologyError(*(f"{where}.{problem}" for problem in exc.problems)) from None
    if end is not None:
        ways = ways[0], ways[0]
    told = {key: said.get(key) for key in changes if key != "profile"}
    anew = emulation is not UNSET or "profile" in changes
    new = []
    for side, is_meant, start in zip(link._sides, meant, ways, strict=True):
        new.append(changed(start if anew else side.emulation, told) if is_meant else side.emulation)
    wrong = dict.fromkeys(f"{where}.{key}: {text}" for way in new for key, text in contradictions(way))
    if wrong:
        raise TopologyError(*wrong)
    return new[0], new[1]


def _is_meant(side: Side, name: str) -> bool:
    node = side.bridge if side.worker is None else side.worker
    return node is not None and name in (node.name, side.owner or node.name)


async def apply_ways(wiring: Wiring, link: Link, ways: Sequence[Emulation]) -> None:
    """Have the ends of *link* do as *ways* say; shield it. An end that stays as it is isn't touched."""
    if needs_netem(*ways):
        await require_netem(wiring.kernel, [f"links.{link.name}"])
    changes: dict[str, str] = {}
    for side, way in zip(link._sides, ways, strict=True):
        if way == side.emulation:
            continue
        shaper = wiring.kernel.engine.shaper
        await wiring.kernel.with_handle(side, shaper.change, side.ifname, qdisc_plan(way), qdisc_plan(side.emulation))
        for key in EMULATION_KEYS:
            if getattr(way, key) != getattr(side.emulation, key):
                changes[f"{side}.{key}"] = _shown(getattr(way, key))
        side.emulation = way
    if changes:
        wiring.publish(events.LinkChanged(link=link.name, changes=tuple(_folded(link, changes).items())))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)


def _folded(link: Link, changes: Mapping[str, str]) -> dict[str, str]:
    """What is the same of both ends, said once, by its bare key."""
    found: dict[str, str] = {}
    first, second = map(str, link._sides)
    for key in EMULATION_KEYS:
        values = changes.get(f"{first}.{key}"), changes.get(f"{second}.{key}")
        if values[0] is not None and values[0] == values[1]:
            found[key] = values[0]
        else:
            found |= {
                f"{end}.{key}": value for end, value in zip((first, second), values, strict=True) if value is not None
            }
    return found
