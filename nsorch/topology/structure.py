"""Between a topology and the plain mappings of its file: every error of a file at once, each with its path."""

from __future__ import annotations

import collections
import difflib
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from attrs import evolve, fields_dict

from nsorch.errors import NsorchError, TopologyError
from nsorch.topology.bursts import GILBERT_ELLIOTT_KEYS
from nsorch.topology.checks import lasting_problems
from nsorch.topology.dangling import dangling
from nsorch.topology.emulation import EMULATION_KEYS, Emulation, given
from nsorch.topology.filters import to_plain
from nsorch.topology.interface_files import INTERFACES, interface_to_dict, keys_of, required_of
from nsorch.topology.isolation import ISOLATION_KEYS, OWN_KEYS, TEXT_KEYS, check_tables, isolation_to_dict
from nsorch.topology.kinds import shown
from nsorch.topology.model import Topology
from nsorch.topology.names import name_problem
from nsorch.topology.namespaces import NamespaceSet
from nsorch.topology.plain import PRESETS
from nsorch.topology.privileges import to_gid_map, to_uid_map
from nsorch.topology.reading import walk
from nsorch.topology.ready import ExecReady, TcpReady, exec_ready, tcp_ready
from nsorch.topology.services import forwards, service_to_plain
from nsorch.topology.specs import ROUTE_KEYS, BridgeSpec, End, LinkSpec, Route, To, WorkerSpec
from nsorch.topology.uplinks import uplink_to_plain
from nsorch.topology.values import problems_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nsorch.topology.interfaces import InterfaceSpec

_END_KEYS = ("name", "address", "mac", "mtu", "vlan", "tagged", "dhcp", *EMULATION_KEYS)
_TO_KEYS = ("to", *_END_KEYS)
_BRIDGE_OPTIONS = ("mtu", "arp", "vlan_aware", "stp", "forward_delay", "ageing", "multicast_snooping")
_BRIDGE_KEYS = ("subnet", "gateway", *_BRIDGE_OPTIONS, "vlans", "label")
_LINK_KEYS = ("ends", "subnet", "mtu", "weight", "label", *EMULATION_KEYS)
_TOP_KEYS = ("name", "routing", "metric", "defaults", "bridges", "workers", "links")
MOST_COPIES = 100_000
_READY_KEYS = ("tcp", "exec", "host", "timeout", "interval")
_TEXT = ("cwd", "hostname", "label", "stdin", "stdout", "stderr")
_FLAGS = ("init", "critical", "forward")
_WORKER_KEYS = (
    "command",
    "links",
    "namespaces",
    "env",
    "user",
    "ready",
    "sysctls",
    "routes",
    "nat",
    "firewall",
    "interfaces",
    "service",
    "uplink",
    *_TEXT,
    *_FLAGS,
    *ISOLATION_KEYS,
)
# What differs from one to the next can't be a default.
DEFAULT_KEYS = {
    "bridges": tuple(key for key in _BRIDGE_OPTIONS if key not in ("arp", "forward_delay")),
    "workers": tuple(key for key in _WORKER_KEYS if key not in ("hostname", "label")),
    "links": ("mtu", "weight", *EMULATION_KEYS),
}
#: of each kind of table in a file
KEYS = {
    "topology": _TOP_KEYS,
    "bridge": _BRIDGE_KEYS,
    "worker": ("count", *_WORKER_KEYS),
    "link": _LINK_KEYS,
    "end": ("worker", *_END_KEYS),
    "to": _TO_KEYS,
    "route": ROUTE_KEYS,
    "ready": _READY_KEYS,
}


