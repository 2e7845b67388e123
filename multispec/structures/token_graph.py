"""A graph of tokens: hypotheses that end alike share what follows, and are unfolded to be verified."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

from multispec.stream import Draft
from multispec.structures.dynamic import require_sizes
from multispec.structures.growing import Ground
from multispec.structures.prefix_tree import PrefixTree

_State = tuple[int, ...]


@dataclass(frozen=True)
class TokenGraph:
    """Merge hypotheses whose last ``suffix`` symbols are equal; draft behind each such state once.

    Gong et al. (2024), "Graph-Structured Speculative Decoding", section 3: hypotheses of a draft model often
    come to say the same a few symbols later, so they form a directed graph, and what follows a shared run is
    drafted once. At each of ``depth`` levels the ``width`` best new states are asked for their ``width`` best
    successors. The graph is unfolded into the tree of the ``ground.nodes`` paths with the largest product of
    q, which may run through a state several times: that is where nodes come from that cost no pass. Point
    masses.

    Raises:
        UsageError: a size below 1.

    >>> TokenGraph(suffix=1).suffix
    1
    """

    name: ClassVar[str] = "token_graph"
    paper: ClassVar[str] = "Gong et al. 2024, arXiv 2407.16207"
    width: int = 4
    depth: int = 5
    suffix: int = 2

    def __post_init__(self) -> None:
        require_sizes(width=self.width, depth=self.depth, suffix=self.suffix)

    def grow(self, ground: Ground) -> Draft:
        """The graph, then the tree."""
        return self._unfolded(self._graph(ground), ground.nodes)

    def _state(self, path: _State) -> _State:
        """The last symbols; up to where there are enough of them, the path itself."""
        return path[-self.suffix :] if len(path) >= self.suffix else (-1, *path)

    def _graph(self, ground: Ground) -> dict[_State, list[tuple[int, float]]]:
        graph: dict[_State, list[tuple[int, float]]] = {}
        level: list[tuple[float, _State]] = [(1.0, ())]
        for _ in range(self.depth):
            laws = ground.expand([path for _, path in level])
            found: dict[_State, tuple[float, _State]] = {}
            for (worth, path), q in zip(level, laws, strict=True):
                best = q.topk(min(self.width, q.shape[-1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                graph[self._state(path)] = edges = [(x, p) for x, p in pairs if p > 0]
                for x, p in edges:
                    state = self._state((*path, x))
                    if found.get(state, (0.0, ()))[0] < worth * p:
                        found[state] = (worth * p, (*path, x))
            new = [one for state, one in found.items() if state not in graph]
            level = sorted(new, key=lambda one: -one[0])[: self.width]
            if not level:
                break
        return graph

    def _unfolded(self, graph: dict[_State, list[tuple[int, float]]], nodes: int) -> Draft:
        tree, order = PrefixTree(nodes), 0
        # (minus the worth, order of arrival, parent, path)
        heap: list[tuple[float, int, int, _State]] = []

        def offer(parent: int, path: _State, worth: float) -> None:
            nonlocal order
            for x, p in graph.get(self._state(path), ()):
                heapq.heappush(heap, (-worth * p, order, parent, (*path, x)))
                order += 1

        offer(-1, (), 1.0)
        while heap and len(tree) < nodes:
            worth, _, parent, path = heapq.heappop(heap)
            node = tree.grow(parent, path[-1])
            if node is not None:
                offer(node, path, -worth)
        return tree.draft()
