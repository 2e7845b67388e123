"""VADUSA's tolerance: the target may draw several times, and the draft is kept if it ever comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Keep x when one of ``t`` draws from p equals it, else emit the first of them.

    The tolerance of VADUSA (2024), in our reading, for symbols that a head has drafted.
    x is kept with f = 1 - (1 - p(x))^t, and otherwise replaced from p without x. ``t=1`` is exact
    (``sample_and_match``) on any draft.

    ``spent`` is exact on chains and on trees of given siblings, else its mean is an upper bound
    (``relaxing.walk``).

    Raises:
        UsageError: t < 1.
    """

    name: ClassVar[str] = "tolerance"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "VADUSA 2024, arXiv 2410.21951"
    t: int = 3

    def __post_init__(self) -> None:
        if self.t < 1:
            raise UsageError(f"tolerance needs t >= 1 draws: got {self.t}. 1 is sample_and_match.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        return Relaxed(rule=self._try, restless=True).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        p, q = at.p, at.q
        missed = (1 - p).clamp_(min=0)
        g = q * (1 - missed**self.t)
        rest = p.scatter(-1, at.x[:, None], 0.0)
        total = rest.sum(-1, keepdim=True)
        # What x leaves to y is p(y) / (1 - p(x)), so refusing x by chance (1 - p(x))^t leaves p(y) c(x).
        c = q * missed ** (self.t - 1)
        # What is drawn outside the columns has p = 0: it is always refused, and leaves p.
        outside = (1 - q.sum(-1, keepdim=True)).clamp_(min=0)
        law = g + p * (c.sum(-1, keepdim=True) - c + outside)
        return Trials(g, torch.where(total > 0, rest / total, p), law)
