"""Static trees: parents that do not depend on what is drafted, siblings in the order of their rank.

Nodes stand in the order in which they are worth having, so the first n of them are a tree too.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from math import isfinite

from multispec.errors import UsageError

Parents = tuple[int, ...]


def from_ranks(paths: Iterable[Sequence[int]]) -> Parents:
    """Parents of a tree given as rank paths, as Medusa writes them: (0, 2) is the third child of the first.

    Raises:
        UsageError: a path whose parent, or whose sibling of the rank before, does not come first.

    >>> from_ranks([(0,), (1,), (0, 0)])
    (-1, -1, 0)
    """
    known: dict[tuple[int, ...], int] = {(): -1}
    parents: list[int] = []
    for path in map(tuple, paths):
        before = (*path[:-1], path[-1] - 1) if path and path[-1] else None
        if not path or path in known or path[:-1] not in known or (before and before not in known):
            raise UsageError(
                f"Rank paths name each node once, behind its parent and its sibling of the rank before: got "
                f"{path} behind {list(known)[1:]}. Sort them by length, then by rank."
            )
        known[path] = len(parents)
        parents.append(known[path[:-1]])
    return tuple(parents)


def medusa() -> Parents:
    """The 63 nodes of Medusa for a 7B model (Cai et al. 2024, appendix; calibrated on Alpaca).

    >>> len(medusa())
    63
    """
    return from_ranks(map(_digits, _MEDUSA.split()))


def eagle() -> Parents:
    """The 25 nodes of EAGLE (Li et al. 2024, figure 7).

    >>> len(eagle())
    25
    """
    return from_ranks(map(_digits, _EAGLE.split()))


def _digits(word: str) -> tuple[int, ...]:
    return tuple(map(int, word))


# Ranks below ten, so a digit each.
_MEDUSA = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 "
    "004 005 "
    "0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)
_EAGLE = "0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"


def expansion(widths: Sequence[int]) -> Parents:
    """Every node of depth d has ``widths[d]`` children: SpecInfer's <k1, k2, ...> (Miao et al. 2024, sec. 3).

    Raises:
        UsageError: a width below 1.

    >>> expansion((2, 1))
    (-1, -1, 0, 1)
    """
    if any(width < 1 for width in widths):
        raise UsageError(
            f"expansion needs widths >= 1: got {tuple(widths)}. Leave out the last depths instead."
        )
    parents: list[int] = []
    level = [-1]
    for width in widths:
        first = len(parents)
        parents += [parent for parent in level for _ in range(width)]
        level = list(range(first, len(parents)))
    return tuple(parents)


def calibrated(accuracies: Sequence[Sequence[float]], nodes: int) -> Parents:
    """The ``nodes`` best paths, where the guess of rank r at depth d is right with ``accuracies[d][r]``.

    Medusa (Cai et al. 2024, section 2.3.3): a path is worth the product of its accuracies; the node with
    the largest product is added until there are enough. That is the tree with the largest expected length.

    Raises:
        UsageError: no nodes, accuracies outside [0, 1] or rising with the rank.

    >>> calibrated([[0.6, 0.3], [0.5, 0.1]], nodes=4)
    (-1, -1, 0, 1)
    """
    check_accuracies(accuracies, nodes)
    parents: list[int] = []
    # (minus the product, depth, order) keeps equals in the order in which they came up.
    heap: list[tuple[float, int, int, int, int, float]] = []
    order = 0

    def offer(parent: int, depth: int, rank: int, above: float) -> None:
        nonlocal order
        if depth < len(accuracies) and rank < len(accuracies[depth]) and accuracies[depth][rank] > 0:
            heapq.heappush(heap, (-above * accuracies[depth][rank], depth, order, parent, rank, above))
            order += 1

    offer(-1, 0, 0, 1.0)
    while heap and len(parents) < nodes:
        worth, depth, _, parent, rank, above = heapq.heappop(heap)
        node = len(parents)
        parents.append(parent)
        offer(parent, depth, rank + 1, above)
        offer(node, depth + 1, 0, -worth)
    return tuple(parents)


def check_accuracies(accuracies: Sequence[Sequence[float]], nodes: int, *, falling: bool = True) -> None:
    """Hold measured shares to what shares can be.

    Raises:
        UsageError: no nodes, shares outside [0, 1], or rising with the rank where they must not.
    """
    if nodes < 1 or not accuracies:
        raise UsageError(
            f"A tree needs nodes >= 1 and accuracies: got nodes={nodes}, {len(accuracies)} depths. Measure "
            "how often the guess of each rank is right, or use expansion(widths)."
        )
    for depth, row in enumerate(accuracies, 1):
        sound = all(isfinite(a) and 0 <= a <= 1 for a in row)
        if not sound or (falling and any(a < b for a, b in zip(row, row[1:], strict=False))):
            raise UsageError(
                f"Accuracies per rank lie in [0, 1] and do not rise with the rank: got {list(row)} at depth "
                f"{depth}. Sort them from the best guess down."
            )


def expected_length(parents: Parents, accuracies: Sequence[Sequence[float]]) -> float:
    """Expected number of accepted nodes: the sum over nodes of the product of accuracies on their path.

    >>> round(expected_length((-1, -1, 0), [[0.6, 0.3], [0.5]]), 3)
    1.2
    """
    worth: list[float] = []
    siblings: dict[int, int] = {}
    depths: list[int] = []
    for parent in parents:
        rank = siblings[parent] = siblings.get(parent, -1) + 1
        depths.append(0 if parent < 0 else depths[parent] + 1)
        above = 1.0 if parent < 0 else worth[parent]
        row = accuracies[depths[-1]] if depths[-1] < len(accuracies) else ()
        worth.append(above * (row[rank] if rank < len(row) else 0.0))
    return sum(worth)
