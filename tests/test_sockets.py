"""Sockets of workers in the caller's own loop."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
from functools import partial
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Self

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSListener
from conftest import needs_descriptors

import nsorch
from nsorch.net import ping
from nsorch.supervisor.traffic.sockets import resolve

if TYPE_CHECKING:
    from anyio.abc import ByteStream, SocketStream, TaskStatus
    from anyio.streams.stapled import MultiListener

pytestmark = pytest.mark.anyio
SIOCGSKNS = 0x894C  # linux/sockios.h


async def echo(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def say(stream: ByteStream, data: bytes) -> bytes:
    async with stream:
        await stream.send(data)
        return await stream.receive()


async def test_tcp_by_worker_name_and_address() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"])
        server, client = await sup.start_all(
            [nsorch.WorkerSpec(name="server", links=[lan]), nsorch.WorkerSpec(name="client", links=[lan])]
        )
        listener = await tasks.start(server.serve, echo, 7)
        assert {item.extra(SocketAttribute.local_port) for item in listener.listeners} == {7}
        for host in (server, "server", "server.lan", "10.0.0.1", server.addresses[0].ip, "fd00::1"):
            assert await say(await client.connect_tcp(host, 7), b"hello") == b"hello"
        stream = await client.connect_tcp("server", 7)
        async with stream:
            # Both families are there: RFC 6555's first choice is IPv6.
            assert stream.extra(SocketAttribute.remote_address)[0] == "fd00::1"
            assert stream.extra(SocketAttribute.local_address)[0] == "fd00::2"
        stream = await client.connect_tcp("server", 7, local_host="10.0.0.2")
        async with stream:
            assert stream.extra(SocketAttribute.remote_address)[0] == "10.0.0.1"
        # A worker reaches itself, and not the host's loopback.
        assert await say(await server.connect_tcp("localhost", 7), b"me") == b"me"
        with pytest.raises(OSError, match="no address of localhost answers on port 7, asked by client"):
            await client.connect_tcp("localhost", 7)
        with pytest.raises(OSError, match="no address of server answers on port 8, asked by client"):
            await client.connect_tcp(server, 8)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("links", [["lan"], []], ids=["linked", "alone"])
async def test_no_socket_is_ever_of_the_hosts(links: list[str]) -> None:
    """Not while the worker's own network namespace is being made, either."""
    opened: list[socket.socket] = []
    async with nsorch.Supervisor() as sup, sup.events(kinds=["WorkerRequested"]) as requested:
        await sup.bridge("lan", "10.0.0.0/24")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: sup.start("a", ["sleep", "600"], links=links))
            await requested.receive()
            worker = sup.workers["a"]
            assert worker.state is nsorch.State.STARTING
            with pytest.raises(nsorch.ClosedError, match="network namespace isn't made yet"):
                opened.append(await worker._open_socket(socket.AF_INET, socket.SOCK_STREAM))
            opened.append(await worker.open_socket(socket.AF_INET, socket.SOCK_STREAM))
        async with await worker.create_tcp_listener() as listener:
            opened.append(listener.listeners[0].extra(SocketAttribute.raw_socket))
            for sock in opened:
                netns = fcntl.ioctl(sock.fileno(), SIOCGSKNS)
                assert os.fstat(netns).st_ino == worker.namespaces["net"]
                os.close(netns)
        opened[0].close()
        await worker.remove()
        with pytest.raises(nsorch.ClosedError, match="removed"):
            await worker.open_socket(socket.AF_INET, socket.SOCK_STREAM)


async def test_names_are_the_same_in_any_case() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        await sup.bridge("Lan", "10.0.0.0/24")
        server = await sup.start("Web", links=["Lan"])
        await tasks.start(server.serve, anyio.aclose_forcefully, 80)
        for name in ("Web", "web", "WEB.Lan", "web.lan", "web.", "web.lan.", "localhost", "LocalHost", "localhost."):
            async with await server.connect_tcp(name, 80):
                pass
        lonely = await sup.start("Lonely")
        for name in ("lonely", "LONELY."):
            with pytest.raises(ConnectionRefusedError):
                await lonely.connect_tcp(name, 80)
        with pytest.raises(socket.gaierror):
            await server.connect_tcp("webb", 80)
        tasks.cancel_scope.cancel()


