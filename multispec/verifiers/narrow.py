"""The columns of a law that matter to a round: a grammar or a cut leaves few symbols of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    probs: Float[Tensor, "n V"]

    def columns(self, draft: Draft, nodes: Sequence[int]) -> Int[Tensor, " n"]:
        """The columns of drafted symbols."""
        return torch.tensor([draft.ids[node] - self.first for node in nodes], device=self.probs.device)

    def drawn(self, draft: Draft, nodes: Sequence[int]) -> Float[Tensor, "n V"]:
        """The law q that each node was drawn from; a point mass is q = 1."""
        if draft.q is None or draft.kind == "point":
            flat = self.probs.new_zeros(len(nodes), self.probs.shape[-1])
            return flat.scatter_(-1, self.columns(draft, nodes)[:, None], 1.0) if len(nodes) else flat
        q = draft.q[nodes.start : nodes.stop] if isinstance(nodes, range) else draft.q[list(nodes)]
        q = q.to(self.probs)
        # Over all symbols: what was drawn outside the columns is no mass inside them.
        total = q.sum(-1, keepdim=True)
        return q[:, self.first : self.first + self.probs.shape[-1]] / total


def narrowed(draft: Draft, p: Law, cover: range | None = None) -> Narrow:
    """p at the columns from the first to the last symbol that some place, the draft or ``cover`` knows of."""
    scores = p.scores
    known = (scores > -torch.inf).any(0).nonzero()[:, 0]
    if not len(known):  # nothing can be drawn, which the row says
        known = torch.tensor([0, scores.shape[-1] - 1])
    ends = [*known[[0, -1]].tolist(), *draft.ids, *(cover[:: max(len(cover) - 1, 1)] if cover else ())]
    first, last = min(ends), max(ends)
    if p.greedy or "probs" in vars(p):
        return Narrow(first, p.probs[:, first : last + 1])
    return Narrow(first, scores[:, first : last + 1].to(torch.float64).softmax(-1))


def without(q: Float[Tensor, "1 V"], x: Int[Tensor, " 1"]) -> Float[Tensor, "1 V"]:
    """q without a symbol; q itself where that is all. q sums to 1 over all symbols, columns or not."""
    rest = q.index_fill(-1, x, 0.0)
    total = torch.maximum(1 - q[:, x].sum(), rest.sum())
    return rest / total if float(total) > 0 else q
