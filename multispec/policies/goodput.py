"""The length that gives most symbols per unit of time, from measured costs and acceptance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from multispec.errors import UsageError
from multispec.policies.costs import CostTable
from multispec.protocols import Budget, Past


class _State(NamedTuple):
    """Symbols looked at and symbols accepted, both fading."""

    seen: float
    kept: float


@dataclass(frozen=True, kw_only=True)
class Goodput:
    """The number of draft symbols g with the largest b (1 - a^(g+1)) / ((1 - a) cost(b, g)), b the live rows.

    The goodput of SmartSpec (Liu et al. 2024, TurboSpec), for chains: ``costs`` is a table of round times
    (``measure_costs``), or the times for g = 0, 1, 2 .. alone, in any unit, where all batches cost alike.
    Each row decides with its own acceptance a, as if the whole batch drafted as much as it does: the more
    rows are live, the dearer a symbol is, and 0 symbols are plain decoding. a is the share of symbols that
    were accepted when those before them were, in this row so far; a round counts ``decay`` times what the
    one after it counts, and ``acceptance`` is taken at the weight of ``prior`` symbols.

    Once a row drafts nothing it learns nothing, and its past fades: it will try again.

    Raises:
        UsageError: no costs, a cost that is not above 0, shares outside [0, 1], a prior that is not above 0.

    >>> Goodput(costs=(1.0, 1.1, 1.2, 1.3), acceptance=0.8).budget(Past(), 5).nodes
    3
    >>> Goodput(costs=(1.0, 1.5, 2.0, 2.5), acceptance=0.3).budget(Past(), 5).nodes
    0
    """

    name: ClassVar[str] = "goodput"
    paper: ClassVar[str] = "Liu et al. 2024, arXiv 2406.14066"
    costs: CostTable | Sequence[float] = (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8)
    acceptance: float = 0.7
    decay: float = 0.95
    prior: float = 4.0

    def __post_init__(self) -> None:
        _ = self._table
        if not 0 <= self.acceptance <= 1 or not 0 <= self.decay <= 1 or not self.prior > 0:
            raise UsageError(
                "goodput needs acceptance and decay in [0, 1] and prior > 0: got "
                f"{self.acceptance}, {self.decay} and {self.prior}."
            )

    @cached_property
    def _table(self) -> CostTable:
        costs = self.costs
        return costs if isinstance(costs, CostTable) else CostTable((1,), (tuple(costs),))

    def budget(self, past: Past, default_nodes: int) -> Budget:
        """The best length; of equals the shortest."""
        state = past.memory if isinstance(past.memory, _State) else None
        if state is None:
            state = _State(0.0, 0.0)
        else:
            looked = min(past.last_depth, past.last_kept + 1)
            state = _State(self.decay * state.seen + looked, self.decay * state.kept + past.last_kept)
        a = (state.kept + self.prior * self.acceptance) / (state.seen + self.prior)
        return Budget(nodes=self._best(a, past.rows), memory=state)

    def _best(self, a: float, rows: int) -> int:
        """One pass over the lengths: 1 + a + .. + a^g symbols in cost(b, g)."""
        table, best, most = self._table, 0, 0.0
        expected, share = 0.0, 1.0
        for g in range(table.nodes + 1):
            expected, share = expected + share, share * a
            goodput = expected / table.at(rows, g)
            if goodput > most:
                best, most = g, goodput
        return best
