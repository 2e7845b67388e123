"""The columns of a law that matter to a round: a grammar or a cut leaves few symbols of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.sampling import Law
from multispec.stream import Draft


@dataclass(frozen=True, eq=False)
class Narrow:
    """p at the places of a round, ``probs [D + 1, V]`` in float64; column v is the symbol ``first + v``.

    Symbols before and behind the columns have p = 0 everywhere, and are not in the draft.
    """

    first: int
    width: int
    law: Law

    @cached_property
    def probs(self) -> Float[Tensor, "n V"]:
        """p at all places."""
        return self._of(self.law)

    def at(self, place: int) -> Float[Tensor, "1 V"]:
        """p at one place: a walk down a tree comes by few of its nodes, and pays for those."""
        if "probs" in vars(self) or "probs" in vars(self.law):
            return self.probs[place : place + 1]
        return self._of(self.law.at(place))

    def _of(self, law: Law) -> Float[Tensor, "n V"]:
        if law.greedy or "probs" in vars(law):
            return self._columns(law.probs)
        return self._columns(law.scores).to(torch.float64).softmax(-1)

    def _columns(self, rows: Tensor) -> Tensor:
        return rows[:, self.first : self.first + self.width]

    def columns(self, draft: Draft, nodes: Sequence[int]) -> Int[Tensor, " n"]:
        """The columns of drafted symbols."""
        return torch.tensor([draft.ids[node] - self.first for node in nodes], device=self.law.scores.device)

    def drawn(self, draft: Draft, nodes: Sequence[int]) -> Float[Tensor, "n V"]:
        """The law q that each node was drawn from; a point mass is q = 1."""
        if draft.q is None or draft.kind == "point":
            flat = self.law.scores.new_zeros(len(nodes), self.width, dtype=torch.float64)
            return flat.scatter_(-1, self.columns(draft, nodes)[:, None], 1.0) if len(nodes) else flat
        beside = isinstance(nodes, range) or len(nodes) == 1
        q = draft.q[nodes[0] : nodes[0] + len(nodes)] if beside and nodes else draft.q[list(nodes)]
        q = q.to(self.law.scores.device, torch.float64)
        # Over all symbols: what was drawn outside the columns is no mass inside them.
        total = q.sum(-1, keepdim=True)
        return self._columns(q) / total


def narrowed(draft: Draft, p: Law, cover: range | None = None) -> Narrow:
    """p at the columns from the first to the last symbol that some place, the draft or ``cover`` knows of."""
    scores = p.scores
    ends = [*_known(scores), *draft.ids, *(cover[:: max(len(cover) - 1, 1)] if cover else ())]
    first, last = min(ends), max(ends)
    return Narrow(first, last + 1 - first, p)


def _known(scores: Tensor) -> list[int]:
    """The first and the last symbol that some place leaves; all of them where nothing can be drawn."""
    whole = [0, scores.shape[-1] - 1]
    # Where nothing was cut off, the ends tell by themselves.
    if all(float(scores[:, end].amax()) > -torch.inf for end in whole):
        return whole
    known = (scores > -torch.inf).any(0).nonzero()[:, 0]
    return known[[0, -1]].tolist() if len(known) else whole


def without(q: Float[Tensor, "1 V"], x: Int[Tensor, " 1"]) -> Float[Tensor, "1 V"]:
    """q without a symbol; q itself where that is all. q sums to 1 over all symbols, columns or not."""
    rest = q.index_fill(-1, x, 0.0)
    total = torch.maximum(1 - q[:, x].sum(), rest.sum())
    return rest / total if float(total) > 0 else q
