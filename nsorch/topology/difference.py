"""What one description has that another hasn't: pure values, for people and for what carries it out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from attrs import evolve, field, fields, frozen

from nsorch.topology.emulation import EMULATION_KEYS
from nsorch.topology.joins import joined_names
from nsorch.topology.layer2 import LEAST_MTU6, linked_bridges
from nsorch.topology.namespaces import New
from nsorch.topology.specs import BridgeSpec, LinkKey, LinkSpec, To, WorkerSpec, as_link
from nsorch.values import Value

if TYPE_CHECKING:
    from attrs import AttrsInstance

    from nsorch.topology.model import Topology

Action = Literal["add", "remove", "replace", "restart", "set"]

Spec = TypeVar("Spec", BridgeSpec, WorkerSpec)

#: what a worker is given by a restart
RESTARTED = {
    *("command", "env", "cwd", "user", "groups", "ready", "stdin", "stdout", "stderr", "service"),
    *("capabilities", "no_new_privs", "seccomp", "rlimits", "oom_score_adj"),
}
# And while it runs; anything else makes another worker of it.
_FREE = {"label", "limits", "links", "routes", "interfaces", "nat", "firewall", "uplink"}
_SETTABLE = {"mtu", *EMULATION_KEYS}


@frozen(kw_only=True, eq=False, repr=False)
class Change(Value):
    """
    :ivar action: ``"set"`` changes what exists, ``"restart"`` begins another incarnation, ``"replace"`` removes it and
        makes another
    :ivar kind: ``"bridge"``, ``"worker"`` or ``"link"``
    :ivar name: of the bridge or the worker; ``a-b`` of a link
    :ivar details: the keys that differ; ``"order"`` of links whose interfaces are named by their order
    """

    action: Action
    kind: Literal["bridge", "worker", "link"]
    name: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.action} {self.kind} {self.name}" + (f" ({', '.join(self.details)})" if self.details else "")


@frozen(kw_only=True, eq=False, repr=False)
class Difference(Value):
    """From one topology to another. Empty (false) where nothing has to be done."""

    changes: tuple[Change, ...] = ()
    links_to_remove: tuple[LinkKey, ...] = field(default=(), repr=False)
    links_to_add: tuple[LinkKey, ...] = field(default=(), repr=False)
    links_to_set: Mapping[LinkKey, tuple[LinkSpec, frozenset[str]]] = field(factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.changes)

    def of(self, kind: str, *actions: Action) -> list[str]:
        return [change.name for change in self.changes if change.kind == kind and change.action in actions]

    def followed_by(self, later: Difference) -> Difference:
        """What both do together, *later* of what is there then."""
        known = {(change.kind, change.name) for change in self.changes}
        return Difference(
            changes=(*self.changes, *(c for c in later.changes if (c.kind, c.name) not in known)),
            links_to_remove=tuple(dict.fromkeys((*self.links_to_remove, *later.links_to_remove))),
            links_to_add=tuple(dict.fromkeys((*self.links_to_add, *later.links_to_add))),
            links_to_set={**self.links_to_set, **later.links_to_set},
        )

    def including(
        self,
        workers: Mapping[str, Collection[str]],
        links: Mapping[LinkKey, tuple[LinkSpec, Collection[str]]],
    ) -> Difference:
        """And what else is to be set: keys of *workers* and *links* that stay."""
        changes = list(self.changes)
        for name, keys in workers.items():
            action: Action = "restart" if RESTARTED & set(keys) else "set"
            _include(changes, Change(action=action, kind="worker", name=name, details=tuple(keys)))
        to_set = dict(self.links_to_set)
        for key, (spec, keys) in links.items():
            _include(changes, Change(action="set", kind="link", name=f"{key[0]}-{key[2]}", details=tuple(keys)))
            to_set[key] = spec, frozenset(keys).union(to_set[key][1] if key in to_set else ())
        return evolve(self, changes=tuple(changes), links_to_set=to_set)


def _include(changes: list[Change], more: Change) -> None:
    for number, change in enumerate(changes):
        if (change.kind, change.name) == (more.kind, more.name) and change.action in ("set", "restart"):
            action: Action = "restart" if "restart" in (change.action, more.action) else "set"
            details = tuple(dict.fromkeys((*change.details, *more.details)))
            changes[number] = evolve(change, action=action, details=details)
            return
    changes.append(more)


def links_of(topology: Topology) -> Iterator[tuple[LinkKey, LinkSpec | To]]:
    """All links with their keys; first those that workers have in their own description."""
    count: dict[tuple[str, str | None, str, str | None], int] = {}
    ends: tuple[str, str | None, str, str | None]
    for worker in topology.workers.values():
        for to in worker.links:
            ends = worker.name, to.name, to.bridge, None
            number = count[ends] = count.get(ends, -1) + 1
            yield (*ends, number), to
    for spec in topology.links:
        ends = spec.a.worker, spec.a.name, spec.b.worker, spec.b.name
        number = count[ends] = count.get(ends, -1) + 1
        yield (*ends, number), spec


def difference(old: Topology, new: Topology) -> Difference:
    """What has to be done to make *new* of *old*."""
    bridges = list(_named("bridge", linked_bridges(old), linked_bridges(new), _bridge_change))
    workers = _with_guests(list(_named("worker", old.workers, new.workers, _worker_change)), new)
    anew = {change.name for change in (*bridges, *workers) if change.action in ("add", "remove", "replace")}
    links: list[Change] = []
    remove: list[LinkKey] = []
    add: list[LinkKey] = []
    settable: dict[LinkKey, tuple[LinkSpec, frozenset[str]]] = {}
    before, after = dict(links_of(old)), dict(links_of(new))
    reordered = _reordered(before, after, old.workers.keys() & new.workers.keys())
    for key, spec in before.items():
        name = f"{key[0]}-{key[2]}"
        now = after.get(key)
        keys = () if now is None or spec is now else _link_keys(as_link(key, spec), as_link(key, now))
        if now is None:
            remove.append(key)
            links.append(Change(action="remove", kind="link", name=name))
        elif anew & {key[0], key[2]} or not _can_be_set(keys, as_link(key, spec), as_link(key, now)):
            remove.append(key)
            links.append(Change(action="replace", kind="link", name=name, details=keys))
        elif key in reordered:
            remove.append(key)
            links.append(Change(action="replace", kind="link", name=name, details=(*keys, "order")))
        elif keys and now is not None:
            settable[key] = as_link(key, now), frozenset(keys)
            links.append(Change(action="set", kind="link", name=name, details=keys))
    gone = set(remove)
    for key in after:
        if key not in before or key in gone:
            add.append(key)
        if key not in before:
            links.append(Change(action="add", kind="link", name=f"{key[0]}-{key[2]}"))
    changes = (*bridges, *workers, *links)
    if not changes and (old.routing, old.metric) != (new.routing, new.metric):
        changes = (Change(action="set", kind="worker", name="*", details=("routing",)),)
    return Difference(changes=changes, links_to_remove=tuple(remove), links_to_add=tuple(add), links_to_set=settable)


def _reordered(before: Iterable[LinkKey], after: Iterable[LinkKey], workers: Container[str]) -> set[LinkKey]:
    """Links whose interfaces would have other names: without one they are eth0, eth1, … of their worker in the order of
    the description. What only comes or goes renames no other: names are given once."""
    old, new = _unnamed(before, workers), _unnamed(after, workers)
    found: set[LinkKey] = set()
    for worker, keys in old.items():
        now = new.get(worker, {})
        if [key for key in keys if key in now] != [key for key in now if key in keys]:
            found.update(keys.keys() & now)
    return found


def _unnamed(links: Iterable[LinkKey], workers: Container[str]) -> dict[str, dict[LinkKey, None]]:
    """By worker, in order."""
    found: dict[str, dict[LinkKey, None]] = {}
    for key in links:
        for node, name in ((key[0], key[1]), (key[2], key[3])):
            if name is None and node in workers:
                found.setdefault(node, {})[key] = None
    return found


def _named(
    kind: Literal["bridge", "worker"],
    old: Mapping[str, Spec],
    new: Mapping[str, Spec],
    compare: Callable[[str, Spec, Spec], Change | None],
) -> Iterator[Change]:
    for name in old:
        if name not in new:
            yield Change(action="remove", kind=kind, name=name)
        elif (change := compare(name, old[name], new[name])) is not None:
            yield change
    for name in new:
        if name not in old:
            yield Change(action="add", kind=kind, name=name)


def _differing(old: AttrsInstance, new: AttrsInstance) -> tuple[str, ...]:
    names = [attribute.name for attribute in fields(type(old))]
    return tuple(name for name in names if name != "label" and getattr(old, name) != getattr(new, name))


def _link_keys(old: LinkSpec, new: LinkSpec) -> tuple[str, ...]:
    """Those that differ; of an end whose emulation alone differs, its own: ``ends[0].delay``."""
    found: list[str] = []
    for name in _differing(old, new):
        if name not in ("a", "b"):
            found.append(name)
            continue
        ends = getattr(old, name), getattr(new, name)
        where = f"ends[{('a', 'b').index(name)}]"
        keys = _differing(*ends)
        found += [f"{where}.{key}" for key in keys] if set(keys) <= set(EMULATION_KEYS) else [where]
    return tuple(found)


def _can_be_set(keys: Iterable[str], old: LinkSpec, new: LinkSpec) -> bool:
    """With an MTU that IPv6 can't live with, a link has other addresses."""
    short = {link.mtu is not None and link.mtu < LEAST_MTU6 for link in (old, new)}
    return len(short) == 1 and all(name.rpartition(".")[2] in _SETTABLE for name in keys)


