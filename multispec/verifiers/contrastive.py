"""Speculative contrastive decoding: what the target likes more than the drafter does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.toward import Toward, asks_for_q

# The least that q counts, so that a symbol which the drafter rules out is not preferred without limit.
_FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """Speculative sampling towards p' proportional to p (p / q)^beta where p(x) >= alpha max p, 0 elsewhere.

    Yuan et al. (2023), "Speculative Contrastive Decoding": the drafter is also the amateur whose mistakes
    are held against a symbol. It promises p', not p: drafted places have exactly the law p' given the symbols
    before, the symbol behind a draft, where there is no q, has the law p. ``spent`` is TV(p', p), exact on
    every draft; it is the price of a different decoding, not of haste. q counts as 1e-6 at least. At
    ``beta=0, alpha=0`` the rule is ``rejection``; at temperature 0 p' is the argmax of p.

    Raises:
        UsageError: alpha outside [0, 1], beta below 0 or infinite; UnsupportedError: at ``verify``, given
            symbols (q = 1).
    """

    name: ClassVar[str] = "contrastive"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Yuan et al. 2023, arXiv 2311.08981"
    alpha: float = 0.1
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.alpha <= 1 and 0 <= self.beta < float("inf")):
            raise UsageError(f"contrastive needs alpha in [0, 1] and a finite beta >= 0: got {self}.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        asks_for_q(draft, self.name)
        return Toward(make=self._contrast).walk(draft, p, noise, standing)

    def _contrast(self, p: Tensor, q: Tensor) -> Tensor:
        head = (p >= self.alpha * p.amax(-1, keepdim=True)) & (p > 0)
        score = (1 + self.beta) * p.log() - self.beta * q.clamp(min=_FLOOR).log()
        return score.masked_fill(~head, float("-inf")).softmax(-1)
