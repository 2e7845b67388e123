"""The table of a benchmark: medians of ratios within a turn, beside what is asked of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from rich.console import Console
from rich.table import Table


def row(what: str, values: Sequence[float], goal: float | None = None) -> dict[str, Any]:
    """A line of the table; what is asked is an upper bound."""
    middle = statistics.median(values)
    spread = f"{min(values):.3f} to {max(values):.3f}"
    met = None if goal is None else middle <= goal
    return {"what": what, "value": middle, "goal": goal, "spread": spread, "met": met}


def show(lines: Sequence[dict[str, Any]], console: Console) -> None:
    """The table of ratios, with what is asked of each."""
    table = Table("figure", "median", "lowest to highest", "asked", "met")
    for line in lines:
        goal = line["goal"]
        asked = "" if goal is None else f"at most {Fraction(goal).limit_denominator(100)}"
        met = "" if line["met"] is None else ("yes" if line["met"] else "no")
        table.add_row(line["what"], f"{line['value']:.3f}", line["spread"], asked, met)
    console.print(table)
