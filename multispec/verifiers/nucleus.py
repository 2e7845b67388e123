"""Nucleus acceptance: a symbol passes when the target itself might draw it under top-p."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.admitting import Admitting, Places, check


@dataclass(frozen=True, kw_only=True)
class Nucleus:
    """Keep x when it lies in the fewest symbols whose p sums to ``top_p`` (Holtzman et al. 2020, equation 2).

    The set of nucleus sampling as a test of drafts. A refused symbol is replaced from p;
    ``residual="sound"`` replaces from norm((p - q 1_A)+), A the symbols that pass, which costs the least
    total variation. At temperature 0 only the argmax passes.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: top_p outside (0, 1].
    """

    name: ClassVar[str] = "nucleus"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Holtzman et al. 2020, arXiv 1904.09751"
    top_p: float = 0.8
    residual: str = "published"

    def __post_init__(self) -> None:
        check(self.name, 0 < self.top_p <= 1, "top_p in (0, 1]", self.top_p, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node go on with the first child that passes."""
        return Admitting(admit=self._passes, residual=self.residual).walk(draft, p, noise, standing)

    def _passes(self, at: Places) -> Bool[Tensor, "n V"]:
        mass, order = at.p.sort(dim=-1, descending=True, stable=True)
        before = mass.cumsum(-1) - mass
        return torch.zeros_like(at.p, dtype=torch.bool).scatter_(-1, order, before < self.top_p)
