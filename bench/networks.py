"""Large networks to be measured: as sparse as the largest real ones."""

from __future__ import annotations

import random

import nsorch

ROUTERS, LINKS = 754, 899  # the largest network of the Internet Topology Zoo


def sparse(routers: int, seed: int = 1) -> nsorch.Topology:
    """A connected network of so many *routers*, with the share of links that the largest real one has."""
    choose = random.Random(seed)
    links = routers * LINKS // ROUTERS
    edges = {(choose.randrange(max(0, number - 30), number), number) for number in range(1, routers)}
    while len(edges) < links:
        a, b = sorted(choose.sample(range(routers), 2))
        if b - a < 60:  # real networks are long
            edges.add((a, b))
    topology = nsorch.Topology(f"sparse-{routers}", routing="shortest-path")
    for number in range(routers):
        topology.worker(f"n{number}", forward=True)
    for a, b in sorted(edges):
        topology.link(f"n{a}", f"n{b}")
    return topology
