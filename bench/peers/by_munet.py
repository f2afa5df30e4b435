"""A star of munet's nodes on one of its networks; prints the seconds that it took, and until it was deleted."""

import asyncio
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

from munet import parser


def describe(count: int) -> dict:
    nodes = [
        {"name": f"h{n}", "connections": [{"to": "lan", "name": "eth0", "ip": f"10.1.{n // 250}.{n % 250 + 1}/8"}]}
        for n in range(count)
    ]
    return {"version": 1, "topology": {"networks": [{"name": "lan", "ip": "10.0.0.1/8"}], "nodes": nodes}}


async def main(folder: str) -> None:
    path = Path(folder) / "munet.json"
    path.write_text(json.dumps(describe(int(sys.argv[1]))))
    begin = time.perf_counter()
    net = await parser.async_build_topology(parser.get_config(str(path)), rundir=f"{folder}/run")
    await net.run()
    created = time.perf_counter()
    await net.async_delete()
    gone = time.perf_counter()
    print(json.dumps({"created": created - begin, "gone": gone - created}))


if __name__ == "__main__":
    logging.disable()
    with tempfile.TemporaryDirectory() as made:
        asyncio.run(main(made))
