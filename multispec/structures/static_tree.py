"""A given shape, filled from a drafter's laws."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.stream import Draft
from multispec.structures.growing import Ground, Growth, Siblings
from multispec.structures.shapes import Parents
from multispec.tree import children


@dataclass(frozen=True)
class StaticTree:
    """Fill the shape ``parents``, level by level, with the best children or with drawn ones.

    ``siblings`` is ``best`` (point masses, as Medusa and EAGLE fill their trees), ``independent`` (SpecInfer,
    Miao et al. 2024, section 3) or ``without_replacement`` (Sequoia, Chen et al. 2024, section 3.2). Drawn
    ones carry their q. Shapes come from ``medusa()``, ``eagle()``, ``expansion(widths)``, ``calibrated`` or
    ``sequoia``; of a budget smaller than the shape, its first nodes are filled.

    Raises:
        UsageError: a shape that is no tree, or another way to fill it.

    >>> from multispec.structures import expansion
    >>> StaticTree(expansion((2, 1))).parents
    (-1, -1, 0, 1)
    """

    name: ClassVar[str] = "static_tree"
    paper: ClassVar[str] = "Miao et al. 2024, arXiv 2305.09781; Chen et al. 2024, arXiv 2402.12374"
    parents: Parents
    siblings: Siblings = "best"

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))
        wrong = [node for node, parent in enumerate(self.parents) if not -1 <= parent < node]
        if wrong or not self.parents or self.siblings not in ("best", "independent", "without_replacement"):
            raise UsageError(
                "static_tree needs parents that come before their children (-1 is the root), and siblings "
                f"'best', 'independent' or 'without_replacement': got {self.parents}, {self.siblings!r}. "
                "Make the shape with multispec.structures.expansion or calibrated."
            )

    def grow(self, ground: Ground) -> Draft:
        """One level after the other."""
        below = children(self.parents[: ground.nodes])
        # Nodes of the shape, as nodes of the tree: where a law has too little mass, some are left out.
        growth, nodes, level, depth = Growth(), {-1: -1}, [-1], 0
        while level := [node for node in level if node in below and node in nodes]:
            laws = ground.expand(growth.paths([nodes[node] for node in level]))
            for node, q in zip(level, laws, strict=True):
                found = ground.siblings(q, depth, len(growth), len(below[node]), self.siblings)
                for child, token in zip(below[node], found, strict=False):
                    nodes[child] = growth.add(nodes[node], token, q)
            level, depth = [child for node in level for child in below[node]], depth + 1
        return growth.draft(ground, self.siblings)
