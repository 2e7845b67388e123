"""What a round costs, measured on a model: by the rows of a batch and the symbols that each drafts."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from multispec.errors import UnsupportedError, UsageError
from multispec.protocols import Target, TargetSession
from multispec.stream import Draft, Prompt


@dataclass(frozen=True)
class CostTable:
    """``seconds[i][g]``: the time of a round in which each of ``rows[i]`` rows drafts g symbols.

    Raises:
        UsageError: no times, times that are not above 0, tables of different lengths, rows that do not rise.

    >>> CostTable(rows=(1, 3), seconds=((1.0, 2.0), (3.0, 6.0))).at(2, 1)
    4.0
    """

    rows: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        times = [time for row in self.seconds for time in row]
        rising = all(a < b for a, b in zip((0, *self.rows), self.rows, strict=False))
        shaped = len(self.rows) == len(self.seconds) and len({len(row) for row in self.seconds}) == 1
        if not times or not (rising and shaped and all(math.isfinite(t) and t > 0 for t in times)):
            raise UsageError(
                "A cost table holds the cost of a round with 0, 1, 2 .. draft symbols, each above 0, for one "
                f"number of rows or more: got {self.seconds} for rows {self.rows}. measure_costs makes one."
            )

    @property
    def nodes(self) -> int:
        """The longest draft that was measured."""
        return len(self.seconds[0]) - 1

    def at(self, rows: int, nodes: int) -> float:
        """Between the numbers of rows measured in proportion; beyond the last as if it grew with them."""
        place = bisect_left(self.rows, rows)
        if place == len(self.rows):
            return self.seconds[-1][nodes] * rows / self.rows[-1]
        if place == 0 or self.rows[place] == rows:
            return self.seconds[place][nodes]
        low, high = self.rows[place - 1 : place + 1]
        share = (rows - low) / (high - low)
        return (1 - share) * self.seconds[place - 1][nodes] + share * self.seconds[place][nodes]


def measure_costs(
    target: Target,
    prompt: Prompt,
    *,
    draft: Target | None = None,
    rows: Sequence[int] = (1, 2, 4),
    nodes: int = 8,
    repeats: int = 3,
) -> CostTable:
    """Run ``target`` on copies of a prompt, with drafts of 0 to ``nodes`` symbols; the least of the times.

    With a ``draft`` model its steps are added, one for each drafted symbol. In seconds, at the length of that
    prompt.

    Raises:
        UnsupportedError: a stream with parallel slots.
        UsageError: nothing to measure.
    """
    _check(target, prompt, rows, nodes, repeats)
    with torch.inference_mode():
        seconds = [_measured(target, draft, prompt, count, nodes, repeats) for count in rows]
    return CostTable(tuple(rows), tuple(tuple(row) for row in seconds))


def _check(target: Target, prompt: Prompt, rows: Sequence[int], nodes: int, repeats: int) -> None:
    if target.spec.step > 1:
        raise UnsupportedError(
            f"measure_costs drafts symbol by symbol, and {target.spec.step} slots of this stream move "
            "together: give the table by hand, or use a policy that needs none (ucb, acceptance_aware)."
        )
    if not rows or min(rows) < 1 or nodes < 0 or repeats < 1 or not len(prompt.ids):
        raise UsageError(
            f"measure_costs needs a prompt, rows >= 1, nodes >= 0 and repeats >= 1: got {len(prompt.ids)} "
            f"ids, rows={tuple(rows)}, nodes={nodes}, repeats={repeats}."
        )


def _measured(
    target: Target, draft: Target | None, prompt: Prompt, rows: int, nodes: int, repeats: int
) -> list[float]:
    capacity = len(prompt.ids) + (nodes + 1) * repeats + nodes + 1
    running = Running(target.begin([prompt] * rows, [capacity] * rows, max(nodes, 1)), rows)
    costs = [min(running.round(g) for _ in range(repeats)) for g in range(nodes + 1)]
    if draft is not None:
        small = Running(draft.begin([prompt] * rows, [capacity] * rows, 1), rows)
        step = min(small.round(0) for _ in range(repeats))
        costs = [cost + g * step for g, cost in enumerate(costs)]
    return costs


class Running:
    """Rows that go on with their best symbol, and draft it over and over."""

    def __init__(self, session: TargetSession, rows: int) -> None:
        self._session, self._rows = session, [*range(rows)]
        self._roots = [int(logits[-1].argmax()) for logits in session.prefill().logits]

    def round(self, nodes: int) -> float:
        """Seconds of a pass over drafts of that length, and of rolling them back."""
        drafts = [Draft.chain([root] * nodes) for root in self._roots]
        found: list[int] = []

        def run() -> None:
            scores = self._session.score(self._rows, self._roots, drafts)
            found.extend(int(logits[0].argmax()) for logits in scores.logits)
            self._session.commit(self._rows, [()] * len(self._rows))

        taken = _seconds(run)
        self._roots = found
        return taken


def _seconds(run: Callable[[], None]) -> float:
    begun = time.perf_counter()
    run()
    return max(time.perf_counter() - begun, 1e-9)
