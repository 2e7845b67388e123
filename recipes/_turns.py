"""What comparisons share: whose turn it is, what is asked for, and the files and tables of what was found."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

T = TypeVar("T")


def in_turn(ways: Sequence[T], turn: int) -> list[T]:
    """All ways; each turn begins with another."""
    start = turn % len(ways)
    return [*ways[start:], *ways[:start]]


def parts(text: str, between: str = ",") -> list[str]:
    """What stands between commas, without what is empty."""
    return [one.strip() for one in text.split(between) if one.strip()]


def asked_for(name: str, only: str) -> bool:
    """Whether one of the parts of names in ``only`` is in the name; nothing asked for is everything."""
    return not parts(only) or any(part in name for part in parts(only))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: int = 2) -> Table:
    """A table whose first columns are words, the others numbers."""
    found = Table(*columns)
    found.columns[0].no_wrap = True
    for column in found.columns[words:]:
        column.justify = "right"
    for row in rows:
        found.add_row(*row)
    return found


def show_left_out(left_out: Mapping[str, str], console: Console) -> None:
    """A line for each way that could not be run."""
    for name, why in left_out.items():
        console.print(f"Left out: {name}. {why}", style="yellow", markup=False)


def written(value: Any) -> Any:
    """What JSON has no number for, as a word."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def lines_of(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Dataclasses as JSON and CSV take them."""
    return [{name: written(value) for name, value in asdict(row).items()} for row in rows]


def write_csv(path: Path, lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A line for each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        found = csv.DictWriter(file, columns)
        found.writeheader()
        found.writerows(lines)


def keep(settings: Any, rows: Sequence[Any], columns: Sequence[str], left_out: Any, **more: Any) -> None:
    """figures.json and figures.csv in ``settings.out``."""
    folder, lines = Path(settings.out), lines_of(rows)
    found = {
        "settings": asdict(settings),
        "threads": torch.get_num_threads(),
        **more,
        "left_out": left_out,
        "rows": lines,
    }
    (folder / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_csv(folder / "figures.csv", lines, columns)