class _Reader:
    """Collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.defaults: dict[str, dict[str, Any]] = {}
        self.templates: dict[str, int] = {}  #: how many workers each has made

    def refuse(self, path: str, text: str) -> None:
        self.problems.append(f"{path}: {text}" if path else text)

    def build(self, path: str, make: Callable[[], Any]) -> Any:
        """What *make* returns, or None and a problem below *path*."""
        try:
            return make()
        except TopologyError as exc:
            self.problems += [_below(path, problem) for problem in exc.problems]
        except (NsorchError, ValueError, TypeError) as exc:
            worker = getattr(exc, "worker", None)  # of whom the path tells
            self.problems.append(_below(path, str(exc).removeprefix(f"{worker}: ")))
        return None

    def check_each(self, path: str, keys: Iterable[str], data: Mapping[str, Any], build: Callable[..., Any]) -> bool:
        """Whether each of *keys* alone is fit for *build*: names every wrong key, not only the first."""
        fine = True
        for key in keys:
            if key in data:
                before = len(self.problems)
                self.build(path, lambda key=key: build(**{key: data[key]}))  # type: ignore[misc]
                fine &= len(self.problems) == before
        return fine

    def table(self, value: Any, path: str, keys: Iterable[str] | None = None) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            self.refuse(path, "holds no keys" if value is None else f"{shown(value)} is not a table")
            return {}
        for key in value:
            if isinstance(key, bool) or key is None:
                self.refuse(f"{path}.{key}" if path else str(key), "is no text: put the key in quotes")
            elif keys is not None and key not in keys:
                close = difflib.get_close_matches(str(key), list(keys), 1)
                hint = f'; did you mean "{close[0]}"?' if close else ""
                self.refuse(f"{path}.{key}" if path else str(key), f"unknown key{hint}")
        return {str(key): item for key, item in value.items() if keys is None or key in keys}

    def sequence(self, value: Any, path: str) -> list[Any]:
        if not isinstance(value, list | tuple):
            self.refuse(path, f"{shown(value)} is not a list")
            return []
        return list(value)

    # -- parts

    def topology(self, data: Any) -> Topology:
        top = self.table(data, "", _TOP_KEYS)
        name = top.get("name")
        if name is not None and not isinstance(name, str):
            self.refuse("name", f"{shown(name)} is not a string")
            name = None
        options: dict[str, Any] = {key: top[key] for key in ("routing", "metric") if key in top}
        for key, value in options.items():
            self.build(key, lambda key=key, value=value: Topology(**{key: value}))  # type: ignore[misc]
        topology = Topology(name) if self.problems else Topology(name, **options)
        self.read_defaults(top.get("defaults", {}))
        bridges = self.table(top.get("bridges", {}), "bridges")
        for key, value in bridges.items():
            self._add(topology, f"bridges.{key}", self.bridge(key, value))
        for key, value in self.table(top.get("workers", {}), "workers").items():
            for spec in self.workers(key, value):
                self._add(topology, f"workers.{key}", spec)
        links = self.sequence(top.get("links", []), "links")
        for number, value in enumerate(links):
            self._add(topology, f"links[{number}]", self.link(f"links[{number}]", value))
        if self.problems:
            self.problems += map(self._explain, dangling(top, self.defaults["workers"].get("links")))
            ends = {end.worker for link in topology.links for end in (link.a, link.b)}
            # Else links have other numbers here, and segments other subnets.
            if len(topology.links) == len(links) and not ends & (bridges.keys() - topology.bridges.keys()):
                self.problems += self._of_templates(lasting_problems(topology))
        else:
            self.problems += self._of_templates(map(self._explain, topology.problems()))
        return topology

    def read_defaults(self, value: Any) -> None:
        """A wrong one is told once, and then left out: not once for each part that it would hold for."""
        given = self.table(value, "defaults", DEFAULT_KEYS)
        tables = {
            part: self.table(given.get(part, {}), f"defaults.{part}", keys) for part, keys in DEFAULT_KEYS.items()
        }
        self.defaults = {part: {} for part in tables}
        before = len(self.problems)
        for part, make in (("links", _any_link), ("bridges", _any_bridge)):
            self.check_each(f"defaults.{part}", tables[part], tables[part], make)
        self.defaults["links"] = self._right(tables["links"], "defaults.links", before)
        self._parts_of_worker("defaults.workers", dict(tables["workers"]))
        for part in ("bridges", "workers"):
            self.defaults[part] = self._right(tables[part], f"defaults.{part}", before)

    def _right(self, table: Mapping[str, Any], path: str, before: int) -> dict[str, Any]:
        """Without those that a problem since *before* is about."""
        problems = self.problems[before:]
        wrong = {key for key in table if any(re.match(rf"{path}\.{key}[.:\[]", problem) for problem in problems)}
        return {key: value for key, value in table.items() if key not in wrong}

    def _explain(self, problem: str) -> str:
        for name, copies in self.templates.items():
            if re.search(rf'there is no worker(?: or bridge)? "{name}"', problem):
                return f"{problem}, but {name}-1 to {name}-{copies}"
        return problem

    def _of_templates(self, problems: Iterable[str]) -> list[str]:
        """What is wrong of all copies of a template is wrong of that, which the file has."""
        told = [(problem, *self._of_template(problem)) for problem in problems]
        times = collections.Counter(of_all for _, of_all, _ in told)
        return [of_all if times[of_all] >= copies else problem for problem, of_all, copies in told]

    def _of_template(self, problem: str) -> tuple[str, int]:
        """As a problem of the template whose copy it is about, and how many of them there are."""
        copy = re.match(r"workers\.([^.:\[]+)-[0-9]+(?=[.:])", problem)
        if copy is None or copy[1] not in self.templates:
            return problem, 1
        return f"workers.{copy[1]}{problem[copy.end() :]}", self.templates[copy[1]]

    def _add(self, topology: Topology, path: str, spec: Any) -> None:
        if spec is not None:
            self.build(path, lambda: topology.add(spec))

    def bridge(self, name: str, value: Any) -> BridgeSpec | None:
        path = f"bridges.{name}"
        table = self.defaults["bridges"] | self.table(value, path, _BRIDGE_KEYS)
        if problem := name_problem(name):
            self.refuse(path, problem)
        fine = self._texts(table, path, ("label",)) and not problem
        fine &= self.check_each(path, [key for key in table if key not in ("label", *_BESIDE)], table, _any_bridge)
        for key, others in _BESIDE.items():
            fine &= self.check_each(path, (key,), table, partial(_any_bridge, **others))
        spec: BridgeSpec | None = self.build(path, lambda: BridgeSpec(name=name, **table)) if fine else None
        return spec

    def workers(self, name: str, value: Any) -> list[WorkerSpec]:
        """The worker, or as many as its ``count`` says: ``web-1``, ``web-2``, …"""
        path = f"workers.{name}"
        table = self.defaults["workers"] | self.table(value, path, KEYS["worker"])
        if "count" not in table:
            spec = self.worker(name, table)
            return [] if spec is None else [spec]
        copies = table.pop("count")
        before = len(self.problems)
        if isinstance(copies, bool) or not isinstance(copies, int) or not 1 <= copies <= MOST_COPIES:
            self.refuse(f"{path}.count", f"{shown(copies)} is not a whole number from 1 to {MOST_COPIES}")
        elif copies + sum(self.templates.values()) > MOST_COPIES:
            self.refuse(f"{path}.count", f"with the others' these are more than {MOST_COPIES} workers")
        spec = self.worker(name, table)
        if spec is None or not self._may_be_copied(path, spec) or len(self.problems) > before:
            return []
        self.templates[name] = copies
        made = [self.build(path, lambda n=n: evolve(spec, name=f"{name}-{n}")) for n in (1, copies)]  # type: ignore[misc]
        if None in made:
            return []
        return [evolve(spec, name=f"{name}-{number}") for number in range(1, copies + 1)]

    def _may_be_copied(self, path: str, spec: WorkerSpec) -> bool:
        before = len(self.problems)
        if spec.hostname is not None:
            self.refuse(f"{path}.hostname", "one can't be given to several: each has its own name as hostname")
        for number, to in enumerate(spec.links):
            for key in ("address", "mac"):
                if getattr(to, key):
                    self.refuse(f"{path}.links[{number}].{key}", "one can't be given to several: leave it out")
        for number, interface in enumerate(spec.interfaces):
            for key in ("address", "mac", "private_key"):
                if getattr(interface, key, None):
                    self.refuse(f"{path}.interfaces[{number}].{key}", "one can't be given to several: leave it out")
        return len(self.problems) == before

    def worker(self, name: str, table: dict[str, Any]) -> WorkerSpec | None:
        path = f"workers.{name}"
        before = len(self.problems)
        if problem := name_problem(name):
            self.refuse(path, problem)
        self._parts_of_worker(path, table)
        if len(self.problems) > before:
            return None
        spec: WorkerSpec | None = self.build(path, lambda: WorkerSpec(name=name, **table))
        return spec

    def _parts_of_worker(self, path: str, table: dict[str, Any]) -> None:
        """Check each for itself, and make specs of those in *table* that have them."""
        self._texts(table, path, (*_TEXT, *TEXT_KEYS))
        self.problems += check_tables(table, path)
        if isinstance(isolation := table.get("isolation"), str) and isolation not in PRESETS:
            self.refuse(f"{path}.isolation", f'"{isolation}" is none of {", ".join(PRESETS)}')
        for key in _FLAGS:
            if key in table and not isinstance(table[key], bool):
                self.refuse(f"{path}.{key}", f"{shown(table[key])} is neither true nor false")
        table["links"] = tuple(
            link
            for number, item in enumerate(self.sequence(table.get("links", []), f"{path}.links"))
            if (link := self.to(f"{path}.links[{number}]", item)) is not None
        )
        table["routes"] = tuple(
            route
            for number, item in enumerate(self.sequence(table.get("routes", []), f"{path}.routes"))
            if (route := self.route(f"{path}.routes[{number}]", item)) is not None
        )
        table["interfaces"] = tuple(
            interface
            for number, item in enumerate(self.sequence(table.get("interfaces", []), f"{path}.interfaces"))
            if (interface := self.interface(f"{path}.interfaces[{number}]", item)) is not None
        )
        if "ready" in table:
            table["ready"] = self.ready(f"{path}.ready", table["ready"])
        if "sysctls" in table:
            table["sysctls"] = self.table(table["sysctls"], f"{path}.sysctls")
            for key, item in table["sysctls"].items():
                if isinstance(item, bool) or not isinstance(item, str | int):
                    self.refuse(f"{path}.sysctls.{key}", f"{shown(item)} is neither a string nor a number")
        named = [key for key in ("cwd", "hostname", "domainname") if isinstance(table.get(key), str)]
        if "user" in table and (isinstance(table["user"], bool) or not isinstance(table["user"], str | int)):
            self.refuse(f"{path}.user", f"{shown(table['user'])} is neither a name nor a uid")
        else:
            named.append("user")
        for key in ("stdin", "stdout", "stderr"):
            table[key] = _stream(table.get(key))
        keys = ("command", "env", "nat", "firewall", "service", "uplink", *OWN_KEYS)
        self.check_each(path, (*keys, *named), table, lambda **part: WorkerSpec(name="x", **part))
        # These mean something beside others.
        for key, read in _ALONE.items():
            if key in table:
                self.build(path, partial(read, table[key]))

    def _texts(self, table: Mapping[str, Any], path: str, keys: Iterable[str]) -> bool:
        wrong = [key for key in keys if table.get(key) is not None and not isinstance(table[key], str)]
        for key in wrong:
            self.refuse(f"{path}.{key}", f"{shown(table[key])} is not a string")
        return not wrong

    def to(self, path: str, value: Any) -> To | None:
        table = {"to": value} if isinstance(value, str) else self.table(value, path, _TO_KEYS)
        bridge = table.pop("to", None)
        fine = self._named(path if isinstance(value, str) else f"{path}.to", bridge, "bridge")
        table = {key: item for key, item in self.defaults["links"].items() if key in _END_KEYS} | table
        fine &= self.check_each(path, _END_KEYS, table, lambda **part: To("x", **part))
        to: To | None = self.build(path, lambda: To(bridge, **table)) if fine else None
        return to

    def _named(self, path: str, name: object, what: str) -> bool:
        """Whether it can be that of a *what*."""
        problem = name_problem(name) if isinstance(name, str) else f"the name of a {what} is missing"
        if problem:
            self.refuse(path, problem)
        return not problem

    def end(self, path: str, value: Any) -> End | None:
        end: End | None
        if isinstance(value, str):
            if problem := name_problem(value.partition(":")[0]):
                self.refuse(path, problem)
                return None
            end = self.build(path, lambda: End.parse(value))
            return end
        table = self.table(value, path, KEYS["end"])
        worker = table.pop("worker", None)
        fine = self._named(f"{path}.worker", worker, "worker")
        fine &= self.check_each(path, _END_KEYS, table, lambda **part: End("x", **part))
        return self.build(path, lambda: End(worker, **table)) if fine else None

    def link(self, path: str, value: Any) -> LinkSpec | None:
        table = self.defaults["links"] | self.table(value, path, _LINK_KEYS)
        ends = self.sequence(table.pop("ends", None) or [], f"{path}.ends")
        if len(ends) != 2:
            self.refuse(f"{path}.ends", f"a link has two ends, not {len(ends)}")
        read = [self.end(f"{path}.ends[{number}]", item) for number, item in enumerate(ends)]
        a, b = read if len(read) == 2 else (None, None)
        fine = self._texts(table, path, ("label",))
        keys = [key for key in table if key != "label"]
        fine &= self.check_each(path, keys, table, _any_link)
        if a is None or b is None:
            return None
        if a.worker == b.worker:
            self.refuse(path, f"{a.worker} is linked to itself")
            return None
        if not fine:
            return None
        spec: LinkSpec | None = self.build(path, lambda: LinkSpec(a=a, b=b, **table))
        return spec

    def route(self, path: str, value: Any) -> Route | None:
        table = self.table(value, path, ROUTE_KEYS)
        fine = "to" in table
        if not fine:
            self.refuse(f"{path}.to", "the destination is missing")
        fine &= self.check_each(path, ("to",), table, lambda to: Route(to=to, dev="x"))
        fine &= self.check_each(path, ("via", "dev"), table, lambda **part: Route(**{"to": "default"} | part))
        route: Route | None = self.build(path, lambda: Route(**table)) if fine else None
        return route

    def interface(self, path: str, value: Any) -> InterfaceSpec | None:
        table = self.table(value, path)
        kind = table.pop("kind", None)
        if not isinstance(kind, str) or kind not in INTERFACES:
            self.refuse(f"{path}.kind", f"{shown(kind)} is none of {', '.join(INTERFACES)}")
            return None
        table = self.table(table, path, keys_of(kind))
        missing = [key for key in required_of(kind) if key not in table]
        for key in missing:
            self.refuse(f"{path}.{key}", f'is missing: a "{kind}" interface has one')
        make = INTERFACES[kind]
        known = fields_dict(make)
        if wrong := [problem for key, item in table.items() for problem in problems_of(known[key], item)]:
            self.problems += [_below(path, problem) for problem in wrong]
        # What some of the others may be depends on the mode.
        needed = {key: table[key] for key in (*required_of(kind), "mode") if key in table}
        keys = [key for key in table if key not in needed]
        if missing or wrong or not self.check_each(path, keys, table, lambda **part: make(**needed | part)):
            return None
        interface: InterfaceSpec | None = self.build(path, lambda: make(**table))
        return interface

    def ready(self, path: str, value: Any) -> Any:
        table = self.table(value, path, _READY_KEYS)
        kinds = [key for key in ("tcp", "exec") if key in table]
        if len(kinds) != 1:
            self.refuse(path, 'is either { tcp = PORT } or { exec = ["command"] }')
            return None
        makers: dict[str, Callable[..., TcpReady | ExecReady]] = {"tcp": tcp_ready, "exec": exec_ready}
        make = makers[kinds[0]]
        condition = table.pop(kinds[0])
        if kinds[0] == "exec" and "host" in table:
            self.refuse(f"{path}.host", "only tcp has one")
            return None
        any_of_it: Any = 1 if kinds[0] == "tcp" else ["x"]
        fine = self.check_each(path, tuple(table), table, lambda **part: make(any_of_it, **part))
        ready = self.build(path, lambda: make(condition))
        return self.build(path, lambda: make(condition, **table)) if fine and ready is not None else None


_ALONE: dict[str, Callable[[Any], Any]] = {
    "namespaces": partial(NamespaceSet.parse, passive=False),
    "uid_map": to_uid_map,
    "gid_map": to_gid_map,
}


def _any_link(**part: Any) -> LinkSpec:
    return LinkSpec(a="x", b="y", **part)


# What a bridge has only beside others.
_BESIDE: dict[str, dict[str, Any]] = {
    "gateway": {"subnet": "10.0.0.0/24"},
    "vlans": {"vlan_aware": True},
    "forward_delay": {"stp": True},
}


def _any_bridge(**part: Any) -> BridgeSpec:
    return BridgeSpec(name="x", **part)


def _below(path: str, problem: str) -> str:
    """*problem* may begin with a path of its own, as seen from somewhere above: put it below *path*."""
    problem = problem.removeprefix(f"{path}.")
    own = re.match(r"[a-z_]+(?=[.:\[])", problem)
    if own is None:
        return f"{path}: {problem}"
    above, _, last = path.rpartition(".")
    is_key = above not in ("workers", "bridges")  # else a name, which may be the same word as a key
    return f"{path}{problem[own.end() :]}" if is_key and own[0] == last.partition("[")[0] else f"{path}.{problem}"


def _foreign(data: Any) -> Iterator[tuple[str, str]]:
    """What files of one syntax can hold and others can't: nothing of ours is such a value. Each with its path."""
    for path, value in walk(data):
        if value is None and path:
            is_name = path.rpartition(".")[0] in ("workers", "bridges")
            yield path, "has no value: " + ("without any keys it is {}" if is_name else "leave it out")
        elif isinstance(value, set | frozenset | bytes):
            yield path, f"{shown(value)} is neither a list nor a string"


