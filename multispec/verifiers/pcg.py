"""PCG: speech codes are judged by the group of codes that sound alike."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.errors import UsageError
from multispec.neighbours import Neighbours, needed
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.relaxing import Candidates, Relaxed, Trials

# Entries of one block of similarities.
_BLOCK = 2**22


@dataclass(frozen=True, kw_only=True)
class PCG:
    """Speculative sampling of groups of codes: keep x with min(1, P(g) / Q(g)), g a group that holds x.

    "Principled Coarse-Grained acceptance" (2025). Each code t has a group G_t of the codes t' whose cosine
    with it exceeds ``theta``. A symbol's mass is shared equally among the groups S(x) that hold it: P(g) is
    the sum of p(x) / |S(x)| over x in g, Q(g) that of q. x picks one of its groups; when that is refused, a
    group is drawn from norm((P - Q)+), and a symbol from p within it.

    The group has the law P, so any set of codes that no group reaches out of has exactly its probability
    under p; that holds on chains and trees. Within a group the drafter decides: ``spent`` is the total
    variation of the symbol, exact on chains and on trees of given or independent siblings, else its mean is
    an upper bound (``relaxing.walk``). Symbols outside the codebook are groups of their own.

    Streams whose codebooks share ids are given ``levels``, one codebook for each position modulo their
    number; else ``neighbours`` is the only one.

    Raises:
        UsageError: theta outside [-1, 1]; at ``verify``, no codebook, or one of another vocabulary.
    """

    name: ClassVar[str] = "pcg"
    exactness: ClassVar[Exactness] = "group"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "PCG 2025, arXiv 2511.13732"
    theta: float = 0.8
    neighbours: Neighbours | None = None
    levels: tuple[Neighbours, ...] = ()

    def __post_init__(self) -> None:
        if not -1 <= self.theta <= 1:
            raise UsageError(f"pcg compares cosines with theta in [-1, 1]: got {self.theta}. 1 is rejection.")

    @property
    def needs_neighbours(self) -> bool:
        """True where no levels are given."""
        return not self.levels

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node try the children in the order they were drawn."""
        size = p.scores.shape[-1]
        levels = self.levels or (needed(self.neighbours, self.name, size),)
        groups = [_groups(level.check(size), self.theta) for level in levels]
        return Relaxed(rule=lambda at: _try(at, groups)).walk(draft, p, noise, standing)


@dataclass(frozen=True, eq=False)
class _Groups:
    """The pairs ``(g, t)`` of a group and a symbol it holds, and |S| of each symbol t of a pair."""

    g: Int[Tensor, " E"]
    t: Int[Tensor, " E"]
    S: Float[Tensor, " E"]
    count: int

    def within(self, first: int, size: int, device: torch.device) -> _Groups:
        """The pairs of symbols among the columns; each symbol outside the codebook is a group of its own."""
        inside = (self.t >= first) & (self.t < first + size)
        g, t, S = (one[inside].to(device) for one in (self.g, self.t - first, self.S))
        free = torch.ones(size, dtype=torch.bool, device=device).index_fill_(0, t, False).nonzero()[:, 0]
        alone = torch.arange(len(free), device=device) + self.count
        ones = torch.ones(len(free), dtype=S.dtype, device=device)
        count = self.count + len(free)
        return _Groups(torch.cat([g, alone]), torch.cat([t, free]), torch.cat([S, ones]), count)

    def masses(self, p: Float[Tensor, "n V"]) -> Float[Tensor, "n G"]:
        """P(g)."""
        return p.new_zeros(len(p), self.count).index_add_(1, self.g, p[:, self.t] / self.S)

    def spread(self, values: Float[Tensor, "n G"], size: int) -> Float[Tensor, "n V"]:
        """The mean of some values over the groups of each symbol."""
        return values.new_zeros(len(values), size).index_add_(1, self.t, values[:, self.g] / self.S)


@lru_cache(maxsize=64)
def _groups(level: Neighbours, theta: float) -> _Groups:
    book = level.codebook.detach().to("cpu", torch.float64)
    unit = book / book.norm(dim=-1, keepdim=True).clamp(min=1e-300)
    pairs: list[Tensor] = []
    step = max(_BLOCK // len(unit), 1)
    for start in range(0, len(unit), step):
        alike = unit[start : start + step] @ unit.T > theta
        own = torch.arange(len(alike))
        alike[own, start + own] = True
        pairs.append(alike.nonzero() + torch.tensor([start, 0]))
    g, code = torch.cat(pairs).unbind(-1)
    ids = range(level.offset, level.offset + level.size) if level.symbols is None else level.symbols
    S = torch.bincount(code, minlength=level.size).to(torch.float64)
    return _Groups(g, torch.tensor(list(ids))[code], S[code], level.size)


def _try(at: Candidates, levels: list[_Groups]) -> Trials:
    g, rest = torch.empty_like(at.p), torch.empty_like(at.p)
    for level, groups in enumerate(levels):
        rows = slice((level - at.position) % len(levels), None, len(levels))
        if len(at.p[rows]):
            here = groups.within(at.first, at.p.shape[-1], at.p.device)
            g[rows], rest[rows] = _kept_and_rest(at.p[rows], at.q[rows], here)
    return Trials.of(at.q, g, rest)


def _kept_and_rest(p: Tensor, q: Tensor, groups: _Groups) -> tuple[Tensor, Tensor]:
    """q f with f the mean of min(1, P / Q) over S(x), and what a refused symbol is replaced from."""
    P, Q = groups.masses(p), groups.masses(q)
    f = groups.spread(torch.where(Q > 0, (P / Q).clamp(max=1), 0.0), p.shape[-1])
    more = (P - Q).clamp_(min=0)
    total = more.sum(-1, keepdim=True)
    drawn = p * groups.spread(torch.where(P > 0, more / P, 0.0), p.shape[-1])
    return q * f, torch.where(total > 0, drawn / total, p)
