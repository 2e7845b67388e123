"""Trees grown from a drafter's probabilities, round by round: EAGLE-2, OPT-Tree, DySpec, DDTree.

A node is worth the product of q along its path, which stands for its chance of being accepted; the sum over
nodes is the expected number of accepted ones. Children are the best symbols of q and not drawn from it, so
the drafts are point masses: any pruning keeps them exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.errors import UsageError
from multispec.stream import Draft
from multispec.tree import path_to


@runtime_checkable
class Expand(Protocol):
    """A drafter's laws ``q [n, V]`` behind n paths of drafted symbols, () for the last committed one."""

    def __call__(self, paths: Sequence[tuple[int, ...]], /) -> Float[Tensor, "n V"]: ...


class Grown(NamedTuple):
    """Symbols, parents and worth of the nodes of a tree, the most worth first."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    values: tuple[float, ...]

    def draft(self) -> Draft:
        """A draft of point masses."""
        if not self.tokens:
            return Draft.empty()
        return Draft(tokens=torch.tensor(self.tokens), parents=self.parents)


class _Pool:
    """Candidates in the order in which they came up, parents before children."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.values: list[float] = []

    def path(self, node: int) -> tuple[int, ...]:
        return tuple(self.tokens[n] for n in path_to(self.parents, node))

    def worth(self, node: int) -> float:
        return 1.0 if node < 0 else self.values[node]

    def add(self, parent: int, token: int, value: float) -> int:
        self.tokens.append(token)
        self.parents.append(parent)
        self.values.append(value)
        return len(self.tokens) - 1

    def expand(self, expand: Expand, nodes: Sequence[int], width: int) -> list[int]:
        """The ``width`` best children of each of these nodes."""
        laws = expand([self.path(node) for node in nodes])
        best = laws.topk(min(width, laws.shape[-1]))
        found: list[int] = []
        for node, ids, probs in zip(nodes, best.indices.tolist(), best.values.tolist(), strict=True):
            shares = [(x, p) for x, p in zip(ids, probs, strict=True) if p > 0]
            found += [self.add(node, x, self.worth(node) * p) for x, p in shares]
        return found

    def best(self, count: int, among: Sequence[int]) -> list[int]:
        """The ``count`` nodes worth most; of equals the first, so that no child comes without its parent."""
        return sorted(among, key=lambda node: (-self.values[node], node))[:count]

    def tree(self, nodes: Sequence[int]) -> Grown:
        """These nodes, numbered anew."""
        number = {-1: -1} | {node: new for new, node in enumerate(nodes)}
        return Grown(
            tuple(self.tokens[node] for node in nodes),
            tuple(number[self.parents[node]] for node in nodes),
            tuple(self.values[node] for node in nodes),
        )


def eagle2(expand: Expand, *, nodes: int = 60, width: int = 10, depth: int = 6) -> Grown:
    """Beams of ``width`` for ``depth`` levels, then the ``nodes`` candidates worth most.

    Li et al. (2024), "EAGLE-2: Faster Inference of Language Models with Dynamic Draft Trees", sections 4.1
    (expansion) and 4.2 (reranking). ``expand`` is asked once per level. Where it gives no mass a beam ends,
    as in Dynamic Depth Decoding (Brown et al. 2024), and its nodes stay candidates.

    Raises:
        UsageError: a size below 1.
    """
    require_sizes(nodes=nodes, width=width, depth=depth)
    pool, beams = _Pool(), [-1]
    for _ in range(depth):
        beams = pool.best(width, pool.expand(expand, beams, width))
        if not beams:
            break
    return pool.tree(pool.best(nodes, range(len(pool.tokens))))


def opt_tree(expand: Expand, *, nodes: int = 60, depth: int = 10, threshold: float = 0.2) -> Grown:
    """The ``nodes`` best of all candidates, level by level, until a level adds less than ``threshold``.

    Wang et al. (2024), "OPT-Tree: Speculative Decoding with Adaptive Draft Tree Structure", algorithm 1:
    each level expands the ``nodes`` best nodes of the level before; E(A), the sum of their worth, grows with
    every level, and drafting stops where it grows by less than ``threshold`` (delta).

    Raises:
        UsageError: a size below 1.
    """
    require_sizes(nodes=nodes, depth=depth)
    pool, level, kept, expected = _Pool(), [-1], list[int](), 0.0
    for _ in range(depth):
        level = pool.best(nodes, pool.expand(expand, level, nodes))
        kept = pool.best(nodes, sorted({*kept, *level}))
        before, expected = expected, sum(pool.values[node] for node in kept)
        level = [node for node in level if node in {*kept}]
        if not level or expected - before < threshold:
            break
    return pool.tree(kept)


def dyspec(expand: Expand, *, nodes: int = 60) -> Grown:
    """The candidate worth most becomes a node, one after the other, and its children candidates.

    Xiong et al. (2024), "DySpec: Faster Speculative Decoding with Dynamic Token Tree Structure", algorithm 1,
    with the best symbols of q in place of drawn ones. The optimum of ``nodes`` nodes; ``expand`` is asked
    once per node.

    Raises:
        UsageError: no nodes.
    """
    require_sizes(nodes=nodes)
    pool, heap, chosen = _Pool(), list[tuple[float, int]](), list[int]()
    node = -1
    while len(chosen) < nodes:
        for child in pool.expand(expand, [node], nodes - len(chosen)):
            heapq.heappush(heap, (-pool.values[child], child))
        if not heap:
            break
        node = heapq.heappop(heap)[1]
        chosen.append(node)
    return pool.tree(chosen)


def ddtree(marginals: Float[Tensor, "D V"], *, nodes: int = 60) -> Grown:
    """The ``nodes`` paths worth most where each position has one law, whatever came before it.

    DDTree, for drafters that see a block at once (DFlash, Medusa): ``marginals[d]`` is the law of the d-th
    drafted position. A heap of paths: the best becomes a node, and offers its next sibling and its first
    child.

    Raises:
        UsageError: no nodes.

    >>> ddtree(torch.tensor([[0.6, 0.4], [0.9, 0.1]]), nodes=3).tokens
    (0, 0, 1)
    """
    require_sizes(nodes=nodes)
    best = marginals.topk(min(nodes, marginals.shape[-1]))
    ids, probs = best.indices.tolist(), best.values.tolist()
    pool, heap = _Pool(), list[tuple[float, int, int, int, int]]()

    def offer(parent: int, d: int, rank: int) -> None:
        if d < len(ids) and rank < len(ids[d]) and probs[d][rank] > 0:
            heapq.heappush(heap, (-pool.worth(parent) * probs[d][rank], d, len(heap), parent, rank))

    offer(-1, 0, 0)
    while heap and len(pool.tokens) < nodes:
        value, d, _, parent, rank = heapq.heappop(heap)
        node = pool.add(parent, ids[d][rank], -value)
        offer(parent, d, rank + 1)
        offer(node, d + 1, 0)
    return pool.tree(range(len(pool.tokens)))


def require_sizes(**sizes: int) -> None:
    """Hold sizes to being sizes.

    Raises:
        UsageError: one below 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"A tree needs {name} >= 1: got {size}. drafter=None decodes plainly.")
