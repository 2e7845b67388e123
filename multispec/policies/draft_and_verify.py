"""Draft & Verify: a threshold of confidence that follows how much is accepted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


class _State(NamedTuple):
    """The matchness M and the threshold th."""

    M: float
    th: float


@dataclass(frozen=True, kw_only=True)
class DraftAndVerify:
    """Stop behind the first symbol with max q below th, which rises where too little is accepted.

    Zhang et al. (2023), "Draft & Verify", section 3.4, as in its release. With m the share of the last draft
    that was accepted, M becomes M / 2 + m / 2; th' is th + ``step`` if M < ``target``, else th - ``step`` if
    the draft ended before its longest; th becomes 0.9 th + 0.1 th'. The unsure symbol itself is verified.

    Raises:
        UsageError: a threshold or target outside [0, 1], a negative step, a draft of no symbols.
    """

    name: ClassVar[str] = "draft_and_verify"
    paper: ClassVar[str] = "Zhang et al. 2023, arXiv 2309.08168"
    threshold: float = 0.6
    target: float = 0.9
    step: float = 0.01
    max_draft_tokens: int = 12

    def __post_init__(self) -> None:
        fits = 0 <= self.threshold <= 1 and 0 <= self.target <= 1 and 0 <= self.step <= 1
        if not fits or self.max_draft_tokens < 1:
            raise UsageError(
                "draft_and_verify needs threshold, target and step in [0, 1] and max_draft_tokens >= 1: got "
                f"{self}. Its paper begins at threshold 0.6, with target 0.9 and step 0.01."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The longest draft, and the threshold that ends it early."""
        state = past.memory if isinstance(past.memory, _State) else _State(self.target, self.threshold)
        if past.last_drafted:
            state = self._moved(state, past)
        return Budget(nodes=self.max_draft_tokens, confidence=state.th, memory=state)

    def _moved(self, state: _State, past: Past) -> _State:
        M = 0.5 * state.M + 0.5 * past.last_accepted / past.last_drafted
        th = state.th
        if self.target > M:
            th += self.step
        elif past.last_drafted < past.last_nodes:
            th -= self.step
        return _State(M, min(max(0.9 * state.th + 0.1 * th, 0.0), 1.0))
