"""EXP3Spec: draft lengths, and drafters, drawn by weights that grow with what they gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from multispec.errors import UsageError
from multispec.policies.arms import Arm, Played, arms_of, most, rate
from multispec.protocols import Budget, Past
from multispec.sampling import CounterNoise, Purpose

# No draw of a drafter or verifier has this key, so a length never tells of a symbol, even at equal seeds.
_KEY = 2**61


@dataclass(frozen=True, kw_only=True)
class EXP3:
    """An arm drawn with p_i = (1 - ``explore``) w_i / sum w + ``explore`` / K: EXP3Spec of BanditSpec.

    Hou et al. (2025), "BanditSpec", algorithm 3, for rewards that drift as the text does; the weights are
    those of Auer et al. (2002): the arm that was played has its w multiplied by
    exp(explore reward / (p_i K)). Arms and reward are those of ``ucb``. The draw is a function of ``seed``
    and of the number of the round, independent of all that is drafted.

    Raises:
        UsageError: no lengths, one below 0, a negative cost, ``explore`` outside (0, 1].

    >>> EXP3().budget(Past(), 5) == EXP3().budget(Past(), 5)
    True
    """

    name: ClassVar[str] = "exp3"
    paper: ClassVar[str] = "Hou et al. 2025, arXiv 2505.15141"
    lengths: Sequence[int] = (1, 2, 4, 8)
    draft_costs: Sequence[float] = (0.1,)
    explore: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        _ = self._arms
        if not 0 < self.explore <= 1:
            raise UsageError(f"exp3 needs explore in (0, 1]: got {self.explore}. 0.1 to 0.3 are usual.")

    @cached_property
    def _arms(self) -> list[Arm]:
        return arms_of(self.name, self.lengths, self.draft_costs)

    @cached_property
    def _most(self) -> float:
        return most(self.lengths, self.draft_costs)

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """From the rewards of all rounds so far, and the number of the round."""
        state = Played.begun(len(self._arms))
        if isinstance(past.memory, Played):
            played = past.memory.arm
            cost = self.draft_costs[self._arms[played].drafter]
            chance = chances(past.memory.sums, self.explore)[played]
            gain = self.explore * rate(past, cost) / self._most / len(self._arms)
            state = past.memory.rewarded(gain / chance)
        state = state._replace(arm=self._drawn(state.sums, past.rounds))
        drafter, nodes = self._arms[state.arm]
        return Budget(nodes=nodes, drafter=drafter, memory=state)

    def _drawn(self, logs: Sequence[float], number: int) -> int:
        (key,) = CounterNoise(self.seed).keys([number], Purpose.DRAFT, _KEY)
        u, mass = (key % 2**64 + 0.5) / 2**64, 0.0
        for arm, chance in enumerate(chances(logs, self.explore)):
            mass += chance
            if u < mass:
                return arm
        return len(logs) - 1


def chances(logs: Sequence[float], explore: float) -> list[float]:
    """p of each arm, from the logarithms of their weights.

    >>> chances([0.0, 0.0], explore=0.2)
    [0.5, 0.5]
    """
    top = max(logs)
    weights = [math.exp(one - top) for one in logs]
    total = sum(weights)
    return [(1 - explore) * w / total + explore / len(weights) for w in weights]
