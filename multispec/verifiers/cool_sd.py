"""COOL-SD: more lenient at the first symbols of a draft than at the last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover


@dataclass(frozen=True, kw_only=True)
class CoolSD:
    """Annealed relaxation: keep x with f_i = min(1, w_i p / q), w_i = delta exp(-nu i - mu).

    Refused symbols are replaced from norm((p - q f)+), which costs the least total variation for that f
    (COOL-SD, 2026). i counts from 0. The default ``mu`` makes ``delta`` the mean of the first five w_i, so
    that annealing (``nu`` > 0) moves leniency forward and adds none; ``nu=0, mu=0`` is delta everywhere.
    Where w_i < 1 the rule is stricter than rejection and costs nothing; ``floor=1`` keeps it from that.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: a weight below 0, or one that is no number.

    >>> [round(CoolSD(delta=1.1).weight(i), 2) for i in range(3)]
    [2.86, 1.42, 0.7]
    """

    name: ClassVar[str] = "cool_sd"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "COOL-SD 2026, arXiv 2601.09212"
    delta: float = 1.1
    nu: float = 0.7
    mu: float = -0.954
    floor: float = 0.0

    def __post_init__(self) -> None:
        values = (self.delta, self.nu, self.mu, self.floor)
        if not all(map(math.isfinite, values)) or self.delta < 0 or self.floor < 0:
            raise UsageError(f"cool_sd needs finite weights, delta >= 0 and floor >= 0: got {self}.")

    def weight(self, i: int) -> float:
        """w_i, the leniency at the i-th symbol of a draft."""
        return max(self.delta * math.exp(-self.nu * i - self.mu), self.floor)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        return Relaxed(rule=self._try).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        w = at.p.new_tensor([self.weight(at.depth + n) for n in range(len(at.p))])
        g = w[:, None] * at.p
        return Trials.of(at.q, g, leftover(at.p, torch.minimum(g, at.q)))
