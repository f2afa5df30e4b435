"""Shortest paths between the nodes of a network, all of them: pure, no kernel."""

from __future__ import annotations

import collections
import heapq
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

# Sums of the same weights in another order may differ in their last bits.
_EQUAL = 1e-9


@frozen
class Hop:
    """To neighbour *node*, over *edge*: the caller's own key of a link or a bridge."""

    node: str
    edge: int | str


@frozen
class Edge:
    """A way from one node to a neighbour, at a cost above 0."""

    to: str
    key: int | str
    weight: float = 1.0


def next_hops(
    graph: Mapping[str, Sequence[Edge]], *, transit: AbstractSet[str] | None = None
) -> dict[str, dict[str, tuple[Hop, ...]]]:
    """The first hops of all shortest paths: ``result[source][target]``, in a fixed order; unreachable ones are absent.

    :param graph: the neighbours of each node
    :param transit: nodes that forward for others; all if None
    """
    return {source: _from(source, graph, transit) for source in graph}


def _from(
    source: str, graph: Mapping[str, Sequence[Edge]], transit: AbstractSet[str] | None
) -> dict[str, tuple[Hop, ...]]:
    """Dijkstra's algorithm, with the set of first hops carried along."""
    best = {source: 0.0}
    first: dict[str, dict[Hop, None]] = {source: {}}
    queue = [(0.0, source)]
    done = set()
    while queue:
        distance, node = heapq.heappop(queue)
        if node in done:
            continue
        done.add(node)
        if node != source and transit is not None and node not in transit:
            continue
        for edge in graph[node]:
            if edge.to in done:
                continue
            hops = {Hop(edge.to, edge.key): None} if node == source else first[node]
            reached = distance + edge.weight
            known = best.get(edge.to)
            if known is None or reached < known - _EQUAL * known:
                best[edge.to] = reached
                first[edge.to] = dict(hops)
                heapq.heappush(queue, (reached, edge.to))
            elif reached <= known + _EQUAL * known:
                first[edge.to].update(hops)
    del first[source]
    return {target: tuple(hops) for target, hops in first.items()}


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
