"""Dynamic Depth Decoding: stop deepening a tree where its beam has lost too much probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class DynamicDepth:
    """Stop where H = log sum_i exp(log probability of beam i) is below ``threshold``, at chosen ``depths``.

    Brown et al. (2024), "Dynamic Depth Decoding: Faster Speculative Decoding for LLMs", section 3: exp(H) is
    the mass of q that the beam still covers. It is looked at after the ``depths`` given only, since every
    look waits for the device; () looks at every depth. The tree of the paper is a draft
    model's with ``structure=Eagle2Tree(width=10, depth=11)``; a drafter of chains has a beam of one.

    Raises:
        UsageError: a threshold above 0, a depth below 1, a draft of no symbols.
    """

    name: ClassVar[str] = "dynamic_depth"
    paper: ClassVar[str] = "Brown et al. 2024, arXiv 2409.00142"
    threshold: float = -1.0
    depths: Sequence[int] = (3, 5, 7, 9)
    max_draft_tokens: int = 60

    def __post_init__(self) -> None:
        fits = self.threshold <= 0 and min(self.depths, default=1) >= 1
        if not fits or self.max_draft_tokens < 1:
            raise UsageError(
                "dynamic_depth needs threshold <= 0 (a logarithm), depths >= 1 and max_draft_tokens >= 1: "
                f"got {self}. Thresholds from -2 to -0.2 are usual."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The largest draft, and the mass that the beam has to keep at these depths."""
        mass = math.exp(self.threshold)
        return Budget(nodes=self.max_draft_tokens, mass=mass, depths=tuple(self.depths))
