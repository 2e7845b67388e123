"""Rejection that may err by so much per symbol, and errs where that pays most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import ROUNDING, Candidates, Relaxed, Trials, leftover


@dataclass(frozen=True, kw_only=True)
class BudgetedRejection:
    """Speculative sampling relaxed as far as a total variation of ``per_token`` on average permits.

    Keep x with f = min(1, (p + theta (q - p)+) / q), else draw from norm((p - q)+). The symbol then has
    the law o = p + theta (q - p), theta of the way from target to draft, at a total variation of
    theta TV(p, q); acceptance rises by just that much, which no rule can better (Yin et al. 2024). theta
    is 0 for symbols with p = 0: what the target rules out is never emitted.

    What is spent never exceeds ``per_token`` times the symbols emitted, after any number of them, so a
    stream of ``length`` symbols spends at most ``per_token * length``, wherever it stops. What earlier
    symbols left over is spent at the first symbol of a draft, where all that follows hangs on it (a kept
    symbol there is worth the most symbols); further down, at most ``decay`` to the power of the depth of
    it. Of siblings the last alone is relaxed: before it, what is bought would often have been accepted
    next. With ``per_token=0`` the rule is ``rejection``.

    ``spent`` is exact on chains and on trees of given or independent siblings; for siblings drawn without
    replacement its mean is an upper bound (``relaxing.walk``). The allowance holds for it on every run.

    Raises:
        UsageError: a budget outside [0, 1] or a decay outside [0, 1].
    """

    name: ClassVar[str] = "budget"
    exactness: ClassVar[Exactness] = "bounded"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Yin et al. 2024, arXiv 2411.00841"
    per_token: float = 0.05
    decay: float = 0.25

    def __post_init__(self) -> None:
        if not (0 <= self.per_token <= 1 and 0 <= self.decay <= 1):
            raise UsageError(f"budget needs per_token and decay in [0, 1]: got {self}.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        return Relaxed(rule=self._try).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        p, q = at.p, at.q
        excess = (q - p).clamp_(min=0).masked_fill_(p <= 0, 0)
        theta = p.new_tensor(self._thetas(at, excess.sum(-1).tolist()))
        return Trials.of(q, p + theta[:, None] * excess, leftover(p, q))

    def _thetas(self, at: Candidates, most: list[float]) -> list[float]:
        """The share of ``most`` that may be spent at each, when all before it are kept."""
        found, spent = list[float](), at.spent
        for n, each in enumerate(most):
            earned = self.per_token * (at.position + n + 1) - spent
            room = earned * self.decay ** (at.depth + n) - ROUNDING
            free = at.last and room > 0 and each > 0 and at.reach > 0
            found.append(min(1.0, room / (each * at.reach)) if free else 0.0)
            spent += found[-1] * each * at.reach
        return found
