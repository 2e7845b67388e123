"""Sequoia: the static tree that is best for measured acceptance, and its size for measured costs."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from multispec.errors import UsageError
from multispec.structures.shapes import Parents, check_accuracies, expected_length


def sequoia(acceptance: Sequence[float], nodes: int, depth: int) -> Parents:
    """The tree of ``nodes`` nodes, no deeper than ``depth``, with the largest expected length.

    Chen et al. (2024), "Sequoia: Scalable and Robust Speculative Decoding", section 3.1 (proposition 3.4):
    ``acceptance[b]`` is the measured chance that the b-th child is the one that is accepted, the same at
    every node. With T(m, l, b) the best tree of m nodes (its root one of them), l levels below the root and b
    children at the root,

        T(m, l, b) = max_y T(y, l, b - 1) + p_b max_b' T(m - y, l - 1, b')

    Raises:
        UsageError: no nodes or levels, or chances that are none.

    >>> sequoia([0.6, 0.3], nodes=3, depth=2)
    (-1, 0, -1)
    """
    _check(acceptance, nodes, depth)
    return _Programme(acceptance, nodes, depth).tree(nodes, depth)


def sequoia_sized(
    acceptance: Sequence[float], target_costs: Sequence[float], draft_cost: float, depth: int
) -> Parents:
    """The best tree of any size and depth: the most expected symbols per unit of time.

    Sequoia, section 3.3: ``target_costs[n]`` is the measured time of a pass over a draft of n nodes and the
    last committed symbol, ``draft_cost`` that of drafting one level. The tree with the largest
    (1 + accepted) / (levels draft_cost + target_costs[nodes]) is taken; () where plain decoding is faster.

    Raises:
        UsageError: no costs, costs that are no times, no levels, or chances that are none.

    >>> sequoia_sized([0.8], [1.0, 1.1, 1.2, 9.0], draft_cost=0.1, depth=3)
    (-1, 0)
    """
    nodes = len(target_costs) - 1
    _check(acceptance, max(nodes, 1), depth)
    if nodes < 0 or not all(isfinite(t) and t > 0 for t in target_costs) or not 0 <= draft_cost < np.inf:
        raise UsageError(
            "sequoia_sized needs measured times > 0, target_costs[n] for n drafted nodes, and draft_cost "
            ">= 0: got "
            f"{list(target_costs)} and {draft_cost}. Measure the plain step too, as target_costs[0]."
        )
    best: Parents = ()
    rate = 1 / target_costs[0]
    programme = _Programme(acceptance, max(nodes, 1), depth)
    for levels in range(1, depth + 1):
        for size in range(1, nodes + 1):
            found = programme.value(size, levels) / (levels * draft_cost + target_costs[size])
            if found > rate:
                best, rate = programme.tree(size, levels), found
    return best


def _check(acceptance: Sequence[float], nodes: int, depth: int) -> None:
    check_accuracies([acceptance], nodes, falling=False)
    if depth < 1 or not acceptance:
        raise UsageError(
            f"Sequoia needs depth >= 1 and the chance of one child or more: got depth={depth}, "
            f"{list(acceptance)}. Measure how often the child of each rank is accepted."
        )


class _Programme:
    """T and what it was reached with: ``most[l, m, b]``, and in ``size`` the nodes of the last child."""

    def __init__(self, p: Sequence[float], nodes: int, depth: int) -> None:
        self.p = p
        # No node has more children than there are chances, so some sizes are out of reach of some depths.
        self.most = np.full((depth + 1, nodes + 2, len(p) + 1), -np.inf)
        self.size = np.zeros(self.most.shape, dtype=np.int64)
        self.most[:, 1, 0] = 1
        for level in range(1, depth + 1):
            below = self.most[level - 1].max(-1)
            for b in range(1, len(p) + 1):
                for m in range(2, nodes + 2):
                    self._fill(level, m, b, below)

    def _fill(self, level: int, m: int, b: int, below: NDArray[np.float64]) -> None:
        child = np.arange(1, m)
        # 0 times a tree that cannot be is no tree either.
        possible = np.isfinite(below[child])
        gain = np.where(possible, self.p[b - 1] * np.where(possible, below[child], 0), -np.inf)
        total = self.most[level, m - child, b - 1] + gain
        best = int(total.argmax())
        self.most[level, m, b], self.size[level, m, b] = total[best], child[best]

    def value(self, nodes: int, depth: int) -> float:
        """Expected symbols of a round: the accepted nodes and one more; -inf where no such tree is."""
        return float(self.most[depth, nodes + 1].max())

    def tree(self, nodes: int, depth: int) -> Parents:
        """The tree itself; of fewer nodes where no more have room."""
        while not np.isfinite(self.value(nodes, depth)):
            nodes -= 1
        paths: list[tuple[float, tuple[int, ...]]] = []
        self._collect(nodes + 1, depth, 1.0, (), paths)
        order = sorted(paths, key=lambda one: (-one[0], len(one[1]), one[1]))
        number: dict[tuple[int, ...], int] = {(): -1}
        return tuple(self._numbered(number, path) for _, path in order)

    @staticmethod
    def _numbered(number: dict[tuple[int, ...], int], path: tuple[int, ...]) -> int:
        number[path] = len(number) - 1
        return number[path[:-1]]

    def _collect(
        self,
        m: int,
        level: int,
        above: float,
        path: tuple[int, ...],
        paths: list[tuple[float, tuple[int, ...]]],
    ) -> None:
        b = int(self.most[level, m].argmax())
        while b:
            size = int(self.size[level, m, b])
            worth = above * self.p[b - 1]
            paths.append((worth, (*path, b - 1)))
            self._collect(size, level - 1, worth, (*path, b - 1), paths)
            m, b = m - size, b - 1


def expected_symbols(parents: Parents, acceptance: Sequence[float]) -> float:
    """1 + the expected number of accepted nodes, for chances per rank that are the same at every depth.

    >>> round(expected_symbols((-1, 0, -1), [0.6, 0.3]), 2)
    2.26
    """
    return 1 + expected_length(parents, [acceptance] * len(parents))
