"""``nsorch doctor``: what this host can do, and what forbids the rest."""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import platform
import resource
import shutil
from typing import TYPE_CHECKING, Any

import anyio
import click
from attrs import asdict, frozen

from nsorch import NsorchError, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable

_OLDEST = (5, 15)


@frozen
class Finding:
    """*ok* is None for what is only told."""

    what: str
    ok: bool | None
    detail: str
    needed: bool = False  #: no lab runs without


def examine() -> list[Finding]:
    """Starts two small labs, and reads /proc. Changes nothing."""
    return [
        _kernel(),
        *anyio.run(_labs),
        _descriptors(),
        *(_number(what, path, why) for what, path, why in _LIMITS),
        *_optional(),
    ]


def _kernel() -> Finding:
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    return Finding("kernel", version >= _OLDEST, f"{release}, 5.15 or newer is needed", needed=True)


async def _labs() -> list[Finding]:
    findings = []
    for rootless in (False, True):
        what = "a lab without root" if rootless else "a lab as root"
        if not rootless and os.geteuid() != 0:
            findings.append(Finding(what, None, "you are not root"))
            continue
        try:
            async with Supervisor(rootless=rootless) as sup:
                lan = await sup.bridge("lan", "10.0.0.0/24")
                for name in ("a", "b"):
                    await sup.start(name, ["true"], links=[lan])
                answered = (await sup.ping_all([("a", "b")])).ok
            detail = "two workers reach each other" if answered else "two workers on a bridge don't reach each other"
            findings.append(Finding(what, answered, detail))
        except (NsorchError, OSError, ExceptionGroup) as exc:
            findings.append(Finding(what, False, str(exc)))
    possible = any(finding.ok for finding in findings)
    return [*findings, Finding("labs", possible, "one of these is needed", needed=True)]


def _descriptors() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding("open files", None, f"soft {soft}, hard {hard}: room for some {max(hard - 256, 0) // 6} workers")


_LIMITS = (
    ("processes", "kernel/pid_max", "processes at a time, of the whole host"),
    ("network namespaces", "user/max_net_namespaces", "of a user"),
    ("user namespaces", "user/max_user_namespaces", "of a user; 0 forbids labs without root"),
    ("neighbours", "net/ipv4/neigh/default/gc_thresh3", "ARP entries, of all network namespaces together"),
    ("packets kept for a capture", "net/core/rmem_max", "bytes of a socket's buffer"),
)


def _number(what: str, path: str, why: str) -> Finding:
    try:
        with open(f"/proc/sys/{path}") as file:
            return Finding(what, None, f"{path.replace('/', '.')} = {file.read().strip()}: {why}")
    except OSError:
        return Finding(what, None, f"{path.replace('/', '.')} can't be read here")


def _optional() -> list[Finding]:
    tests: list[tuple[str, Callable[[], Any], str]] = [
        ("IPv6", lambda: os.path.isdir("/proc/sys/net/ipv6"), "addresses of that family"),
        ("libpcap", lambda: ctypes.util.find_library("pcap"), "capture filters as expressions"),
        ("Graphviz", lambda: shutil.which("dot"), "nsorch graph -f svg"),
        ("httpx", lambda: importlib.util.find_spec("httpx"), "worker.http_client()"),
        ("ip", lambda: shutil.which("ip"), "ip netns exec, for pins"),
    ]
    return [Finding(what, bool(test()), f"for {why}") for what, test, why in tests]


def report(as_json: bool) -> int:
    """0 if labs can run here, else 1."""
    findings = examine()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            mark = {True: "ok", False: "no", None: "--"}[finding.ok]
            click.echo(f"{mark}  {finding.what}: {finding.detail}")
    return 0 if all(finding.ok for finding in findings if finding.needed) else 1
