"""The same number of draft symbols in every round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class FixedLength:
    """The same number of draft symbols in every round; None takes the drafter's own."""

    name: ClassVar[str] = "fixed"
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192"
    num_draft_tokens: int | None = None

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The same every time."""
        return Budget(nodes=default_nodes if self.num_draft_tokens is None else self.num_draft_tokens)
