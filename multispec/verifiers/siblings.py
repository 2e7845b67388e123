"""The walk down a tree for rules that judge the siblings behind one node together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.protocols import Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, DraftKind, Verdict
from multispec.tree import children
from multispec.verifiers.narrow import narrowed, without
from multispec.verifiers.rejection import residual


@dataclass(frozen=True, eq=False)
class Siblings:
    """``k`` drafted symbols behind one node: columns ``x``, in the order they were drawn.

    ``p`` is the target's law there, ``q`` the law that the first of them was drawn from.
    """

    p: Float[Tensor, "1 V"]
    q: Float[Tensor, "1 V"]
    x: Int[Tensor, " k"]
    kind: DraftKind
    noise: Noise
    position: int
    start: int

    def passes(self, order: int, chance: float | Tensor, of: float | Tensor = 1.0) -> bool:
        """Bernoulli(min(1, chance / of)), from a draw of its own for each ``order`` below 4096."""
        p, q = (torch.tensor([float(one)], dtype=torch.float64) for one in (chance, of))
        # The key tells the tests at one position apart.
        return bool(self.noise.accepts(p, q, [self.position], self.start * 4096 + order))


Choice = tuple[int | None, Float[Tensor, "1 V"]]
Rule = Callable[[Siblings], Choice]


def walk(
    rule: Rule, draft: Draft, law: Law, noise: Noise, standing: Standing, *, whole: bool = False
) -> Verdict:
    """Down the tree: ``rule`` names the sibling to go on with, or none and the law of the last symbol.

    A rule that asks what else might have been drafted sees all symbols (``whole``), else those that matter.
    """
    p = narrowed(draft, law, range(law.scores.shape[-1]) if whole else None)
    below, start = children(draft.parents), standing.start
    path, node = list[int](), -1
    while True:
        siblings, left = below.get(node, ()), p.at(node + 1)
        if not siblings:
            break
        q, x = p.drawn(draft, siblings[:1]), p.columns(draft, siblings)
        chosen, left = rule(Siblings(left, q, x, draft.kind, noise, start + len(path), start))
        if chosen is None:
            break
        node = siblings[chosen]
        path.append(node)
    last = noise.choose(left, [start + len(path)], Purpose.RESIDUAL, start)
    return Verdict(path=tuple(path), tokens=(*(draft.ids[node] for node in path), p.first + int(last)))


def in_turn(at: Siblings, begin: int = 0) -> Choice:
    """Recursive rejection over the siblings from ``begin`` on, the first of which was drawn from ``at.q``."""
    p, q = at.p, at.q
    for order in range(begin, len(at.x)):
        x = at.x[order : order + 1]
        if at.kind == "point":
            q = torch.zeros_like(p).index_fill_(-1, x, 1.0)
        if at.passes(order, p[0, x], q[0, x]):
            return order, p
        p = residual(p, q)
        if at.kind == "without_replacement":
            q = without(q, x)
    return None, p
