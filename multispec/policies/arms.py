"""What bandits share: arms (a drafter and a length each), and the reward of a round."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from multispec.errors import UsageError
from multispec.protocols import Past


class Arm(NamedTuple):
    """Draft ``nodes`` symbols with the drafter of that number."""

    drafter: int
    nodes: int


class Played(NamedTuple):
    """Per arm how often it was played and what it gave in sum; the arm that is on."""

    counts: tuple[int, ...]
    sums: tuple[float, ...]
    arm: int

    @staticmethod
    def begun(arms: int) -> Played:
        """Nothing played."""
        return Played((0,) * arms, (0.0,) * arms, 0)

    def rewarded(self, reward: float) -> Played:
        """Once more, with that reward, the arm that was on."""
        counts, sums = list(self.counts), list(self.sums)
        counts[self.arm] += 1
        sums[self.arm] += reward
        return Played(tuple(counts), tuple(sums), self.arm)

    def bound(self, arm: int, explore: float) -> float:
        """Upper confidence bound: mean + sqrt(explore ln t / n), without bound where nothing was played."""
        n = self.counts[arm]
        if not n:
            return math.inf
        return self.sums[arm] / n + math.sqrt(explore * math.log(sum(self.counts)) / n)

    def best(self, explore: float) -> int:
        """The arm with the largest bound; of equals the first."""
        return max(range(len(self.counts)), key=lambda arm: self.bound(arm, explore))


def arms_of(name: str, lengths: Sequence[int], draft_costs: Sequence[float]) -> list[Arm]:
    """Every drafter with every length.

    Raises:
        UsageError: no lengths or costs, a length below 0, a cost that is negative or infinite.
    """
    fair = all(0 <= cost < math.inf for cost in draft_costs)
    if not lengths or min(lengths) < 0 or not draft_costs or not fair:
        raise UsageError(
            f"{name} needs lengths >= 0 and a finite cost >= 0 for each drafter: got lengths={tuple(lengths)}"
            f" and draft_costs={tuple(draft_costs)}. A cost is the time to draft a symbol, in plain steps."
        )
    return [Arm(*pair) for pair in itertools.product(range(len(draft_costs)), lengths)]


def most(lengths: Sequence[int], draft_costs: Sequence[float]) -> float:
    """The largest rate that any arm could reach, with everything accepted."""
    return max(_rate(g, g, cost) for g in lengths for cost in draft_costs)


def rate(past: Past, draft_cost: float) -> float:
    """Symbols (steps) of the last round per time of a plain step, with that cost of drafting one."""
    return _rate(past.last_kept, past.last_depth, draft_cost)


def _rate(kept: int, drafted: int, cost: float) -> float:
    return (kept + 1) / (1 + cost * drafted)
