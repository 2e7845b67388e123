"""SVIP: stop where the entropy of the draft's law says that acceptance is hard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class SVIP:
    """Stop behind the first symbol with sqrt(H(q)) above ``h``, H in nats.

    Zhang et al. (2024), "Draft Model Knows When to Stop: A Self-Verification Length Policy for Speculative
    Decoding": the lower bound on acceptance that an entropy gives. The unsure symbol itself is verified.

    Raises:
        UsageError: h below 0 or infinite, a draft of no symbols.
    """

    name: ClassVar[str] = "svip"
    paper: ClassVar[str] = "Zhang et al. 2024, arXiv 2411.18462"
    h: float = 0.6
    max_draft_tokens: int = 20

    def __post_init__(self) -> None:
        if not (0 <= self.h < math.inf and self.max_draft_tokens >= 1):
            raise UsageError(
                f"svip needs a finite h >= 0 and max_draft_tokens >= 1: got {self}. Values of h from 0.3 to "
                "1 are usual."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The longest draft, and the entropy that ends it early."""
        return Budget(nodes=self.max_draft_tokens, entropy=self.h**2)
