"""The minimum cut of a directed graph, by maximum flow.

The flow is found by Dinic's algorithm, without recursion: Dinic (1970), *Algorithm for solution of a problem
of maximum flow in networks with power estimation*.
"""

from collections import deque

INFINITE = 1 << 60
"""A capacity that no cut can pay."""


class Network:
    """A graph whose edges have whole capacities; nodes are numbers from 0 on."""

    def __init__(self, nodes: int) -> None:
        self.edges: list[list[int]] = [[] for _ in range(nodes)]
        """The edges at each node; edge ``e ^ 1`` is edge e the other way."""
        self.ends: list[int] = []
        self.left: list[int] = []
        """The capacity that flow has left of each edge."""

    def add(self, start: int, end: int, capacity: int) -> None:
        """Adds an edge."""
        self.edges[start].append(len(self.ends))
        self.edges[end].append(len(self.ends) + 1)
        self.ends += [end, start]
        self.left += [capacity, 0]

    def source_side(self, source: int, sink: int) -> list[bool]:
        """For each node, whether the minimum cut nearest to `source` leaves it on its side."""
        while (level := self._levels(source, sink))[sink] >= 0:
            self._saturate(source, sink, level)
        return [depth >= 0 for depth in level]

    def _levels(self, source: int, sink: int) -> list[int]:
        """Distances from `source` in the residual graph, up to that of `sink`; -1 if not reached."""
        level = [-1] * len(self.edges)
        level[source] = 0
        waiting = deque([source])
        while waiting:
            node = waiting.popleft()
            for edge in self.edges[node]:
                end = self.ends[edge]
                if self.left[edge] and level[end] < 0:
                    level[end] = level[node] + 1
                    if end == sink:
                        return level
                    waiting.append(end)
        return level

    def _saturate(self, source: int, sink: int, level: list[int]) -> None:
        """A blocking flow: along every path that goes one level further with each edge."""
        tried = [0] * len(self.edges)
        way: list[int] = []
        node = source
        while True:
            if node == sink:
                amount = min(self.left[edge] for edge in way)
                first = len(way)
                for i, edge in enumerate(way):
                    self.left[edge] -= amount
                    self.left[edge ^ 1] += amount
                    if not self.left[edge]:
                        first = min(first, i)
                node = self.ends[way[first] ^ 1]  # on from where the way is used up first
                del way[first:]
                continue
            edges = self.edges[node]
            while tried[node] < len(edges):
                edge = edges[tried[node]]
                if self.left[edge] and level[self.ends[edge]] == level[node] + 1:
                    break
                tried[node] += 1
            else:
                if node == source:
                    return
                node = self.ends[way.pop() ^ 1]
                tried[node] += 1
                continue
            way.append(edge)
            node = self.ends[edge]
