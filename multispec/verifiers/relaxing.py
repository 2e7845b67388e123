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
from jaxtyping import Float
from torch import Tensor

from multispec.protocols import Standing
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Verdict
from multispec.tree import children
from multispec.verifiers.rejection import law_of, point_mass, residual, without

# Total variation below this is rounding.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Place:
    """One symbol that is to be tested.

    ``p`` is what is left of the target's law here, ``q`` the law that symbol ``x`` was drawn from.
    ``depth`` counts from 0 within the draft, ``position`` within the stream; ``spent`` is the variation
    that the stream has spent before. What this test spends counts ``reach`` fold: that is the chance that
    the siblings before are refused, or 1 where it is not known beforehand. ``last`` says that no sibling
    comes after.
    """

    p: Float[Tensor, " V"]
    q: Float[Tensor, " V"]
    x: int
    depth: int
    position: int
    spent: float
    reach: float = 1.0
    last: bool = True


@dataclass(frozen=True, eq=False)
class Trial:
    """What a rule makes of a place: ``g`` for p, the ``rest`` after x was refused, the ``law`` o of both."""

    g: Float[Tensor, " V"]
    rest: Float[Tensor, " V"]
    law: Float[Tensor, " V"]

    @staticmethod
    def of(q: Float[Tensor, " V"], g: Float[Tensor, " V"], rest: Float[Tensor, " V"]) -> Trial:
        """A trial whose rest is the same whichever symbol was refused."""
        k = torch.minimum(g, q)
        return Trial(g, rest, k + (1 - k.sum()).clamp(min=0) * rest)


Rule = Callable[[Place], Trial]


def leftover(p: Float[Tensor, " V"], q: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
    """norm((p - q)+); p itself where nothing is left."""
    return residual(p, q)


def variation(o: Float[Tensor, " V"], p: Float[Tensor, " V"]) -> float:
    """The total variation of o from p; 0 where it is rounding."""
    found = float((o - p).clamp_(min=0).sum())
    return min(found, 1.0) if found > ROUNDING else 0.0


def walk(
    draft: Draft, p: Law, noise: Noise, standing: Standing, rule: Rule, *, restless: bool = False
) -> Verdict:
    """Down the tree, trying siblings in order; ``spent`` has one number per emitted symbol.

    The number is the total variation of the law of that symbol given those before it: exact where one
    symbol was tried, and for siblings that are given (point masses) or independent. Else what a later
    sibling meets depends on the symbols before (drawn without replacement; or a ``restless`` rule, whose
    rest depends on the symbol refused), and the number is the sum over the trials that were made. Its mean
    is an upper bound: o differs from p by what the first trial differs and, where that refuses, by no more
    than what follows differs from the rest, which is the same claim with a sibling less.
    """
    probs, below, tokens = p.probs, children(draft.parents), draft.ids
    walked = _Walk(draft, noise, standing.start, rule, restless)
    path: list[int] = []
    spent: list[float] = []
    node = -1
    while True:
        at = Place(
            p=probs[node + 1],
            q=law_of(draft, below.get(node, ()), probs[node + 1]),
            x=-1,
            depth=len(path),
            position=standing.start + len(path),
            spent=standing.spent + sum(spent),
        )
        accepted, left, cost = walked.among(below.get(node, ()), tokens, at)
        spent.append(cost)
        if accepted is None:
            x = noise.choose(left[None], [at.position], Purpose.RESIDUAL, standing.start)
            emitted = (*(tokens[n] for n in path), int(x))
            return Verdict(path=tuple(path), tokens=emitted, spent=tuple(spent))
        path.append(accepted)
        node = accepted


@dataclass(frozen=True)
class _Walk:
    draft: Draft
    noise: Noise
    start: int
    rule: Rule
    restless: bool

    def among(
        self, siblings: tuple[int, ...], tokens: list[int], at: Place
    ) -> tuple[int | None, Tensor, float]:
        """The child that is accepted, if any; the law that is left when none is; what it cost."""
        if not siblings:
            return None, at.p, 0.0
        kind = self.draft.kind
        if kind != "point":
            at = replace(at, q=at.q / at.q.sum())
        changing = kind == "without_replacement" or (self.restless and kind == "sampled")
        if len(siblings) > 1 and not changing:
            return self._foreseen(siblings, tokens, at)
        return self._in_turn(siblings, tokens, at)

    def _foreseen(
        self, siblings: tuple[int, ...], tokens: list[int], at: Place
    ) -> tuple[int | None, Tensor, float]:
        """All trials first: they do not depend on what is drawn, so their law is known."""
        places = self._places(siblings, tokens, at)
        o, p, reach = torch.zeros_like(at.p), at.p, 1.0
        trials: list[tuple[int, Place, Trial]] = []
        for child, place in zip(siblings, places, strict=True):
            place = replace(place, p=p, reach=reach)
            trial = self.rule(place)
            trials.append((child, place, trial))
            k = torch.minimum(trial.g, place.q)
            o += reach * k
            reach *= max(1 - float(k.sum()), 0.0)
            p = trial.rest
        cost = variation(o + reach * p, at.p)
        passed = (c for i, (c, place, trial) in enumerate(trials) if self._passes(place, trial, i))
        return next(passed, None), p, cost

    def _in_turn(
        self, siblings: tuple[int, ...], tokens: list[int], at: Place
    ) -> tuple[int | None, Tensor, float]:
        """One trial after the other, as far as they are needed."""
        cost = 0.0
        p, q = at.p, at.q
        for order, (child, place) in enumerate(
            zip(siblings, self._places(siblings, tokens, at), strict=True)
        ):
            drawn = q if self.draft.kind != "point" else place.q
            place = replace(place, p=p, q=drawn, spent=at.spent + cost)
            trial = self.rule(place)
            cost += variation(trial.law, p)
            if self._passes(place, trial, order):
                return child, p, cost
            p = trial.rest
            if self.draft.kind == "without_replacement":
                q = without(q, place.x)
        return None, p, cost

    def _places(self, siblings: tuple[int, ...], tokens: list[int], at: Place) -> list[Place]:
        last = len(siblings) - 1
        symbols = [tokens[child] for child in siblings]
        point = self.draft.kind == "point"
        return [
            replace(at, x=x, q=point_mass(at.p, x) if point else at.q, last=order == last)
            for order, x in enumerate(symbols)
        ]

    def _passes(self, place: Place, trial: Trial, order: int) -> bool:
        # A test of its own per sibling, as in rejection: the key tells them apart at one position.
        key = self.start * 4096 + order
        g, q = trial.g[place.x : place.x + 1], place.q[place.x : place.x + 1]
        return bool(self.noise.accepts(g, q, [place.position], key))
