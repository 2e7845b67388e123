"""Lenience: the drafter's law counts for less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover


@dataclass(frozen=True, kw_only=True)
class Lenience:
    """Keep x with f = min(1, p / (l q)), else draw from norm((p - q f)+).

    The lenience of Leviathan et al. (2023), appendix A.5. No symbol becomes more than 1 / l times as
    probable as it is under p. At ``l=1`` the rule is ``rejection``, and at temperature 0 it always is: there
    p is one-hot.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: l outside (0, 1].
    """

    name: ClassVar[str] = "lenience"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Leviathan et al. 2023, arXiv 2211.17192"
    l: float = 0.7  # noqa: E741

    def __post_init__(self) -> None:
        if not 0 < self.l <= 1:
            raise UsageError(f"lenience needs l in (0, 1]: got {self.l}. 1 is rejection.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        return Relaxed(rule=self._try).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        g = at.p / self.l
        return Trials.of(at.q, g, leftover(at.p, torch.minimum(g, at.q)))
