"""Token trees: depths, ancestors, masks and paths of a draft given by its parents.

Node -1 is the last committed symbol, the root. A chain is a tree that does not branch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def depths(parents: tuple[int, ...]) -> tuple[int, ...]:
    """The depth of each node; children of the root have depth 1.

    >>> depths((-1, 0, 0, 1))
    (1, 2, 2, 3)
    """
    found: list[int] = []
    for parent in parents:
        found.append(1 if parent < 0 else found[parent] + 1)
    return tuple(found)


def path_to(parents: Sequence[int], node: int) -> tuple[int, ...]:
    """The nodes from the root's child down to ``node``, itself included; () for the root.

    >>> path_to((-1, 0, 0, 1), 3)
    (0, 1, 3)
    """
    path: list[int] = []
    while node >= 0:
        path.append(node)
        node = parents[node]
    return tuple(reversed(path))


@lru_cache(maxsize=1024)
def children(parents: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """The children of every node that has any, in draft order; the root is -1.

    >>> children((-1, 0, 0))
    {-1: (0,), 0: (1, 2)}
    """
    found: dict[int, list[int]] = {}
    for node, parent in enumerate(parents):
        found.setdefault(parent, []).append(node)
    return {parent: tuple(nodes) for parent, nodes in found.items()}


@lru_cache(maxsize=256)
def ancestor_mask(parents: tuple[int, ...]) -> Tensor:
    """Bool ``[D + 1, D + 1]``: row i sees column j; index 0 is the root, node n is n + 1.

    >>> ancestor_mask((-1, -1)).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 0, 1]]
    """
    mask = torch.eye(len(parents) + 1, dtype=torch.bool)
    mask[:, 0] = True
    for node, parent in enumerate(parents):
        mask[node + 1] |= mask[parent + 1]
    return mask


@lru_cache(maxsize=1024)
def chain_parents(length: int) -> tuple[int, ...]:
    """The parents of a chain: one tuple per length, so that chains are known by identity."""
    return tuple(range(-1, length - 1))


def is_chain(parents: tuple[int, ...]) -> bool:
    """True when no node branches."""
    chain = chain_parents(len(parents))
    return parents is chain or parents == chain
