"""EAGLE-2's confidence: stop where a whole path is unlikely to be accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class PathConfidence:
    """Stop behind a node whose value V = prod q(x_i) along its path is below ``threshold``.

    Li et al. (2024), "EAGLE-2", section 4.1: q stands for the chance of a symbol to be accepted, so V does
    for that of the path, and where V is small drafting on does not pay. A chain ends there, and a beam
    expands no such node. The node itself is verified: what is decided on lies behind it.

    Raises:
        UsageError: a threshold outside [0, 1], a draft of no symbols.
    """

    name: ClassVar[str] = "path_confidence"
    paper: ClassVar[str] = "Li et al. 2024, arXiv 2406.16858"
    threshold: float = 0.1
    max_draft_tokens: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1 or self.max_draft_tokens < 1:
            raise UsageError(
                f"path_confidence needs a threshold in [0, 1] and max_draft_tokens >= 1: got {self}. Values "
                "from 0.02 to 0.3 are usual."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The largest draft, and the value below which a path goes no further."""
        return Budget(nodes=self.max_draft_tokens, reach=self.threshold)
