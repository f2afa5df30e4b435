"""Shortest paths between the nodes of a network, all of them: pure, no kernel."""

from __future__ import annotations

import collections
import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

#: edges from each node: (node, cost)
Graph = Sequence[Sequence[tuple[int, int]]]


def whole_costs(costs: Iterable[float]) -> dict[float, int]:
    """Each cost as a whole number of the same unit, to twelve digits: sums in any order are equal, or are not."""
    from fractions import Fraction

    exact = {cost: Fraction(f"{cost:.12g}") for cost in costs}
    unit = math.lcm(*(value.denominator for value in exact.values()))
    return {cost: int(value * unit) for cost, value in exact.items()}


def first_edges(
    graph: Graph, source: int, first: Sequence[tuple[int, int]], *, transit: AbstractSet[int] | None = None
) -> dict[int, list[int]]:
    """Where all shortest paths from *source* begin, by Dijkstra's algorithm.

    :param graph: the edges of all nodes but *source*. A cost of 0 is allowed towards a node of a higher number
    :param first: the edges of *source*
    :param transit: nodes that forward for others; all if None
    :return: lists of targets, by the set of *first* edges that their shortest paths begin with: bit *i* stands for
        ``first[i]``. What can't be reached is absent
    """
    best = [math.inf] * len(graph)
    masks = [0] * len(graph)
    best[source] = 0
    queue: list[tuple[int, int]] = []
    for number, (node, cost) in enumerate(first):
        if cost < best[node]:
            best[node] = cost
            masks[node] = 0
            heapq.heappush(queue, (cost, node))
        if cost == best[node]:
            masks[node] |= 1 << number
    found: dict[int, list[int]] = {}
    while queue:
        distance, node = heapq.heappop(queue)
        if distance != best[node]:
            continue
        mask = masks[node]
        found.setdefault(mask, []).append(node)
        if transit is not None and node not in transit:
            continue
        for target, cost in graph[node]:
            reached = distance + cost
            if reached < best[target]:
                best[target] = reached
                masks[target] = mask
                heapq.heappush(queue, (reached, target))
            elif reached == best[target]:
                masks[target] |= mask
    return found


def connected(nodes: Iterable[str], pairs: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The components of an undirected graph, in the order of their first nodes."""
    neighbours: dict[str, list[str]] = {node: [] for node in nodes}
    for a, b in pairs:
        neighbours[a].append(b)
        neighbours[b].append(a)
    seen: set[str] = set()
    found = []
    for start in neighbours:
        if start in seen:
            continue
        component = {start}
        todo = collections.deque([start])
        while todo:
            for other in neighbours[todo.popleft()]:
                if other not in component:
                    component.add(other)
                    todo.append(other)
        seen |= component
        found.append(component)
    return found
