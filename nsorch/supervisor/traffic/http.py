"""An httpx client whose connections leave from a worker."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Self

import anyio
from anyio.abc import SocketAttribute

from nsorch.core.threads import in_thread_or_here
from nsorch.errors import SetupError, UnsupportedError
from nsorch.supervisor.traffic.sockets import certified

try:
    import httpcore
    import httpx
except ImportError:
    raise UnsupportedError("http_client needs httpx: pip install nsorch[http]") from None

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from anyio.abc import ByteStream

    from nsorch.supervisor.worker import Worker


_Kinds = dict[type[Exception], type[Exception]]


def make_client(worker: Worker, *, http1: bool, http2: bool, **options: Any) -> httpx.AsyncClient:
    """See :meth:`Worker.http_client`."""
    if "transport" in options or "proxy" in options:
        raise TypeError("a worker's client has a transport of its own, and no proxy")
    chosen = {key: options.pop(key) for key in ("verify", "cert", "limits") if key in options}
    transport = WorkerTransport(worker, http1=http1, http2=http2, **chosen)
    # The environment's proxies are the host's, not the worker's.
    return httpx.AsyncClient(transport=transport, **{"trust_env": False, **options})


class WorkerTransport(httpx.AsyncBaseTransport):
    """httpcore's connection pool over the sockets of a worker."""

    def __init__(
        self,
        worker: Worker,
        *,
        http1: bool = True,
        http2: bool = False,
        verify: ssl.SSLContext | str | bool = True,
        cert: Any = None,
        limits: httpx.Limits | None = None,
    ) -> None:
        limits = limits or httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=5.0)
        context: Any = _Context()
        if verify is not True or cert is not None:
            context = httpx.create_ssl_context(verify=verify, cert=cert, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            http1=http1,
            http2=http2,
            network_backend=_Backend(worker),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        inner = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        with _as_httpx():
            response = await self._pool.handle_async_request(inner)
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_Body(response),
            # "network_stream" among them: what an upgrade to a websocket goes on with.
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Context:
    """The usual context for TLS, which is made when a connection needs it, in a thread: reading the certificates of all
    authorities takes 30 ms, and thousands of clients ask for no TLS at all."""

    _made: ClassVar[dict[tuple[str, ...], ssl.SSLContext]] = {}  # by protocols

    def __init__(self) -> None:
        self._protocols: tuple[str, ...] = ()

    def set_alpn_protocols(self, protocols: Sequence[str]) -> None:
        self._protocols = tuple(protocols)

    async def get(self) -> ssl.SSLContext:
        if self._protocols not in self._made:
            made = await in_thread_or_here(lambda: httpx.create_ssl_context(trust_env=False))
            made.set_alpn_protocols(self._protocols)
            self._made[self._protocols] = made
        return self._made[self._protocols]


class _Body(httpx.AsyncByteStream):
    def __init__(self, response: httpcore.Response) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _as_httpx():
            async for part in self._response.aiter_stream():
                yield part

    async def aclose(self) -> None:
        await self._response.aclose()


@contextlib.contextmanager
def _as_httpx() -> Iterator[None]:
    """Each exception of httpcore has its like of the same name in httpx."""
    try:
        yield
    except Exception as exc:
        kind = getattr(httpx, type(exc).__name__, None)
        if type(exc).__module__.partition(".")[0] != "httpcore" or kind is None:
            raise
        raise kind(str(exc)) from exc


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        with _mapped(
            {TimeoutError: httpcore.ConnectTimeout, OSError: httpcore.ConnectError, SetupError: httpcore.ConnectError}
        ):
            if ":" in host:  # with an interface, as URLs have it: RFC 6874
                host = host.replace("%25", "%")
            with anyio.fail_after(timeout):
                stream = await self._worker.connect_tcp(host, port, local_host=local_address)
            sock = stream.extra(SocketAttribute.raw_socket)
            for option in socket_options or ():
                sock.setsockopt(*option)
        return _Stream(stream)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped({TimeoutError: httpcore.ReadTimeout, **_broken(httpcore.ReadError)}), anyio.fail_after(timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with (
                _mapped({TimeoutError: httpcore.WriteTimeout, **_broken(httpcore.WriteError)}),
                anyio.fail_after(timeout),
            ):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        from anyio.streams.tls import TLSStream

        failures: _Kinds = {
            TimeoutError: httpcore.ConnectTimeout,
            OSError: httpcore.ConnectError,
            **_broken(httpcore.ConnectError),
        }
        with _mapped(failures), anyio.fail_after(timeout):
            try:
                made: object = ssl_context
                wrapped = await TLSStream.wrap(
                    self._stream,
                    ssl_context=await made.get() if isinstance(made, _Context) else ssl_context,
                    hostname=server_hostname and certified(server_hostname),
                    standard_compatible=False,
                    server_side=False,
                )
            except BaseException:
                await anyio.aclose_forcefully(self._stream)
                raise
        return _Stream(wrapped)

    def get_extra_info(self, info: str) -> Any:
        from anyio.streams.tls import TLSAttribute

        attributes: dict[str, Any] = {
            "client_addr": SocketAttribute.local_address,
            "server_addr": SocketAttribute.remote_address,
            "socket": SocketAttribute.raw_socket,
            "ssl_object": TLSAttribute.ssl_object,
        }
        if info == "is_readable":  # an idle connection that has something to read was closed by the server
            return _is_readable(self._stream.extra(SocketAttribute.raw_socket).fileno())
        return self._stream.extra(attributes[info], None) if info in attributes else None


def _broken(kind: type[Exception]) -> _Kinds:
    return {anyio.BrokenResourceError: kind, anyio.ClosedResourceError: kind}


@contextlib.contextmanager
def _mapped(kinds: _Kinds) -> Iterator[None]:
    try:
        yield
    except tuple(kinds) as exc:
        raise next(new for old, new in kinds.items() if isinstance(exc, old))(str(exc)) from exc


def _is_readable(fd: int) -> bool:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return fd < 0 or bool(poll.poll(0))