async def test_errors_name_what_is_wrong() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", links=[lan])
        await sup.start("lonely")
        with pytest.raises(socket.gaierror, match='"example.com"'):
            await a.connect_tcp("example.com", 80)
        with pytest.raises(socket.gaierror, match='"lonely"'):
            await a.connect_tcp("lonely", 80)
        with pytest.raises(ConnectionRefusedError, match="a to 10.0.0.1 port 80"):
            await a.connect_tcp("10.0.0.1", 80)
        for port in (0, 65536, -1, True, "80"):
            with pytest.raises(ValueError, match="is not a port"):
                await a.connect_tcp("10.0.0.1", port)  # type: ignore[arg-type]
        async with await a.create_tcp_listener(local_port=80):
            with pytest.raises(OSError, match=r"in use: 0\.0\.0\.0 port 80 in a"):
                await a.create_tcp_listener(local_port=80)
        with pytest.raises(OSError, match=r"assign.*: 10\.0\.0\.9 in a"):
            await a.create_tcp_listener(local_host="10.0.0.9")
        with pytest.raises(OSError, match=r"assign.*: 10\.0\.0\.9 in a"):
            await a.connect_tcp("10.0.0.1", 80, local_host="10.0.0.9")
        for connect in (a.connect_tcp, a.create_connected_udp_socket):
            with pytest.raises(OSError, match="no address of a can be reached from ::1 of a"):
                await connect("a", 80, local_host="::1")
        with pytest.raises(nsorch.SetupError, match=r"^a: socket: .*EAFNOSUPPORT") as caught:
            await a.open_socket(999, socket.SOCK_STREAM)
        assert caught.value.worker == "a"
        await a.remove()
        with pytest.raises(nsorch.ClosedError):
            await a.connect_tcp("10.0.0.1", 80)


async def test_link_local_addresses_have_an_interface_of_the_worker() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"])
        # Not the number that eth0 has elsewhere.
        server, client = await sup.start("server", links=["lan"]), await sup.start("client")
        await sup.link("client", await sup.start("other"))
        await sup.link("client", "lan")
        own = {}
        for worker, name in ((server, "eth0"), (client, "eth1")):
            shown = (await worker.run(["ip", "-o", "-6", "addr", "show", "dev", name, "scope", "link"])).stdout
            own[worker] = shown.decode().split()[3].partition("/")[0]
        await tasks.start(partial(server.serve, echo, 7, local_host=f"{own[server]}%eth0"))
        there = f"{own[server]}%eth1"
        assert await say(await client.connect_tcp(there, 7), b"hello") == b"hello"
        assert await say(await client.connect_tcp(there, 7, local_host=f"{own[client]}%eth1"), b"me") == b"me"
        async with (
            await server.create_udp_socket(local_host=f"{own[server]}%eth0", local_port=8) as receiver,
            await client.create_connected_udp_socket(there, 8) as sender,
        ):
            await sender.send(b"datagram")
            assert (await receiver.receive())[0] == b"datagram"
        with pytest.raises(OSError, match='client has no interface "eth7"'):
            await client.connect_tcp(f"{own[server]}%eth7", 7)
        with pytest.raises(OSError, match="%eth0 says by which interface"):
            await client.connect_tcp(own[server], 7)
        tasks.cancel_scope.cancel()


