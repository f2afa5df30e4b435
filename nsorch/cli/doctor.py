"""``nsorch doctor``: what this host can do, what forbids the rest, and for how many workers there is room."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import anyio
import click
from attrs import asdict, frozen

from nsorch import NsorchError, Supervisor, probe

if TYPE_CHECKING:
    from nsorch import Capacity, Feature, HostReport


@frozen
class Trial:
    """A small lab that was brought up. *works* is None where it can't be tried."""

    name: str
    works: bool | None
    detail: str


async def _examine() -> tuple[HostReport, list[Trial]]:
    return await probe(), [await _lab(rootless) for rootless in (False, True)]


async def _lab(rootless: bool) -> Trial:
    name = "a lab without root" if rootless else "a lab as root"
    if not rootless and os.geteuid() != 0:
        return Trial(name, None, "you are not root")
    try:
        async with Supervisor(rootless=rootless) as sup:
            lan = await sup.bridge("lan", "10.0.0.0/24")
            for worker in ("a", "b"):
                await sup.start(worker, ["true"], links=[lan])
            answered = (await sup.ping_all([("a", "b")])).ok
        detail = "two workers reach each other" if answered else "two workers on a bridge don't reach each other"
        return Trial(name, answered, detail)
    except (NsorchError, OSError, ExceptionGroup) as exc:
        return Trial(name, False, str(exc))


def report(as_json: bool) -> int:
    """0 if labs can run here, else 1."""
    host, trials = anyio.run(_examine)
    fine = any(trial.works for trial in trials)
    tightest = host.tightest
    if as_json:
        document: dict[str, Any] = {**host.to_dict(), "labs": [asdict(trial) for trial in trials]}
        document["ready"] = fine
        document["workers"] = 0 if not fine else None if tightest is None else tightest.workers
        click.echo(json.dumps(document, indent=2))
        return 0 if fine else 1
    click.echo(f"Linux {host.kernel}, {'without root' if host.rootless else 'as root'}")
    for trial in trials:
        click.echo(f"{ {True: 'ok', False: 'NO', None: '--'}[trial.works] }  {trial.name}: {trial.detail}")
    click.echo("\nok: there.  no: missing, why, and what would change it.  NO: without it no lab runs.")
    groups: dict[str, list[Feature]] = {}
    for feature in host.features.values():
        groups.setdefault(feature.group, []).append(feature)
    for group, features in groups.items():
        click.echo(f"\n{group}")
        before = None
        for feature in features:
            click.echo(_line(feature, before))
            if feature.forbidden_by and (before is None or feature.forbidden_by != before.forbidden_by):
                before = feature
    click.echo("\nroom for")
    for each in host.capacity.values():
        count = "      -" if each.workers is None else f"{each.workers:7}"
        more = " (more get slow)" if each.advisory else ""
        click.echo(f"{count} workers by {each.name}{more}: {_limit(each)} ({each.source}); {each.detail}")
    if not fine:
        click.echo(f"{0:7} workers in all: no lab runs")
    elif tightest is not None:
        hint = f"; to raise it: {tightest.remedy}" if tightest.remedy else ""
        click.echo(f"{tightest.workers:7} workers in all, by {tightest.source}{hint}")
    return 0 if fine else 1


def _line(feature: Feature, before: Feature | None) -> str:
    """:param before: what is missing above it, whose reason and remedy need not be said again"""
    if feature.available:
        return f"ok  {feature.name}, for {feature.purpose}"
    mark = "NO" if feature.needed else "no"
    why, hint = feature.forbidden_by, f"\n      {feature.remedy}" if feature.remedy else ""
    if before is not None and feature.remedy == before.remedy:
        hint = ""
        if why == before.forbidden_by:
            why = f"as {before.name}"
    return f"{mark}  {feature.name}, for {feature.purpose}: {why}{hint}"


def _limit(capacity: Capacity) -> str:
    if capacity.limit is None:
        return "no limit that can be seen"
    if capacity.unit.startswith("bytes"):
        return f"{capacity.limit / (1 << 20):.0f} Mi{capacity.unit.replace('bytes', 'B')}"
    return f"{capacity.limit} {capacity.unit}"
