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
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials, leftover

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
        near = needed(self.neighbours, self.name, p.scores.shape[-1])
        return self._rule(near).relaxed.walk(draft, p, noise, standing)

    def _rule(self, near: Neighbours) -> _Borrowing:
        return _Borrowing(near, self.k, self.residual, self.delta, 0.0)


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
        near = needed(self.neighbours, self.name, p.scores.shape[-1])
        return self._rule(near).relaxed.walk(draft, p, noise, standing)

    def _rule(self, near: Neighbours) -> _Borrowing:
        return _Borrowing(near, self.k, self.residual, 0.0, self.delta - 1)


def _check(name: str, k: int, residual: str) -> None:
    if k < 1:
        raise UsageError(f"{name} needs k >= 1 neighbours: got {k}.")
    if residual not in ("published", "sound"):
        raise UsageError(f"The residual of {name} is 'published' or 'sound': got {residual!r}.")


@dataclass(frozen=True, eq=False)
class _Near:
    """Columns ``x [m]`` in the rows ``n [m]``, their neighbours ``N [m, k]``, and the mass ``A [m]`` they may
    borrow."""

    n: Int[Tensor, " m"]
    x: Int[Tensor, " m"]
    N: Int[Tensor, "m k"]
    A: Float[Tensor, " m"]


@dataclass(frozen=True)
class _Borrowing:
    """p(A) <= absolute + relative p(x)."""

    neighbours: Neighbours
    k: int
    residual: str
    absolute: float
    relative: float

    @property
    def relaxed(self) -> Relaxed:
        """The rule on its way down a draft."""
        restless = self.residual == "published"
        return Relaxed(rule=self.trials, restless=restless, neighbours=self.neighbours)

    def _near(self, p: Tensor, n: Tensor, x: Tensor, first: int) -> _Near:
        N = self.neighbours.of(x + first, self.k) - first
        mass = p[n[:, None], N].cumsum(-1)
        limit = self.absolute + self.relative * p[n, x]
        count = torch.searchsorted(mass, limit[:, None], right=True)
        A = mass.gather(-1, (count - 1).clamp(min=0))[:, 0]
        # What is no code has itself for neighbours, and borrows nothing.
        return _Near(n, x, N, A.masked_fill((count[:, 0] == 0) | (N[:, 0] == x), 0.0))

    def trials(self, at: Candidates) -> Trials:
        """g = p', the published or the sound rest, and the law of both."""
        p, q = at.p, at.q
        # Elsewhere p alone is enough to keep x for certain.
        n, x = (q > p).nonzero(as_tuple=True)
        size = max(_BLOCK // self.k, 1)
        pairs = zip(n.split(size), x.split(size), strict=True)
        blocks = [self._near(p, rows, columns, at.first) for rows, columns in pairs]
        g = p.clone()
        for near in blocks:
            g[near.n, near.x] += near.A
        if self.residual == "sound":
            return Trials.of(q, g, leftover(p, torch.minimum(g, q)))
        return self._published(at, g, blocks)

    def _published(self, at: Candidates, g: Tensor, blocks: list[_Near]) -> Trials:
        p, q = at.p, at.q
        own = self._near(p, torch.arange(len(p), device=p.device), at.x, at.first)
        point = q.gather(-1, at.x[:, None]) >= 1
        every, some = bool(point.all()), bool(point.any())
        given = Trials.of(q, g, _without(p, own)) if some else None
        if given is not None and every:
            return given
        drawn = Trials(g, _rest(p, q, own), _law(p, q, g, blocks))
        if given is None:
            return drawn
        rest, law = torch.where(point, given.rest, drawn.rest), torch.where(point, given.law, drawn.law)
        return Trials(g, rest, law)


def _without(p: Tensor, near: _Near) -> Tensor:
    """p less x and, where A has mass, its neighbours; what is left of that, else p less x, else p."""
    alone = p.scatter(-1, near.x[:, None], 0.0)
    rest = torch.where(near.A[:, None] > 0, alone.scatter(-1, near.N, 0.0), alone)
    found = torch.where(rest.sum(-1, keepdim=True) > 0, rest, alone)
    found = torch.where(found.sum(-1, keepdim=True) > 0, found, p)
    return found / found.sum(-1, keepdim=True)


def _rest(p: Tensor, q: Tensor, near: _Near) -> Tensor:
    """norm((p - q')+), q' = q less the neighbours of x where A has mass."""
    return leftover(p, torch.where(near.A[:, None] > 0, q.scatter(-1, near.N, 0.0), q))


def _law(p: Tensor, q: Tensor, g: Tensor, blocks: list[_Near]) -> Tensor:
    """o = k + sum over x of (q - k)(x) times what replaces x: (p - q)+, and min(p, q) on its neighbours."""
    k = torch.minimum(g, q)
    more, both = (p - q).clamp_(min=0), torch.minimum(p, q)
    o, common, around = k.clone(), p.new_zeros(len(p)), torch.zeros_like(p)
    left = more.sum(-1)
    for near in blocks:
        n, borrowing = near.n, near.A > 0
        refused = (q - k)[n, near.x]
        total = left[n] + both[n[:, None], near.N].sum(-1) * borrowing
        each = torch.where(total > 0, refused / total, 0.0)
        common.index_add_(0, n, each)
        places = n[:, None] * p.shape[-1] + near.N
        around.view(-1).index_add_(
            0, places.flatten(), (each * borrowing)[:, None].expand_as(near.N).flatten()
        )
        # Nothing is left over: p itself replaces x.
        o += p.new_zeros(len(p)).index_add_(0, n, refused * (total <= 0))[:, None] * p
    return o + common[:, None] * more + around * both
