"""A whole topology at once, and what becomes of it."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
from attrs import evolve

from nsorch.core.collector import no_full_collections
from nsorch.core.threads import in_thread
from nsorch.errors import ClosedError, NsorchError, TopologyError, UnsupportedError
from nsorch.events import State
from nsorch.supervisor.admission import require
from nsorch.supervisor.keeping import keeping
from nsorch.supervisor.removal import remove
from nsorch.supervisor.turns import in_turns
from nsorch.supervisor.wiring.changing import follow_default, set_routes, take_routes
from nsorch.supervisor.wiring.emulating import apply_ways, needs_netem, require_netem
from nsorch.supervisor.wiring.given import given_in
from nsorch.supervisor.wiring.network import Bridge, Link  # noqa: TC001 - for typing.get_type_hints
from nsorch.supervisor.wiring.orders import LINKING
from nsorch.supervisor.wiring.removing import remove_links
from nsorch.supervisor.wiring.routes import ShortestPaths
from nsorch.supervisor.worker import Worker  # noqa: TC001 - for typing.get_type_hints
from nsorch.topology import To, Topology
from nsorch.topology.checks import checks, emulations
from nsorch.topology.difference import RESTARTED, Difference, difference, links_of
from nsorch.topology.emulation import directions
from nsorch.topology.kinds import of_kind
from nsorch.topology.specs import as_link

if TYPE_CHECKING:
    from nsorch.net.plan import RouteGroup, RoutePlan
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.network import Side
    from nsorch.topology import BridgeSpec, LinkSpec, WorkerSpec
    from nsorch.topology.specs import LinkKey


class Deployment:
    """What :meth:`nsorch.Supervisor.deploy` has brought up."""

    def __init__(self, supervisor: Supervisor, topology: Topology) -> None:
        self.topology = topology  #: what is there now
        self._supervisor = supervisor
        self._workers: dict[str, Worker] = {}
        self._bridges: dict[str, Bridge] = {}
        self._links: dict[LinkKey, Link] = {}
        self._changing = anyio.Lock()
        # What a change that failed, or was cancelled, has left undone: the keys; and the routes that workers may have.
        self._left: dict[Worker | Link, Collection[str]] = {}
        self._left_routes: dict[Worker, list[RoutePlan]] = {}

    def __repr__(self) -> str:
        return f"<Deployment of {self.topology!r}>"

    @property
    def workers(self) -> Mapping[str, Worker]:
        return MappingProxyType(self._workers)

    @property
    def bridges(self) -> Mapping[str, Bridge]:
        return MappingProxyType(self._bridges)

    @property
    def links(self) -> Mapping[str, Link]:
        return MappingProxyType({link.name: link for link in self._links.values()})

    async def apply(self, topology: Topology, *, dry_run: bool = False) -> Difference:
        """Make *topology* of what is there, by doing only the difference: what both describe alike isn't touched.

        What is removed goes first; then new bridges, workers and links come, all or none of them, with what was removed
        by itself or by other programs since; then what stays is changed, and workers with another command are
        restarted. What fails because somebody else removes a part meanwhile is done again, with that part. After any
        other failure, or a cancellation, :attr:`topology` says what is there, and the next call also does what wasn't
        done any more.

        :param dry_run: only tell what would be done
        :raises TopologyError: the description is wrong; nothing was done
        :raises UnsupportedError: it asks for what this host can't do, or another kind of routing; nothing was done
        :raises ExceptionGroup: of errors that name each failed worker
        """
        of_kind("topology", topology, "a Topology", Topology)
        topology = topology.copy()
        await _check(self._supervisor, topology)
        done = Difference()
        async with self._changing:
            while True:
                await self._forget_removed()
                found = await in_thread(difference, self.topology, topology)
                if self.topology.routing != topology.routing:
                    raise UnsupportedError("the routing of what is there can't be changed", stage="apply")
                found = self._with_left(found, topology)
                done = done.followed_by(found)
                if dry_run:
                    break
                try:
                    await self._do(found, topology)
                    # Not with a bridge that somebody had moved them to.
                    if all(link._state != "removed" for link in self._links.values()):
                        break
                except (NsorchError, ExceptionGroup) as exc:
                    if not self._is_losing() and not _lacks_link(exc):
                        raise
        await anyio.lowlevel.checkpoint()
        return done

    async def _do(self, found: Difference, topology: Topology) -> None:
        others = found.of("worker", "add", "replace", "restart", "set")
        await require(self._supervisor, [topology.workers[n] for n in others if n in topology.workers])
        again = {key: self._links[key] for key in found.links_to_add if key in self._links}
        if not again:
            await self._carry_out(found, topology, topology)
            return
        wanted = await in_thread(keeping, topology, await given_in(topology), self.topology, again)
        given, record = await given_in(wanted), self._supervisor._wiring.record
        record.given.append(given)  # else others could take what these leave for a moment
        try:
            await self._carry_out(found, topology, wanted)
        finally:
            record.given.remove(given)

    async def _carry_out(self, found: Difference, topology: Topology, wanted: Topology) -> None:
        """:param wanted: *topology*, with addresses that it leaves open"""
        with anyio.CancelScope(shield=True):
            kept = await self._take_away(found)
        addition = _Addition(self, wanted, await _links_of(wanted), kept)
        addition.workers = set(found.of("worker", "add", "replace"))
        addition.bridges = [topology.bridges[name] for name in found.of("bridge", "add", "replace")]
        addition.links_to_add = found.links_to_add
        addition.touched = {name for key in (*found.links_to_add, *found.links_to_remove) for name in (key[0], key[2])}
        await self._add(addition, topology)
        await self._change(topology, found)

    def _is_losing(self) -> bool:
        """Whether something that should be there was removed meanwhile, or is being removed, by somebody else."""
        self._supervisor._check_running()
        there = self._supervisor.bridges
        return (
            any(worker._leaving or worker.state is State.REMOVED for worker in self._workers.values())
            or any(bridge._leaving or there.get(name) is not bridge for name, bridge in self._bridges.items())
            or any(link._leaving or link._state == "removed" for link in self._links.values())
        )

    async def _forget_removed(self) -> None:
        """What was removed by itself, or by another program, isn't there any more. What is being removed is waited
        for."""
        owned: list[Worker | Bridge | Link] = [*self._workers.values(), *self._bridges.values(), *self._links.values()]
        for over in [each._leaving for each in owned]:
            if over is not None:
                await over.wait()
        workers = {name: worker for name, worker in self._workers.items() if worker.state is not State.REMOVED}
        there = self._supervisor.bridges
        bridges = {name: bridge for name, bridge in self._bridges.items() if there.get(name) is bridge}
        links = {key: link for key, link in self._links.items() if link._state != "removed"}
        gone = {*self._workers, *self._bridges} - {*workers, *bridges}
        if gone or len(links) < len(self._links):
            self._left_routes = {w: before for w, before in self._left_routes.items() if w in workers.values()}
            self.topology = _remaining(self.topology, gone, self._links.keys() - links)
            self._workers, self._bridges = workers, bridges
            self._links = dict(zip(dict(links_of(self.topology)), links.values(), strict=True))

    def _with_left(self, found: Difference, topology: Topology) -> Difference:
        if not self._left and not self._left_routes:
            return found
        ended = set(found.of("worker", "remove", "replace"))
        workers: dict[str, Collection[str]] = {}
        for name, worker in self._workers.items():
            keys = [*self._left.get(worker, ()), *(["routes"] if worker in self._left_routes else [])]
            if keys and name not in ended:
                workers[name] = [key for key in keys if not _is_running_with(worker, key, topology.workers[name])]
        specs = dict(links_of(topology))
        links = {
            key: (as_link(key, specs[key]), self._left[link])
            for key, link in self._links.items()
            if link in self._left and key not in found.links_to_remove
        }
        return found.including({name: keys for name, keys in workers.items() if keys}, links)

    async def _take_away(self, found: Difference) -> dict[LinkKey, Link]:
        """Returns the links that stay."""
        supervisor = self._supervisor
        kept = {key: link for key, link in self._links.items() if key not in found.links_to_remove}
        gone_links = [link for key, link in self._links.items() if key not in kept]
        gone_workers = [self._workers.pop(name) for name in found.of("worker", "remove", "replace")]
        gone_bridges = [self._bridges.pop(name) for name in found.of("bridge", "remove", "replace")]
        gone = {*found.of("bridge", "remove", "replace"), *found.of("worker", "remove", "replace")}
        self.topology = _remaining(self.topology, gone, found.links_to_remove)
        self._links = dict(zip(dict(links_of(self.topology)), kept.values(), strict=True))
        if gone_workers:
            await remove(supervisor, gone_workers)
        await remove_links(supervisor._wiring, [link for link in gone_links if link._state != "removed"])
        await supervisor._wiring.remove_bridges(gone_bridges)
        return kept

    async def _add(self, addition: _Addition, topology: Topology) -> None:
        """Also says which routes those workers have that get others, over the new links or over those that stay."""
        differing = [
            worker
            for name, worker in self._workers.items()
            if worker.spec.all_routes != topology.workers[name].all_routes
        ]
        specs = {worker: worker._spec for worker in differing}
        routes = {worker: take_routes(addition.wiring, worker, topology.workers[worker.name]) for worker in differing}
        try:
            await addition.carry_out()
        except BaseException:
            for worker, spec in specs.items():
                worker._spec = spec
            raise
        for worker, before in routes.items():
            self._left_routes.setdefault(worker, []).extend(before)

    async def _change(self, topology: Topology, found: Difference) -> None:
        self.topology = topology
        changed = [c for c in found.changes if c.name in self._workers and c.action in ("set", "restart")]
        restarts = found.of("worker", "restart")
        links = {self._links[key]: (spec, keys) for key, (spec, keys) in found.links_to_set.items()}
        self._left = {link: keys for link, (_, keys) in links.items()}
        self._left |= {self._workers[change.name]: change.details for change in changed}
        wiring = self._supervisor._wiring
        for link, (spec, keys) in links.items():
            async with wiring.watcher.own(link):
                if "mtu" in keys:
                    await wiring.set_mtus(link, wiring.record.mtus_of(spec))
                await apply_ways(wiring, link, wiring.record.ways_of(spec))
                self._left.pop(link)
        for name, worker in self._workers.items():
            await self._adapt(worker, topology.workers[name])
            if name not in restarts:
                worker._spec = topology.workers[name]
                self._left.pop(worker, None)
        for name in restarts:
            worker = self._workers[name]
            await worker._restart(lambda before: topology.workers[before.name], None)
            self._left.pop(worker)

    async def _adapt(self, worker: Worker, described: WorkerSpec) -> None:
        """What it is given while it runs."""
        wiring = self._supervisor._wiring
        if described.all_interfaces or worker._devices:
            await wiring.interfaces.adapt(worker, described.all_interfaces)
        if worker in self._left_routes:
            with anyio.CancelScope(shield=True):
                await set_routes(wiring, worker, self._left_routes[worker])
                del self._left_routes[worker]
        if worker.spec.limits != described.limits:
            await worker.set_limits(described.limits)
        await wiring.filters.apply(worker, described)
        if worker.spec.uplink != described.uplink:
            await self._supervisor._ensure_uplinks().adapt(worker, described.uplink)

    async def remove(self) -> None:
        """Take all of it down. Doing it twice is once; cancelled, it is done all the same."""
        self._supervisor._check_thread()
        with anyio.CancelScope(shield=True):
            self._supervisor._wiring.retire(self._bridges.values())
            await remove(self._supervisor, list(self._workers.values()))
            await self._supervisor._wiring.remove_bridges(list(self._bridges.values()))
        await anyio.lowlevel.checkpoint()


async def deploy(supervisor: Supervisor, topology: Topology) -> Deployment:
    of_kind("topology", topology, "a Topology", Topology)
    with no_full_collections():
        topology = topology.copy()  # the caller may go on with theirs
        await _check(supervisor, topology)
        deployment = Deployment(supervisor, topology)
        addition = _Addition(deployment, topology, await _links_of(topology), {})
        addition.all_new = True
        addition.workers = set(topology.workers)
        addition.bridges = list(topology.bridges.values())
        addition.links_to_add = list(addition.specs)
    await addition.carry_out()
    return deployment


async def _links_of(topology: Topology) -> dict[LinkKey, LinkSpec | To]:
    return {key: spec async for key, spec in in_turns(links_of(topology))}


async def _check(supervisor: Supervisor, topology: Topology) -> None:
    problems = [problem async for problem in in_turns(checks(topology)) if problem is not None]
    if problems:
        raise TopologyError(*problems)
    supervisor._check_running()
    await supervisor._wiring.require(topology.workers.values(), topology.bridges.values())
    paths = [
        path
        async for path, a, b, both in in_turns(emulations(topology))
        if (a.active or b.active or both.active) and needs_netem(*directions(a, b, both))
    ]
    await require_netem(supervisor._wiring.kernel, paths)


def _lacks_link(exc: Exception) -> bool:
    """Whether somebody has removed one while it was made."""
    if isinstance(exc, ExceptionGroup):
        return any(_lacks_link(each) for each in exc.exceptions)
    return isinstance(exc, ClosedError) and exc.stage == LINKING


def _is_running_with(worker: Worker, key: str, described: WorkerSpec) -> bool:
    """Whether its process has been started as *key* of the description says."""
    is_of_process = key in RESTARTED and worker.state is State.RUNNING
    return is_of_process and bool(getattr(worker.spec, key) == getattr(described, key))


def _remaining(topology: Topology, gone: Container[str], gone_links: Container[LinkKey]) -> Topology:
    """What is left of it without the workers and bridges that are *gone*, and the links."""
    left = Topology(topology.name, routing=topology.routing, metric=topology.metric)
    keys = iter(dict(links_of(topology)))
    for name, bridge in topology.bridges.items():
        if name not in gone:
            left.add(bridge)
    for name, worker in topology.workers.items():
        links = [to for to in worker.links if next(keys) not in gone_links]
        if name not in gone:
            left.add(evolve(worker, links=links))
    for link in topology.links:
        if next(keys) not in gone_links:
            left.add(link)
    return left


class _Addition:
    """Brings up parts of a topology, all or nothing, and sets the routes of all.

    :ivar specs: of all links of the topology
    :ivar all_new: nothing of it is there, nor linked to what is
    :ivar touched: workers whose links change: the kernel has dropped routes of theirs
    :param kept: links that stay
    """

    def __init__(
        self,
        deployment: Deployment,
        topology: Topology,
        specs: Mapping[LinkKey, LinkSpec | To],
        kept: Mapping[LinkKey, Link],
    ) -> None:
        self.specs = specs
        self.all_new = False
        self.workers: set[str] = set()
        self.bridges: Sequence[BridgeSpec] = ()
        self.links_to_add: Sequence[LinkKey] = ()
        self.touched: set[str] = set()
        self._deployment = deployment
        self._supervisor = deployment._supervisor
        self.wiring = deployment._supervisor._wiring
        self._topology = topology
        self._links = dict(kept)
        self._kept = kept
        self._routes: dict[str, tuple[RouteGroup, ...]] = {}  # of workers that were there before

    async def carry_out(self) -> None:
        topology, deployment = self._topology, self._deployment
        workers = [topology.workers[name] for name in topology.workers if name in self.workers]
        made_workers: Sequence[Worker] = ()
        made_bridges: Sequence[Bridge] = ()
        given = await given_in(topology)
        record = self.wiring.record
        record.given.append(given)
        try:
            if workers or self.bridges:
                starter = self._supervisor._starter
                made_workers, made_bridges = await starter.deploy(
                    workers, self.bridges, topology.trunks(), self._plan, checked=self.all_new
                )
            else:
                await self._plan()
            left = [link for link in self._links.values() if link._state == "planned"]
            if left:
                await self.wiring.connect([], left)
            await self.wiring.obtain(left)
            for name, groups in self._routes.items():
                await self.wiring.routing.reroute(self._supervisor._worker(name), groups, anew=name in self.touched)
            links = {key: self._links[key] async for key in in_turns(self.specs)}
            named = {worker.name: worker async for worker in in_turns(made_workers)}
        except BaseException:
            with anyio.CancelScope(shield=True):
                new = [link for key, link in self._links.items() if key not in self._kept]
                await remove_links(self.wiring, [link for link in new if link._state != "removed"])
                await remove(self._supervisor, made_workers)
                await self.wiring.remove_bridges(made_bridges)
            raise
        finally:
            record.given.remove(given)
        deployment._links = links
        deployment._workers.update(named)
        deployment._bridges.update((bridge.name, bridge) for bridge in made_bridges)
        if self._kept:
            with anyio.CancelScope(shield=True):
                self.wiring.record.arrange(list(deployment._links.values()))
                async for worker in in_turns(list(deployment._workers.values())):
                    await follow_default(self.wiring, worker)

    async def _plan(self) -> None:
        links_of = self.wiring.record.links_of
        planned = {name: iter(tuple(links_of.get(name, ()))) async for name in in_turns(self.workers)}
        routed = self._topology.routing == "shortest-path"
        async for key in in_turns(self.links_to_add):
            spec = self.specs[key]
            if isinstance(spec, To) and key[0] in self.workers:  # planned with the worker
                self._links[key] = next(planned[key[0]])
            else:
                self._links[key] = self.wiring.record.plan_link(as_link(key, spec), routed=routed)
        if routed:
            await self._plan_routes({link: self.specs[key] for key, link in self._links.items()})

    async def _plan_routes(self, specs: Mapping[Link, LinkSpec | To]) -> None:
        wiring, topology = self.wiring, self._topology
        routing = wiring.routing
        loopbacks = {
            name: routing.loopbacks_of(name) or routing.pool.take(name) async for name in in_turns(topology.workers)
        }

        def cost(link: Link, side: Side) -> float:
            node = side.bridge if side.worker is None else side.worker
            assert node is not None
            return topology.cost(specs[link], node.name)

        # Links that were made beside the topology have no cost in it.
        own = {
            name: [link for link in wiring.record.links_of.get(name, ()) if link in specs]
            async for name in in_turns(topology.workers)
        }
        paths = await ShortestPaths.of(topology, own, loopbacks, cost, wiring.record.netns_of)
        for name in topology.workers:
            await anyio.lowlevel.checkpoint()
            if name in self.workers:
                wiring.routing.plan(name, loopbacks[name], paths.routes_of(name))
            else:
                self._routes[name] = paths.routes_of(name)
