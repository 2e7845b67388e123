"""Where a draft ends before its budget does: the limits that a policy sets on the laws drafted from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from multispec.protocols import Budget
from multispec.sampling import Law


def sureness(law: Law) -> Float[Tensor, "n V"]:
    """q as it tells how sure the drafter is: also of greedy laws, whose p is one-hot, by their scores."""
    return law.scores.softmax(-1)


def looks(budget: Budget) -> bool:
    """Whether the budget sets any limit, so that somebody has to look at q."""
    return budget.confidence > 0 or budget.entropy < math.inf or budget.reach > 0 or budget.mass > 0


def unsure(budget: Budget, law: Law) -> list[bool]:
    """Whether drafting ends behind a symbol drawn from each of these laws: a property of laws, not of draws.

    max q below ``confidence``, or the entropy of q above ``entropy``.
    """
    if budget.confidence <= 0 and budget.entropy == math.inf:
        return [False] * len(law)
    return _unsure(budget, law, sureness(law))


def _unsure(budget: Budget, law: Law, q: Tensor) -> list[bool]:
    top = q.amax(-1)
    found = top < budget.confidence
    if budget.entropy < math.inf:
        # H = log Z - sum q s of scores s, where log Z = max s - log max q: no logarithm per symbol.
        s = law.scores
        mean = (q * s.clamp(min=torch.finfo(s.dtype).min)).sum(-1)
        found |= s.amax(-1) - top.log() - mean > budget.entropy
    ends: list[bool] = found.tolist()
    return ends


def unsure_among(budget: Budget, count: int) -> bool:
    """``unsure`` for the uniform law over so many symbols."""
    return count * budget.confidence > 1 or math.log(count) > budget.entropy


def thin(budget: Budget, depth: int, mass: float) -> bool:
    """Whether drafting ends below a level at which the products of q along the paths sum to ``mass``."""
    return mass < budget.mass and (not budget.depths or depth in budget.depths)


@dataclass
class Stopping:
    """The limits of a budget, along a chain that is drafted symbol by symbol.

    It is told of each symbol when that is part of the draft already, so looking at what was drawn biases
    nothing: only the symbols behind it are decided on.

    >>> law = Law(torch.tensor([[0.0, 0.0]]), greedy=False)
    >>> stopping = Stopping(Budget(nodes=9, reach=0.3))
    >>> stopping.behind(law, 0), stopping.behind(law, 1)
    (False, True)
    """

    budget: Budget
    depth: int = 0
    reached: float = 1.0

    def behind(self, law: Law, x: int) -> bool:
        """True where the draft ends behind ``x``, its next symbol, drawn from ``law`` at one place."""
        self.depth += 1
        if self.depth >= self.budget.nodes:
            return True
        if not looks(self.budget):
            return False
        q = sureness(law)
        self.reached *= float(q[0, x])
        gone = self.reached < self.budget.reach or thin(self.budget, self.depth, self.reached)
        return gone or _unsure(self.budget, law, q)[0]
