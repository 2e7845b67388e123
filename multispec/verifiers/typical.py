"""Typical acceptance: a symbol passes unless the target finds it unlikely for so certain a law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, check


@dataclass(frozen=True, kw_only=True)
class Typical:
    """Keep x when p(x) > min(eps, delta exp(-H(p))), H the entropy in nats (Medusa, Cai et al. 2024, 2.3.1).

    A refused symbol is replaced from p; ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols
    that pass, which costs the least total variation. Of siblings the first that passes is gone on with;
    Medusa compares whole paths and takes the longest. At temperature 0 only the argmax passes.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``). A given symbol (q = 1) that passes costs 1 - p(x).

    Raises:
        UsageError: eps or delta outside (0, 1].
    """

    name: ClassVar[str] = "typical"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Cai et al. 2024, arXiv 2401.10774"
    eps: float = 0.09
    delta: float = 0.3
    residual: str = "published"

    def __post_init__(self) -> None:
        check(
            self.name,
            0 < self.eps <= 1 and 0 < self.delta <= 1,
            "eps and delta in (0, 1]",
            self,
            self.residual,
        )

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual).walk(draft, p, noise, standing)

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        H = -(at.p * at.p.clamp(min=1e-300).log()).sum(-1, keepdim=True)
        return at.p > (self.delta * (-H).exp()).clamp(max=self.eps)
