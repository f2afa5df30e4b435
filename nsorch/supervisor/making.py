"""One worker's namespaces, and its command in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nsorch.core import descriptors
from nsorch.core.spawner.protocol import Mode, Session, Spawn
from nsorch.core.spawner.syscalls import CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUTS, NS_FILES
from nsorch.errors import TopologyError
from nsorch.supervisor.commands import build_command, encode_environment, environment_of
from nsorch.supervisor.entry import OF_PROCESSES, open_sources
from nsorch.supervisor.main_process import MainProcess, Setup, end
from nsorch.topology.namespaces import NamespaceSet, New, OfWorker, Shared
from nsorch.topology.sysctls import sysctl_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from nsorch.core.jobs import Job
    from nsorch.supervisor.entry import Entry
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.worker import Worker
    from nsorch.topology import WorkerSpec


async def make_and_execute(supervisor: Supervisor, worker: Worker, environment: bytes) -> None:
    """Its namespaces and its command at once, for who has no links."""
    if worker.spec.command is None:
        await make_namespaces(supervisor, worker, environment)
        return
    entry = _enter(supervisor, worker)
    worker._main = MainProcess(supervisor, worker)
    worker._entry = entry
    await worker._main.execute(entry, _setup(supervisor, worker, entry), environment)


async def make_namespaces(supervisor: Supervisor, worker: Worker, environment: bytes) -> None:
    """Only its namespaces, to be held.

    :param environment: of commands that give none
    """
    spec = worker.spec
    entry = _enter(supervisor, worker, but=_of_processes(worker))
    worker._entry = entry
    confined = worker._confined
    make = entry.make & ~OF_PROCESSES
    joins = supervisor._home.joins(entry.joined, 0)
    setup = _setup(supervisor, worker, entry)
    check = None
    if spec.command is not None and not confined.root:
        given = environment_of(spec, confined)
        check = await build_command(
            supervisor._wiring.command_of(worker),
            env=environment if given is None else encode_environment(given),
            cwd=spec.cwd,
            user=None,
            mode=Mode.EXEC,
            session=Session.NEW,
            worker=spec.name,
            confined=confined,
        )
    if not make and not check:
        worker._adopt({}, entry)
        return
    netlink = bool(make & CLONE_NEWNET)

    def adopt(held: tuple[int, ...]) -> None:
        made = dict(zip((kind for kind in NS_FILES if make & kind), held, strict=False))
        worker._adopt(made, entry, held[-1] if netlink else None)

    job: Job | None = None
    try:
        job = supervisor._helper.spawn(
            lambda number: Spawn(
                number,
                make,
                tuple(kind for kind, _ in joins),
                make,
                setup.hostname,
                setup.sysctls,
                setup.loopback,
                netlink,
                (),
                None,
                check,
                confined.domainname,
                confined.time_offsets,
                confined.root,
                confined.sysfs,
                confined.id_maps,
            ),
            [fd for _, fd in joins],
            worker=spec.name,
            on_created=adopt,
        )
        await job.created()
    except BaseException:
        if job is not None:
            await end(job)
        raise


def _enter(supervisor: Supervisor, worker: Worker, but: Iterable[str] = ()) -> Entry:
    """:param but: kinds that are joined later"""
    namespaces = worker._confined.namespaces.evolve(**dict.fromkeys(but, Shared()))
    if isinstance(namespaces.net, OfWorker):
        _check_netns(supervisor, worker, namespaces.net.name)
    entry = open_sources(namespaces, _Held(supervisor._workers), worker.name)
    worker._held = dict(entry.joined)  # so that they are closed whatever happens
    supervisor._home.check(entry, worker.name, has_command=worker.spec.command is not None)
    return entry


def _check_netns(supervisor: Supervisor, worker: Worker, joined: str) -> None:
    """Refuse to join another network namespace than *worker*'s links are planned in: *joined* may be somebody else's
    name meanwhile."""
    record, other = supervisor._wiring.record, supervisor._workers.get(joined)
    if other is None or other._leaving or record.owner_of_netns(other) is not record.owner_of_netns(worker):
        raise TopologyError(f'workers.{worker.name}.namespaces.net: the worker "{joined}" was removed meanwhile')


def join_processes(supervisor: Supervisor, worker: Worker) -> None:
    """Namespaces of others' present processes."""
    kinds = _of_processes(worker)
    if not kinds:
        return
    wanted = worker._confined.namespaces
    sources = NamespaceSet(user=wanted.user if isinstance(wanted.user, New) else Shared()).evolve(
        **{kind: getattr(wanted, kind) for kind in kinds}
    )
    found = open_sources(sources, _Held(supervisor._workers), worker.name).joined
    others = {kind: fd for kind, fd in found.items() if not kind & OF_PROCESSES and kind in worker._held}
    before = [worker._held[kind] for kind in found if kind in worker._held and kind not in others]
    worker._held.update((kind, fd) for kind, fd in found.items() if kind not in others)
    descriptors.close([*before, *others.values()])


def _setup(supervisor: Supervisor, worker: Worker, entry: Entry) -> Setup:
    spec = worker.spec
    new_net = bool(entry.make & CLONE_NEWNET)
    hostname = spec.hostname
    if hostname is None and entry.make & CLONE_NEWUTS:
        hostname = spec.name
    return Setup(
        hostname=hostname,
        sysctls=(*(_network_sysctls(spec, supervisor._facts.sysctls) if new_net else ()), *_sysctls(spec)),
        loopback=new_net,
    )


async def execute(supervisor: Supervisor, worker: Worker, environment: bytes) -> None:
    """Its command, in the namespaces that it has."""
    join_processes(supervisor, worker)
    worker._main = MainProcess(supervisor, worker)
    assert worker._entry is not None
    await worker._main.execute(worker._entry, None, environment)


def _of_processes(worker: Worker) -> list[str]:
    """Kinds that it joins of another worker, which has them with its process."""
    namespaces = worker._confined.namespaces
    joins = [kind for kind in ("pid", "cgroup") if isinstance(getattr(namespaces, kind), OfWorker)]
    return [] if worker.spec.command is None else joins


class _Held:
    """What others hold, for those who join them: descriptors by CLONE_NEW*, with the pidfd for ``pid``."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    def __contains__(self, name: object) -> bool:
        return name in self._workers

    def __getitem__(self, name: str) -> Mapping[int, int]:
        worker = self._workers[name]
        held = dict(worker._held)
        main = worker._main
        alive = None if main is None else main.alive
        if alive is not None and worker._entry is not None and worker._entry.make & CLONE_NEWPID:
            held[CLONE_NEWPID] = alive.pidfd
        if alive is not None and worker._entry is not None and worker._entry.make & CLONE_NEWCGROUP:
            held[CLONE_NEWCGROUP] = alive.pidfd
        return held


def _network_sysctls(spec: WorkerSpec, inherited: Mapping[str, str]) -> list[tuple[str, str]]:
    """Forwarding as asked for, and no reverse path filter: a new network namespace may have inherited the host's."""
    wanted = {"ip_forward": "1" if spec.forward else "0", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0"}
    pairs = [(f"sys/net/ipv4/{name}", value) for name, value in wanted.items() if inherited[name] != value]
    if spec.forward and inherited.get("ipv6"):
        pairs.append(("sys/net/ipv6/conf/all/forwarding", "1"))
    return pairs


def _sysctls(spec: WorkerSpec) -> list[tuple[str, str]]:
    return [(f"sys/{sysctl_path(name)}", str(value)) for name, value in spec.sysctls.items()]
