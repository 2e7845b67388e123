"""SpecDec's rule: a symbol passes when it is among the target's best, and not far behind the best one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, best, check, finite


@dataclass(frozen=True, kw_only=True)
class TopBeta:
    """Keep x when it is among the ``beta`` best and log p(best) - log p(x) <= ``tau`` (SpecDec).

    Xia et al. (2022), "Speculative Decoding: Exploiting Speculative Execution for Accelerating Seq2seq
    Generation". A refused symbol is replaced from p (the argmax at temperature 0, as published);
    ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols that pass. Ranks and gaps are those
    of the scores, so also at temperature 0 up to beta symbols pass; there each that is not the argmax
    costs 1.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: beta < 1, tau below 0.
    """

    name: ClassVar[str] = "top_beta"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Xia et al. 2022, arXiv 2203.16487"
    beta: int = 3
    tau: float = 1.0
    residual: str = "published"

    def __post_init__(self) -> None:
        fits = self.beta >= 1 and finite(self.tau) and self.tau >= 0
        check(self.name, fits, "beta >= 1 and tau finite and >= 0", self, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual, soft=True).walk(
            draft, p, noise, standing
        )

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        gap = at.p.amax(-1, keepdim=True).log() - at.p.log()
        return best(at.p, self.beta) & (gap <= self.tau)