def _bridge_change(name: str, old: BridgeSpec, new: BridgeSpec) -> Change | None:
    keys = _differing(old, new)
    return Change(action="replace", kind="bridge", name=name, details=keys) if keys else None


def _worker_change(name: str, old: WorkerSpec, new: WorkerSpec) -> Change | None:
    keys = tuple(key for key in _differing(old, new) if key != "links")
    if not keys:
        return None
    other = (old.command is None) != (new.command is None) or type(old.service) is not type(new.service)
    if set(keys) - RESTARTED - _FREE or other or ("user" in keys and _maps_its_user(new)):
        return Change(action="replace", kind="worker", name=name, details=keys)
    if set(keys) & RESTARTED:
        if new.command is None:
            return Change(action="replace", kind="worker", name=name, details=keys)
        return Change(action="restart", kind="worker", name=name, details=keys)
    return Change(action="set", kind="worker", name=name, details=keys)


def _with_guests(changes: Iterable[Change], new: Topology) -> list[Change]:
    """And those who have joined namespaces of which others come: a restart is another pid namespace."""
    found = {change.name: change for change in changes}
    joined = {name: (joined_names(worker), joined_names(worker, "pid")) for name, worker in new.workers.items()}
    joined = {name: hosts for name, hosts in joined.items() if any(hosts)}
    left = list(joined)
    while left:
        anew, restarted = (
            {name for name, change in found.items() if change.action in actions}
            for actions in (("add", "replace"), ("restart",))
        )
        left = [n for n, (hosts, of_pid) in joined.items() if n not in anew and (hosts & anew or of_pid & restarted)]
        for name in left:
            details = found[name].details if name in found else ()
            found[name] = Change(action="replace", kind="worker", name=name, details=(*details, "namespaces"))
    return list(found.values())


def _maps_its_user(spec: WorkerSpec) -> bool:
    """Whether its user namespace has, for good, the ids of its user alone."""
    from nsorch.topology.presets import isolation_of

    return isinstance(isolation_of(spec).namespaces.user, New) and not (spec.uid_map and spec.gid_map)
