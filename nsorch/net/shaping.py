"""Gives interfaces their queueing disciplines: synchronous, for the kernel's thread."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

from attrs import evolve

from nsorch.errors import NetlinkError
from nsorch.net import messages, qdiscs
from nsorch.net.netlink import Netlink, Request

if TYPE_CHECKING:
    from nsorch.net.netlink import NetnsHandle
    from nsorch.net.qdiscs import QdiscPlan

_LOOPBACK = 1
# Packets that wait when emulation ends are waited for so long, in seconds, and looked after so often.
_DRAIN, _STEP = 2.0, 0.005
_FAST = 1e12


class Shaper:
    """:param fabric: a socket of the fabric's

    Where the kernel has netem, it does everything, also the rate: a change of anything is a change in place then, in
    which no packet is lost; two kinds, one below the other, would have to be put together and taken apart.
    """

    def __init__(self, fabric: Netlink) -> None:
        self._fabric = fabric
        self._netem = False

    def has_netem(self) -> bool:
        """Whether this kernel can do more than rates; it loads a module for that by itself, if it has one.

        :raises NetlinkError: it didn't say
        """
        if not self._netem:  # else it would be asked again: somebody may have loaded it
            request = Request(qdiscs.ask_for_netem(_LOOPBACK), "look for", "netem")
            numbers = [error.errno for error in self._fabric.transact([request])]
            self._netem = numbers == [errno.EINVAL]
            if not self._netem and numbers != [errno.ENOENT]:
                raise NetlinkError("look for", "netem", errno=(numbers or [0])[0] or 0)
        return self._netem

    def requests(self, index: int, plan: QdiscPlan, ifname: str) -> list[Request]:
        """For a new interface."""
        if plan.is_nothing:
            return []
        return [self._request(index, plan, ifname, table=plan.distribution != "uniform")]

    def _request(self, index: int, plan: QdiscPlan, ifname: str, *, table: bool) -> Request:
        if self.has_netem():
            return Request(qdiscs.replace_netem(index, plan, table=table), "set the emulation of", ifname)
        return Request(qdiscs.replace_tbf(index, plan), "set the rate of", ifname)

    def change(self, handle: NetnsHandle | None, ifname: str, plan: QdiscPlan, before: QdiscPlan) -> None:
        """Have *ifname* do as *plan* says, without losing what it holds. Back to nothing, that is waited for.

        :raises NetlinkError: the kernel refused
        """
        netlink = self._fabric if handle is None else Netlink(handle.sock, handle.name)
        state = messages.parse_link(netlink.ask(Request(messages.get_link(name=ifname), "look at", ifname)))
        if not plan.is_nothing:
            netlink.execute([self._request(state.index, plan, ifname, table=True)])
        elif not before.is_nothing:
            fast = evolve(plan, rate=0.0 if self.has_netem() else _FAST)
            netlink.execute([self._request(state.index, fast, ifname, table=True)])
            self._drain(netlink, state.index, ifname)
            netlink.execute([Request(qdiscs.delete(state.index), "end the emulation of", ifname)])

    def _drain(self, netlink: Netlink, index: int, ifname: str) -> None:
        request = Request(qdiscs.get(index, netem=self.has_netem()), "look at the queue of", ifname)
        deadline = time.monotonic() + _DRAIN
        while qdiscs.queued(netlink.ask(request)) and time.monotonic() < deadline:
            time.sleep(_STEP)
