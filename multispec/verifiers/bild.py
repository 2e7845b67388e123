"""BiLD: the small model's symbol stays unless the large one is surprised by it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, check, finite


@dataclass(frozen=True, kw_only=True)
class BiLD:
    """Keep x when -log p(x) <= ``rollback`` (Kim et al. 2023, the rollback policy).

    The distance is the cross entropy between the large model's law and the small one's symbol. A refused
    symbol is replaced from p; ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols that
    pass. The other half of BiLD, the fallback to the large model where the small one is unsure, is the
    policy ``confidence`` with the fallback threshold. The surprise is that of the scores, so also at
    temperature 0 unlikely symbols alone are refused; there each that is not the argmax costs 1.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: a rollback threshold below 0.
    """

    name: ClassVar[str] = "bild"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Kim et al. 2023, arXiv 2302.07863"
    rollback: float = 3.0
    residual: str = "published"

    def __post_init__(self) -> None:
        fits = finite(self.rollback) and self.rollback >= 0
        check(self.name, fits, "a finite rollback >= 0", self.rollback, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual, soft=True).walk(
            draft, p, noise, standing
        )

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        return at.p >= math.exp(-self.rollback)
