"""TUN and TAP devices: interfaces of workers whose packets this program reads and writes. See the kernel's
Documentation/networking/tuntap.rst."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ObjectStream

from nsorch.core import descriptors
from nsorch.core.threads import in_thread, in_thread_or_here
from nsorch.errors import (
    NameInUseError,
    NsorchError,
    PermissionDeniedError,
    SetupError,
    TopologyError,
    UnsupportedError,
)
from nsorch.supervisor.wiring.kernel import netns_of
from nsorch.topology import Tun
from nsorch.topology.kinds import of_kind

if TYPE_CHECKING:
    from nsorch.supervisor.supervisor import Supervisor
    from nsorch.supervisor.wiring.devices import Device
    from nsorch.supervisor.worker import Worker

# linux/if_tun.h; struct ifreq has 40 bytes
_TUNSETIFF, _TUNSETPERSIST, _TUNSETIFINDEX = 0x400454CA, 0x400454CB, 0x400454DA
_IFF = {"tun": 1, "tap": 2}
_IFF_NO_PI = 0x1000
_IFREQ = struct.Struct("=16sH22x")
_INT = struct.Struct("=i")
_LARGEST = 65535 + 14


class TunDevice(ObjectStream[bytes]):
    """An open TUN or TAP device: a stream of IP packets, or of Ethernet frames. Made by :meth:`nsorch.Worker.open_tun`.

    It ends with its worker: then :meth:`receive` raises EndOfStream.

    :ivar name: of the interface
    :ivar mode: ``"tun"`` or ``"tap"``
    """

    def __init__(self, device: Device, fd: int, *, owner: bool) -> None:
        assert isinstance(device.spec, Tun)
        self.name = device.name
        self.mode = device.spec.mode
        self._device = device
        self._fd = fd
        self._owner = owner  # the interface goes with it
        self._ended = False
        device.opened.append(self)

    def __repr__(self) -> str:
        return f"<TunDevice {self._device.worker.name}:{self.name} {self.mode}{' closed' if self._fd < 0 else ''}>"

    def fileno(self) -> int:
        """Its non-blocking descriptor, which stays its own; -1 once it is closed."""
        return self._fd

    def detach(self) -> int:
        """Give the descriptor to the caller, who closes it. While it is open the worker's network namespace stays."""
        self._check()
        fd, self._fd = self._fd, -1
        self._device.opened.remove(self)
        with descriptors.registering:
            descriptors.disown(fd)
        return fd

    async def receive(self) -> bytes:
        """The next packet that the worker sends through the interface, without any header before it.

        :raises anyio.EndOfStream: the interface is gone
        :raises anyio.ClosedResourceError: it was closed
        """
        await anyio.lowlevel.checkpoint()
        while True:
            self._check(anyio.EndOfStream)
            try:
                return os.read(self._fd, _LARGEST)
            except BlockingIOError:
                await self._wait(anyio.wait_readable, anyio.EndOfStream)
            except OSError as exc:
                if exc.errno in (errno.EBADFD, errno.EBADF):
                    raise anyio.EndOfStream from None
                raise

    async def send(self, item: bytes) -> None:
        """Have the worker receive a packet by the interface.

        :raises OSError: EINVAL where it is no packet, EIO where the interface is down
        :raises anyio.BrokenResourceError: the interface is gone
        :raises anyio.ClosedResourceError: it was closed
        """
        await anyio.lowlevel.checkpoint()
        while True:
            self._check(anyio.BrokenResourceError)
            try:
                os.write(self._fd, item)
            except BlockingIOError:
                await self._wait(anyio.wait_writable, anyio.BrokenResourceError)
            except OSError as exc:
                if exc.errno in (errno.EBADFD, errno.EBADF):
                    raise anyio.BrokenResourceError from None
                raise
            else:
                return

    async def send_eof(self) -> None:
        """As :meth:`aclose`: there is no other end of one direction."""
        await self.aclose()

    async def aclose(self) -> None:
        """Close it. An interface that came with it goes with it; a described one stays, without carrier."""
        with anyio.CancelScope(shield=True):
            if self._fd >= 0:
                await self._end()
                self._ended = False
                if self._owner:
                    await self._device.worker._supervisor._wiring.interfaces.remove([self._device])
        await anyio.lowlevel.checkpoint()

    async def _wait(self, wait: object, ended: type[Exception]) -> None:
        try:
            await wait(self._fd)  # type: ignore[operator]
        except anyio.ClosedResourceError:
            self._check(ended)
            raise

    def _check(self, ended: type[Exception] = anyio.ClosedResourceError) -> None:
        if self._fd < 0:
            raise ended if self._ended else anyio.ClosedResourceError

    async def _end(self) -> None:
        """Close the descriptor, which may take the kernel a moment."""
        fd = self._let_go()
        if fd >= 0:
            await in_thread_or_here(descriptors.close, [fd])

    def _end_now(self) -> None:
        descriptors.close([fd for fd in [self._let_go()] if fd >= 0])

    def _let_go(self) -> int:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._ended = True
            self._device.opened.remove(self)
            anyio.notify_closing(fd)
        return fd