def unwritable(data: Any) -> list[str]:
    """Texts that no file, command line or file name can hold."""
    problems = []
    for path, value in walk(data):
        for what, text in [(path, value)] if isinstance(value, str) else [(path, key) for key in _keys(value)]:
            if "\0" in text:
                problems.append(f"{what}: null character in {text!r}" if what else f"null character in {text!r}")
            elif not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
                problems.append(f"{what}: {text!r} is not Unicode" if what else f"{text!r} is not Unicode")
    return problems


def _keys(value: Any) -> list[str]:
    return [key for key in value if isinstance(key, str)] if isinstance(value, Mapping) else []


def _stream(value: Any) -> Any:
    from subprocess import DEVNULL

    return {"null": DEVNULL, "inherit": None}.get(value, value) if isinstance(value, str) else value


def from_dict(data: Mapping[str, Any]) -> Topology:
    """See :meth:`Topology.from_dict`."""
    if problems := unwritable(data):
        raise TopologyError(*problems)
    reader = _Reader()
    foreign = dict(_foreign(data))
    for path, text in foreign.items():
        reader.refuse(path, text)
    topology = reader.topology(data)
    if reader.problems:
        own = [problem for problem in reader.problems[len(foreign) :] if problem.partition(": ")[0] not in foreign]
        raise TopologyError(*dict.fromkeys((*reader.problems[: len(foreign)], *own)))
    return topology


