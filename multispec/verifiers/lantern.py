"""LANTERN: a drafted code may also use the probability of the codes near it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.neighbours import Neighbours, needed
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Place, Trial, leftover, walk

# Neighbours of so many symbols at a time: 16 MiB in float64.
_BLOCK = 2**21


@dataclass(frozen=True, kw_only=True)
class Lantern:
    """Keep x with min(1, p'(x) / q(x)), p'(x) = p(x) + p(A), A the codes near x with p(A) <= ``delta``.

    A is the longest run of the ``k`` nearest neighbours N of x, nearest first, whose mass stays within
    ``delta`` (LANTERN, Jang et al. 2024, section 4). A refused x is replaced as in the authors' release,
    where A has mass: from norm((p - q')+) with q' = q less N; from p less x and N where x was given (q = 1).
    No theorem stands behind that; ``residual="sound"`` replaces from norm((p - q f)+), which costs the least
    total variation for this f. Where nothing is left of p, x alone is removed. At ``delta=0`` the rule is
    ``rejection``. A symbol with p = 0 may be emitted, but never outside the codebook.

    ``spent`` is exact on chains and, but for siblings whose residual depends on the symbol refused (sampled
    ones of the published residual, and those without replacement), on trees; there its mean is an upper bound
    (``relaxing.walk``). delta bounds each symbol's own p', not what is spent.

    Raises:
        UsageError: delta outside [0, 1), k < 1; at ``verify``, no neighbours or those of another vocabulary.

    >>> rule = Lantern(delta=0.05, neighbours=Neighbours(codebook=torch.randn(512, 8)))
    """

    name: ClassVar[str] = "lantern"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Jang et al. 2024, arXiv 2410.03355"
    needs_neighbours: ClassVar[bool] = True
    delta: float = 0.1
    k: int = 1000
    neighbours: Neighbours | None = None
    residual: str = "published"

    def __post_init__(self) -> None:
        if not 0 <= self.delta < 1:
            raise UsageError(f"lantern needs delta in [0, 1): got {self.delta}. 0 is rejection.")
        _check(self.name, self.k, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        needed(self.neighbours, self.name, p.scores.shape[-1])
        return walk(draft, p, noise, standing, self._try, restless=self.residual == "published")

    def _try(self, at: Place) -> Trial:
        near = needed(self.neighbours, self.name, len(at.p))
        return _Borrowing(near, self.k, self.residual, self.delta, 0.0).trial(at)


@dataclass(frozen=True, kw_only=True)
class LanternPlusPlus:
    """Keep x with min(1, p'(x) / q(x)), where p' is as in ``lantern`` but at most ``delta`` p(x).

    A is the longest run of the ``k`` nearest neighbours of x with p(A) <= (delta - 1) p(x) (LANTERN++, Park
    et al. 2025): what the target finds unlikely borrows little, and what it rules out nothing. All else is
    as in ``lantern``. At ``delta=1`` the rule is ``rejection``.

    Raises:
        UsageError: delta < 1, k < 1; at ``verify``, no neighbours or those of another vocabulary.
    """

    name: ClassVar[str] = "lantern_pp"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Park et al. 2025, arXiv 2502.06352"
    needs_neighbours: ClassVar[bool] = True
    delta: float = 2.0
    k: int = 1000
    neighbours: Neighbours | None = None
    residual: str = "published"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.delta) and self.delta >= 1):
            raise UsageError(f"lantern_pp needs a finite delta >= 1: got {self.delta}. 1 is rejection.")
        _check(self.name, self.k, self.residual)

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        needed(self.neighbours, self.name, p.scores.shape[-1])
        return walk(draft, p, noise, standing, self._try, restless=self.residual == "published")

    def _try(self, at: Place) -> Trial:
        near = needed(self.neighbours, self.name, len(at.p))
        return _Borrowing(near, self.k, self.residual, 0.0, self.delta - 1).trial(at)


def _check(name: str, k: int, residual: str) -> None:
    if k < 1:
        raise UsageError(f"{name} needs k >= 1 neighbours: got {k}.")
    if residual not in ("published", "sound"):
        raise UsageError(f"The residual of {name} is 'published' or 'sound': got {residual!r}.")


@dataclass(frozen=True, eq=False)
class _Near:
    """Symbols ``x [n]``, their neighbours ``N [n, k]``, and the mass ``A [n]`` they may borrow."""

    x: Int[Tensor, " n"]
    N: Int[Tensor, "n k"]
    A: Float[Tensor, " n"]


@dataclass(frozen=True)
class _Borrowing:
    """p(A) <= absolute + relative p(x)."""

    neighbours: Neighbours
    k: int
    residual: str
    absolute: float
    relative: float

    def _near(self, p: Tensor, x: Tensor) -> _Near:
        N = self.neighbours.of(x, self.k)
        mass = p[N].cumsum(-1)
        limit = self.absolute + self.relative * p[x]
        count = torch.searchsorted(mass, limit[:, None], right=True)
        A = mass.gather(-1, (count - 1).clamp(min=0))[:, 0]
        # What is no code has itself for neighbours, and borrows nothing.
        return _Near(x, N, A.masked_fill((count[:, 0] == 0) | (N[:, 0] == x), 0.0))

    def trial(self, at: Place) -> Trial:
        """g = p', the published or the sound rest, and the law of both."""
        p, q = at.p, at.q
        # Elsewhere p alone is enough to keep x for certain.
        risky = (q > p).nonzero()[:, 0]
        blocks = [self._near(p, x) for x in risky.split(max(_BLOCK // self.k, 1))]
        g = p.clone()
        for near in blocks:
            g[near.x] += near.A
        if self.residual == "sound":
            return Trial.of(q, g, leftover(p, torch.minimum(g, q)))
        own = self._near(p, torch.tensor([at.x], device=p.device))
        if float(q[at.x]) >= 1:
            return Trial.of(q, g, _without(p, own))
        return Trial(g, _rest(p, q, own), _law(p, q, g, blocks))


def _without(p: Tensor, near: _Near) -> Tensor:
    """p less x and, where A has mass, its neighbours; what is left of that, else p less x, else p."""
    alone = p.index_fill(0, near.x, 0.0)
    rest = alone.index_fill(0, near.N[0], 0.0) if float(near.A) > 0 else alone
    found = next((law for law in (rest, alone) if float(law.sum()) > 0), p)
    return found / found.sum()


def _rest(p: Tensor, q: Tensor, near: _Near) -> Tensor:
    """norm((p - q')+), q' = q less the neighbours of x where A has mass."""
    return leftover(p, q.index_fill(0, near.N[0], 0.0) if float(near.A) > 0 else q)


def _law(p: Tensor, q: Tensor, g: Tensor, blocks: list[_Near]) -> Tensor:
    """o = k + sum over x of (q - k)(x) times what replaces x: (p - q)+, and min(p, q) on its neighbours."""
    k = torch.minimum(g, q)
    more, both = (p - q).clamp_(min=0), torch.minimum(p, q)
    o, common, around = k.clone(), torch.zeros_like(p[0]), torch.zeros_like(p)
    for near in blocks:
        refused, borrowing = (q - k)[near.x], near.A > 0
        total = more.sum() + both[near.N].sum(-1) * borrowing
        each = torch.where(total > 0, refused / total, 0.0)
        common = common + each.sum()
        around.index_add_(0, near.N.flatten(), (each * borrowing)[:, None].expand_as(near.N).flatten())
        # Nothing is left over: p itself replaces x.
        o += refused[total <= 0].sum() * p
    return o + common * more + around * both
