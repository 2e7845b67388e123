"""UCBSpec: the draft length, and the drafter, with the best upper confidence bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from multispec.errors import UsageError
from multispec.policies.arms import Arm, Played, arms_of, most, rate
from multispec.protocols import Budget, Past


@dataclass(frozen=True, kw_only=True)
class UCB:
    """The arm with the largest mean reward + sqrt(``explore`` ln t / n): UCBSpec of BanditSpec.

    Hou et al. (2025), "BanditSpec: Adaptive Speculative Decoding via Bandit Algorithms", algorithm 2. An arm
    is a length, and one of several drafters (``among``) where ``draft_costs`` has as many entries: the time
    to draft a symbol with each, in plain steps. A round of g symbols, n of them accepted, gives the reward
    (n + 1) / (1 + cost g), symbols per time of a plain step, as a share of the most that an arm could give.
    Each arm is played once first. The paper has ``explore`` = 6 for rewards in symbols per second.

    Raises:
        UsageError: no lengths, one below 0, a negative cost, a negative ``explore``.

    >>> UCB(lengths=(2, 6)).budget(Past(), 5).nodes
    2
    """

    name: ClassVar[str] = "ucb"
    paper: ClassVar[str] = "Hou et al. 2025, arXiv 2505.15141"
    lengths: Sequence[int] = (1, 2, 4, 8)
    draft_costs: Sequence[float] = (0.1,)
    explore: float = 0.1

    def __post_init__(self) -> None:
        _ = self._arms
        if not 0 <= self.explore < math.inf:
            raise UsageError(f"ucb needs a finite explore >= 0: got {self.explore}. 0 never looks back.")

    @cached_property
    def _arms(self) -> list[Arm]:
        return arms_of(self.name, self.lengths, self.draft_costs)

    @cached_property
    def _most(self) -> float:
        return most(self.lengths, self.draft_costs)

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """From the rewards of all rounds so far."""
        state = Played.begun(len(self._arms))
        if isinstance(past.memory, Played):
            cost = self.draft_costs[self._arms[past.memory.arm].drafter]
            state = past.memory.rewarded(rate(past, cost) / self._most)
        state = state._replace(arm=state.best(self.explore))
        drafter, nodes = self._arms[state.arm]
        return Budget(nodes=nodes, drafter=drafter, memory=state)
