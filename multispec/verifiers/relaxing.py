"""What all relaxed rules share: the walk down a draft, and the meter of what it costs.

A rule puts some g in the place of p: a symbol x drawn from q is kept when u q(x) < g(x), and else one is
drawn from a law that is left over. Kept is k = min(g, q); with a rest r the symbol has the law

    o = k + (1 - sum k) r,    at a total variation of sum (o - p)+ from p.

A point mass is q = 1 at x.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.neighbours import Neighbours
from multispec.protocols import Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.narrow import Narrow, narrowed, without

# Total variation below this is rounding.
ROUNDING = 1e-12
# The symbols of a chain that are tested together at first (then twice as many each time), and the entries
# that so many may have.
_CHAIN, _ENTRIES = 8, 2**17


@dataclass(frozen=True, eq=False)
class Candidates:
    """``n`` drafted symbols, each to be tested by itself; column v is the symbol ``first + v``.

    ``p`` is what is left of the target's law at each, ``q`` the law that its column ``x`` was drawn from.
    They follow each other: ``depth`` (from 0 within the draft), ``position`` (within the stream) and
    ``spent`` (the variation that the stream has spent before) are those of the first. What a test spends
    counts ``reach`` fold: that is the chance that the siblings before are refused, or 1 where it is not
    known beforehand. ``last`` says that no sibling comes after. ``place`` is the row of the round's laws that
    the first stands in (0: behind the root), for rules that look at more than what is left of p.
    """

    p: Float[Tensor, "n V"]
    q: Float[Tensor, "n V"]
    x: Int[Tensor, " n"]
    depth: int = 0
    position: int = 0
    spent: float = 0.0
    reach: float = 1.0
    last: bool = True
    first: int = 0
    place: int = 0


@dataclass(frozen=True, eq=False)
class Trials:
    """What a rule makes of candidates: ``g`` for p, the ``rest`` once x is refused, the ``law`` o of both."""

    g: Float[Tensor, "n V"]
    rest: Float[Tensor, "n V"]
    law: Float[Tensor, "n V"]

    @staticmethod
    def of(q: Float[Tensor, "n V"], g: Float[Tensor, "n V"], rest: Float[Tensor, "n V"]) -> Trials:
        """Trials whose rest is the same whichever symbol was refused."""
        k = torch.minimum(g, q)
        return Trials(g, rest, k + (1 - k.sum(-1, keepdim=True)).clamp_(min=0) * rest)


Rule = Callable[[Candidates], Trials]


def leftover(p: Float[Tensor, "n V"], q: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """norm((p - q)+); p itself where nothing is left."""
    rest = (p - q).clamp_(min=0)
    total = rest.sum(-1, keepdim=True)
    return torch.where(total > 0, rest / total, p)


def variation(o: Float[Tensor, "n V"], p: Float[Tensor, "n V"]) -> list[float]:
    """The total variation of each o from its p; 0 where it is rounding."""
    found: list[float] = (o - p).clamp_(min=0).sum(-1).tolist()
    return [min(one, 1.0) if one > ROUNDING else 0.0 for one in found]


@dataclass(frozen=True, kw_only=True)
class Relaxed:
    """A rule on its way down a draft.

    The rest of a ``restless`` rule depends on the symbol that was refused. ``neighbours`` are those that the
    rule looks at, if it does.
    """

    rule: Rule
    restless: bool = False
    neighbours: Neighbours | None = None

    def walk(self, draft: Draft, law: Law, noise: Noise, standing: Standing) -> Verdict:
        """Down the tree, trying siblings in order; ``spent`` has one number per emitted symbol.

        The number is the total variation of the law of that symbol given those before it: exact where one
        symbol was tried, and for siblings that are given (point masses) or independent. Else what a later
        sibling meets depends on the symbols before (drawn without replacement; or a restless rule), and
        the number is the sum over the trials that were made. Its mean is an upper bound: o differs from p
        by what the first trial differs and, where that refuses, by no more than what follows differs from
        the rest, which is the same claim with a sibling less.
        """
        p = narrowed(draft, law, None if self.neighbours is None else self.neighbours.span)
        way = self._along if draft.is_chain else self._down
        path, left, spent = way(draft, p, noise, standing)
        position = standing.start + len(path)
        x = noise.choose(left, [position], Purpose.RESIDUAL, standing.start)
        emitted = (*(draft.ids[node] for node in path), p.first + int(x))
        return Verdict(path=tuple(path), tokens=emitted, spent=tuple(spent))

    def _along(
        self, draft: Draft, p: Narrow, noise: Noise, standing: Standing
    ) -> tuple[range, Tensor, list[float]]:
        """A chain, some symbols at a time: the nodes accepted, the law that is left, what each place cost."""
        start, length, spent = standing.start, len(draft), list[float]()
        begin, step, most = 0, _CHAIN, max(_ENTRIES // p.probs.shape[-1], 1)
        while begin < length:
            nodes = range(begin, min(begin + min(step, most), length))
            at = Candidates(
                p=p.probs[nodes.start : nodes.stop],
                q=p.drawn(draft, nodes),
                x=p.columns(draft, nodes),
                depth=standing.depth + begin,
                position=start + begin,
                spent=standing.spent + sum(spent),
                first=p.first,
                place=begin,
            )
            trials = self.rule(at)
            kept = _passed(at, trials, noise, start, 0)
            count = kept.index(False) if False in kept else len(kept)
            spent += variation(trials.law, at.p)[: count + 1]
            if count < len(kept):
                return range(begin + count), trials.rest[count : count + 1], spent
            begin, step = nodes.stop, 2 * step
        return range(length), p.probs[length:], [*spent, 0.0]

    def _down(
        self, draft: Draft, p: Narrow, noise: Noise, standing: Standing
    ) -> tuple[list[int], Tensor, list[float]]:
        """A tree, or a chain symbol by symbol: the same three."""
        below, node = children(draft.parents), -1
        path, spent = list[int](), list[float]()
        while True:
            siblings, left = below.get(node, ()), p.probs[node + 1 : node + 2]
            if not siblings:
                return path, left, [*spent, 0.0]
            at = Candidates(
                p=left,
                q=p.drawn(draft, siblings[:1]),
                x=p.columns(draft, siblings[:1]),
                depth=standing.depth + len(path),
                position=standing.start + len(path),
                spent=standing.spent + sum(spent),
                first=p.first,
                place=node + 1,
            )
            accepted, left, cost = self._among(siblings, draft, p, at, noise, standing.start)
            spent.append(cost)
            if accepted is None:
                return path, left, spent
            path.append(accepted)
            node = accepted

    def _among(
        self,
        siblings: tuple[int, ...],
        draft: Draft,
        p: Narrow,
        at: Candidates,
        noise: Noise,
        start: int,
    ) -> tuple[int | None, Tensor, float]:
        """The child that is accepted, if any; the law that is left when none is; what it cost."""
        changing = draft.kind == "without_replacement" or (self.restless and draft.kind == "sampled")
        places = [replace(at, x=p.columns(draft, (child,)), last=child == siblings[-1]) for child in siblings]
        if draft.kind == "point":
            places = [replace(one, q=p.drawn(draft, (n,))) for one, n in zip(places, siblings, strict=True)]
        way = self._foreseen if len(siblings) > 1 and not changing else self._in_turn
        order, left, cost = way(places, draft.kind == "without_replacement", noise, start)
        return None if order is None else siblings[order], left, cost

    def _foreseen(
        self, places: list[Candidates], removing: bool, noise: Noise, start: int
    ) -> tuple[int | None, Tensor, float]:
        """All trials first: they do not depend on what is drawn, so their law is known."""
        p = places[0].p
        o, left, reach = torch.zeros_like(p), p, 1.0
        tried: list[tuple[Candidates, Trials]] = []
        for place in places:
            place = replace(place, p=left, reach=reach)
            trials = self.rule(place)
            tried.append((place, trials))
            k = torch.minimum(trials.g, place.q)
            o += reach * k
            reach *= max(1 - float(k.sum()), 0.0)
            left = trials.rest
        cost = variation(o + reach * left, p)[0]
        passed = (i for i, pair in enumerate(tried) if _passed(*pair, noise, start, i)[0])
        return next(passed, None), left, cost

    def _in_turn(
        self, places: list[Candidates], removing: bool, noise: Noise, start: int
    ) -> tuple[int | None, Tensor, float]:
        """One trial after the other, as far as they are needed."""
        cost, left, q = 0.0, places[0].p, places[0].q
        for order, place in enumerate(places):
            place = replace(place, p=left, q=q if removing else place.q, spent=place.spent + cost)
            trials = self.rule(place)
            cost += variation(trials.law, left)[0]
            if _passed(place, trials, noise, start, order)[0]:
                return order, left, cost
            left = trials.rest
            if removing:
                q = without(q, place.x)
        return None, left, cost


def _passed(at: Candidates, trials: Trials, noise: Noise, start: int, order: int) -> list[bool]:
    x = at.x[:, None]
    g, q = trials.g.gather(-1, x)[:, 0], at.q.gather(-1, x)[:, 0]
    positions = [at.position + n for n in range(len(g))]
    # A test of its own per sibling, as in rejection: the key tells them apart at one position.
    passed: list[bool] = noise.accepts(g, q, positions, start * 4096 + order).tolist()
    return passed