# -- the other way


def to_dict(topology: Topology) -> dict[str, Any]:
    """See :meth:`Topology.to_dict`."""
    data: dict[str, Any] = {}
    if topology.name is not None:
        data["name"] = topology.name
    if topology.routing != "none":
        data["routing"] = topology.routing
    if topology.metric != "weight":
        data["metric"] = topology.metric
    if topology.bridges:
        data["bridges"] = {name: _bridge(spec) for name, spec in topology.bridges.items()}
    if topology.workers:
        data["workers"] = {name: _worker(spec) for name, spec in topology.workers.items()}
    if topology.links:
        data["links"] = [_link(spec) for spec in topology.links]
    return data


def _set(**items: Any) -> dict[str, Any]:
    return {key: value for key, value in items.items() if value is not None and value != () and value != {}}


def _present(items: dict[str, Any]) -> dict[str, Any]:
    """An empty list says something else than none."""
    return {key: value for key, value in items.items() if value is not None}


def _addresses(values: tuple[Any, ...]) -> Any:
    """One as a string, several as a list; a host's own length is left out."""
    texts = [str(value.ip) if value.network.num_addresses == 1 else str(value) for value in values]
    return texts[0] if len(texts) == 1 else texts or None


def _networks(values: tuple[Any, ...]) -> Any:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else texts or None


