"""What the running kernel can do, for tests of what not every kernel has.

    pytestmark = [pytest.mark.vm, needs_kernel("sch_netem", "8021q")]

Such tests run directly where the kernel can; anywhere, ``make test-vm`` runs them.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import shutil
import subprocess
import sys

import pytest

#: set by tests/vm/guest.sh. There, what is missing fails.
IN_VM = "NSORCH_VM" in os.environ
#: Linux before 6.2 renames no interface that is up
renames_live = pytest.mark.skipif(
    tuple(map(int, re.findall(r"\d+", platform.release())[:2])) < (6, 2),
    reason="needs Linux 6.2: renames of what is up",
)
_PATH = os.environ["PATH"] + ":/usr/sbin:/sbin:/usr/lib/frr"

# Asks in a network namespace of its own for a link or a qdisc of the kind: the error of a kernel that doesn't know it
# is another one than that of a link of which too little is said. The kernel may load a module, as for anybody.
_PROBE = """
import ctypes, json, os, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
if libc.unshare(CLONE_NEWNET) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
    sys.exit(json.dumps(sys.argv[1:]))
sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
attribute = lambda kind, data: struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)
def ask(kind, flags, body):
    sock.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
    return -struct.unpack_from("=i", sock.recv(65536), 16)[0]
def link(kind):
    info = attribute(18, attribute(1, kind.encode()))
    return ask(16, 0x605, struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, b"probe") + info) != 95
def qdisc(kind):
    body = struct.pack("=BxxxiIII", 0, 1, 0, 0xFFFFFFFF, 0)
    return ask(36, 0x605, body + attribute(1, kind.encode())) != 2
LINKS = {"8021q": "vlan", "bonding": "bond"}
missing = []
for name in sys.argv[1:]:
    if name.startswith("sch_"):
        there = qdisc(name[4:])
    elif name in ("8021q", "bonding", "bridge", "dummy", "ifb", "ipvlan", "macvlan", "veth", "vrf", "vxlan", "wireguard"):
        there = link(LINKS.get(name, name))
    elif name == "tun":
        there = os.path.exists("/dev/net/tun")
    elif name == "nf_tables":
        try:
            there = bool(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        except OSError:
            there = False
    else:
        there = os.path.exists("/sys/module/" + name)
    if not there:
        missing.append(name)
print(json.dumps(missing))
"""


@functools.cache
def missing_in_kernel(*modules: str) -> tuple[str, ...]:
    """Those of *modules* that neither are in the kernel nor can be loaded."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", _PROBE, *modules], stdout=subprocess.PIPE, text=True, check=False
    )
    return modules if done.returncode else tuple(json.loads(done.stdout))


def needs_kernel(*modules: str) -> pytest.MarkDecorator:
    """Skip where the kernel lacks one of *modules*, by their names in the kernel such as "sch_netem"."""
    missing = () if IN_VM else missing_in_kernel(*modules)
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make test-vm")


def needs_program(name: str, package: str) -> pytest.MarkDecorator:
    """Skip where *name*, of Debian's *package*, isn't installed."""
    missing = not IN_VM and shutil.which(name, path=_PATH) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed (Debian: {package})")


needs_tun = pytest.mark.skipif(
    not IN_VM and not os.access("/dev/net/tun", os.W_OK), reason="this user may not open /dev/net/tun: make test-vm"
)
