"""The length that gives most symbols per unit of time, from measured costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from multispec.errors import UsageError
from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The number of draft symbols g with the largest (1 - a^(g+1)) / ((1 - a) cost(g)), a the acceptance.

    The goodput of SmartSpec (Liu et al. 2024, TurboSpec), for chains: ``costs[g]`` is the time of a round
    that drafts g symbols and scores them, in any unit, measured at the batch that will run; ``costs[0]`` is
    a plain step, and the default takes a tenth of it for each symbol. Lengths without a cost are not
    considered. ``acceptance`` is the chance that a drafted symbol is kept when those before it were. 0
    symbols are plain decoding.

    Raises:
        UsageError: no costs, a cost that is not above 0, an acceptance outside [0, 1].

    >>> Goodput(costs=(1.0, 1.1, 1.2, 1.3), acceptance=0.8).budget(Past(), 5).nodes
    3
    >>> Goodput(costs=(1.0, 1.5, 2.0, 2.5), acceptance=0.3).budget(Past(), 5).nodes
    0
    """

    name: ClassVar[str] = "goodput"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2406.14066"
    costs: Sequence[float] = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8)
    acceptance: float = 0.7

    def __post_init__(self) -> None:
        if not len(self.costs) or not all(math.isfinite(cost) and cost > 0 for cost in self.costs):
            raise UsageError(
                "goodput needs the cost of a round with 0, 1, 2 .. draft symbols, each above 0: "
                f"got {self.costs}."
            )
        if not 0 <= self.acceptance <= 1:
            raise UsageError(f"goodput needs an acceptance in [0, 1]: got {self.acceptance}.")

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The best length; of equals the shortest."""
        return Budget(nodes=max(range(len(self.costs)), key=self.goodput))

    def goodput(self, nodes: int) -> float:
        """Expected symbols per unit of time: 1 + a + .. + a^g of them in cost(g)."""
        return sum(self.acceptance**i for i in range(nodes + 1)) / self.costs[nodes]
