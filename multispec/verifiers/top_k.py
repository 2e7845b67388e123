"""Top-k acceptance: a symbol passes when it is among the target's best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, best, check


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Keep x when it is among the ``k`` symbols with the largest p (Llasa+ 2025).

    A refused symbol is replaced from p; ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols
    that pass. Ranks are those of the scores, so also at temperature 0 k symbols pass; there each that is not
    the argmax costs 1.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: k < 1.
    """

    name: ClassVar[str] = "top_k"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Llasa+ 2025, arXiv 2508.06262"
    k: int = 50
    residual: str = "published"

    def __post_init__(self) -> None:
        check(self.name, self.k >= 1, "k >= 1", self.k, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual, soft=True).walk(
            draft, p, noise, standing
        )

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        return best(at.p, self.k)
