"""The figures that the project holds itself to, over all cells of a run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from multispec.bench.cases import AUTO, PLAIN
from multispec.bench.run import Cell


@dataclass(frozen=True)
class Goal:
    """A figure beside what is asked of it: at least ``asked``, or at most where ``most``."""

    what: str
    value: float
    asked: float | None
    most: bool = False
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is met; None where nothing is asked or nothing was measured."""
        if self.asked is None or math.isnan(self.value):
            return None
        return self.value <= self.asked if self.most else self.value >= self.asked

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        value = None if math.isnan(self.value) else self.value
        return asdict(self) | {"value": value, "met": self.met}


def geometric(values: Iterable[float]) -> float:
    """The geometric mean of what is known; nan of nothing.

    >>> geometric([1.0, 4.0])
    2.0
    """
    found = [value for value in values if not math.isnan(value)]
    return statistics.geometric_mean(found) if found else math.nan


def goals(cells: Sequence[Cell]) -> list[Goal]:
    """Everything that follows from the cells alone."""
    worst, where = _worst(cells)
    text = [cell for cell in cells if cell.case.stream == "text"]

    def over(chosen: Iterable[Cell], above: str, below: str) -> float:
        return geometric(cell.ratio(above, below) for cell in chosen)

    def at(heat: Callable[[float], bool]) -> list[Cell]:
        return [cell for cell in text if heat(cell.case.temperature)]

    own = [cell.median(AUTO, lambda run: run.own_share) for cell in cells if AUTO in cell.names]
    known = [one for one in own if not math.isnan(one)]
    return [
        Goal("auto / plain, worst cell", worst, 0.97, detail=where),
        Goal("auto / plain, geometric mean of all cells", over(cells, AUTO, PLAIN), 1.6),
        Goal("auto / best fixed method, geometric mean", geometric(map(_beside_fixed, cells)), 0.95),
        Goal("auto / transformers assisted", over(text, AUTO, "transformers assisted"), 2.5),
        Goal("auto / transformers plain, greedy", over(at(lambda t: t == 0), AUTO, _THEIRS), 3.5),
        Goal("auto / transformers plain, 0.8", over(at(lambda t: t == 0.8), AUTO, _THEIRS), 3.0),
        Goal("plain / transformers plain", over(text, PLAIN, _THEIRS), 1.8),
        Goal("auto / transformers generate_batch", over(text, AUTO, "transformers generate_batch"), None),
        Goal("plain / llama.cpp plain", over(text, PLAIN, "llama.cpp plain"), 1.0),
        Goal("auto / llama.cpp, the faster of its two", geometric(map(_beside_llama, text)), 1.0),
        Goal(
            "own time outside forward passes, auto, median",
            statistics.median(known) if known else math.nan,
            0.05,
            most=True,
        ),
    ]


_THEIRS = "transformers plain"


def _worst(cells: Sequence[Cell]) -> tuple[float, str]:
    pairs = [(cell.ratio(AUTO, PLAIN), cell.case.label) for cell in cells]
    return min((pair for pair in pairs if not math.isnan(pair[0])), default=(math.nan, ""))


def _beside_fixed(cell: Cell) -> float:
    return math.nan if cell.best_fixed is None else cell.ratio(AUTO, cell.best_fixed)


def _beside_llama(cell: Cell) -> float:
    found = [cell.ratio(AUTO, name) for name in ("llama.cpp plain", "llama.cpp prompt lookup")]
    known = [one for one in found if not math.isnan(one)]
    return min(known, default=math.nan)
