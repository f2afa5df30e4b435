"""A worker: its namespaces, and one life of its main process after the other."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, Any

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import ByteReceiveStream, ByteSendStream, TaskStatus
from attrs import evolve

from nsorch import supervisor, topology  # noqa: TC001 - for typing.get_type_hints
from nsorch.core import descriptors
from nsorch.core.process import DEVNULL, PIPE, Process
from nsorch.core.spawner.pins import unlink
from nsorch.core.spawner.protocol import Session
from nsorch.core.spawner.syscalls import CLONE_NEWNET, NS_FILES
from nsorch.core.threads import in_thread_or_here
from nsorch.errors import ClosedError, NsorchError, TopologyError, UnsupportedError
from nsorch.events import Exit, State, WorkerExited, WorkerReady, WorkerRemoved, WorkerSetupFailed, WorkerStarted
from nsorch.supervisor import entering
from nsorch.supervisor.commands import check_command, check_run
from nsorch.supervisor.removal import remove
from nsorch.supervisor.wiring.changing import follow_default, set_routes, take_routes
from nsorch.supervisor.wiring.network import Interface, Link  # noqa: TC001 - for typing.get_type_hints
from nsorch.topology import Route, WorkerSpec  # noqa: TC001 - for typing.get_type_hints
from nsorch.topology.kinds import check_seconds, name_of, of_kind, shown
from nsorch.topology.specs import to_routes

if TYPE_CHECKING:
    from nsorch.net.plan import RoutePlan
    from nsorch.supervisor.confined import Confined
    from nsorch.supervisor.entry import Entry
    from nsorch.supervisor.main_process import MainProcess
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.devices import Device

IPAddress = IPv4Address | IPv6Address


class Worker:
    """A named set of namespaces, with or without a main process. Made by :meth:`nsorch.Supervisor.start`.

    Its properties are the supervisor's record: reading them asks nobody.
    """

    __slots__ = (
        "_confined",
        "_defaults",
        "_devices",
        "_doomed",
        "_entering",
        "_entry",
        "_held",
        "_indices",
        "_inodes",
        "_interfaces",
        "_leaving",
        "_main",
        "_netlink",
        "_pins",
        "_spec",
        "_state",
        "_stops",
        "_stops_before",
        "_supervisor",
        "_tables",
        "_turn",
        "_waiting",
        "order",
    )

    def __init__(self, supervisor: Supervisor, spec: WorkerSpec, order: int, confined: Confined) -> None:
        self._supervisor = supervisor
        self._spec = spec
        self._confined = confined
        self.order = order  #: its place among all starts
        self._state = State.STARTING
        self._doomed = False  # its start has failed, which is undone next
        self._entry: Entry | None = None
        self._entering = 0  # commands between their request and their exec
        self._held: dict[int, int] = {}  # descriptor by CLONE_NEW*
        self._netlink: socket.socket | None = None  # in its network namespace, until it is wired
        self._inodes: dict[str, int] = {}
        self._interfaces: dict[str, Link] = {}  # by the name of its end here
        self._main: MainProcess | None = None
        self._turn: anyio.Lock | None = None  # of restarts, one after the other
        self._stops = 0  # that were asked for
        self._stops_before = 0  # the restart whose turn it is
        self._leaving: anyio.Event | None = None  # it is removed next; set once that is over
        self._waiting: set[anyio.CancelScope] | None = None  # who waits for a connection
        self._pins: dict[bytes, bytes] = {}  # target by path
        self._devices: dict[str, Device] = {}  # its other interfaces, by name
        self._tables: dict[str, int] = {}  # routing tables of those that are ports of a VRF
        self._defaults: tuple[RoutePlan, ...] = ()  # by a gateway, as it was last told
        self._indices = 1  # of the latest interface; 1 is the loopback's

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self._state.value}>"

    # -- the record

    @property
    def name(self) -> str:
        return self._spec.name

    @property
    def spec(self) -> WorkerSpec:
        """The description that it was started from."""
        return self._spec

    @property
    def state(self) -> State:
        return self._state

    @property
    def pid(self) -> int | None:
        """Of its command, as the host sees it; None while it has no process."""
        return None if self._main is None else self._main.pid

    @property
    def incarnation(self) -> int:
        """Number of its present or latest process, from 1; 0 before the first."""
        return 0 if self._main is None else self._main.incarnation

    @property
    def namespaces(self) -> Mapping[str, int]:
        """Inode of each namespace that it has of its own, by the name below ``/proc/PID/ns``; none once it is
        removed."""
        return MappingProxyType(self._inodes)

    @property
    def interfaces(self) -> Mapping[str, Interface]:
        """Its ends of links, then its other interfaces, by name."""
        ends = {name: link._interface_named(self, name) for name, link in self._interfaces.items()}
        return ends | {d.name: d.interface() for d in self._devices.values() if d.state == "up"}

    @property
    def addresses(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """All addresses that nsorch gave it: those of its name first."""
        return self._supervisor._wiring.addresses_of(self)

    @property
    def exit(self) -> Exit | None:
        """How its latest process ended, or None."""
        return None if self._main is None else self._main.exit

    @property
    def stdin(self) -> ByteSendStream | None:
        """Where ``stdin=subprocess.PIPE`` leads to."""
        return None if self._main is None else self._main.stdin

    @property
    def stdout(self) -> ByteReceiveStream | None:
        """Where ``stdout=subprocess.PIPE`` comes from, until the worker is removed."""
        return None if self._main is None else self._main.stdout

    @property
    def stderr(self) -> ByteReceiveStream | None:
        """Where ``stderr=subprocess.PIPE`` comes from."""
        return None if self._main is None else self._main.stderr

    # -- commands in it

    async def run(
        self,
        command: str | bytes | Sequence[str | bytes | os.PathLike[str]],
        *,
        input: bytes | None = None,  # noqa: A002 - subprocess's word
        stdin: object = DEVNULL,
        stdout: object = PIPE,
        stderr: object = PIPE,
        timeout: float | None = None,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        confined: bool = True,
    ) -> supervisor.CompletedProcess[bytes]:
        """Run *command* in its namespaces, and wait for its end; conventions of :func:`anyio.run_process`.

        Cancelled, or after *timeout* seconds, the command is killed with all its descendants, also those that left its
        session or its parent, and is gone when this returns.

        :param command: program and arguments, or a line for ``/bin/sh -c``
        :param input: what the command reads, instead of *stdin*
        :param check: raise where the exit status isn't 0
        :param env: its whole environment; the worker's if None, see :meth:`nsorch.Supervisor.start`
        :param cwd: its working directory; the worker's if None
        :param user: as in :meth:`nsorch.Supervisor.start`; the worker's if None
        :param confined: see :meth:`popen`
        :raises subprocess.CalledProcessError: the exit status isn't 0
        :raises TimeoutError: it took longer than *timeout*, with its start
        :raises TopologyError: an option is of a wrong kind; nothing was started
        :raises CommandNotFoundError: there is no such command
        :raises ClosedError: the worker is gone
        """
        check_run(input=input, timeout=timeout)
        of_kind("check", check, "true or false", bool)
        code = None
        with anyio.move_on_after(timeout):
            async with await self.popen(
                command,
                stdin=PIPE if input is not None else stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                user=user,
                confined=confined,
            ) as process:
                output = await entering.communicate(process, input)
                code = process.returncode
        if code is None:
            raise TimeoutError(f"{self.name}: {command!r} took longer than {timeout} s")
        from subprocess import CalledProcessError, CompletedProcess

        if code == -signal.SIGKILL:
            self._supervisor._check_helper()  # with which it was killed
            await entering.await_critical(self)
        arguments: Any = command
        if check and code != 0:
            raise CalledProcessError(code, arguments, *output)
        return CompletedProcess(arguments, code, *output)

    async def popen(
        self,
        command: str | bytes | Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: object = PIPE,
        stdout: object = PIPE,
        stderr: object = PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        user: str | int | None = None,
        confined: bool = True,
        start_new_session: bool = True,
        process_group: int | None = None,
    ) -> Process:
        """Start *command* in its namespaces; conventions of :func:`anyio.open_process`. Returns when it is executed.
        While the worker is being started it waits for that.

        While the worker has a live process, the command shares its pid namespace; else it gets a fresh one, with an
        init, and none of its descendants outlives it. Cancelled, nothing of it is left.

        :param env: its whole environment; the worker's if None, and so is *cwd*
        :param user: as in :meth:`nsorch.Supervisor.start`; the worker's if None
        :param confined: False: with the supervisor's privileges, as its user, and without a seccomp filter; only the
            namespaces and the root file system are the worker's
        :param start_new_session: False for a command that shares the caller's terminal
        :param process_group: 0 for a process group of its own in the caller's session, as a shell's jobs have;
            :func:`os.tcsetpgrp` makes it the terminal's
        :raises TopologyError: an option is of a wrong kind; nothing was started
        :raises CommandNotFoundError: there is no such command
        :raises ClosedError: the worker is gone
        """
        arguments = check_command(
            command,
            streams={"stdin": stdin, "stdout": stdout, "stderr": stderr},
            env=env,
            cwd=cwd,
            user=user,
            flags={"confined": confined, "start_new_session": start_new_session},
        )
        if process_group is not None and (type(process_group) is not int or process_group != 0):
            raise TopologyError(f"process_group: {shown(process_group)} is neither 0 nor None")
        session = Session.NEW if start_new_session else Session.SHARED if process_group is None else Session.GROUP
        if self.incarnation <= 1:  # later, its namespaces are there also while a restart is under way
            await self._settled()
        options = entering.Options(env=env, cwd=cwd, user=user, session=session, confined=confined)
        return await entering.start(self, arguments, (stdin, stdout, stderr), options)

    async def open_socket(self, family: int, type: int, proto: int = 0) -> socket.socket:  # noqa: A002 - socket's word
        """A non-blocking socket in its network namespace, which the caller owns. While that isn't made yet it waits for
        the worker's start. Cancelled, none is left open.

        :raises PermissionDeniedError: the kernel forbids such a socket
        :raises UnsupportedError: the worker has the host's network namespace, and nsorch isn't root
        :raises ClosedError: the worker is gone
        """
        for option, value in (("family", family), ("type", type), ("proto", proto)):
            of_kind(option, value, "a number of the socket module's", int)
            if value < 0:
                raise TopologyError(f"{option}: {shown(value)} is not a number of the socket module's")
        if CLONE_NEWNET not in self._held:
            await self._settled()
        self._check_here()
        if family == socket.AF_NETLINK:
            await self._supervisor._wiring.watcher.enter(self)
        return await self._open_socket(family, type, proto)

    async def _open_socket(self, family: int, type: int, proto: int = 0) -> socket.socket:  # noqa: A002
        supervisor = self._supervisor
        supervisor._check_running()
        if self._state is State.REMOVED:
            raise ClosedError("the worker was removed", worker=self.name)
        shared = self._entry is not None and self._entry.host & CLONE_NEWNET
        netns = (supervisor._home.hosts if shared else self._held).get(CLONE_NEWNET)
        if netns is None and shared:
            raise UnsupportedError(
                "the worker shares the host's network namespace: open the socket yourself", worker=self.name
            )
        if netns is None:
            why = "isn't made yet" if self._state is State.STARTING else "was removed"
            raise ClosedError(f"the worker's network namespace {why}", worker=self.name)
        return await supervisor._helper.open_socket(netns, family, type, proto, self.name)

    async def add_interface(self, spec: topology.InterfaceSpec | Mapping[str, Any]) -> Interface:
        """Make another interface in its network namespace, such as ``nsorch.Dummy("d0", address="10.9.0.1/32")``, or a
        mapping with the same keys and ``kind``. While the worker is being started it waits for that.
        Returns when it is up and has its addresses. Cancelled, there is none.

        :raises NameInUseError: it has an interface of that name
        :raises TopologyError: it has none that this one needs
        :raises AddressError: an address is taken
        :raises UnsupportedError: the kernel lacks the module, which is named
        :raises NetlinkError: the kernel refused; nothing is left of it
        :raises ClosedError: the worker is gone
        """
        await self._settled()
        return await self._supervisor._wiring.interfaces.add(self, spec)

    async def remove_interface(self, interface: Interface | str) -> None:
        """Remove one that is no end of a link, with all that are above it. Cancelled, it is done all the same.

        :raises ClosedError: there is none of that name
        """
        name = name_of("interface", interface, "an interface")
        device = self._devices.get(name)
        if device is None or device.state != "up":
            hint = ": it is an end of a link, which is removed by itself" if name in self._interfaces else ""
            raise ClosedError(f'there is no interface "{name}" to be removed{hint}', worker=self.name)
        with anyio.CancelScope(shield=True):
            await self._supervisor._wiring.interfaces.remove([device])
        await anyio.lowlevel.checkpoint()

    async def open_tun(
        self, name: str, mode: str | None = None, *, address: Any = None, mac: str | None = None, mtu: int | None = None
    ) -> supervisor.TunDevice:
        """A network interface of this worker whose packets the caller reads and writes, in its own event loop: an anyio
        stream, with a non-blocking descriptor (``fileno()``, ``detach()``) that the caller owns.

        The interface goes when the device is closed, unless the worker's description has it (:class:`nsorch.Tun`).
        Cancelled, nothing is left.

        :param mode: ``"tun"`` for IP packets, the default, or ``"tap"`` for Ethernet frames
        :param address: one, or several, with the length of their subnet
        :param mac: of a tap interface
        :param mtu: bytes
        :raises NameInUseError: the worker has another interface of that name, or it is open already
        :raises UnsupportedError: there is no ``/dev/net/tun``
        :raises PermissionDeniedError: ``/dev/net/tun`` can't be opened
        :raises ClosedError: the worker is gone
        """
        await self._settled()
        from nsorch.supervisor.traffic.tun import open_tun

        return await open_tun(self, name, mode, address, mac, mtu)

    async def connect_tcp(
        self,
        host: Worker | str | IPAddress,
        port: int,
        *,
        local_host: Worker | str | IPAddress | None = None,
        tls: bool = False,
        ssl_context: supervisor.SSLContext | None = None,
        tls_hostname: str | None = None,
        tls_standard_compatible: bool = True,
        happy_eyeballs_delay: float = 0.25,
    ) -> anyio.abc.SocketStream | supervisor.TLSStream:
        """Connect from this worker, in the caller's own event loop; conventions of :func:`anyio.connect_tcp`.

        Cancelled, no socket is left.

        :param host: an address (a link-local one with its interface in this worker: ``"fe80::1%eth0"``), a worker, or a
            name of the lab (``web``, ``web.lan``); no DNS is asked. With several addresses the next is tried
            *happy_eyeballs_delay* seconds after the one before (RFC 8305)
        :param local_host: one of its own addresses or names
        :raises OSError: nothing answers there; :class:`socket.gaierror` where the lab has no such name
        :raises ClosedError: the worker is gone
        """
        of_kind("tls", tls, "true or false", bool)
        of_kind("tls_hostname", tls_hostname, "a string", str, NoneType)
        of_kind("tls_standard_compatible", tls_standard_compatible, "true or false", bool)
        if ssl_context is not None:
            from ssl import SSLContext

            of_kind("ssl_context", ssl_context, "an ssl.SSLContext", SSLContext)
        from nsorch.supervisor.traffic import sockets

        stream = await sockets.connect_tcp(
            self, host, port, local_host=local_host, happy_eyeballs_delay=happy_eyeballs_delay
        )
        if not (tls or ssl_context or tls_hostname):
            return stream
        name = tls_hostname or sockets.called(host)
        return await sockets.wrap_tls(stream, name, ssl_context, compatible=tls_standard_compatible)

    async def create_tcp_listener(
        self,
        *,
        local_host: Worker | str | IPAddress | None = None,
        local_port: int = 0,
        backlog: int = 65536,
        reuse_port: bool = False,
    ) -> supervisor.MultiListener[anyio.abc.SocketStream]:
        """Listen in this worker; conventions of :func:`anyio.create_tcp_listener`. Wrap it in
        :class:`anyio.streams.tls.TLSListener` for TLS.

        :param local_host: one of its addresses or names, which stand for all their addresses; all of both families if
            None
        :param local_port: a free one if 0
        :raises OSError: the port is taken, or the address isn't its own
        :raises ClosedError: the worker is gone
        """
        from nsorch.supervisor.traffic import sockets

        return await sockets.create_tcp_listener(self, local_host, local_port, backlog=backlog, reuse_port=reuse_port)

    async def create_udp_socket(
        self,
        *,
        family: int | None = None,
        local_host: Worker | str | IPAddress | None = None,
        local_port: int = 0,
        reuse_port: bool = False,
    ) -> anyio.abc.UDPSocket:
        """A datagram socket in this worker; conventions of :func:`anyio.create_udp_socket`.

        :param family: AF_INET or AF_INET6; None: that of the first address of *local_host*, or AF_INET without one
        :raises OSError: the port is taken, or the address isn't its own, or of another family
        :raises ClosedError: the worker is gone
        """
        from nsorch.supervisor.traffic import sockets

        return await sockets.create_udp_socket(self, local_host, local_port, family=family, reuse_port=reuse_port)

    async def create_connected_udp_socket(
        self, host: Worker | str | IPAddress, port: int, *, local_host: Worker | str | IPAddress | None = None
    ) -> anyio.abc.ConnectedUDPSocket:
        """A datagram socket in this worker that sends to *host* and hears it alone.

        :raises OSError: there is no way there; :class:`socket.gaierror` where the lab has no such name
        :raises ClosedError: the worker is gone
        """
        from nsorch.supervisor.traffic import sockets

        return await sockets.create_connected_udp_socket(self, host, port, local_host=local_host)

    async def serve(
        self,
        handler: Callable[[anyio.abc.SocketStream], Awaitable[Any]],
        port: int,
        *,
        local_host: Worker | str | IPAddress | None = None,
        task_status: TaskStatus[supervisor.MultiListener[anyio.abc.SocketStream]] = TASK_STATUS_IGNORED,
    ) -> None:
        """Listen on *port* and call *handler* with each connection, in a task of its own, until cancelled:
        ``await tasks.start(worker.serve, handler, 80)`` returns the listener when it listens. When the worker is
        removed it listens no more, and returns when the last *handler* has.

        :raises OSError: the port is taken
        :raises ClosedError: the worker is gone
        """
        from nsorch.supervisor.traffic import sockets

        await sockets.serve(self, handler, port, local_host=local_host, task_status=task_status)

    def http_client(self, *, http1: bool = True, http2: bool = False, **options: Any) -> supervisor.AsyncClient:
        """An :class:`httpx.AsyncClient` whose connections leave from this worker, to names of the lab or addresses.
        Needs the extra ``nsorch[http]``. Where httpx isn't imported yet, ``async with`` does that in a thread; the loop
        stands still for it where anything else is asked of the client first.

        :param http2: needs the package ``h2`` as well
        :param options: as ``httpx.AsyncClient`` takes them; ``verify``, ``cert``, ``limits`` concern the connections
        :raises UnsupportedError: httpx isn't installed, or h2, which *http2* needs
        """
        from nsorch.supervisor.traffic.http_later import make_client

        return make_client(self, http1=http1, http2=http2, **options)

    # -- its main process

    async def wait(self) -> Exit:
        """Wait until its process has ended and no restart will follow; any number of tasks may. While the worker is
        being started it waits for that. Cancelled, it changes nothing.

        :raises ClosedError: it has no process, and never had one
        """
        self._supervisor._check_thread()
        await anyio.lowlevel.checkpoint()
        if self._main is None and self._spec.command is not None:
            await self._settled()
            self._check_here()
        if self._main is None:
            raise ClosedError("the worker is passive: it has no process to wait for", worker=self.name)
        return await self._main.wait()

    async def stop(self, grace: float | None = None) -> Exit | None:
        """SIGTERM, and SIGKILL after *grace* seconds (the supervisor's if None). Its namespaces and links stay.

        While it is being started it waits for that; restarts that were called before begin no process any more. Returns
        how it ended, or None for a passive worker. Cancelled, the process is killed at once, and gone.
        """
        self._supervisor._check_thread()
        await anyio.lowlevel.checkpoint()
        if grace is not None:
            check_seconds("grace", grace)
        self._stops += 1
        if self._spec.command is not None and not self._restarting:
            await self._settled()
        return await self._stop(grace)

    async def _stop(self, grace: float | None) -> Exit | None:
        if self._main is None:
            return None
        return await self._main.stop(self._supervisor.grace if grace is None else grace)

    async def restart(
        self, command: Sequence[str] | None = None, *, env: Mapping[str, str] | None = None, grace: float | None = None
    ) -> Worker:
        """Stop its process and begin the next incarnation, with another *command* or *env* if given. Its namespaces
        (but for a pid namespace of its own) and its links stay. Returns as :meth:`nsorch.Supervisor.start` does.

        While it is being started it waits for that; calls at one time are carried out one after the other.

        :raises ClosedError: the worker is gone, or passive and no command is given; or it was stopped meanwhile
        :raises NsorchError: as ``start``; the worker stays, without a process
        """
        self._supervisor._check_running()
        self._check_here()
        if grace is not None:
            check_seconds("grace", grace)
        if command is None and self._spec.command is None:
            raise ClosedError("the worker is passive: give a command to restart it with", worker=self.name)

        def change(spec: WorkerSpec) -> WorkerSpec:
            spec = spec if command is None else evolve(spec, command=command)
            return spec if env is None else evolve(spec, env=env)

        await self._restart(change, grace)
        return self

    async def _restart(self, change: Callable[[WorkerSpec], WorkerSpec], grace: float | None) -> None:
        """:param change: of its description, when its process has ended"""
        stops = self._stops
        if self._turn is None:
            await self._settled()
            if self._is_awaited:
                await self._stop(grace)  # with which its start fails, and undoes it
                await self._settled(ready=True)
            self._turn = self._turn or anyio.Lock()
        try:
            async with self._turn:
                self._check_here()
                self._stops_before = stops
                spec = change(self._spec)
                await self._supervisor._cgroups.thaw(self)  # else it doesn't hear that it is to end
                await self._stop(grace)
                self._check_turn()
                self._supervisor._check_running()  # else it would live on while all others end
                self._spec = spec
                await self._supervisor._starter.run_main(self)
        finally:
            if self._main is not None:
                self._main.announce()

    async def set_routes(self, routes: Iterable[Route | Mapping[str, Any]]) -> None:
        """Replace the routes of its description; those to a bridge's gateway, and shortest paths, stay.

        :param routes: such as ``nsorch.Route("10.9.0.0/16", via="10.0.0.1")``, or the same keys in a mapping
        :raises TopologyError: a gateway is on none of its links
        :raises NetlinkError: the kernel refused; those before stay
        """
        self._supervisor._check_running()
        made = to_routes(routes)
        await self._settled()
        self._check_here()
        spec = self._spec
        with anyio.CancelScope(shield=True):
            before = take_routes(self._supervisor._wiring, self, evolve(spec, routes=made))
            try:
                await set_routes(self._supervisor._wiring, self, before)
            except BaseException:
                self._spec = spec
                await follow_default(self._supervisor._wiring, self, anew=True)
                raise
        await anyio.lowlevel.checkpoint()

    async def set_nat(self, nat: topology.Nat | Mapping[str, Any] | str | None) -> None:
        """Give it another address translation, or none, in one step. Connections that exist keep theirs, see
        :meth:`flush_connections`. Cancelled, it is done all the same.

        :raises TopologyError: it names what doesn't exist
        :raises UnsupportedError: the worker was started without forwarding, or the kernel lacks a part of nf_tables
        :raises NetlinkError: the kernel refused; what was there stays
        """
        if evolve(self._spec, nat=nat).nat is not None and not self._spec.forward:
            raise UnsupportedError("it doesn't forward: start it with forward=True", worker=self.name, stage="nat")
        await self._filter(lambda spec: evolve(spec, nat=nat))

    async def set_firewall(self, firewall: topology.Firewall | Mapping[str, Any] | str | None) -> None:
        """Give it another firewall, or none, in one step. Cancelled, it is done all the same.

        :raises TopologyError: it names what doesn't exist, or lacks its outside
        :raises UnsupportedError: the kernel lacks a part of nf_tables
        :raises NetlinkError: the kernel refused; what was there stays
        """
        await self._filter(lambda spec: evolve(spec, firewall=firewall))

    async def _filter(self, change: Callable[[WorkerSpec], WorkerSpec]) -> None:
        self._supervisor._check_running()
        await self._settled()
        self._check_here()
        filters = self._supervisor._wiring.filters
        with anyio.CancelScope(shield=True):
            await filters.change(self, change)
        await anyio.lowlevel.checkpoint()

    async def flush_connections(self) -> None:
        """Have its NAT and firewall forget all connections and port mappings, as a router does that is switched off and
        on. Cancelled, it is done all the same.

        :raises UnsupportedError: the kernel lacks nf_conntrack_netlink
        :raises ClosedError: the worker is gone
        """
        self._supervisor._check_running()
        await self._settled()
        await self._supervisor._wiring.filters.flush(self)
        await anyio.lowlevel.checkpoint()

    async def remove(self) -> None:
        """Kill its process, remove its links, and free its namespaces and its name. Doing it twice is once.

        While it is being started it waits for that. Cancelled afterwards, it is done all the same before the
        cancellation goes on.
        """
        self._supervisor._check_thread()
        await self._settled()
        with anyio.CancelScope(shield=True):
            await remove(self._supervisor, [self])
        await anyio.lowlevel.checkpoint()

    def kill(self) -> None:
        """SIGKILL to its command and all its descendants; where it has a cgroup, to all that runs in that."""
        if self._main is not None:
            self._main.kill()
        self._supervisor._cgroups.kill(self)

    def signal(self, sig: int) -> None:
        """Send signal *sig* to its command; once that has ended nothing happens.

        :raises TopologyError: there is no such signal
        """
        of_kind("sig", sig, "the number of a signal", int)
        if not 0 < sig < signal.NSIG:
            raise TopologyError(f"sig: {shown(sig)} is not the number of a signal")
        if self._main is not None:
            self._main.signal(sig)

    # -- its cgroup

    @property
    def cgroup(self) -> str | None:
        """Path of its cgroup, or None while it has none of its own."""
        return self._supervisor._cgroups.path(self)

    @property
    def frozen(self) -> bool:
        """Whether :meth:`freeze` stopped its processes."""
        return self._supervisor._cgroups.is_frozen(self)

    async def stats(self) -> supervisor.WorkerStats:
        """What all its processes have used, since its cgroup exists: from its start with ``limits`` or
        ``Supervisor(cgroups=True)``; else it is made now, and what runs is moved into it.

        :raises UnsupportedError: there is no cgroup v2, or none that this user may write to; names what would help
        :raises ClosedError: the worker is gone
        """
        return await self._supervisor._cgroups.stats(self)

    def watch_stats(self, interval: float = 1.0) -> supervisor.StatsStream:
        """The same every *interval* seconds, until the worker is gone: ``async for stats in worker.watch_stats(0.5)``.

        Nothing runs between two calls of ``receive``: who is slow misses readings, and gets none that is old.

        :raises ValueError: *interval* is not above 0
        """
        from nsorch.supervisor.statistics import StatsStream

        return StatsStream(self, interval)

    async def freeze(self) -> None:
        """Stop all its processes where they are, until :meth:`thaw`. Returns when none runs any more.

        Meanwhile no command can be started in it; a signal that it handles waits, and one that kills it does so at
        once. Cancelled, they go on.

        :raises UnsupportedError: as :meth:`stats`
        :raises ClosedError: the worker is gone
        """
        await self._supervisor._cgroups.freeze(self)

    async def thaw(self) -> None:
        """Let them go on. Doing it twice is once; cancelled, it is done all the same.

        :raises ClosedError: the worker is gone
        """
        await self._supervisor._cgroups.thaw(self)

    async def set_limits(self, limits: topology.Limits | Mapping[str, Any] | None) -> None:
        """Replace its limits by these, while it runs; None lifts all. Cancelled, it is done all the same; but where
        memory had no limit, a command that is being started is waited for first, and that can be cancelled.

        :raises UnsupportedError: a limit that can't be kept here; nothing was changed
        :raises SetupError: the kernel refuses a value, such as a CPU that isn't there
        :raises TopologyError: the description is wrong
        :raises ClosedError: the worker is gone
        """
        spec = evolve(self._spec, limits=limits)
        await self._supervisor._cgroups.set_limits(self, spec.limits)
        self._spec = evolve(self._spec, limits=spec.limits)

    # -- for the supervisor

    async def _pin(self, name: str | None, folder: str) -> str:
        netns = self._held.get(CLONE_NEWNET)
        if netns is None:
            raise UnsupportedError("it has no network namespace of its own to be pinned", worker=self.name)
        name = self.name if name is None else name
        of_kind("name", name, "a string", str)
        of_kind("folder", folder, "a string", str)
        if not folder.startswith("/") or "\0" in folder:
            raise TopologyError(f"folder: {shown(folder)} is not an absolute path")
        if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
            raise TopologyError(f"name: {shown(name)} is not the name of a pin")
        path = f"{folder.rstrip('/')}/{name}"
        await self._supervisor._wiring.watcher.enter(self)
        await self._supervisor._note_folder(os.fsencode(os.path.dirname(path)))
        self._check_here()
        target = b"/proc/%d/fd/%d" % (os.getpid(), netns)
        await self._supervisor._helper.pin(os.fsencode(path), target, self.name)
        self._pins[os.fsencode(path)] = target
        return path

    @property
    def _is_starting(self) -> bool:
        """Or its start has failed, and isn't undone yet."""
        return self._state is State.STARTING or (self._doomed and self._state is not State.REMOVED)

    @property
    def _is_awaited(self) -> bool:
        """Whether its start waits until its process is ready."""
        return self._main is not None and not self._main.was_ready and self._state is not State.REMOVED

    @property
    def _restarting(self) -> bool:
        return self._turn is not None and self._turn.locked()

    @property
    def _has_process(self) -> bool:
        """Or will have, as a restart is under way."""
        return self._main is not None and (self._main.alive is not None or self._restarting)

    def _check_here(self) -> None:
        if self._leaving or self._state is State.REMOVED:
            raise ClosedError("the worker was removed", worker=self.name)

    def _check_turn(self) -> None:
        if self._restarting and self._stops != self._stops_before:
            raise ClosedError("it was stopped while it was being restarted", worker=self.name)

    async def _unpin(self) -> None:
        """Shield it."""
        while self._pins:
            path, target = self._pins.popitem()
            try:
                await self._supervisor._helper.pin(path, b"", self.name)
            except NsorchError:  # it is gone
                await in_thread_or_here(unlink, path, target)

    def _adopt(self, made: Mapping[int, int], entry: Entry, netlink: int | None = None) -> None:
        """Its namespaces exist: *made* and the joined are its own from here on, and a socket to wire them by."""
        self._entry = entry
        if netlink is not None:
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE, fileno=netlink)
        self._held = {**entry.joined, **made}
        self._inodes = {NS_FILES[kind]: os.fstat(fd).st_ino for kind, fd in made.items()}

    def _interface_index(self) -> int:
        """The ifindex of its next interface, where nobody else makes any."""
        self._indices += 1
        return self._indices

    def _begin_stop(self, grace: float) -> None:
        if self._main is not None:
            self._main.begin_stop(grace)

    def _expect_end(self) -> None:
        if self._main is not None:
            self._main.expect_end()

    async def _kill_and_wait(self) -> None:
        if self._main is not None:
            await self._main.kill_and_wait()

    async def _ended(self) -> None:
        if self._main is not None:
            await self._main.end()

    def _removed(self) -> None:
        """It is gone, with all that it held."""
        if self._state is State.REMOVED:  # by the supervisor's end, while it was being removed
            return
        self._state, self._inodes = State.REMOVED, {}
        self._supervisor._bus.publish(WorkerRemoved(worker=self.name, incarnation=self.incarnation))
        for scope in tuple(self._waiting or ()):
            scope.cancel()
        if self._main is not None:
            self._main.close_streams()
            self._main.announce()

    def _close_netlink(self) -> None:
        if self._netlink is not None:
            descriptors.close([self._netlink.detach()])
            self._netlink = None

    async def _settled(self, *, ready: bool = False) -> None:
        """Wait while it is being started: until its exec, or until it is *ready*, or removed because it isn't."""
        bus = self._supervisor._bus
        while self._is_starting or (ready and self._is_awaited):
            kinds = (WorkerReady, WorkerStarted, WorkerExited, WorkerSetupFailed, WorkerRemoved)
            await bus.wait(kinds, worker=self.name, since=bus.seq + 1)

    def _take_descriptors(self, *but: int) -> list[int]:
        """Those of its namespaces, without the kinds *but*, to be closed."""
        if not but:
            self._close_netlink()
        taken = [kind for kind in self._held if kind not in but]
        return [self._held.pop(kind) for kind in taken]
