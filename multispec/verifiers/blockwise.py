"""Blockwise parallel decoding: a symbol passes when it is near the target's best, in rank or in value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, best, check


@dataclass(frozen=True, kw_only=True)
class Blockwise:
    """Keep x when it is among the ``k`` best, or at most ``distance`` away from the best one.

    Stern et al. (2018), section 5: approximate acceptance by top-k (5.1), by the distance |x - argmax p| of
    symbols that are ordered, such as intensities (5.2), and a ``minimum`` of symbols that are kept in each
    round whatever they are (5.3). A refused symbol is replaced from p (the argmax at temperature 0, as
    published); ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols that pass. ``k=1,
    distance=0`` keeps the argmax alone. Ranks are those of the scores, so also at temperature 0 others pass;
    there each that is not the argmax costs 1.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: k < 1, distance or minimum below 0.
    """

    name: ClassVar[str] = "blockwise"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Stern et al. 2018, arXiv 1811.03115"
    k: int = 2
    distance: int = 0
    minimum: int = 0
    residual: str = "published"

    def __post_init__(self) -> None:
        fits = self.k >= 1 and self.distance >= 0 and self.minimum >= 0
        check(self.name, fits, "k >= 1, distance >= 0 and minimum >= 0", self, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual, soft=True).walk(
            draft, p, noise, standing
        )

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        n, V = at.p.shape
        x = torch.arange(V, device=at.p.device)
        near = (x - at.p.argmax(-1, keepdim=True)).abs() <= self.distance
        depth = at.depth + torch.arange(n, device=at.p.device)
        return best(at.p, self.k) | near | (depth < self.minimum)[:, None]
