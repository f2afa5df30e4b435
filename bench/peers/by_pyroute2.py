"""A star of network namespaces by pyroute2, as its guide has it; prints the seconds that it took, and until its last
interface was gone."""

import json
import sys
import time

from pyroute2 import IPRoute, NetNS, netns


def create(ipr: IPRoute, count: int) -> None:
    ipr.link("add", ifname="br0", kind="bridge")
    bridge = ipr.link_lookup(ifname="br0")[0]
    ipr.addr("add", index=bridge, address="10.0.0.1", prefixlen=8)
    ipr.link("set", index=bridge, state="up")
    for number in range(count):
        name = f"h{number}"
        netns.create(name)
        ipr.link("add", ifname=f"v{number}", kind="veth", peer={"ifname": "eth0", "net_ns_fd": name})
        ipr.link("set", index=ipr.link_lookup(ifname=f"v{number}")[0], master=bridge, state="up")
        with NetNS(name) as host:
            host.link("set", index=1, state="up")
            eth0 = host.link_lookup(ifname="eth0")[0]
            host.link("set", index=eth0, state="up")
            host.addr("add", index=eth0, address=f"10.1.{number // 250}.{number % 250 + 1}", prefixlen=8)
            host.route("add", dst="0.0.0.0/0", gateway="10.0.0.1")


def remove(ipr: IPRoute, count: int) -> None:
    for number in range(count):
        netns.remove(f"h{number}")
    ipr.link("del", ifname="br0")
    while any(link.get("ifname").startswith("v") for link in ipr.get_links()):
        time.sleep(0.005)


def main() -> None:
    count = int(sys.argv[1])
    with IPRoute() as ipr:
        begin = time.perf_counter()
        create(ipr, count)
        created = time.perf_counter()
        remove(ipr, count)
        gone = time.perf_counter()
    print(json.dumps({"created": created - begin, "gone": gone - created}))


if __name__ == "__main__":
    main()
