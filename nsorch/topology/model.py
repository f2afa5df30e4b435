"""A topology: workers, bridges and links as data, without any kernel object."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from attrs import evolve

from nsorch import topology  # noqa: TC001 - for typing.get_type_hints
from nsorch.errors import NameInUseError, TopologyError
from nsorch.topology.checks import checks, emulations
from nsorch.topology.emulation import NO_EMULATION, directions
from nsorch.topology.joins import joined_names
from nsorch.topology.kinds import of_kind, shown
from nsorch.topology.layer2 import wires
from nsorch.topology.routing import connected
from nsorch.topology.specs import BridgeSpec, LinkSpec, To, WorkerSpec

ROUTING = ("none", "shortest-path")
METRICS = ("weight", "hops", "delay")
# Of a link without delay, for the routing: among such links the hops decide.
_NO_DELAY = 1e-6


class Topology:
    """A description to be deployed with :meth:`nsorch.Supervisor.deploy`.

    :param name: for people
    :param routing: ``"shortest-path"`` gives each worker loopback addresses and routes to those of all others
    :param metric: what the shortest path is short of: the links' ``"weight"``, ``"hops"``, or ``"delay"`` (that of the
        link and of the end it is sent by; 1 µs where there is none)
    """

    def __init__(self, name: str | None = None, *, routing: str = "none", metric: str = "weight") -> None:
        if routing not in ROUTING:
            raise TopologyError(f"routing: {shown(routing)} is none of {', '.join(ROUTING)}")
        if metric not in METRICS:
            raise TopologyError(f"metric: {shown(metric)} is none of {', '.join(METRICS)}")
        if name is not None and not isinstance(name, str):
            raise TopologyError(f"name: {shown(name)} is not a string")
        self.metric = metric
        self.name = name
        self.routing = routing
        self.notes: tuple[str, ...] = ()  #: what an importer had to leave out
        self._workers: dict[str, WorkerSpec] = {}
        self._bridges: dict[str, BridgeSpec] = {}
        self._links: list[LinkSpec] = []

    def __repr__(self) -> str:
        return (
            f"<Topology {self.name or ''}: {len(self._workers)} workers, {len(self._bridges)} bridges, "
            f"{len(self._links)} links>"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Topology) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    @property
    def workers(self) -> Mapping[str, WorkerSpec]:
        return MappingProxyType(self._workers)

    @property
    def bridges(self) -> Mapping[str, BridgeSpec]:
        return MappingProxyType(self._bridges)

    @property
    def links(self) -> tuple[LinkSpec, ...]:
        return tuple(self._links)

    # -- building

    def add(self, spec: WorkerSpec | BridgeSpec | LinkSpec) -> None:
        """Add a part.

        :raises NameInUseError: a worker or bridge has its name
        :raises TopologyError: it is none
        """
        of_kind("spec", spec, "a WorkerSpec, BridgeSpec or LinkSpec", WorkerSpec, BridgeSpec, LinkSpec)
        if isinstance(spec, LinkSpec):
            self._links.append(spec)
            return
        if spec.name in self._workers or spec.name in self._bridges:
            raise NameInUseError(f'there is a worker or bridge "{spec.name}" already', worker=spec.name)
        if isinstance(spec, WorkerSpec):
            self._workers[spec.name] = spec
        else:
            self._bridges[spec.name] = spec

    def bridge(
        self,
        name: str,
        subnet: Any = None,
        *,
        gateway: str | None = None,
        mtu: int | None = None,
        arp: str = "auto",
        vlan_aware: bool = False,
        vlans: Mapping[int, Any] | None = None,
        stp: bool = False,
        forward_delay: Any = None,
        ageing: Any = None,
        multicast_snooping: bool = False,
        label: str | None = None,
    ) -> BridgeSpec:
        """Add a bridge; see :meth:`nsorch.Supervisor.bridge`."""
        spec = BridgeSpec(
            name=name,
            subnet=subnet,
            gateway=gateway,
            mtu=mtu,
            arp=arp,
            vlan_aware=vlan_aware,
            vlans=vlans,
            stp=stp,
            forward_delay=forward_delay,
            ageing=ageing,
            multicast_snooping=multicast_snooping,
            label=label,
        )
        self.add(spec)
        return spec

    def worker(
        self,
        name: str,
        command: Iterable[str | os.PathLike[str]] | None = None,
        *,
        links: Any = (),
        namespaces: Any = None,
        env: Mapping[str, str] | None = None,
        cwd: Any = None,
        user: str | int | None = None,
        groups: Iterable[str | int] = (),
        isolation: str = "network",
        rootfs: str | os.PathLike[str] | topology.Overlay | None = None,
        mounts: Iterable[topology.Mount] = (),
        readonly_root: bool | None = None,
        masked: Iterable[str] | None = None,
        readonly_paths: Iterable[str] | None = None,
        capabilities: topology.Capabilities | Iterable[str] | None = None,
        no_new_privs: bool | None = None,
        seccomp: str | bytes | int | os.PathLike[str] | None = None,
        rlimits: Mapping[str, int | str | tuple[int | str, int | str]] | None = None,
        oom_score_adj: int | None = None,
        limits: topology.Limits | Mapping[str, Any] | None = None,
        cgroup_namespace: bool | None = None,
        time_offsets: Mapping[str, float] | None = None,
        uid_map: Iterable[tuple[int, int, int]] = (),
        gid_map: Iterable[tuple[int, int, int]] = (),
        domainname: str | None = None,
        hostname: str | None = None,
        init: bool = True,
        ready: Any = None,
        critical: bool = False,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        sysctls: Mapping[str, str | int] | None = None,
        routes: Any = (),
        forward: bool = False,
        nat: Any = None,
        firewall: Any = None,
        interfaces: Any = (),
        service: Any = None,
        uplink: Any = None,
        label: str | None = None,
    ) -> WorkerSpec:
        """Add a worker; see :meth:`nsorch.Supervisor.start`."""
        spec = WorkerSpec(
            name=name,
            command=command,
            links=links,
            namespaces=namespaces,
            env=env,
            cwd=cwd,
            user=user,
            groups=groups,
            isolation=isolation,
            rootfs=rootfs,
            mounts=mounts,
            readonly_root=readonly_root,
            masked=masked,
            readonly_paths=readonly_paths,
            capabilities=capabilities,
            no_new_privs=no_new_privs,
            seccomp=seccomp,
            rlimits=rlimits,
            oom_score_adj=oom_score_adj,
            limits=limits,
            cgroup_namespace=cgroup_namespace,
            time_offsets=time_offsets,
            uid_map=uid_map,
            gid_map=gid_map,
            domainname=domainname,
            hostname=hostname,
            init=init,
            ready=ready,
            critical=critical,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            sysctls=sysctls,
            routes=routes,
            forward=forward,
            nat=nat,
            firewall=firewall,
            interfaces=interfaces,
            service=service,
            uplink=uplink,
            label=label,
        )
        self.add(spec)
        return spec

    def link(
        self,
        a: Any,
        b: Any,
        *,
        subnet: Any = None,
        mtu: int | None = None,
        weight: float = 1.0,
        label: str | None = None,
        profile: str | None = None,
        delay: Any = None,
        jitter: Any = None,
        delay_correlation: Any = None,
        distribution: str | None = None,
        loss: Any = None,
        loss_correlation: Any = None,
        gilbert_elliott: Any = None,
        duplicate: Any = None,
        corrupt: Any = None,
        reorder: Any = None,
        rate: Any = None,
        limit: int | None = None,
    ) -> LinkSpec:
        """Add a link; see :meth:`nsorch.Supervisor.link`. *weight* is its cost for the routing."""
        spec = LinkSpec(
            a=a,
            b=b,
            subnet=subnet,
            mtu=mtu,
            weight=weight,
            label=label,
            profile=profile,
            delay=delay,
            jitter=jitter,
            delay_correlation=delay_correlation,
            distribution=distribution,
            loss=loss,
            loss_correlation=loss_correlation,
            gilbert_elliott=gilbert_elliott,
            duplicate=duplicate,
            corrupt=corrupt,
            reorder=reorder,
            rate=rate,
            limit=limit,
        )
        self.add(spec)
        return spec

    def copy(self) -> Topology:
        """One with the same parts, to be changed without changing this one."""
        other = Topology(self.name, routing=self.routing, metric=self.metric)
        other.notes = self.notes
        other._workers, other._bridges, other._links = dict(self._workers), dict(self._bridges), list(self._links)
        return other

    def remove(self, name: str) -> None:
        """Remove a worker or a bridge, with all links to it.

        :raises KeyError: there is none of this name
        """
        if name in self._workers:
            del self._workers[name]
        else:
            del self._bridges[name]
            for worker in self._workers.values():
                if any(to.bridge == name for to in worker.links):
                    links = [to for to in worker.links if to.bridge != name]
                    self._workers[worker.name] = evolve(worker, links=links)
        self._links = [link for link in self._links if name not in (link.a.worker, link.b.worker)]

    # -- looking

    def adjacent(self) -> list[tuple[str, str]]:
        """Pairs of workers and bridges that are linked directly."""
        pairs = [(name, to.bridge) for name, worker in self._workers.items() for to in worker.links]
        return pairs + [(link.a.worker, link.b.worker) for link in self._links]

    def trunks(self) -> list[tuple[str, str]]:
        """Pairs of bridges that are linked directly: one segment."""
        ends = ((link.a.worker, link.b.worker) for link in self._links)
        return [(a, b) for a, b in ends if a in self._bridges and b in self._bridges]

    def components(self) -> list[set[str]]:
        """The sets of workers that the links connect, and the network namespaces that they share."""
        pairs = list(wires(self))
        for name, worker in self._workers.items():
            pairs += ((name, other) for other in joined_names(worker, "net") & self._workers.keys())
        segments = dict.fromkeys(segment for _, segment in pairs)
        found = connected(dict.fromkeys((*self._workers, *self._bridges, *segments)), pairs)
        return [workers for component in found if (workers := component & self._workers.keys())]

    def emulated(self) -> list[str]:
        """Paths of the links that ask for emulation."""
        return [path for path, *said in emulations(self) if any(emulation.active for emulation in said)]

    def cost(self, link: LinkSpec | To, sender: str) -> float:
        """What the routing counts for *link*, in the direction that *sender* sends in; out of a bridge nothing but
        delay, as in OSPF (RFC 2328, section 2.1)."""
        if self.metric == "delay":
            if isinstance(link, To):
                ways = directions(link, NO_EMULATION)
                delay = ways[0 if sender != link.bridge else 1].delay or 0.0
            else:
                ways = directions(link.a, link.b, link)
                delay = ways[0 if sender == link.a.worker else 1].delay or 0.0
            return delay if sender in self._bridges else delay or _NO_DELAY
        if sender in self._bridges:
            return 0.0
        return 1.0 if self.metric == "hops" or isinstance(link, To) else link.weight

    # -- checking

    def validate(self) -> None:
        """Check what one part says of another.

        :raises TopologyError: with all problems at once, and the path of each
        """
        problems = self.problems()
        if problems:
            raise TopologyError(*problems)

    def problems(self) -> list[str]:
        return [problem for problem in checks(self) if problem is not None]

    # -- files

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        delay: str | None = None,
        missing: str | float = "error",
        rate: str | None = None,
    ) -> Topology:
        """Read a TOML, YAML, JSON or GraphML file, by its suffix. Blocks.

        :param delay: of GraphML's links: ``"geo"`` for the great circle between the coordinates of their nodes, at
            200 km per ms
        :param missing: the delay of a link that has a node without coordinates, in seconds or as ``"5ms"``; ``"none"``,
            or ``"error"`` to refuse the file
        :param rate: of GraphML's links: ``"label"`` for their ``LinkSpeedRaw``, where they have one
        :raises TopologyError: it can't be read or is wrong: with all problems at once, and the path of each
        """
        from nsorch.topology.files import load

        return load(path, delay=delay, missing=missing, rate=rate)

    def dump(self, path: str | os.PathLike[str]) -> None:
        """Write a TOML, YAML or JSON file, by its suffix. Blocks."""
        from nsorch.topology.files import dump

        dump(self, path)

    def to_dict(self) -> dict[str, Any]:
        """As a file has it: plain types, defaults left out."""
        from nsorch.topology.structure import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Topology:
        """The opposite of :meth:`to_dict`.

        :raises TopologyError: with all problems at once, and the path of each
        """
        from nsorch.topology.structure import from_dict

        return from_dict(data)

    @staticmethod
    def json_schema() -> dict[str, Any]:
        """The JSON Schema (draft 2020-12) of topology files; ``nsorch/topology/schema.json`` is the same."""
        from nsorch.topology.schema import make_schema

        return make_schema()

    def to_json(self) -> str:
        import json

        return json.dumps(self.to_dict(), indent=2)

    # -- for other programs

    def to_networkx(self) -> Any:
        """A ``networkx.MultiGraph``: workers and bridges are nodes, with ``kind`` and ``label``.

        Each link is an edge, with ``weight``, ``LinkLabel`` and its emulation (seconds, fractions, bits per second);
        what one end says has ``source_`` or ``target_`` before it, and ``source`` is the name of that end.
        """
        from nsorch.topology.export import to_networkx

        return to_networkx(self)

    def to_dot(self) -> str:
        """A drawing in Graphviz's language."""
        from nsorch.topology.export import to_dot

        return to_dot(self)

    def to_mermaid(self) -> str:
        """A drawing in Mermaid's language, as Markdown pages show it."""
        from nsorch.topology.export import to_mermaid

        return to_mermaid(self)

    def to_graphml(self) -> str:
        """GraphML: the graph with its labels, weights and emulation, without addresses and commands."""
        from nsorch.topology.export import to_graphml

        return to_graphml(self)

    def to_svg(self) -> str:
        """A drawing by Graphviz. Blocks.

        :raises UnsupportedError: Graphviz is not installed
        """
        from nsorch.topology.export import to_svg

        return to_svg(self)

    # -- generators

    @classmethod
    def star(cls, n: int, *, subnet: Any = "10.0.0.0/8") -> Topology:
        """*n* workers ``n0`` … on one bridge."""
        topology = cls(f"star-{n}")
        topology.bridge("hub", subnet)
        for number in range(_positive(n)):
            topology.worker(f"n{number}", links=["hub"])
        return topology

    @classmethod
    def linear(cls, n: int) -> Topology:
        """*n* routers in a row."""
        return cls._routed(f"linear-{n}", n, [(number, number + 1) for number in range(_positive(n) - 1)])

    @classmethod
    def ring(cls, n: int) -> Topology:
        """*n* routers in a circle."""
        if _positive(n) < 3:
            raise TopologyError(f"a ring needs three workers, not {n}")
        return cls._routed(f"ring-{n}", n, [(number, (number + 1) % n) for number in range(n)])

    @classmethod
    def mesh(cls, n: int) -> Topology:
        """*n* routers, each linked to all others."""
        return cls._routed(f"mesh-{n}", n, [(a, b) for a in range(_positive(n)) for b in range(a + 1, n)])

    @classmethod
    def tree(cls, depth: int, fanout: int) -> Topology:
        """Routers in a tree: *depth* levels below the root, *fanout* children each."""
        count = sum(_positive(fanout) ** level for level in range(_positive(depth) + 1))
        return cls._routed(
            f"tree-{depth}-{fanout}", count, [((number - 1) // fanout, number) for number in range(1, count)]
        )

    @classmethod
    def fat_tree(cls, k: int) -> Topology:
        """The k-ary fat tree of Al-Fares et al., SIGCOMM 2008: (k/2)² cores, k pods, k³/4 hosts; switches route."""
        if _positive(k) % 2:
            raise TopologyError(f"a fat tree needs an even k, not {k}")
        topology = cls(f"fat-tree-{k}", routing="shortest-path")
        half = k // 2
        for number in range(half * half):
            topology.worker(f"core{number}", forward=True)
        for pod in range(k):
            for number in range(half):
                topology.worker(f"agg{pod}-{number}", forward=True)
                topology.worker(f"edge{pod}-{number}", forward=True)
                for other in range(half):
                    topology.worker(f"host{pod}-{number}-{other}")
            for number in range(half):
                for other in range(half):
                    topology.link(f"agg{pod}-{number}", f"core{number * half + other}")
                    topology.link(f"edge{pod}-{number}", f"agg{pod}-{other}")
                    topology.link(f"host{pod}-{number}-{other}", f"edge{pod}-{number}")
        return topology

    @classmethod
    def _routed(cls, name: str, n: int, pairs: Iterable[tuple[int, int]]) -> Topology:
        topology = cls(name, routing="shortest-path")
        for number in range(n):
            topology.worker(f"n{number}", forward=True)
        for a, b in pairs:
            topology.link(f"n{a}", f"n{b}")
        return topology

    @classmethod
    def from_networkx(
        cls, graph: Any, *, delay: str | None = None, missing: str | float = "error", rate: str | None = None
    ) -> Topology:
        """Routers for the nodes, links for the edges of a networkx graph; attributes count as GraphML's.

        Those are ``label``, ``hyperedge``, ``Latitude``, ``Longitude`` of nodes; ``weight``, ``LinkLabel``,
        ``LinkSpeedRaw`` of edges. See :meth:`load` for the parameters.

        :raises TopologyError: with all problems at once
        """
        from nsorch.topology.graphml import GraphOptions, from_networkx

        return from_networkx(graph, GraphOptions(delay=delay, missing=missing, rate=rate))

    @classmethod
    def from_mininet(cls, topo: Any) -> Topology:
        """From a Mininet ``Topo`` object, by its methods. :attr:`notes` lists what can't be carried over.

        Hosts become workers with Mininet's addresses; switches that are linked to one another are one bridge.

        :raises TopologyError: with all problems at once
        """
        from nsorch.topology.importers.mininet import from_mininet

        return from_mininet(topo)

    @classmethod
    def from_containerlab(cls, path: str | os.PathLike[str]) -> Topology:
        """Read a file of containerlab, without images. Blocks. :attr:`notes` lists what can't be carried over.

        Nodes of ``kind: linux`` become workers, bridges bridges; :meth:`load` does the same for ``*.clab.yml``.

        :raises TopologyError: with all problems at once, and the path of each
        """
        from nsorch.topology.importers.containerlab import from_containerlab

        return from_containerlab(str(path))

    @classmethod
    def from_munet(cls, path: str | os.PathLike[str]) -> Topology:
        """Read a munet YAML file. Blocks. :attr:`notes` lists what can't be carried over.

        :raises TopologyError: with all problems at once, and the path of each
        """
        from nsorch.topology.importers.munet import from_munet

        return from_munet(str(path))

    @classmethod
    def erdos_renyi(cls, n: int, p: float, *, seed: int = 0) -> Topology:
        """*n* routers; each pair is linked with probability *p*: Erdős and Rényi's G(n, p), by networkx.

        It need not be connected. The same *seed* gives the same graph, here as in the other random ones.
        """
        return cls._random(f"erdos-renyi-{n}", "gnp_random_graph", _positive(n), _chance("p", p), seed=seed)

    @classmethod
    def barabasi_albert(cls, n: int, m: int, *, seed: int = 0) -> Topology:
        """*n* routers, each new one linked to *m* earlier ones, rather those with many links (Barabási and Albert)."""
        return cls._random(f"barabasi-albert-{n}", "barabasi_albert_graph", _positive(n), _positive(m), seed=seed)

    @classmethod
    def watts_strogatz(cls, n: int, k: int, p: float, *, seed: int = 0) -> Topology:
        """A small world: a ring of *n* routers linked to their *k* nearest, each link rewired with probability *p*, and
        the whole connected (Watts and Strogatz; Newman)."""
        arguments = _positive(n), _positive(k), _chance("p", p)
        return cls._random(f"watts-strogatz-{n}", "connected_watts_strogatz_graph", *arguments, seed=seed)

    @classmethod
    def waxman(cls, n: int, *, beta: float = 0.4, alpha: float = 0.1, seed: int = 0) -> Topology:
        """*n* routers in the unit square, near ones rather linked: with probability beta·exp(-distance/(alpha·√2))
        (Waxman). It need not be connected."""
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
            raise TopologyError(f"alpha: {shown(alpha)} is not a number above 0")
        beta = _chance("beta", beta)
        return cls._random(f"waxman-{n}", "waxman_graph", _positive(n), beta=beta, alpha=alpha, seed=seed)

    @classmethod
    def random_regular(cls, n: int, degree: int, *, seed: int = 0) -> Topology:
        """*n* routers with *degree* links each; n·degree is even."""
        return cls._random(f"random-regular-{n}", "random_regular_graph", _positive(degree), _positive(n), seed=seed)

    @classmethod
    def _random(cls, name: str, generator: str, *arguments: Any, **options: Any) -> Topology:
        import networkx as nx

        try:
            graph = getattr(nx, generator)(*arguments, **options)
        except (nx.NetworkXError, TypeError, ValueError) as exc:
            raise TopologyError(f"{name}: {exc}") from None
        return cls._routed(name, len(graph), sorted(tuple(sorted(edge)) for edge in graph.edges()))


def _positive(number: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise TopologyError(f"{shown(number)} is not a whole number above 0")
    return number


def _chance(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise TopologyError(f"{name}: {shown(value)} is not a probability, a number from 0 to 1")
    return value
