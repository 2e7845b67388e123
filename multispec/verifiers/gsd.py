"""GSD: a drafted code is judged together with the codes that are about as probable and look alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.neighbours import Neighbours, needed
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover


@dataclass(frozen=True, kw_only=True)
class GSD:
    """Grouped speculative decoding: keep x with min(1, p(C) / q(C)), C the group of x.

    C holds x and those of the ``group`` symbols ranked around it by p (half of them below x, ranks that do
    not exist left out) whose p differs by less than ``gap`` and whose code lies nearer than ``radius``
    (squared L2; None asks for no codebook). x among the lowest half group ranks is its own group. Refused
    symbols are replaced from norm((p - q)+) (GSD 2025, as released); ``residual="sound"`` replaces from
    norm((p - q f)+), which costs the least total variation for this f. A symbol with p = 0 is refused:
    where many have it, ranks say nothing. A group of 1 is ``rejection``.

    ``spent`` is exact on chains and on trees of given or independent siblings, else its mean is an upper
    bound (``relaxing.walk``).

    Raises:
        UsageError: an empty group, a gap or radius below 0; at ``verify``, a radius and no neighbours, or
            those of another vocabulary.
    """

    name: ClassVar[str] = "gsd"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "GSD 2025, arXiv 2508.07747"
    group: int = 14
    gap: float = 0.15
    radius: float | None = 0.5
    neighbours: Neighbours | None = None
    residual: str = "published"

    def __post_init__(self) -> None:
        limits = (self.gap, 0.0 if self.radius is None else self.radius)
        if self.group < 1 or not all(math.isfinite(limit) and limit >= 0 for limit in limits):
            raise UsageError(f"gsd needs group >= 1, and gap and radius finite and >= 0: got {self}.")
        if self.residual not in ("published", "sound"):
            raise UsageError(f"The residual of gsd is 'published' or 'sound': got {self.residual!r}.")

    @property
    def needs_neighbours(self) -> bool:
        """True where codes are compared."""
        return self.radius is not None

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        near = needed(self.neighbours, self.name, p.scores.shape[-1]) if self.needs_neighbours else None
        return Relaxed(rule=self._try, neighbours=near).walk(draft, p, noise, standing)

    def _try(self, at: Candidates) -> Trials:
        p, q = at.p, at.q
        n, x = ((q > 0) & (p > 0)).nonzero(as_tuple=True)
        C, member = self._groups(p, n, x, at.first)
        ratio = (p[n[:, None], C] * member).sum(-1) / (q[n[:, None], C] * member).sum(-1)
        g = torch.zeros_like(p).index_put_((n, x), q[n, x] * ratio)
        published = self.residual == "published"
        return Trials.of(q, g, leftover(p, q if published else torch.minimum(g, q)))

    def _groups(
        self, p: Float[Tensor, "n V"], n: Int[Tensor, " m"], x: Int[Tensor, " m"], first: int
    ) -> tuple[Int[Tensor, "m G"], Bool[Tensor, "m G"]]:
        """The columns ranked around each x in its row n, and which of them are in its group."""
        order = p.argsort(dim=-1, stable=True)
        ranks = torch.empty_like(order).scatter_(
            -1, order, torch.arange(p.shape[-1], device=p.device).expand_as(p)
        )
        half = self.group // 2
        rank = ranks[n, x][:, None]
        places = rank + torch.arange(-half, self.group - half, device=p.device)
        C = order[n[:, None], places.clamp(0, p.shape[-1] - 1)]
        member = (places < p.shape[-1]) & ((p[n[:, None], C] - p[n, x][:, None]).abs() < self.gap)
        if self.radius is not None and self.neighbours is not None:
            member &= self.neighbours.squared_distances(x + first, C + first) < self.radius
        alone = places == rank
        return C, torch.where(rank < half, alone, member | alone)
