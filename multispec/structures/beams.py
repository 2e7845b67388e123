"""Beams packed into a prefix tree."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from multispec.stream import Draft
from multispec.structures.dynamic import require_sizes
from multispec.structures.growing import Ground
from multispec.structures.prefix_tree import pack


@dataclass(frozen=True)
class Beams:
    """Beam search with ``width`` beams over ``depth`` symbols; equal beginnings of the beams are one path.

    Zhang et al. (2024), "Recurrent Drafter for Fast Speculative Decoding in Large Language Models", sections
    3.2 and 3.3: the beams with the largest log q are verified together, the best of them first, as far as
    there is room. Point masses.

    Raises:
        UsageError: a size below 1.

    >>> Beams(width=4, depth=3).width
    4
    """

    name: ClassVar[str] = "beams"
    paper: ClassVar[str] = "Zhang et al. 2024, arXiv 2403.09919"
    width: int = 8
    depth: int = 5

    def __post_init__(self) -> None:
        require_sizes(width=self.width, depth=self.depth)

    def grow(self, ground: Ground) -> Draft:
        """The beams of the last level, and those that ended before it."""
        beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
        ended: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(self.depth):
            found: list[tuple[float, tuple[int, ...]]] = []
            for (score, path), q in zip(beams, ground.expand([path for _, path in beams]), strict=True):
                best = q.topk(min(self.width, q.shape[-1]))
                pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
                grown = [(score + math.log(p), (*path, x)) for x, p in pairs if p > 0]
                found += grown
                ended += [] if grown else [(score, path)]
            beams = sorted(found, key=lambda beam: -beam[0])[: self.width]
            if not beams:
                break
        return pack([path for _, path in [*beams, *ended]], ground.nodes)
