"""Stop where a rejection has become likely, by the acceptance measured in this very row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


class _State(NamedTuple):
    """How often depth d was looked at, and how often it was accepted: both fade."""

    seen: tuple[float, ...]
    kept: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class AcceptanceAware:
    """Draft up to the first symbol behind which 1 - prod c_d, the chance of a rejection, is above ``h``.

    Huang et al. (2024), "SpecDec++", equation 3.3: a threshold on that chance is the optimal rule to stop.
    Theirs is a trained head; c_d here is the share of the drafts that were accepted up to depth d - 1 and
    then at depth d too, in the rounds of this row so far. A round counts ``decay`` times what the one after
    it counts, and ``acceptance`` is what a depth is taken to have before anything is known, at the weight of
    one round.

    Raises:
        UsageError: h, acceptance or decay outside [0, 1], a draft of no symbols.
    """

    name: ClassVar[str] = "acceptance_aware"
    paper: ClassVar[str] = "Huang et al. 2024, arXiv 2405.19715"
    h: float = 0.7
    acceptance: float = 0.8
    decay: float = 0.9
    max_draft_tokens: int = 20

    def __post_init__(self) -> None:
        fits = all(0 <= share <= 1 for share in (self.h, self.acceptance, self.decay))
        if not fits or self.max_draft_tokens < 1:
            raise UsageError(
                "acceptance_aware needs h, acceptance and decay in [0, 1] and max_draft_tokens >= 1: got "
                f"{self}. Its paper stops at h = 0.7."
            )

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """As many as it takes until a rejection is likely."""
        fresh = _State((0.0,) * self.max_draft_tokens, (0.0,) * self.max_draft_tokens)
        state = past.memory if isinstance(past.memory, _State) else fresh
        if past.last_depth:
            state = self._counted(state, past.last_depth, past.last_kept)
        return Budget(nodes=self._length(state), memory=state)

    def _counted(self, state: _State, depth: int, kept: int) -> _State:
        looked = min(depth, kept + 1)
        seen = [self.decay * n + (d < looked) for d, n in enumerate(state.seen)]
        good = [self.decay * n + (d < kept) for d, n in enumerate(state.kept)]
        return _State(tuple(seen), tuple(good))

    def _length(self, state: _State) -> int:
        accepted = 1.0
        for length, (n, k) in enumerate(zip(state.seen, state.kept, strict=True), 1):
            accepted *= (k + self.acceptance) / (n + 1)
            if 1 - accepted > self.h:
                return length
        return self.max_draft_tokens
