"""A star of Mininet's hosts on a Linux bridge; prints the seconds that it took, and until it was stopped."""

import json
import sys
import time

from mininet.net import Mininet
from mininet.nodelib import LinuxBridge
from mininet.topo import SingleSwitchTopo


def main() -> None:
    count = int(sys.argv[1])
    begin = time.perf_counter()
    net = Mininet(topo=SingleSwitchTopo(count), switch=LinuxBridge, controller=None)
    net.start()
    created = time.perf_counter()
    net.stop()
    gone = time.perf_counter()
    print(json.dumps({"created": created - begin, "gone": gone - created}))


if __name__ == "__main__":
    main()
