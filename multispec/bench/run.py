"""Systems take turns at the same requests; every figure is the median of ratios within a turn.

A machine that is busy for a while is then busy for all of them. In each case a first turn, which counts for
nothing else, warms everybody up and finds the two fixed methods of ours that are fastest there; these, plain
decoding, "auto" and the peers take the counted turns, each of which begins with another system.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from multispec.bench.cases import PLAIN, Case, Request, Run, System, is_fixed, is_ours
from multispec.bench.prompts import prompts
from multispec.sampling import Sampling

_BEST = 2

Turn = Mapping[str, Run]


@dataclass(frozen=True)
class Requests:
    """The requests of a case, turn by turn: prompts in order, each with a seed of its own."""

    case: Case
    usual: Sampling
    new_tokens: int | None
    categories: tuple[str, ...] = ()

    def turn(self, number: int) -> Request:
        """The request of a turn."""
        known = prompts(self.case.stream, self.categories)
        chosen = [known[(number * self.case.batch + n) % len(known)] for n in range(self.case.batch)]
        first = number * self.case.batch
        laws = tuple(
            replace(self.usual, temperature=self.case.temperature, seed=first + n)
            for n in range(self.case.batch)
        )
        return Request(chosen[0][0], tuple(text for _, text in chosen), laws, self.new_tokens)


@dataclass
class Cell:
    """All turns of one case. ``tried`` are seconds for a symbol in the first turn, ``left_out`` reasons."""

    case: Case
    turns: list[dict[str, Run]] = field(default_factory=list)
    categories: list[str] = field(default_factory=list)
    tried: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Those that took part."""
        return list(self.turns[0]) if self.turns else []

    @property
    def fixed(self) -> list[str]:
        """Our fixed methods among them."""
        return [name for name in self.names if is_fixed(name)]

    @property
    def best_fixed(self) -> str | None:
        """The fastest of these."""
        return max(self.fixed, key=lambda name: self.ratio(name, PLAIN), default=None)

    def ratios(self, above: str, below: str) -> list[float]:
        """How many times faster ``above`` was than ``below``, turn by turn, for a symbol."""
        return [turn[below].pace / turn[above].pace for turn in self.turns]

    def ratio(self, above: str, below: str) -> float:
        """The median of these; nan where one of them took no part."""
        if above not in self.names or below not in self.names:
            return math.nan
        return statistics.median(self.ratios(above, below))

    def median(self, name: str, what: Callable[[Run], float | None]) -> float:
        """The median of something over the turns; nan where it is not known."""
        found = [value for turn in self.turns if (value := what(turn[name])) is not None]
        return statistics.median(found) if found else math.nan

    @property
    def identical(self) -> bool:
        """Whether plain decoding, "auto" and our fixed methods said the same in every turn."""
        ours = [name for name in self.names if is_ours(name)]
        return all(turn[name].tokens == turn[PLAIN].tokens for turn in self.turns for name in ours)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, ready for JSON."""
        return {
            "case": self.case.label,
            "stream": self.case.stream,
            "temperature": self.case.temperature,
            "batch": self.case.batch,
            "turns": len(self.turns),
            "identical": self.identical,
            "best_fixed": self.best_fixed,
            "left_out": self.left_out,
            "tried_seconds_per_symbol": self.tried,
            "systems": {name: self._figures(name) for name in self.names},
        }

    def _figures(self, name: str) -> dict[str, Any]:
        against = self.ratios(name, PLAIN)
        figures = {
            "symbols_per_second": self.median(name, lambda run: 1 / run.pace),
            "against_plain": statistics.median(against),
            "lowest": min(against),
            "highest": max(against),
            "own_share": self.median(name, lambda run: run.own_share),
            "symbols_per_round": self.median(
                name, lambda run: run.symbols / run.rounds if run.rounds else None
            ),
            "by_category": by_category(self.categories, against),
        }
        return {key: None if value != value else value for key, value in figures.items()}


def by_category(categories: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """The median for each category.

    >>> by_category(["story", "code", "story"], [1.0, 2.0, 3.0])
    {'story': 2.0, 'code': 2.0}
    """
    pairs = list(zip(categories, values, strict=True))
    names = dict.fromkeys(categories)
    return {name: statistics.median(value for one, value in pairs if one == name) for name in names}


def measure(
    systems: Sequence[System],
    requests: Requests,
    turns: int,
    note: Callable[[str], None] = lambda _: None,
) -> Cell:
    """All turns of a case; ``note`` is told what runs. What fails in the first turn is left out, with why."""
    cell = Cell(requests.case)
    usable = _try_out(systems, requests, cell, note)
    taking_part = _chosen(usable, cell)
    for number in range(1, turns + 1):
        request = requests.turn(number)
        start = number % len(taking_part)
        found = {}
        for system in (*taking_part[start:], *taking_part[:start]):
            note(f"{requests.case.label}: turn {number} of {turns}, {system.name}")
            found[system.name] = system.run(request)
        cell.turns.append({system.name: found[system.name] for system in taking_part})
        cell.categories.append(request.category)
    return cell


def _try_out(
    systems: Sequence[System], requests: Requests, cell: Cell, note: Callable[[str], None]
) -> list[System]:
    usable = []
    for system in systems:
        note(f"{requests.case.label}: trying {system.name}")
        if why := system.refuses(requests.case):
            cell.left_out[system.name] = why
            continue
        try:
            cell.tried[system.name] = system.run(requests.turn(0)).pace
        except Exception as error:  # one that cannot run takes no part, whatever its reason
            cell.left_out[system.name] = f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            usable.append(system)
    return usable


def _chosen(usable: Sequence[System], cell: Cell) -> list[System]:
    """Everybody but the fixed methods that were not among the fastest."""
    fixed = [one for one in usable if is_fixed(one.name)]
    best = sorted(fixed, key=lambda one: cell.tried[one.name])[:_BEST]
    return [one for one in usable if one not in fixed or one in best]
