"""Trees that follow a drafter's probabilities, as structures that drafters take by name."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.stream import Draft
from multispec.structures.dynamic import ddtree, dyspec, eagle2, opt_tree, require_sizes
from multispec.structures.growing import Ground, Growth


@dataclass(frozen=True)
class Eagle2Tree:
    """Beams of ``width`` for ``depth`` levels, then the candidates worth most (``eagle2``).

    Li et al. (2024), "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", section 4.

    Raises:
        UsageError: a size below 1.
    """

    name: ClassVar[str] = "eagle2"
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2406.16858"
    width: int = 10
    depth: int = 6

    def __post_init__(self) -> None:
        require_sizes(width=self.width, depth=self.depth)

    def grow(self, ground: Ground) -> Draft:
        """Point masses."""
        return eagle2(ground.expand, nodes=ground.nodes, width=self.width, depth=self.depth).draft()


@dataclass(frozen=True)
class OptTree:
    """Level by level the best of all candidates, until a level adds too little (``opt_tree``).

    Wang et al. (2024), "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure", algorithm 1.

    Raises:
        UsageError: a size below 1.
    """

    name: ClassVar[str] = "opt_tree"
    paper: ClassVar[str] = "Wang et al. 2024, arXiv 2406.17276"
    depth: int = 10
    threshold: float = 0.2

    def __post_init__(self) -> None:
        require_sizes(depth=self.depth)

    def grow(self, ground: Ground) -> Draft:
        """Point masses."""
        found = opt_tree(ground.expand, nodes=ground.nodes, depth=self.depth, threshold=self.threshold)
        return found.draft()


@dataclass(frozen=True)
class DDTree:
    """The best paths where each position has one law, that behind the best path so far (``ddtree``).

    DDTree (2026), section 3, for drafters that see a block at once; one that goes symbol by symbol gives the
    law behind its best path, ``depth`` of them, in place of per-position marginals.

    Raises:
        UsageError: a size below 1.
    """

    name: ClassVar[str] = "ddtree"
    paper: ClassVar[str] = "DDTree 2026, arXiv 2604.12989"
    depth: int = 8

    def __post_init__(self) -> None:
        require_sizes(depth=self.depth)

    def grow(self, ground: Ground) -> Draft:
        """Point masses."""
        path, marginals = tuple[int, ...](), list[Tensor]()
        while len(path) < self.depth:
            q = ground.expand([path])
            if float(q.sum()) == 0:
                break
            marginals.append(q)
            path = (*path, int(q.argmax()))
        return ddtree(torch.cat(marginals), nodes=ground.nodes).draft() if marginals else Draft.empty()


@dataclass(frozen=True)
class DySpecTree:
    """The place worth most gets the next node, drawn there without replacement.

    Xiong et al. (2024), "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure", algorithm 1:
    a place is worth v; the symbol x drawn there, with probability r(x) among those that are left, makes a
    place behind it worth v r(x) and one beside it worth v (1 - r(x)). Where to draw is decided by what has
    been drawn already, so recursive rejection stays exact. With ``sample=False``, and where drafts are
    guesses, the best symbols stand in for drawn ones (``dyspec``). A law is asked for per node.

    >>> DySpecTree().sample
    True
    """

    name: ClassVar[str] = "dyspec"
    paper: ClassVar[str] = "Xiong et al. 2024, arXiv 2410.11744"
    sample: bool = True

    def grow(self, ground: Ground) -> Draft:
        """Node by node."""
        if ground.noise is None or not self.sample:
            return dyspec(ground.expand, nodes=ground.nodes).draft()
        growth, laws, left = Growth(), dict[int, Tensor](), dict[int, Tensor]()
        depth = {-1: 0}
        # (minus the worth, order of arrival, node that it is behind)
        heap: list[tuple[float, int, int]] = [(-1.0, 0, -1)]
        while heap and len(growth) < ground.nodes:
            worth, order, parent = heapq.heappop(heap)
            if parent not in laws:
                laws[parent] = ground.expand([growth.path(parent)])[0]
                left[parent] = laws[parent].clone()
            rest = left[parent]
            total = float(rest.sum())
            if total <= 0:
                continue
            x = ground.draw(rest, depth[parent], len(growth))
            share = float(rest[x]) / total
            rest[x] = 0
            node = growth.add(parent, x, laws[parent])
            depth[node] = depth[parent] + 1
            heapq.heappush(heap, (worth * share, 2 * node + 1, node))
            heapq.heappush(heap, (worth * (1 - share), 2 * node + 2, parent))
        return growth.draft(ground, "without_replacement")