async def test_names_are_local_hosts_too_and_stand_for_all_their_addresses() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lans = [await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"]), await sup.bridge("far", "10.1.0.0/24")]
        server, client = await sup.start("server", links=lans), await sup.start("client", links=lans)
        listener = await tasks.start(partial(server.serve, echo, 7, local_host="server"))
        found = {each.extra(SocketAttribute.local_address)[0] for each in listener.listeners}
        assert found == {"fd00::1", "10.0.0.1", "10.1.0.1"}
        for local, host, address in (("client", "server", "fd00::2"), ("client.far", server, "10.1.0.2")):
            async with await client.connect_tcp(host, 7, local_host=local) as stream:
                assert stream.extra(SocketAttribute.local_address)[0] == address
        async with await server.create_tcp_listener(local_host="localhost") as local:
            assert {each.extra(SocketAttribute.local_address)[0] for each in local.listeners} == {"::1", "127.0.0.1"}
        await server.run(["ip", "addr", "flush", "dev", "lo"])
        with pytest.raises(OSError, match="::1"):
            await server.create_tcp_listener(local_host="localhost")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("all_of_it", [False, True], ids=["worker", "supervisor"])
async def test_who_waits_for_a_connection_of_a_worker_that_is_removed(all_of_it: bool) -> None:
    async with anyio.create_task_group() as tasks, nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        worker = await sup.start("a", links=[lan])
        ended = anyio.Event()

        async def connect() -> None:
            with pytest.raises(nsorch.ClosedError, match="a: the worker was removed"):
                await worker.connect_tcp("10.0.0.77", 80)  # nobody: ARP goes unanswered
            ended.set()

        tasks.start_soon(connect)
        with anyio.fail_after(5):
            while not worker._waiting:
                await anyio.lowlevel.checkpoint()
            await (sup.stop() if all_of_it else worker.remove())
            await ended.wait()


@pytest.mark.parametrize("all_of_it", [False, True], ids=["worker", "supervisor"])
async def test_who_serves_listens_no_more_when_the_worker_is_removed(all_of_it: bool) -> None:
    connected, may_end, ended = anyio.Event(), anyio.Event(), anyio.Event()

    async def handle(stream: SocketStream) -> None:
        async with stream:
            connected.set()
            await may_end.wait()

    async def serve(*, task_status: TaskStatus[MultiListener[SocketStream]]) -> None:
        await worker.serve(handle, 80, task_status=task_status)
        ended.set()

    async with anyio.create_task_group() as tasks, nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        listener = await tasks.start(serve)
        async with await worker.connect_tcp("localhost", 80):
            await connected.wait()
            await (sup.stop() if all_of_it else worker.remove())
            with anyio.fail_after(5):
                while any(item.extra(SocketAttribute.raw_socket).fileno() >= 0 for item in listener.listeners):
                    await anyio.lowlevel.checkpoint()
                assert not ended.is_set()
                may_end.set()
                await ended.wait()


async def test_a_listener_of_a_worker_that_is_removed_waits_no_more() -> None:
    connected, may_end = anyio.Event(), anyio.Event()

    async def echo(stream: SocketStream) -> None:
        async with stream:
            await stream.send(await stream.receive())
            connected.set()
            await may_end.wait()
            await stream.send(b"bye")

    async def serve(listener: MultiListener[SocketStream]) -> None:
        with pytest.raises(nsorch.ClosedError, match="a: the worker was removed"):
            await listener.serve(echo)

    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        worker = await sup.start("a")
        async with await worker.create_tcp_listener(local_port=80) as listener:
            tasks.start_soon(serve, listener)
            async with await worker.connect_tcp("localhost", 80) as stream:
                await stream.send(b"hello")
                await connected.wait()
                with anyio.fail_after(5):
                    await worker.remove()
                    may_end.set()
                    assert await stream.receive() == b"hello"
                    assert await stream.receive() == b"bye"
                    await serve(listener)


async def test_a_cancelled_connection_leaves_no_socket() -> None:
    # The fixture of all tests looks for descriptors afterwards.
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        a = await sup.start("a", links=[lan])
        with anyio.move_on_after(0.05) as scope:
            await a.connect_tcp("10.0.0.77", 80)  # nobody: ARP goes unanswered
        assert scope.cancelled_caught


async def test_the_next_address_is_tried_while_the_first_is_silent() -> None:
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan, dark = await sup.bridge("lan", "10.0.0.0/24"), await sup.bridge("dark", "10.1.0.0/24")
        server = await sup.start("server", links=[nsorch.To(dark), nsorch.To(lan)])
        client = await sup.start("client", links=[lan, dark])
        await sup.links[next(name for name, link in sup.links.items() if {"server", "dark"} <= ends_of(link))].down()
        await tasks.start(server.serve, echo, 7)
        with anyio.fail_after(5):
            stream = await client.connect_tcp("server", 7, happy_eyeballs_delay=0.05)
        async with stream:
            assert stream.extra(SocketAttribute.remote_address)[0] == "10.0.0.1"
        tasks.cancel_scope.cancel()


def ends_of(link: nsorch.Link) -> set[str]:
    return {part.split(":")[0] for part in map(str, link.ends)}


async def test_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    import trustme

    makers = []
    make = ssl.create_default_context

    def note_maker() -> ssl.SSLContext:
        makers.append(threading.current_thread())
        return make()

    authority = trustme.CA()
    of_server, of_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("server").configure_cert(of_server)
    authority.configure_trust(of_client)
    monkeypatch.setattr(ssl, "create_default_context", note_maker)
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        server, client = await sup.start("server", links=[lan]), await sup.start("client", links=[lan])
        listener = TLSListener(await server.create_tcp_listener(local_port=443), of_server)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            stream = await client.connect_tcp("server", 443, ssl_context=of_client)
            assert await say(stream, b"secret") == b"secret"
            async with await client.connect_tcp("server.", 443, ssl_context=of_client) as stream:
                assert await say(stream, b"the same name") == b"the same name"
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.connect_tcp("10.0.0.1", 443, ssl_context=of_client)
            with pytest.raises(ssl.SSLCertVerificationError):
                await client.connect_tcp("server", 443, tls=True)
            assert makers.pop() is not threading.current_thread()  # it would hold up the loop
            tasks.cancel_scope.cancel()


async def test_datagrams() -> None:
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", ["10.0.0.0/24", "fd00::/64"])
        a, b = await sup.start("a", links=[lan]), await sup.start("b", links=[lan])
        async with await a.create_udp_socket(local_port=53) as server:
            async with await b.create_connected_udp_socket("10.0.0.1", 53) as client:
                await client.send(b"who?")
                data, (host, port) = await server.receive()
                assert (data, host) == (b"who?", "10.0.0.2")
                await server.sendto(b"me", host, port)
                assert await client.receive() == b"me"
        async with await a.create_udp_socket(family=socket.AF_INET6, local_port=53) as server:
            async with await b.create_connected_udp_socket("a.lan", 53) as client:
                await client.send(b"six")
                assert (await server.receive())[1][0] == "fd00::2"
        for family, host in ((None, "fd00::1"), (socket.AF_INET, "10.0.0.1"), (socket.AF_INET6, "fd00::1")):
            async with await a.create_udp_socket(family=family, local_host="a") as server:
                assert server.extra(SocketAttribute.local_address)[0] == host
        with pytest.raises(OSError, match=r"10\.0\.0\.1 of a has no address of the family"):
            await a.create_udp_socket(family=socket.AF_INET6, local_host="10.0.0.1")


async def test_a_free_port_is_free_in_both_families() -> None:
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a", sysctls={"net.ipv4.ip_local_port_range": "40000 40009"})
        with contextlib.ExitStack() as stack:
            for port in {*range(40000, 40010)} - {40004}:
                sock = stack.enter_context(await worker.open_socket(socket.AF_INET6, socket.SOCK_STREAM))
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(("::1", port))
            async with await worker.create_tcp_listener() as listener:
                assert {item.extra(SocketAttribute.local_port) for item in listener.listeners} == {40004}
            stack.enter_context(last := await worker.open_socket(socket.AF_INET6, socket.SOCK_STREAM))
            last.bind(("::", 40004))
            with pytest.raises(OSError, match="in use: :: in a"):
                await worker.create_tcp_listener()


async def answer(stream: SocketStream) -> None:
    async with stream:
        request = b""
        while b"\r\n\r\n" not in request:
            try:
                request += await stream.receive()
            except anyio.EndOfStream:
                return
            if request.endswith(b"\r\n\r\n"):
                path, host = request.split()[1], request.split(b"Host: ")[1].split()[0]
                body = b"%s of %s for %s" % (path, host, stream.extra(SocketAttribute.remote_address)[0].encode())
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                request = b""


async def test_http_client() -> None:
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        web, client = await sup.start("web", links=[lan]), await sup.start("client", links=[lan])
        await tasks.start(web.serve, answer, 80)
        async with client.http_client(base_url="http://web") as http:
            for path in ("/a", "/b"):
                response = await http.get(path)
                assert (response.status_code, response.text) == (200, f"{path} of web for 10.0.0.2")
            with pytest.raises(httpx.ConnectError, match="nobody"):
                await http.get("http://nobody/")
            with pytest.raises(httpx.ConnectError, match="refused"):
                await http.get("http://web:81/")
            with pytest.raises(httpx.ConnectTimeout):
                await http.get("http://10.0.0.99/", timeout=0.05)
            with pytest.raises(httpx.ConnectError, match='client has no interface "eth7"'):
                await http.get("http://[fe80::1%25eth7]/")
        tasks.cancel_scope.cancel()


async def test_many_clients_hold_a_connection_from_one_loop() -> None:
    number = 200
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", "10.0.0.0/16")
        web = await sup.start("web", links=[lan])
        clients = await sup.start_all([nsorch.WorkerSpec(name=f"c{n}", links=[lan]) for n in range(number)])
        await tasks.start(web.serve, answer, 80)
        seen: dict[str, str] = {}
        together = anyio.Event()

        async def ask(client: nsorch.Worker) -> None:
            async with client.http_client(timeout=30) as http:
                seen[client.name] = (await http.get("http://web/x")).text
                if len(seen) == number:
                    together.set()
                await together.wait()  # all connections are open now
                assert (await http.get("http://web/x")).text == seen[client.name]

        async with anyio.create_task_group() as asking:
            for client in clients:
                asking.start_soon(ask, client)
        assert seen == {c.name: f"/x of web for {c.addresses[0].ip}" for c in clients}
        tasks.cancel_scope.cancel()


async def answer_http2(stream: SocketStream) -> None:
    connection = pytest.importorskip("h2.connection")
    events = pytest.importorskip("h2.events")
    session = connection.H2Connection(pytest.importorskip("h2.config").H2Configuration(client_side=False))
    session.initiate_connection()
    async with stream:
        await stream.send(session.data_to_send())
        async for data in stream:
            for event in session.receive_data(data):
                if isinstance(event, events.RequestReceived):
                    session.send_headers(event.stream_id, [(":status", "200")])
                    session.send_data(event.stream_id, b"two", end_stream=True)
            await stream.send(session.data_to_send())


IMPORTING = """
import importlib.abc, sys, threading, anyio, nsorch

class Watch(importlib.abc.MetaPathFinder):
    threads = {}
    def find_spec(self, name, path, target=None):
        if name in ("httpx", "httpcore"):
            self.threads[name] = threading.current_thread() is threading.main_thread()

async def main():
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("w")
        later = worker.http_client(base_url="http://w")
        sys.meta_path.insert(0, Watch())
        if how == "enter":
            async with later as client:
                import httpx
                assert type(client) is type(later) is httpx.AsyncClient, client
                assert not client.is_closed
                try:
                    await client.get("/")
                except httpx.ConnectError:
                    print("nobody listens")
            assert client.is_closed
        else:
            later.headers["x"] = "y"
            later.timeout = 5
            import httpx
            assert type(later) is httpx.AsyncClient, later
            assert (later.headers["x"], later.timeout.read) == ("y", 5), later.timeout
            await later.aclose()
    print(dict(sorted(Watch.threads.items())))

backend, how = sys.argv[1:]
anyio.run(main, backend=backend)
"""


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize("how", ["enter", "ask"])
def test_the_loop_goes_on_while_httpx_is_imported(anyio_backend_name: str, how: str) -> None:
    pytest.importorskip("httpx")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTING, anyio_backend_name, how], capture_output=True, text=True, check=True
    )
    in_the_loop = how != "enter"
    said = "" if in_the_loop else "nobody listens\n"
    assert done.stdout == f"{said}{ {'httpcore': in_the_loop, 'httpx': in_the_loop} }\n"


