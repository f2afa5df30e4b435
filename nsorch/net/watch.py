"""The kernel's own notices of what changes in network namespaces: one socket hears all of them.

A socket with NETLINK_LISTEN_ALL_NSID hears the namespaces that have an id in its own. So these two live in a namespace
that is for nothing else: who has no id there costs nothing, and an id says who it is. Each notice anywhere costs the
kernel a walk over these ids, 25 to 70 ns each, and so does each new one.
"""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_interface
from typing import TYPE_CHECKING

from nsorch.errors import NetlinkError
from nsorch.net import messages
from nsorch.net.messages import NLM_F_DUMP, RTM_DELADDR, RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK
from nsorch.net.netlink import Netlink, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nsorch.net.messages import LinkState
    from nsorch.net.plan import IPInterface

_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP, _LISTEN_ALL_NSID, _GET_STRICT_CHK = 270, 1, 2, 8, 12
_GROUPS = (1, 5, 9)  # links, IPv4 addresses, IPv6 addresses
_RTM_NEWNSID, _RTM_GETNSID = 88, 90
_NETNSA_NSID, _NETNSA_FD = 1, 3
_NO_ID = -1  # none yet; wanted, any
_IFLA_TARGET_NETNSID, _IFA_TARGET_NETNSID = 46, 10
_IFLA_IFNAME, _IFA_ADDRESS, _IFA_LOCAL = 3, 1, 2
_GONE = (errno.ENODEV, errno.EINVAL, errno.ENOENT)  # EINVAL: no namespace has the id
_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_INDEX = struct.Struct("=4xI")  # of the interface, in the bodies of both
_ID = struct.Struct("=i")
_SO_RCVBUFFORCE = 33
_BUFFER = 4 << 20  # bytes, where the caller may have so many

#: (namespace's id, ifindex, kind of message, its body)
Notice = tuple[int, int, int, bytes]
LINK, NO_LINK, ADDRESS, NO_ADDRESS = RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_DELADDR


class Listener:
    """Around a NETLINK_ROUTE socket, which is its own from here on. Doesn't block."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)
        sock.bind((0, 0))  # unbound, it hears nothing
        sock.setsockopt(_SOL_NETLINK, _LISTEN_ALL_NSID, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)

    def listen(self) -> None:
        for group in _GROUPS:
            self.sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def stop_listening(self) -> None:
        for group in _GROUPS:
            self.sock.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def read(self) -> Notice | None:
        """The next one, or None if there is none now.

        :raises OSError: ENOBUFS: some were lost; the socket lives on
        """
        while True:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(64 * 1024, 64)
            except BlockingIOError:
                return None
            _, kind, _, _, _ = _HEADER.unpack_from(data)
            # That it is a port of a bridge, or is none any more, comes as a message of this family.
            if kind not in (LINK, NO_LINK) or data[_HEADER.size] != socket.AF_BRIDGE:
                break
        netns = _ID.unpack(ancillary[0][2])[0] if ancillary else -1
        return netns, _INDEX.unpack_from(data, _HEADER.size)[0], kind, data[_HEADER.size :]


class Enquiry:
    """Gives namespaces their ids, and asks about them by these. Blocks: for a thread."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._netlink = Netlink(sock)
        sock.setsockopt(_SOL_NETLINK, _GET_STRICT_CHK, 1)  # for the dumps of other namespaces

    def number(self, namespaces: Sequence[tuple[int, int, str]]) -> dict[int, int]:
        """Give ids to (descriptor, id, name) of *namespaces*.

        The kernel numbers by itself who is at the other end of a link that was asked about.

        :return: the ids that some have instead, by those that they were to get
        :raises NetlinkError: the kernel refused
        """
        requests = [Request(_netns(_RTM_NEWNSID, fd, wanted), "number", name) for fd, wanted, name in namespaces]
        names = {name: (fd, wanted) for fd, wanted, name in namespaces}
        others = {}
        for error in self._netlink.transact(requests):
            if error.errno != errno.EEXIST:
                raise error
            fd, wanted = names[error.object]
            if (other := self._number_of(fd, error.object)) == _NO_ID:  # somebody else has that one
                self._netlink.execute([Request(_netns(_RTM_NEWNSID, fd, _NO_ID), "number", error.object)])
                other = self._number_of(fd, error.object)
            others[wanted] = other
        return others

    def _number_of(self, fd: int, name: str) -> int:
        body = self._netlink.ask(Request(_netns(_RTM_GETNSID, fd, None), "number", name))
        return int(_ID.unpack(messages.attributes(body, 4)[_NETNSA_NSID])[0])

    def link(self, netns: int, index: int | None, name: str) -> LinkState | None:
        """An interface by its index, or else its *name*; None if it is gone, or its namespace."""
        attributes = messages.attribute(_IFLA_TARGET_NETNSID, _ID.pack(netns))
        if index is None:
            attributes += messages.attribute(_IFLA_IFNAME, name.encode() + b"\0")
        data = messages.message(RTM_GETLINK, 0, _LINK.pack(0, 0, index or 0, 0, 0) + attributes)
        try:
            return messages.parse_link(self._netlink.ask(Request(data, "look at", name)))
        except NetlinkError as exc:
            if exc.errno in _GONE:
                return None
            raise

    def addresses(self, netns: int, name: str) -> dict[int, set[IPInterface]]:
        """All addresses there, by the index of their interface; none if the namespace is gone."""
        attributes = messages.attribute(_IFA_TARGET_NETNSID, _ID.pack(netns))
        data = messages.message(RTM_GETADDR, NLM_F_DUMP, _ADDRESS.pack(0, 0, 0, 0, 0) + attributes)
        found: dict[int, set[IPInterface]] = {}
        try:
            for body in self._netlink.dump(Request(data, "list addresses of", name), RTM_NEWADDR):
                if (address := parse_address(body)) is not None:
                    found.setdefault(_INDEX.unpack_from(body)[0], set()).add(address)
        except NetlinkError as exc:
            if exc.errno not in _GONE:
                raise
        return found


def _netns(kind: int, fd: int, wanted: int | None) -> bytes:
    body = bytes(4) + messages.attribute(_NETNSA_FD, struct.pack("=I", fd))
    return messages.message(
        kind, 0, body if wanted is None else body + messages.attribute(_NETNSA_NSID, _ID.pack(wanted))
    )


def parse_address(body: bytes) -> IPInterface | None:
    """Of a message of RTM_NEWADDR without its header; None for one of another family."""
    family, length, _, _, _ = _ADDRESS.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    found = messages.attributes(body, _ADDRESS.size)
    return ip_interface((found.get(_IFA_LOCAL) or found[_IFA_ADDRESS], length))