def _emulation(value: Emulation) -> dict[str, Any]:
    said = given(value)
    loss = said.get("gilbert_elliott")
    if loss is not None:
        said["gilbert_elliott"] = {key: getattr(loss, key) for key in GILBERT_ELLIOTT_KEYS}
    return said


def _bridge(spec: BridgeSpec) -> dict[str, Any]:
    return _set(
        subnet=_networks(spec.subnet),
        gateway=spec.gateway,
        mtu=spec.mtu,
        arp=None if spec.arp == "auto" else spec.arp,
        vlan_aware=spec.vlan_aware or None,
        vlans={str(number): _networks(subnet) or [] for number, subnet in spec.vlans.items()},
        stp=spec.stp or None,
        forward_delay=spec.forward_delay,
        ageing=spec.ageing,
        multicast_snooping=spec.multicast_snooping or None,
        label=spec.label,
    )


def _end_options(end: End | To) -> dict[str, Any]:
    vlans = _set(vlan=end.vlan, tagged=list(end.tagged) or None)
    own = _set(name=end.name, address=_addresses(end.address), mac=end.mac, mtu=end.mtu, dhcp=end.dhcp or None)
    return own | vlans | _emulation(end.emulation)


def _to(to: To) -> Any:
    options = _end_options(to)
    return {"to": to.bridge, **options} if options else to.bridge


