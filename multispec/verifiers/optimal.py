"""Optimal transport by linear programming: what siblings can give at most, for small sets of candidates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Exactness, Standing
from multispec.sampling import Law, Noise
from multispec.stream import Draft, Verdict
from multispec.verifiers.siblings import Choice, Siblings, in_turn, walk

Set = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Optimal:
    """The target's law, with the highest chance that the next symbol is one of the siblings.

    Sun et al. (2023), SpecTr: transport with membership cost, solved as the linear program that it is. Over
    sets of siblings X with their law Q, pi(X, y) with y in X is as large as sum_y pi(X, y) <= Q(X) and
    sum_X pi(X, y) <= p(y) allow. y of X is accepted with pi(X, y) / Q(X), and when none is, the symbol is
    drawn from norm(p - sum_X pi(X, .)).

    A reference, at every node by itself, for small alphabets: a node with k siblings has as many sets as k of
    the symbols with q > 0 can form, and more than ``max_sets`` are refused. One child is ``rejection``;
    given siblings (point masses) are one set and cost nothing. Needs scipy.

    Raises:
        UsageError: no sets allowed; UnsupportedError: at ``verify``, too many sets, or no scipy.
    """

    name: ClassVar[str] = "optimal"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False
    paper: ClassVar[str] = "Sun et al. 2023, arXiv 2310.15141"
    max_sets: int = 20_000

    def __post_init__(self) -> None:
        if self.max_sets < 1:
            raise UsageError(f"optimal needs max_sets >= 1: got {self.max_sets}.")

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        """Walk down the tree; at each node judge all children together."""
        return walk(self._among, draft, p, noise, standing, whole=True)

    def _among(self, at: Siblings) -> Choice:
        if at.kind == "point" or len(at.x) == 1:
            return in_turn(at)
        Q = self._sets(at.q[0], len(at.x), at.kind == "without_replacement")
        pi = _transport(Q, at.p[0].tolist())
        X = tuple(sorted(set(at.x.tolist())))
        left = Q[X]
        for number, y in enumerate(X):
            if at.passes(number, pi[X, y], left):
                return at.x.tolist().index(y), at.p
            left = max(left - pi[X, y], 0.0)
        return None, _rest(at.p, pi)

    def _sets(self, q: Tensor, k: int, removing: bool) -> dict[Set, float]:
        """The law of the set that k siblings form."""
        symbols = q.nonzero()[:, 0].tolist()
        sizes = (k,) if removing else range(1, k + 1)
        count = sum(math.comb(len(symbols), size) for size in sizes)
        # Each set is summed over its orders.
        if count * math.factorial(k) > 64 * self.max_sets or count > self.max_sets:
            raise UnsupportedError(
                f"The linear program of optimal transport is for small sets: {k} siblings among "
                f"{len(symbols)} symbols form {count} sets, of {self.max_sets} allowed. Lower top_k, draw "
                "fewer siblings, or use traversal, k_seq or spechub."
            )
        law = dict(enumerate(q.tolist()))
        chance = _without_replacement if removing else _independent
        return {X: chance([law[x] for x in X], k) for n in sizes for X in itertools.combinations(symbols, n)}


def _independent(q: Sequence[float], k: int) -> float:
    """That k independent draws form this very set: by inclusion and exclusion."""
    signed = (
        (-1) ** (len(q) - n) * math.fsum(part) ** k
        for n in range(1, len(q) + 1)
        for part in itertools.combinations(q, n)
    )
    return max(math.fsum(signed), 0.0)


def _without_replacement(q: Sequence[float], k: int) -> float:
    """That draws without replacement form this set: over all orders."""
    total = 0.0
    for order in itertools.permutations(q):
        chance, left = 1.0, 1.0
        for one in order:
            chance *= one / left
            left -= one
        total += chance
    return total


def _transport(Q: dict[Set, float], p: Sequence[float]) -> dict[tuple[Set, int], float]:
    """pi, the larger the better; scaled to where both bounds hold to the last digit."""
    pairs = [(X, y) for X in Q for y in X]
    names: dict[Any, int] = {name: row for row, name in enumerate([*Q, *sorted({y for _, y in pairs})])}
    bounds = [*Q.values(), *(p[name] for name in names if isinstance(name, int))]
    rows = [names[one] for pair in pairs for one in pair]
    found = _solved(rows, bounds, len(pairs))
    pi = dict(zip(pairs, (max(one, 0.0) for one in found), strict=True))
    for place in (0, 1):
        sums: dict[Any, list[float]] = {}
        for pair, mass in pi.items():
            sums.setdefault(pair[place], []).append(mass)
        most = {name: bounds[names[name]] / math.fsum(m) if any(m) else 1.0 for name, m in sums.items()}
        pi = {pair: mass * min(1.0, most[pair[place]]) for pair, mass in pi.items()}
    return pi


def _solved(rows: Sequence[int], bounds: Sequence[float], pairs: int) -> Sequence[float]:
    try:
        from scipy.optimize import linprog
        from scipy.sparse import coo_array
    except ImportError as error:
        raise UnsupportedError(
            "The verifier optimal solves linear programs with scipy, which is not installed. "
            "Run: pip install scipy, or use traversal, k_seq or spechub."
        ) from error
    columns = [place // 2 for place in range(2 * pairs)]
    matrix = coo_array(([1.0] * len(rows), (rows, columns)), shape=(len(bounds), pairs))
    found: Sequence[float] = linprog([-1.0] * pairs, A_ub=matrix.tocsr(), b_ub=bounds).x.tolist()
    return found


def _rest(p: Tensor, pi: dict[tuple[Set, int], float]) -> Tensor:
    """norm(p - sum_X pi(X, .)); p itself where nothing is left."""
    places, masses = [y for _, y in pi], list(pi.values())
    taken = torch.zeros_like(p)
    taken[0].index_add_(0, torch.tensor(places, device=p.device), p.new_tensor(masses))
    rest = (p - taken).clamp_(min=0)
    return rest if float(rest.sum()) > 0 else p
