"""Shortest paths between the nodes of a network, all of them: pure, no kernel."""

from __future__ import annotations

import collections
import heapq
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

# Sums of the same weights in another order may differ in their last bits.
_EQUAL = 1e-9


@frozen
class Edge:
    """A way from one node to a neighbour, by number, at a cost above 0. *key* is the caller's."""

    to: int
    key: object
    weight: float = 1.0


def first_edges(
    graph: Sequence[Sequence[Edge]], source: int, *, transit: AbstractSet[int] | None = None
) -> dict[int, list[int]]:
    """Where all shortest paths from *source* begin, by Dijkstra's algorithm.

    :param graph: the edges of each node, by its number
    :param transit: nodes that forward for others; all if None
    :return: lists of targets, by the set of edges of *source* that their shortest paths begin with: bit *i* stands for
        ``graph[source][i]``. What can't be reached is absent
    """
    best: dict[int, float] = {source: 0.0}
    first: dict[int, int] = {source: 0}
    done: set[int] = set()
    queue = [(0.0, source)]
    while queue:
        distance, node = heapq.heappop(queue)
        if node in done:
            continue
        done.add(node)
        if node != source and transit is not None and node not in transit:
            continue
        edges = first[node]
        for number, edge in enumerate(graph[node]):
            target = edge.to
            if target in done:
                continue
            if node == source:
                edges = 1 << number
            reached = distance + edge.weight
            known = best.get(target)
            if known is None or reached < known - _EQUAL * known:
                best[target] = reached
                first[target] = edges
                heapq.heappush(queue, (reached, target))
            elif reached <= known + _EQUAL * known:
                first[target] |= edges
    del first[source]
    groups: dict[int, list[int]] = {}
    for target, edges in first.items():
        groups.setdefault(edges, []).append(target)
    return groups


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