def _end(end: End) -> Any:
    options = _end_options(end)
    if not options:
        return end.worker
    return f"{end.worker}:{end.name}" if options.keys() == {"name"} else {"worker": end.worker, **options}


def _link(spec: LinkSpec) -> dict[str, Any]:
    weight = None if spec.weight == 1.0 else spec.weight
    own = _set(subnet=_networks(spec.subnet), mtu=spec.mtu, weight=weight, label=spec.label)
    return {"ends": [_end(spec.a), _end(spec.b)], **own, **_emulation(spec.emulation)}


def _ready(ready: TcpReady | ExecReady | None) -> Any:
    if ready is None:
        return None
    if isinstance(ready, TcpReady):
        return _set(tcp=ready.port, host=ready.host, timeout=ready.timeout, interval=ready.interval)
    return {"exec": list(ready.command), "timeout": ready.timeout, "interval": ready.interval}


def _text(value: Any, path: str) -> str:
    text = os.fsdecode(value)
    if not unwritable(text):
        return text
    raise TopologyError(f"{path}: {shown(value)} can't be written to a file")


def _stream_name(value: Any, path: str) -> Any:
    from subprocess import DEVNULL

    if value is None or isinstance(value, str):
        return value
    if value == DEVNULL:
        return "null"
    raise TopologyError(f"{path}: {shown(value)} can't be written to a file")