async def attach(supervisor: Supervisor, device: Device, *, index: int | None = None, persistent: bool = False) -> int:
    """A non-blocking descriptor of the interface, which is made if there is none. Shield it.

    :param index: ifindex of a new one, or None to let the kernel choose
    :param persistent: it stays without any descriptor
    :raises UnsupportedError: there is no ``/dev/net/tun``
    :raises PermissionDeniedError: it can't be opened
    """
    worker, spec = device.worker, device.spec
    assert isinstance(spec, Tun)
    try:
        fd = await supervisor._helper.open_tun(netns_of(worker), worker.name)
        try:
            await in_thread(_attach, fd, spec.name, spec.mode, index, persistent)
        except BaseException:
            descriptors.close([fd])
            raise
    except (SetupError, PermissionDeniedError, OSError) as exc:
        raise _translated(exc, device) from None
    return fd


def _attach(fd: int, name: str, mode: str, index: int | None, persistent: bool) -> None:
    if index is not None:
        fcntl.ioctl(fd, _TUNSETIFINDEX, _INT.pack(index))
    fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF[mode] | _IFF_NO_PI))
    if persistent:
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)


def _translated(exc: Exception, device: Device) -> NsorchError:
    worker, number = device.worker.name, getattr(exc, "errno", None)
    if isinstance(exc, PermissionDeniedError):
        hint = "the user that nsorch runs as can't open /dev/net/tun: its mode or a device cgroup forbids it"
        return PermissionDeniedError(f"open {device.name}", worker=worker, stage="tun", errno=number, detail=hint)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return UnsupportedError(
            "there is no /dev/net/tun: the module tun (CONFIG_TUN) is missing", worker=worker, stage="tun", errno=number
        )
    if number == errno.EBUSY:
        return NameInUseError(f'"{device.name}" is open already, or no {device.spec.kind}', worker=worker)
    if isinstance(exc, NsorchError):
        return exc
    return SetupError(f"attach to {device.name}", worker=worker, stage="tun", errno=number)


async def open_tun(
    worker: Worker, name: str, mode: str | None, address: Any, mac: str | None, mtu: int | None
) -> TunDevice:
    """See :meth:`Worker.open_tun`."""
    supervisor = worker._supervisor
    of_kind("name", name, "the name of an interface", str)
    there = worker._devices.get(name)
    if there is None or there.state != "up" or not isinstance(there.spec, Tun):
        spec = Tun(name, mode=mode or "tun", address=address, mac=mac, mtu=mtu)
        return await supervisor._wiring.interfaces.add_open(worker, spec)
    if mode not in (None, there.spec.mode) or address is not None or mac is not None or mtu is not None:
        raise TopologyError(f'workers.{worker.name}: the interface "{name}" is there already, with its own options')
    with anyio.CancelScope(shield=True):
        opened = TunDevice(there, await attach(supervisor, there), owner=False)
    try:
        await anyio.lowlevel.checkpoint()
    except BaseException:
        await opened.aclose()
        raise
    return opened
