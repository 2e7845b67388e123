"""AdaEDL: stop where the entropy of the draft's law bounds its acceptance too low."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


class _State(NamedTuple):
    """The acceptance rate r so far and the threshold lambda."""

    r: float
    threshold: float


@dataclass(frozen=True, kw_only=True)
class AdaEDL:
    """Stop behind the first symbol with 1 - sqrt(gamma H(q)) below lambda, which follows the acceptance.

    Agrawal et al. (2024), "AdaEDL: Early Draft Stopping for Speculative Decoding via an Entropy-based Lower
    Bound on Token Acceptance Probability". H in nats. After each round r becomes r / 2 plus half of the share
    that was accepted, and lambda (``threshold`` at first) moves by a tenth of ``step``: up where r is below
    ``target``, down where it is above. The unsure symbol itself is verified.

    Raises:
        UsageError: gamma not above 0, lambda, target or step outside [0, 1], a draft of no symbols.
    """

    name: ClassVar[str] = "ada_edl"
    paper: ClassVar[str] = "Agrawal et al. 2024, arXiv 2410.18351"
    gamma: float = 0.2
    threshold: float = 0.4
    target: float = 0.9
    step: float = 0.01
    max_draft_tokens: int = 20

    def __post_init__(self) -> None:
        shares = (self.threshold, self.target, self.step)
        fits = 0 < self.gamma < math.inf and all(0 <= share <= 1 for share in shares)
        if not fits or self.max_draft_tokens < 1:
            raise UsageError(
                "ada_edl needs gamma > 0, threshold, target and step in [0, 1] and max_draft_tokens >= 1: "
                f"got {self}. gamma 0.2, target 0.9 and step 0.01 are usual."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The longest draft, and the entropy that ends it early: 1 - sqrt(gamma H) < lambda."""
        state = past.memory if isinstance(past.memory, _State) else _State(self.target, self.threshold)
        if past.last_drafted:
            r = 0.5 * state.r + 0.5 * past.last_accepted / past.last_drafted
            move = self.step * ((r < self.target) - (r > self.target))
            state = _State(r, min(max(state.threshold + 0.1 * move, 0.0), 1.0))
        limit = (1 - state.threshold) ** 2 / self.gamma
        return Budget(nodes=self.max_draft_tokens, entropy=limit, memory=state)
