"""The supervisor: one lab, from the first helper process to the last event."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any, Self

import anyio

from nsorch import events, supervisor, topology
from nsorch.core import descriptors
from nsorch.core.collector import no_full_collections
from nsorch.core.helper import Helper
from nsorch.core.launch import may_administer
from nsorch.core.spawner.pins import missing_folders, remove_folders, unlink
from nsorch.core.threads import in_thread, in_thread_or_here
from nsorch.errors import ClosedError, NsorchError, SpawnerDiedError, TopologyError, WorkerExitedError
from nsorch.events import Snapshot, Subscription  # noqa: TC001 - for typing.get_type_hints
from nsorch.supervisor.cgroups import Cgroups
from nsorch.supervisor.entry import Home, home_of
from nsorch.supervisor.starting import Starter
from nsorch.supervisor.turns import DYING, for_each, in_turns
from nsorch.supervisor.wiring.network import Bridge, Interface, Link
from nsorch.supervisor.wiring.wiring import Wiring
from nsorch.supervisor.worker import Worker
from nsorch.topology import BridgeSpec, End, Route, To, WorkerSpec
from nsorch.topology.kinds import check_seconds, items, name_of, of_kind, shown

if TYPE_CHECKING:
    from types import TracebackType

    from nsorch.core.helper import Facts
    from nsorch.events import Exit
    from nsorch.supervisor.wiring.uplinks import Uplinks
    from nsorch.topology import (
        End,
        Route,
        To,
    )

# The kernel kills at once; thousands of processes take their time to be reaped.
_KILL_DEADLINE = 10.0


class Supervisor:
    """Owns the workers, bridges and links of one lab. An async context manager, to be used once.

    Leaving the block stops everything: SIGTERM to all in reverse order of start, SIGKILL after *grace* seconds in all;
    after an exception or a cancellation SIGKILL at once. The body's exception leaves as it is. Nothing is left then,
    nor if the application is killed.

    :param name: of the lab, for people; in :class:`nsorch.SupervisorStarted`
    :param rootless: work below a user namespace of its own. None: unless this process has CAP_SYS_ADMIN,
        CAP_SYS_CHROOT and CAP_NET_ADMIN
    :param subids: without root, map the ids that ``/etc/subuid`` and ``/etc/subgid`` give to the caller, so that there
        are other users than uid 0. None: where newuidmap and newgidmap can; True: or fail; False: never
    :param grace: seconds from SIGTERM to SIGKILL
    :param history: how many events are kept for replay
    :param cgroups: every worker begins in a cgroup of its own; else those with limits, and others when it is needed
    :raises PermissionDeniedError: on entering, where the host forbids it; names the setting
    :raises UnsupportedError: on entering: *subids* is True, and something is missing
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        rootless: bool | None = None,
        subids: bool | None = None,
        grace: float = 1.0,
        history: int = 65536,
        cgroups: bool = False,
    ) -> None:
        of_kind("name", name, "a string", str, NoneType)
        of_kind("rootless", rootless, "true or false", bool, NoneType)
        of_kind("subids", subids, "true or false", bool, NoneType)
        check_seconds("grace", grace)
        of_kind("history", history, "a number of events", int)
        of_kind("cgroups", cgroups, "true or false", bool)
        if not 0 <= history < 1 << 32:
            raise TopologyError(f"history: {shown(history)} is not a number of events from 0")
        self.name = name
        self.grace = grace
        self._subids = subids
        self.rootless = not may_administer() if rootless is None else rootless
        self._bus = events.Bus(ring=history, log=events.log_event)
        self._helper = Helper()
        self._home: Home
        self._facts: Facts
        self._tasks: anyio.abc.TaskGroup
        self._body: anyio.CancelScope
        self._serving: anyio.CancelScope
        self._served: anyio.Event | None = None
        self._scopes: set[anyio.CancelScope] | None = set()  # of small background tasks; None: they are to end
        self._phase = "new"
        self._thread = 0  # of its event loop
        self._stopped: anyio.Event | None = None
        self._failure: NsorchError | None = None
        self._workers: dict[str, Worker] = {}
        self._orders = itertools.count()
        self._wiring = Wiring(self)
        self._cgroups = Cgroups(self, always=cgroups)
        self._starter = Starter(self)
        self._uplinks: Uplinks | None = None  # until somebody asks for one
        self._folders: dict[bytes, list[bytes]] = {}  # of pins, with those that have to be made for each

    # -- the block

    async def __aenter__(self) -> Self:
        if self._phase != "new":
            raise ClosedError("a supervisor is used once")
        self._phase = "starting"
        self._thread = threading.get_ident()
        self._stopped = anyio.Event()
        self._body = anyio.CancelScope()
        self._serving = anyio.CancelScope(shield=True)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        try:
            self._helper.launch(self.rootless, self._subids)
            self._served = anyio.Event()
            self._tasks.start_soon(self._serve, self._served)
            self._facts = await self._helper.ready()
            self._home = home_of(self._facts.descriptors, self.rootless)
            self._wiring.open(self._facts)
        except BaseException:
            self._phase = "stopping"
            self._tasks.cancel_scope.shield = True
            await self._let_go()
            self._phase = "closed"
            self._stopped.set()
            self._bus.close()
            await self._tasks.__aexit__(None, None, None)
            raise
        self._phase = "running"
        self._bus.publish(events.SupervisorStarted(name=self.name or "", pid=self._facts.pid))
        self._body.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        # All clean-up is in a task of the supervisor's, which no cancellation of this one reaches.
        self._tasks.cancel_scope.shield = True
        try:
            swallowed = bool(self._body.__exit__(kind, exc, traceback))
        finally:
            orderly = exc is None and self._failure is None
            self._tasks.start_soon(self._shut_down, orderly)
            await self._tasks.__aexit__(None, None, None)
        if self._failure is not None and (exc is None or swallowed):
            raise self._failure
        return swallowed

    async def _serve(self, served: anyio.Event) -> None:
        with self._serving:
            try:
                await self._helper.serve()
            finally:
                served.set()
            if self._phase in ("starting", "running"):
                self._fail(SpawnerDiedError("the helper process that holds all workers was killed"))

    def _fail(self, failure: NsorchError) -> None:
        if self._failure is None:
            self._failure = failure
            self._body.cancel()

    def _critical_exit(self, worker: Worker, how: Exit) -> None:
        if self._phase == "running":
            text = f"a critical worker ended with {'status' if how.signal is None else 'signal'}"
            self._fail(
                WorkerExitedError(
                    f"{text} {how.code if how.signal is None else how.signal}",
                    worker=worker.name,
                    code=how.code,
                    signal=how.signal,
                )
            )

    async def stop(self) -> None:
        """End everything now, as leaving the block does; later calls of other methods raise ClosedError.

        Cancelled, it goes on stopping all the same; leaving the block waits for that.
        """
        if self._phase in ("new", "starting"):
            raise ClosedError("the supervisor isn't running yet")
        self._check_thread()
        if self._phase == "running":
            self._tasks.start_soon(self._shut_down, True)
        assert self._stopped is not None
        await self._stopped.wait()

    async def wait(self) -> None:
        """Wait until no worker has a process, also of those started meanwhile. Cancelled, it changes nothing."""
        self._check_thread()
        await anyio.lowlevel.checkpoint()
        while running := [worker for worker in self._workers.values() if worker._has_process]:
            for worker in running:
                with contextlib.suppress(ClosedError):  # it was removed meanwhile
                    await worker.wait()

    async def _shut_down(self, orderly: bool) -> None:
        with anyio.CancelScope(shield=True), no_full_collections():
            if self._phase in ("stopping", "closed"):
                assert self._stopped is not None
                await self._stopped.wait()
                return
            self._phase = "stopping"
            self._bus.publish(events.SupervisorStopping())
            if orderly and not self._helper.died:
                await self._stop_gently()
            if not self._helper.died:  # else they have been killed by somebody else
                async for worker in in_turns(list(self._workers.values())):
                    worker._expect_end()
            with anyio.move_on_after(_KILL_DEADLINE):
                await for_each(self._helper.jobs, lambda job: job.kill_and_wait(), DYING)
            await self._let_go()
            self._phase = "closed"
            self._bus.publish(events.SupervisorStopped())
            assert self._stopped is not None
            self._stopped.set()

    async def _stop_gently(self) -> None:
        with anyio.move_on_after(self.grace):
            running = sorted(self._workers.values(), key=lambda worker: -worker.order)
            with anyio.CancelScope(shield=True):
                async for worker in in_turns(running):
                    worker._begin_stop(self.grace)
            async for worker in in_turns(running):
                await worker._ended()

    async def _let_go(self) -> None:
        """Give back everything: processes first, then what holds namespaces."""
        with anyio.CancelScope(shield=True):
            scopes, self._scopes = self._scopes or (), None
            for scope in scopes:
                scope.cancel()
            self._serving.cancel()
            self._helper.leave()
            if self._served is not None:  # its sockets are closed next
                await self._served.wait()
            # Threads use the descriptors that are closed next: their numbers may be anything then.
            await self._wiring.close()
            workers = sorted(self._workers.values(), key=lambda worker: -worker.order)
            fds = [fd async for worker in in_turns(workers) for fd in worker._take_descriptors()]
            if self._uplinks is not None:
                self._uplinks.close()
            self._helper.close()
            await in_thread_or_here(descriptors.close, fds)
            await self._helper.gone()
            pins = [pin for worker in workers for pin in worker._pins.items()]
            made = [folder for folders in self._folders.values() for folder in folders]
            if pins or made:
                await in_thread_or_here(_unlink_all, pins, made)
            await self._cgroups.gone()
            await self._wiring.publish_removed()
            async for worker in in_turns(workers):
                worker._removed()
            self._workers.clear()

    async def _note_folder(self, folder: bytes) -> None:
        """A pin is made there next."""
        if folder not in self._folders:
            missing = await in_thread(missing_folders, folder)
            self._folders.setdefault(folder, missing)

    def _start_soon(self, func: Callable[[], Awaitable[Any]]) -> None:
        """Run a small task until the supervisor ends."""

        async def run() -> None:
            with anyio.CancelScope(shield=True) as scope:
                if self._scopes is None:
                    scope.cancel()
                else:
                    self._scopes.add(scope)
                try:
                    await func()
                except (ClosedError, SpawnerDiedError):
                    if self._phase == "running" and self._failure is None:
                        raise
                finally:
                    if self._scopes is not None:
                        self._scopes.discard(scope)

        self._tasks.start_soon(run)

    @contextlib.contextmanager
    def _until_end(self) -> Iterator[None]:
        """What takes its time in the block is cut short where the supervisor ends.

        :raises ClosedError: it was; SpawnerDiedError: because of that
        """
        with anyio.CancelScope() as scope:
            if self._scopes is None:
                scope.cancel()
            else:
                self._scopes.add(scope)
            try:
                yield
            finally:
                if self._scopes is not None:
                    self._scopes.discard(scope)
        if scope.cancelled_caught:
            self._check_running()

    def _check_helper(self) -> None:
        if isinstance(self._failure, SpawnerDiedError):
            raise SpawnerDiedError("the helper process that holds all workers was killed")

    def _check_thread(self) -> None:
        """:raises ClosedError: the caller's loop is another, in which nothing of this one may be awaited"""
        if self._phase not in ("new", "closed") and threading.get_ident() != self._thread:
            raise ClosedError("the supervisor runs in another thread's event loop: use anyio.from_thread.run(…)")

    def _check_running(self) -> None:
        self._check_thread()
        self._check_helper()
        if self._phase != "running":
            soon = self._phase in ("new", "starting")
            raise ClosedError("the supervisor isn't running yet" if soon else "the supervisor has ended")

    # -- the record

    @property
    def workers(self) -> Mapping[str, Worker]:
        """All workers, by name, in the order of their starts."""
        return MappingProxyType(self._workers)

    @property
    def bridges(self) -> Mapping[str, Bridge]:
        """All bridges, by name."""
        return self._wiring.bridges

    @property
    def links(self) -> Mapping[str, Link]:
        """All links, by name: ``"web:eth0-lan"`` or ``"r1:eth0-r2:eth1"``."""
        return self._wiring.links

    def _worker(self, worker: Worker | str) -> Worker:
        name = name_of("worker", worker, "a worker")
        self._check_own(worker)
        try:
            return self._workers[name]
        except KeyError:
            raise ClosedError(f'there is no worker "{name}"') from None

    def _check_own(self, *things: object) -> None:
        """Refuse workers and bridges that aren't those which have their names here: only these would be used."""
        for thing in things:
            if isinstance(thing, Worker | Bridge):
                kind, there = ("worker", self._workers) if isinstance(thing, Worker) else ("bridge", self.bridges)
                if there.get(thing.name, thing) is not thing:
                    raise ClosedError(
                        f'there is another {kind} "{thing.name}": this one was removed, or is another supervisor\'s'
                    )

    def _link(self, link: Link | str) -> Link:
        if isinstance(link, Link):
            if link._wiring is not self._wiring:
                raise ClosedError(f"the link {link.name} is another supervisor's")
            return link
        name = name_of("links", link, "a link")
        try:
            return self.links[name]
        except KeyError:
            raise ClosedError(f'there is no link "{name}"') from None

    # -- workers

    async def start(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]] | None = None,
        *,
        links: Iterable[Bridge | To | str] = (),
        namespaces: Any = None,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
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
        ready: topology.TcpReady | topology.ExecReady | None = None,
        critical: bool = False,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        sysctls: Mapping[str, str | int] | None = None,
        routes: Iterable[Route] = (),
        forward: bool = False,
        nat: topology.Nat | Mapping[str, Any] | str | None = None,
        firewall: topology.Firewall | Mapping[str, Any] | str | None = None,
        interfaces: Iterable[topology.InterfaceSpec | Mapping[str, Any]] = (),
        service: topology.Dnsmasq | topology.Frr | topology.Tayga | Mapping[str, Any] | None = None,
        uplink: topology.UplinkSpec | Mapping[str, Any] | topology.UplinkMethod | bool | None = None,
        label: str | None = None,
    ) -> Worker:
        """Start a worker: its namespaces, its links, then its command. Without *command* it is passive.

        All or nothing: after an error or a cancellation there is no such worker, and its name is free.

        :param name: letters, digits and "-", the first a letter, at most 63; no bridge has it
        :param command: program and arguments; returns when it is executed, or *ready*
        :param links: bridges to be linked to
        :param namespaces: those of its own (net, mnt, uts, ipc, and with a command pid), see the guide
        :param env: the whole environment of its commands; the application's if None, or in a container or a sandbox the
            preset's
        :param cwd: their working directory; the application's if None, or ``/`` where the worker has no such directory
            or another root file system; a relative one counts from there
        :param user: name, uid, or ``uid:gid`` of the command; names are those of its *rootfs*, if it has one
        :param groups: its supplementary groups; those of *user* where that is a name alone
        :param isolation: ``"network"``, ``"container"`` or ``"sandbox"``: what the following are where they are None,
            see the guide
        :param rootfs: directory, or :func:`nsorch.overlay`, to be its root file system
        :param mounts: :func:`nsorch.bind` and :func:`nsorch.tmpfs`, in this order
        :param readonly_root: its root file system can't be written to, but for *mounts*
        :param masked: paths that appear empty; those that don't exist are left out
        :param readonly_paths: paths that can't be written to
        :param capabilities: names, of all that it has; or changes of the preset's (``"+NET_RAW"``, ``"-CHOWN"``); or
            ``"all"``; or :class:`nsorch.Capabilities` for the five sets
        :param no_new_privs: no exec gives it more than it has
        :param seccomp: ``"default"``, ``"unconfined"``, or a BPF program: its bytes, a descriptor, a path
        :param rlimits: limit, or (soft, hard), by name such as ``nofile``; ``"unlimited"``
        :param oom_score_adj: from -1000 to 1000, see proc(5)
        :param limits: of memory, CPU, processes and I/O: :class:`nsorch.Limits`, or its fields in a mapping
        :param cgroup_namespace: its cgroup is the root of what it sees of them
        :param time_offsets: seconds that its ``"monotonic"`` and ``"boottime"`` clocks are ahead
        :param uid_map: of a user namespace of its own: (first id inside, first id outside, how many), where outside is
            the supervisor's user namespace; without, one id is mapped
        :param gid_map: the same for groups
        :param domainname: NIS domain name in its uts namespace
        :param hostname: in its uts namespace; its name if None
        :param init: an init is PID 1 of its pid namespace, reaps orphans and passes signals on; False: the command is
        :param ready: :func:`nsorch.tcp_ready` or :func:`nsorch.exec_ready`
        :param critical: its unexpected exit cancels the block, which raises WorkerExitedError
        :param stdin: ``subprocess.PIPE``, ``DEVNULL`` (as None), a descriptor, file or path
        :param stdout: the same, or None to inherit the application's
        :param stderr: the same; with *ready*, None captures its end for the error
        :param sysctls: to be set from inside, such as ``{"net.ipv4.ip_forward": 1}``
        :param routes: additional routes
        :param forward: forward packets between its links
        :param nat: :class:`nsorch.Nat`, or only the interface to the outside; it implies *forward*
        :param firewall: :class:`nsorch.Firewall`, or only the name of a preset
        :param interfaces: others than the ends of its links, such as ``nsorch.Vlan("eth0.10", parent="eth0", id=10)``;
            those that need others stand behind them
        :param service: :class:`nsorch.Dnsmasq`, :class:`nsorch.Frr` or :class:`nsorch.Tayga`, which gives it its
            command and says when it is ready
        :param uplink: a way to the outside, as by :meth:`uplink`, before its command runs: True, its method, or
            :class:`nsorch.UplinkSpec`
        :raises NameInUseError: the name is taken
        :raises TopologyError: the description is wrong
        :raises CommandNotFoundError: there is no such command
        :raises SetupError: a step failed; the error says which, and why
        :raises NotReadyError: not *ready* in time
        :raises WorkerExitedError: it ended before it was *ready*
        :raises ClosedError: the supervisor isn't running
        """
        links = items("links", links, "bridges")
        self._check_own(*links, *(namespaces.values() if isinstance(namespaces, Mapping) else ()))
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
            sysctls=sysctls or {},
            routes=routes,
            forward=forward,
            nat=nat,
            firewall=firewall,
            interfaces=interfaces,
            service=service,
            uplink=uplink,
            label=label,
        )
        return await self._starter.start(spec)

    async def start_all(self, specs: Iterable[WorkerSpec]) -> list[Worker]:
        """Start all at once; every link exists before any command runs. Cancelled, none is left.

        :raises NameInUseError: a name is taken, or given twice; nothing was made
        :raises NsorchError: something else that is known before anything is made, as of :meth:`start`: a wrong
            description, an address that is taken, a limit that can't be kept
        :raises ExceptionGroup: of errors that name each failed worker; all others are undone
        """
        described = items("specs", specs, "WorkerSpec")
        for number, spec in enumerate(described):
            of_kind(f"specs[{number}]", spec, "a WorkerSpec", WorkerSpec)
        return await self._starter.start_all(described)

    # -- network

    async def bridge(
        self,
        name: str,
        subnet: Any = None,
        *,
        gateway: Worker | str | None = None,
        mtu: int | None = None,
        arp: str = "auto",
        vlan_aware: bool = False,
        vlans: Mapping[int, Any] | None = None,
        stp: bool = False,
        forward_delay: Any = None,
        ageing: Any = None,
        multicast_snooping: bool = False,
        label: str | None = None,
    ) -> Bridge:
        """Make a layer-2 segment. Cancelled, it exists or it doesn't, and ``sup.bridges`` says which.

        :param subnet: a network such as ``"10.0.0.0/24"``, or an IPv4 and an IPv6 one; workers get their addresses
            from it
        :param gateway: the worker that gets the first address, unless given, and is the others' default route
        :param mtu: bytes, of the bridge and its links
        :param arp: who answers ARP for the workers: ``"static"`` the bridge itself, ``"dynamic"`` the workers,
            ``"auto"`` the bridge once it has 500 of them. The gateway and the others know each other in any case
        :param vlan_aware: its ports are in VLANs (``nsorch.To(lan, vlan=10)``, ``tagged=[10, 20]``; 1 unless given),
            which don't hear each other. Such a bridge doesn't answer ARP
        :param vlans: subnets of VLANs that have one of their own, by number
        :param stp: the spanning tree protocol: a port forwards *forward_delay* times two after it was set up
        :param forward_delay: seconds, or such as ``"4s"``, from 2, the default, to 30
        :param ageing: seconds until it forgets a hardware address that it learned; 300 if None
        :param multicast_snooping: multicast goes only to ports that asked for it, once 10 s have shown which
        :raises NameInUseError: the name is taken
        :raises AddressError: no such network
        :raises UnsupportedError: *vlan_aware*, and the kernel was built without it
        """
        self._check_own(gateway)
        return await self._wiring.make_bridge(
            BridgeSpec(
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
        )

    async def link(
        self,
        a: Worker | End | str,
        b: Worker | Bridge | End | str,
        *,
        subnet: Any = None,
        mtu: int | None = None,
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
    ) -> Link:
        """Link two workers, or a worker and a bridge. Returns when both ends have carrier and addresses.

        Without *subnet*, two workers get addresses of a /31 and a /127. Cancelled, there is no link.

        :param profile: what packets go through in both directions, as *delay* to *limit*; see :class:`nsorch.Emulation`
        :raises UnsupportedError: the kernel has no netem, which all but *rate* and *limit* need
        :raises AddressError: an address is outside of the subnet, or taken
        :raises NetlinkError: the kernel refused
        """
        self._check_own(a, b)
        return await self._wiring.make_link(
            a,
            b,
            subnet=subnet,
            mtu=mtu,
            label=label,
            emulation={
                "profile": profile,
                "delay": delay,
                "jitter": jitter,
                "delay_correlation": delay_correlation,
                "distribution": distribution,
                "loss": loss,
                "loss_correlation": loss_correlation,
                "gilbert_elliott": gilbert_elliott,
                "duplicate": duplicate,
                "corrupt": corrupt,
                "reorder": reorder,
                "rate": rate,
                "limit": limit,
            },
        )

    async def wireguard(
        self,
        *workers: Worker | str,
        subnet: Any = None,
        name: str | None = None,
        port: int | None = None,
        mtu: int | None = None,
        keepalive: int | None = None,
    ) -> list[Interface]:
        """A WireGuard interface in each of *workers*, with generated keys, that reaches all others over the links of
        these. All or nothing.

        :param subnet: a network for its addresses, or one of each family; needed for more than two workers
        :param name: of the interfaces; the next free ``wgN`` if None
        :param port: UDP; the next free one from 51820 if None
        :param mtu: bytes; the kernel's 1420 if None
        :param keepalive: seconds between two packets that keep a NAT open
        :raises UnsupportedError: the kernel has no WireGuard
        :raises TopologyError: fewer than two workers, or more than two without *subnet*
        """
        from nsorch.supervisor.wiring.tunnels import wireguard

        return await wireguard(self, workers, subnet=subnet, name=name, port=port, mtu=mtu, keepalive=keepalive)

    async def vxlan(
        self,
        *workers: Worker | str,
        id: int,  # noqa: A002 - the field's word
        subnet: Any = None,
        name: str | None = None,
        port: int = 4789,
        mtu: int | None = None,
    ) -> list[Interface]:
        """An overlay network of *workers*: a VXLAN interface in each, over the links that are there. All or nothing.

        :param id: of the network, 0 to 16777215
        :param subnet: a network for its addresses, or one of each family; needed for more than two workers
        :param name: of the interfaces; ``vxlan`` and the id if None
        :param port: UDP
        :param mtu: bytes; the kernel's 1500 less its headers if None
        :raises UnsupportedError: the kernel has no VXLAN
        :raises TopologyError: fewer than two workers, or more than two without *subnet*
        """
        from nsorch.supervisor.wiring.tunnels import vxlan

        return await vxlan(self, workers, id=id, subnet=subnet, name=name, port=port, mtu=mtu)

    async def partition(self, *groups: Iterable[Worker | str]) -> None:
        """Have the network fall apart: workers of one of the *groups* hear nothing of those of another, whatever links
        and bridges they share, until :meth:`heal`. Inside a group, and with workers of no group, nothing changes.

        It drops IP packets in silence, as a broken network does. A router of one group is of no use to another; one of
        no group forwards, but not from group to group. Links and addresses that come later are cut off, too. Another
        call replaces the groups. Cancelled or failed, what was before is again.

        :raises TopologyError: a worker in two groups; fewer than two groups; something else than a group
        :raises ClosedError: there is no such worker
        :raises UnsupportedError: the kernel lacks nf_tables; or a worker has the host's network namespace
        """
        self._check_running()
        await self._wiring.partitions.partition(groups)

    async def heal(self) -> None:
        """The opposite of :meth:`partition`, and no error without one. Cancelled, it is done all the same."""
        await self._wiring.partitions.heal()

    async def deploy(self, topology: topology.Topology) -> supervisor.Deployment:
        """Bring up all of *topology* at once: bridges and workers, links, routes, then commands. Cancelled, none of it
        is left.

        :raises TopologyError: the description is wrong; nothing was made
        :raises NameInUseError: the supervisor has a worker or bridge of such a name; nothing was made
        :raises UnsupportedError: it asks for emulation that this kernel can't do; nothing was made
        :raises ExceptionGroup: of errors that name each failed worker; all of it is undone
        """
        from nsorch.supervisor.deployment import deploy

        return await deploy(self, topology)

    async def ping_all(
        self,
        pairs: Iterable[tuple[Worker | str, Worker | str]] | None = None,
        *,
        timeout: float = 1.0,
        attempts: int = 3,
        version: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> supervisor.Reachability:
        """Ping every worker from every other, or the (source, target) *pairs*, by ICMP echo from inside the sources.

        :param timeout: seconds to wait for an answer
        :param attempts: how often to ask
        :param version: 4 or 6: ask for addresses of that family alone
        :param progress: called now and then with the number of pairs that are done
        :raises UnsupportedError: a worker has no network namespace of its own, or no such address
        :raises ClosedError: the supervisor has ended meanwhile
        """
        from nsorch.supervisor.traffic.pinging import ping_all

        with no_full_collections(), self._until_end():
            return await ping_all(self, pairs, timeout=timeout, attempts=attempts, version=version, progress=progress)
        raise AssertionError("unreachable: what the end cuts short is an error")

    # -- events

    async def uplink(
        self, worker: Worker | str, *, name: str = "up0", method: topology.UplinkMethod | None = None
    ) -> supervisor.Uplink:
        """Give *worker* a way to the outside of the lab, through an interface *name*: nothing else has one.

        By ``"pasta"`` (Debian: passt), a process that sends for it by ordinary sockets and runs as worker
        ``NAME-uplink``, with or without root; or by ``"nat"``, the host's own address translation, which root alone
        may set, and only where the host forwards already. Both go with the worker or the supervisor, also when these
        are killed. Cancelled, there is none.

        :param method: None: ``"nat"`` for root where the host forwards, else ``"pasta"``
        :raises UnsupportedError: pasta isn't installed, or the host doesn't forward; names the package and the sysctl
        :raises TopologyError: the worker has a default route already
        :raises NameInUseError: it has such an interface
        :raises SetupError: pasta failed; says what it said
        """
        self._check_running()
        from nsorch.topology.uplinks import UplinkSpec

        spec = UplinkSpec(method=method, name=name)
        return await self._ensure_uplinks().make(self._worker(worker), spec.name, spec.method)

    def _ensure_uplinks(self) -> Uplinks:
        if self._uplinks is None:
            from nsorch.supervisor.wiring.uplinks import Uplinks

            self._uplinks = Uplinks(self)
        return self._uplinks

    async def wait_converged(self, timeout: float = 60.0) -> None:
        """Wait until the routing protocols of all workers with :class:`nsorch.Frr` have taken in the links as they are
        now: neighbours are adjacent, and each one's routes lead to the loopback addresses of all that can be reached,
        over links that are up. Cancelled, it changes nothing.

        :param timeout: seconds
        :raises TimeoutError: they haven't by then
        """
        check_seconds("timeout", timeout)
        with anyio.move_on_after(timeout):
            await self._wiring.services.routers.converge()
            return
        raise TimeoutError(f"the routing hasn't converged within {timeout} s")

    def capture(
        self,
        links: Iterable[Link | str],
        *,
        filter: str | supervisor.Instructions | None = None,  # noqa: A002 - the field's word
        file: str | os.PathLike[str] | None = None,
        direction: supervisor.Direction = "in",
        snaplen: int = 65_535,
        buffer: int = 4096,
    ) -> supervisor.Capture:
        """The packets that pass *links*: ``async with sup.capture(links) as packets`` gives a stream of
        :class:`nsorch.Packet`, each once, at the end where it arrives, after any emulation of the link.

        What nobody takes in time is dropped, and counted in ``packets.dropped``.

        :param filter: an expression of pcap-filter(7), compiled by libpcap, to which names of hosts are those of the
            machine that nsorch runs on; or instructions of classic BPF
        :param file: write them there instead, as pcapng, with an interface for each end; whole when the block is left.
            A fifo that nobody reads is waited for
        :param direction: ``"in"``: at the end where they arrive; ``"out"``: where they leave; ``"both"``
        :param snaplen: bytes to be kept of a packet
        :param buffer: packets that the stream holds
        :raises TopologyError: an option is of a wrong kind, or out of its range; on entering: the filter is wrong, in
            libpcap's words
        :raises UnsupportedError: on entering: there is no libpcap for the filter
        :raises ClosedError: there is no such link; on entering: one was removed
        :raises OSError: on entering or leaving: the file can't be written
        """
        return self._wiring.capture(
            list(dict.fromkeys(self._link(link) for link in items("links", links, "links"))),
            filter=filter,
            file=file,
            direction=direction,
            snaplen=snaplen,
            buffer=buffer,
        )

    async def pin(self, worker: Worker | str, name: str | None = None, *, folder: str = "/run/netns") -> str:
        """Let other programs into the worker's network namespace while the supervisor lives: ``ip netns exec NAME …``,
        ``nsenter --net=/run/netns/NAME …``. Returns the path.

        The pin is a symbolic link, not a mount, and goes with the worker; one that leads nowhere is replaced. Without
        root choose a *folder* of your own, and enter by ``nsenter --preserve-credentials --user=/proc/PID/ns/user
        --net=…``, with the PID of any process of the lab's.

        :param name: the worker's if None
        :raises NameInUseError: there is such a file already
        :raises PermissionDeniedError: *folder* can't be written to
        :raises UnsupportedError: the worker has no network namespace of its own
        :raises ClosedError: the worker is gone
        """
        self._check_running()
        return await self._worker(worker)._pin(name, folder)

    def events(
        self,
        *,
        kinds: Any = None,
        workers: str | Collection[str] | None = None,
        since: int | None = None,
        buffer: int = 1024,
    ) -> Subscription:
        """Follow the events: an async context manager that gives an ``anyio.abc.ObjectReceiveStream[Event]``.

        Usable before, during and after the block. It ends after SupervisorStopped.

        :param kinds: an event class, its name, or a collection of these
        :param workers: names
        :param since: None follows from now; 0 replays from the start; n from the event with that ``seq``
        :param buffer: undelivered events after which the oldest give way to a Gap; the last ones of a worker never do
        :raises TopologyError: no event is called so, or one of these is of a wrong kind
        """
        of_kind("since", since, "the number of an event", int, NoneType)
        of_kind("buffer", buffer, "a number of events", int)
        if since is not None and since < 0:
            raise TopologyError(f"since: {shown(since)} is negative")
        if buffer < 1:
            raise TopologyError(f"buffer: {shown(buffer)} is not a positive number of events")
        if kinds is not None and not isinstance(kinds, str | type):
            kinds = items("kinds", kinds, "event classes or their names")
            for kind in kinds:
                of_kind("kinds", kind, "an event class or the name of one", str, type)
        if workers is not None and not isinstance(workers, str):
            workers = items("workers", workers, "names of workers")
            for name in workers:
                of_kind("workers", name, "the name of a worker", str)
        try:
            return self._bus.subscribe(kinds=kinds, workers=workers, since=since, buffer=buffer)
        except (TypeError, ValueError) as exc:
            raise TopologyError(str(exc)) from None

    async def wait_event(
        self,
        kind: Any,
        *,
        worker: str | None = None,
        since: int | None = None,
        predicate: Callable[[Any], bool] | None = None,
    ) -> Any:
        """Wait for the first event of *kind* that matches, and return it. A :class:`nsorch.Gap` or
        :class:`nsorch.Snapshot` does for who names that kind.

        :raises TopologyError: no event is called so, or one of these is of a wrong kind
        :raises ClosedError: the supervisor ended without one
        """
        if kind is not None and not isinstance(kind, str | type):
            kind = items("kind", kind, "event classes or their names")
        self.events(kinds=kind, workers=worker, since=since)  # which refuses what is wrong
        if predicate is not None and not callable(predicate):
            raise TopologyError(f"predicate: {shown(predicate)} is not a function")
        return await self._bus.wait(kind, worker=worker, since=since, predicate=predicate)

    def snapshot(self) -> Snapshot:
        """State, pid and last exit of each worker, as the events tell."""
        return self._bus.snapshot()


def _unlink_all(pins: Iterable[tuple[bytes, bytes]], folders: list[bytes]) -> None:
    """What the stub does; in case it was killed."""
    for path, target in pins:
        unlink(path, target)
    remove_folders(folders)