async def test_http2_over_tls() -> None:
    pytest.importorskip("httpx", reason="httpx is not installed")
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    of_server, of_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    of_server.set_alpn_protocols(["h2"])
    authority.issue_cert("web").configure_cert(of_server)
    authority.configure_trust(of_client)
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        web, client = await sup.start("web", links=[lan]), await sup.start("client", links=[lan])
        listener = TLSListener(await web.create_tcp_listener(local_port=443), of_server, standard_compatible=False)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer_http2)
            async with client.http_client(http2=True, verify=of_client) as http:
                for url in ("https://web/", "https://web./"):
                    response = await http.get(url)
                    assert (response.http_version, response.text) == ("HTTP/2", "two")
            tasks.cancel_scope.cancel()


async def test_http2_without_h2(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("httpx", reason="httpx is not installed")
    monkeypatch.setitem(sys.modules, "h2", None)
    async with nsorch.Supervisor() as sup:
        worker = await sup.start("a")
        with pytest.raises(nsorch.UnsupportedError, match="pip install h2"):
            worker.http_client(http2=True)


async def upgrade(stream: SocketStream) -> None:
    async with stream:
        assert b"Upgrade: echo" in await stream.receive()
        await stream.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
        await stream.send((await stream.receive()).upper())


async def test_an_upgraded_connection_is_handed_out() -> None:
    pytest.importorskip("httpx", reason="httpx is not installed")
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        web, client = await sup.start("web", links=[lan]), await sup.start("client", links=[lan])
        await tasks.start(web.serve, upgrade, 80)
        async with client.http_client() as http:
            headers = {"Connection": "Upgrade", "Upgrade": "echo"}
            async with http.stream("GET", "http://web/", headers=headers) as response:
                assert response.status_code == 101
                stream = response.extensions["network_stream"]
                await stream.write(b"frame")
                assert await stream.read(100) == b"FRAME"
        tasks.cancel_scope.cancel()


async def websocket(stream: ByteStream) -> None:
    wsproto = pytest.importorskip("wsproto")
    from wsproto import events

    session = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    async with stream:
        async for data in stream:
            session.receive_data(data)
            for event in session.events():
                if isinstance(event, events.Request):
                    await stream.send(session.send(events.AcceptConnection()))
                elif isinstance(event, events.TextMessage):
                    await stream.send(session.send(events.TextMessage(data=event.data.upper())))
                elif isinstance(event, events.CloseConnection):
                    await stream.send(session.send(event.response()))
                    return


async def test_websockets_from_a_worker() -> None:
    httpx_ws = pytest.importorskip("httpx_ws")
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    of_server, of_client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("web").configure_cert(of_server)
    authority.configure_trust(of_client)
    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        web, client = await sup.start("web", links=[lan]), await sup.start("client", links=[lan])
        listener = TLSListener(await web.create_tcp_listener(local_port=443), of_server, standard_compatible=False)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, websocket)
            await tasks.start(web.serve, websocket, 80)
            async with client.http_client(verify=of_client) as http:
                for url in ("http://web/", "ws://web.lan/", "https://web/", "wss://web/"):
                    async with httpx_ws.aconnect_ws(url, http) as session:
                        await session.send_text(url)
                        assert await session.receive_text() == url.upper()
            tasks.cancel_scope.cancel()


