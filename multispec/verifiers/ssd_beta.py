"""SSD's rule for speech: every symbol is given a little more chance than it has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover


@dataclass(frozen=True, kw_only=True)
class SSDBeta:
    """Keep x with min(1, p / q + beta), else draw from norm((p - q)+) (SSD 2025).

    A symbol then costs at most ``beta`` of total variation: the sum of (min(q, p + beta q) - p)+. To hold
    that for siblings too, the last of them alone is relaxed. Symbols with p = 0 are refused. At ``beta=0``
    the rule is ``rejection``.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``); it never exceeds beta for a symbol.

    Raises:
        UsageError: beta outside [0, 1].
    """

    name: ClassVar[str] = "ssd_beta"
    exactness: ClassVar[Exactness] = "bounded"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "SSD 2025, arXiv 2505.15380"
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise UsageError(f"ssd_beta needs beta in [0, 1]: got {self.beta}. 0 is rejection.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        return Relaxed(rule=self._try).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        p, q = at.p, at.q
        more = self.beta * q * (p > 0) if at.last else 0.0
        return Trials.of(q, p + more, leftover(p, q))