def _namespaces(value: Any, path: str) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        for kind, source in value.items():
            if not isinstance(source, str | bool):
                raise TopologyError(f"{path}.{kind}: {shown(source)} can't be written to a file")
        return dict(value)
    return list(value)


def _worker(spec: WorkerSpec) -> dict[str, Any]:
    path = f"workers.{spec.name}"
    return _set(
        command=None
        if spec.command is None or spec.service
        else [_text(item, f"{path}.command") for item in spec.command],
        links=[_to(to) for to in spec.links] or None,
        cwd=None if spec.cwd is None else _text(spec.cwd, f"{path}.cwd"),
        user=spec.user,
        hostname=spec.hostname,
        init=None if spec.init else False,
        ready=_ready(spec.ready),
        critical=spec.critical or None,
        stdin=_stream_name(spec.stdin, f"{path}.stdin"),
        stdout=_stream_name(spec.stdout, f"{path}.stdout"),
        stderr=_stream_name(spec.stderr, f"{path}.stderr"),
        sysctls=dict(spec.sysctls),
        routes=[_set(to=str(r.to), via=None if r.via is None else str(r.via), dev=r.dev) for r in spec.routes] or None,
        forward=(spec.forward and spec.nat is None and not forwards(spec.service)) or None,
        nat=to_plain(spec.nat),
        firewall=to_plain(spec.firewall),
        interfaces=[interface_to_dict(interface) for interface in spec.interfaces] or None,
        service=service_to_plain(spec.service),
        uplink=uplink_to_plain(spec.uplink),
        label=spec.label,
    ) | _present(
        {
            "namespaces": _namespaces(spec.namespaces, f"{path}.namespaces"),
            "env": None if spec.env is None else dict(spec.env),
            **isolation_to_dict(spec, path),
        }
    )