async def test_certificates_are_read_when_tls_needs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    trustme = pytest.importorskip("trustme")
    from nsorch.supervisor.traffic import http as module

    monkeypatch.setattr(module._Context, "_made", {})
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("web").configure_cert(of_server)

    async def refuse(stream: ByteStream) -> None:
        raise AssertionError("nobody trusts its authority")

    async with nsorch.Supervisor() as sup:
        lan = await sup.bridge("lan", "10.0.0.0/24")
        web, client = await sup.start("web", links=[lan]), await sup.start("client", links=[lan])
        listener = TLSListener(await web.create_tcp_listener(local_port=443), of_server)
        # A failed handshake is the client's business.
        monkeypatch.setattr(
            TLSListener, "handle_handshake_error", staticmethod(lambda exc, stream: anyio.aclose_forcefully(stream))
        )
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, refuse)
            await tasks.start(web.serve, answer, 80)
            async with client.http_client() as http:
                assert (await http.get("http://web/")).status_code == 200
                assert not module._Context._made
                for _ in range(2):
                    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                        await http.get("https://web/")
                assert len(module._Context._made) == 1
            tasks.cancel_scope.cancel()


async def test_a_peer_that_resets_at_once() -> None:
    async def reset(stream: SocketStream) -> None:
        linger = struct.pack("ii", 1, 0)
        stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        await anyio.aclose_forcefully(stream)

    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        worker = await sup.start("a")
        await tasks.start(worker.serve, reset, 80)
        for _ in range(20):
            try:
                stream = await worker.connect_tcp("localhost", 80)
            except ConnectionResetError as exc:
                assert "a to localhost port 80" in str(exc)
            else:
                async with stream:
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()
        tasks.cancel_scope.cancel()


