"""The K parallel slots of a step judged as one symbol: the test, and what comes where it fails.

Of the slots p = prod p_k and q = prod q_k. All of x is kept with min(1, p(x) / q(x)), that is with
probability 1 - TV(p, q) >= prod (1 - TV(p_k, q_k)), else y ~ norm((p - q)+) comes in its place. With few
outcomes that law is formed; else it is drawn from by thinning. The chance of a y that is proposed from p to
be kept is (1 - q(y) / p(y))+, so that 1 / TV(p, q) proposals are needed in the mean: many, where q is near
p. But one slot after the other may be exchanged,

    p - q = sum_k  q_1 .. q_{k-1} (p_k - q_k) p_{k+1} .. p_K,

so the same sum with (p_k - q_k)+ lies nowhere below (p - q)+. It is a mixture that can be drawn from, of
mass M <= sum_k TV_k <= K TV(p, q): no more than K proposals are needed in the mean, however near q is.
Nothing is cut off, which would change the law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from multispec.sampling import Noise, Purpose

# The law of the step in place of a refused one is formed up to so many outcomes.
FORMED = 4096


@dataclass(frozen=True, eq=False)
class JointStep:
    """The slots of a step whose first position is ``start``: laws ``p`` and ``q``, columns for symbols.

    q may lack what is outside its columns; where p is 0 it does not count.
    """

    p: Float[Tensor, "K V"]
    q: Float[Tensor, "K V"]
    start: int

    @property
    def positions(self) -> range:
        """Those of the slots."""
        return range(self.start, self.start + len(self.p))

    def passes(self, x: Int[Tensor, " K"], noise: Noise) -> bool:
        """Bernoulli(min(1, p(x) / q(x)))."""
        ratio = (_at(self.p, x) / _at(self.q, x)).prod()[None]
        return bool(noise.accepts(ratio, torch.ones_like(ratio), [self.start]))

    def instead(self, noise: Noise, formed: int = FORMED) -> list[int]:
        """y ~ norm((p - q)+); y ~ p where rounding leaves nothing of it."""
        # Somewhere p exceeds q if the largest ratios together do.
        largest = torch.where(self.p > 0, self.p / self.q, 0.0).amax(-1).prod()
        if not bool(largest > 1):
            return self.drawn(self.p, noise, 0)
        if math.prod((self.p > 0).sum(-1).tolist()) <= formed:
            return self._formed(noise)
        number, found = 1, self.proposed(noise, 1)
        while found is None:
            number += 1
            found = self.proposed(noise, number)
        return found

    def drawn(self, laws: Float[Tensor, "K V"], noise: Noise, key: int) -> list[int]:
        """A symbol for each slot."""
        found: list[int] = noise.choose(laws, self.positions, Purpose.RESIDUAL, key).tolist()
        return found

    def _formed(self, noise: Noise) -> list[int]:
        """One draw from the law itself, over all that p leaves."""
        columns = [row.nonzero()[:, 0] for row in self.p > 0]
        p, q = (_outer([row[own] for row, own in zip(law, columns, strict=True)]) for law in (self.p, self.q))
        rest = (p - q).clamp_(min=0)
        # Where products round off what single laws differ by, p it is.
        rest = rest if float(rest.sum()) > 0 else p
        place = noise.choose(rest.flatten()[None], [self.start], Purpose.RESIDUAL)
        found = torch.unravel_index(place[0], rest.shape)
        return [int(own[int(one)]) for own, one in zip(columns, found, strict=True)]

    # ---- thinning ----

    @cached_property
    def _inside(self) -> Float[Tensor, "K V"]:
        return torch.where(self.p > 0, self.q, 0.0)

    @cached_property
    def _more(self) -> Float[Tensor, "K V"]:
        return (self.p - self._inside).clamp(min=0)

    @cached_property
    def _masses(self) -> Float[Tensor, "1 K"]:
        """Those of the parts of the mixture."""
        before = self._inside.sum(-1).cumprod(0).roll(1)
        before[0] = 1.0
        return (before * self._more.sum(-1))[None]

    def proposed(self, noise: Noise, number: int) -> list[int] | None:
        """Proposal ``number``, if it is kept: a function of its own draws."""
        exchanged = float(self._masses.sum()) < 1
        laws = self.p
        if exchanged:
            k = int(noise.choose(self._masses, [self.start], Purpose.RESIDUAL, 2 * number))
            laws = torch.cat([self._inside[:k], self._more[k : k + 1], self.p[k + 1 :]])
        y = self.drawn(laws, noise, 2 * number + 1)
        x = torch.tensor(y, device=self.p.device)
        r = (_at(self._inside, x) / _at(self.p, x)).tolist()
        kept = max(1 - math.prod(r), 0.0)
        bound = _mixture(r) if exchanged else 1.0
        chance, of = (torch.tensor([one], dtype=torch.float64) for one in (kept, bound))
        return y if bool(noise.accepts(chance, of, [self.start], number)) else None


def _at(law: Tensor, x: Tensor) -> Tensor:
    return law.gather(-1, x[:, None])[:, 0]


def _outer(rows: Sequence[Tensor]) -> Tensor:
    """The product of laws, one dimension for each."""
    found = rows[0]
    for row in rows[1:]:
        found = found[..., None] * row
    return found


def _mixture(ratios: Sequence[float]) -> float:
    """sum_k r_1 .. r_{k-1} (1 - r_k)+ for ratios r = q / p: the mixture at a place, over p there."""
    total, before = 0.0, 1.0
    for r in ratios:
        total += before * max(1 - r, 0.0)
        before *= r
    return total
