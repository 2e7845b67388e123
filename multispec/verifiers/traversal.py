"""Traversal verification: a tree is judged from its leaves towards its root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.narrow import Narrow, narrowed, without


@dataclass(frozen=True, kw_only=True)
class Traversal:
    """The target's law from trees, with more symbols per round than ``rejection`` where drafts are sampled.

    Weng et al. (2025), "Traversal Verification for Speculative Tree Decoding". The leftmost
    leaf c that is left is kept with its whole path with probability a(c), where a(root) = 1 and a(c) =
    min(1, a(n) P_n(c) / Q_n(c)) behind its parent n. Otherwise c is taken away: P_n becomes
    norm((a(n) P_n - Q_n)+), a(n) becomes S / (S + 1 - a(n)) with S = sum (a(n) P_n - Q_n)+, and Q_n the law
    of the next sibling. Behind the leaf that is kept, or the root, the last symbol is drawn from P.

    Siblings drawn without replacement, as published; for independent ones Q_n stays, for given ones
    (point masses) it is 1 at the next, with the acceptance of ``rejection``. On a chain this is ``block``.
    """

    name: ClassVar[str] = "traversal"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Weng et al. 2025, arXiv 2505.12398"

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Leaf by leaf, from the first to the last; then the root."""
        narrow, start = narrowed(draft, p), standing.start
        found = _Traversal(draft, narrow, children(draft.parents), noise, start).visit(-1, 1.0, 0)
        path, left = found if found is not None else ((), narrow.probs[:1])
        y = noise.choose(left, [start + len(path)], Purpose.RESIDUAL, start)
        return Verdict(path=path, tokens=(*(draft.ids[node] for node in path), narrow.first + int(y)))


@dataclass(frozen=True)
class _Traversal:
    draft: Draft
    p: Narrow
    below: Mapping[int, tuple[int, ...]]
    noise: Noise
    start: int

    def visit(self, node: int, a: float, depth: int) -> tuple[tuple[int, ...], Tensor] | None:
        """The path that is kept from ``node`` on, and the law behind it; None when the node is taken away."""
        P, siblings = self.p.probs[node + 1 : node + 2], self.below.get(node, ())
        Q = self.p.drawn(self.draft, siblings[:1])
        for child in siblings:
            if self.draft.kind == "point":
                Q = self.p.drawn(self.draft, (child,))
            c = self.p.columns(self.draft, (child,))
            q_c = float(Q[0, c])
            weight = min(1.0, a * float(P[0, c]) / q_c) if q_c > 0 else 0.0
            kept = self.visit(child, weight, depth + 1)
            if kept is not None:
                return (child, *kept[0]), kept[1]
            P, a = _taken_away(P, Q, a)
            if self.draft.kind == "without_replacement":
                Q = without(Q, c)
        return ((), P) if node < 0 or self._passes(node, a, depth) else None

    def _passes(self, node: int, a: float, depth: int) -> bool:
        chance = torch.tensor([a], dtype=torch.float64)
        # A test of its own per node: the key tells them apart at one position.
        key = self.start * 4096 + node
        return bool(self.noise.accepts(chance, torch.ones_like(chance), [self.start + depth - 1], key))


def _taken_away(P: Tensor, Q: Tensor, a: float) -> tuple[Tensor, float]:
    """P and a of a node without a child that was drawn from Q."""
    rest = (a * P - Q).clamp_(min=0)
    S = float(rest.sum())
    if S <= 0:  # nothing is left: of a node that is never kept, or by rounding
        return P, 0.0 if a < 1 else 1.0
    # By rounding a may come out above 1.
    return rest / S, min(1.0, S / (S + 1 - a))