@pytest.mark.once
@needs_descriptors(6000)
@pytest.mark.long
async def test_more_connections_than_the_kernel_has_room_for_neighbours() -> None:
    count = 1100
    topology = nsorch.Topology()
    topology.bridge("lan", "10.0.0.0/16")
    topology.worker("web", links=["lan"])
    for number in range(count):
        topology.worker(f"c{number}", links=["lan"], namespaces=["net"])
    async with nsorch.Supervisor() as sup, anyio.create_task_group() as tasks:
        await sup.deploy(topology)
        web = sup.workers["web"]
        await tasks.start(web.serve, echo, 80)
        answers: list[bytes] = []
        all_connected = anyio.Event()

        async def hold(client: nsorch.Worker) -> None:
            async with await client.connect_tcp("web", 80) as stream:
                await stream.send(b"x")
                answers.append(await stream.receive())
                if len(answers) == count:
                    all_connected.set()
                await all_connected.wait()

        with anyio.fail_after(60):
            async with anyio.create_task_group() as clients:
                for client in sup.workers.values():
                    if client is not web:
                        clients.start_soon(hold, client)
        tasks.cancel_scope.cancel()


@pytest.mark.once
@needs_descriptors(4000)
@pytest.mark.long
async def test_more_direct_links_than_the_kernel_has_room_for_neighbours() -> None:
    topology = nsorch.Topology()
    topology.worker("hub")
    for number in range(600):
        topology.worker(f"c{number}", namespaces=["net"])
        topology.link("hub", f"c{number}")
    async with nsorch.Supervisor() as sup:
        await sup.deploy(topology)
        assert (await sup.ping_all([(f"c{number}", "hub") for number in range(600)])).ok


