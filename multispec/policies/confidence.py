"""Stop drafting where the draft model is unsure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class Confidence:
    """Stop drafting after the first symbol whose law is unsure: max q below ``threshold``.

    At most ``max_draft_tokens``. The rule of transformers' ``assistant_confidence_threshold`` (Mamou et
    al. 2024, DISCO, section 3), with one change: it looks at max q instead of the probability of the
    symbol drawn, so that the length never depends on a draw. The unsure symbol itself is still verified.
    """

    name: ClassVar[str] = "confidence"
    paper: ClassVar[str] = "Mamou et al. 2024, arXiv 2405.04304"
    threshold: float = 0.4
    max_draft_tokens: int = 20

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The longest draft, and the threshold that ends it early."""
        return Budget(nodes=self.max_draft_tokens, confidence=self.threshold)