async def test_a_ping_without_room_to_wait_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """As with fs.epoll.max_user_watches, which is the host's."""

        def __init__(self) -> None:
            self._poll = select.epoll()
            self.unregister = self._poll.unregister

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._poll.close()

        def register(self, fd: int, events: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ping, "select", SimpleNamespace(epoll=Full, EPOLLIN=select.EPOLLIN))
    async with nsorch.Supervisor() as sup:
        await sup.bridge("lan", "10.0.0.0/24")
        await sup.start_all([nsorch.WorkerSpec(name=name, links=["lan"]) for name in "ab"])
        with pytest.raises(nsorch.NsorchError) as info:
            await sup.ping_all()
        assert info.value.errno == errno.ENOSPC


async def test_a_name_of_many_addresses_is_looked_up_without_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker with 600 links they took 15 ms of the caller's loop."""

    def text(_: IPv4Address) -> str:
        raise AssertionError("an address was written, and read again")

    async with nsorch.Supervisor() as sup:
        hub, a = await sup.start("hub"), await sup.start("a")
        for _ in range(3):
            await sup.link(hub, a)
        with monkeypatch.context() as patched:
            patched.setattr(IPv4Address, "__str__", text)
            found = [len(resolve(a, name, "host")) for name in ("hub", "hub.a", "HUB.A", hub)]
        assert found == [6, 6, 6, 6]
        with pytest.raises(socket.gaierror):
            resolve(a, "hub.b", "host")
