"""The files of a run: JSON with every figure, Markdown to read, and a plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from multispec.bench.cases import AUTO, PLAIN
from multispec.bench.ceilings import Ceilings
from multispec.bench.decisions import Decisions
from multispec.bench.goals import Goal, goals
from multispec.bench.run import Cell
from multispec.bench.synthetic import Synthetic

Table = tuple[tuple[str, ...], list[list[str]]]
_COLOURS = {"multispec": "#1f4e8c", "transformers": "#c2410c", "llama.cpp": "#15803d"}
_INK, _FAINT, _GROUND = "#262628", "#8a8883", "#fcfbf9"


@dataclass
class Results:
    """Everything that a run found."""

    command: str
    machine: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    ceilings: dict[str, Ceilings] = field(default_factory=dict)
    decisions: dict[str, Decisions] = field(default_factory=dict)
    queued: dict[str, float] = field(default_factory=dict)
    synthetic: dict[str, list[Synthetic]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def goals(self) -> list[Goal]:
        """All figures that something is asked of."""
        found = goals(self.cells)
        found += [
            Goal(f"{stream}: 8 symbols scored / 1, time", one.eight, 1.15, most=True)
            for stream, one in self.ceilings.items()
        ]
        found += [
            Goal(f"{stream}: time in auto's decisions", one.share, 0.01, most=True)
            for stream, one in self.decisions.items()
        ]
        found += [Goal(f"{what}, tokens a second", ratio, 4.0) for what, ratio in self.queued.items()]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "command": self.command,
            "machine": self.machine,
            "goals": [one.to_dict() for one in self.goals],
            "cells": [cell.to_dict() for cell in self.cells],
            "ceilings": {name: one.to_dict() for name, one in self.ceilings.items()},
            "decisions": {name: one.to_dict() for name, one in self.decisions.items()},
            "queued": self.queued,
            "synthetic": {name: [one.to_dict() for one in rows] for name, rows in self.synthetic.items()},
            "left_out": self.left_out,
        }


def number(value: float | None, places: int = 2) -> str:
    """A number as tables have it; "" where there is none.

    >>> number(1.2345), number(None)
    ('1.23', '')
    """
    return "" if value is None or math.isnan(value) else f"{value:.{places}f}"


def goal_table(found: Sequence[Goal]) -> Table:
    """What is asked, and what was found."""
    words = {True: "yes", False: "no", None: ""}
    rows = []
    for one in found:
        asked = "" if one.asked is None else f"{'at most' if one.most else 'at least'} {one.asked:g}"
        what = f"{one.what} ({one.detail})" if one.detail else one.what
        rows.append([what, number(one.value, 3), asked, words[one.met]])
    return ("figure", "median", "asked", "met"), rows


def cell_table(cell: Cell) -> Table:
    """One case: every system beside our plain decoding."""
    rows = []
    for name, one in cell.to_dict()["systems"].items():
        spread = f"{number(one['lowest'])} to {number(one['highest'])}"
        own = "" if one["own_share"] is None else f"{100 * one['own_share']:.0f} %"
        rows.append(
            [
                name,
                number(one["symbols_per_second"], 0),
                f"{number(one['against_plain'])}x",
                spread,
                number(one["symbols_per_round"]),
                own,
            ]
        )
    return ("system", "symbols/s", "beside plain", "lowest to highest", "symbols/round", "own time"), rows


def category_table(cells: Sequence[Cell]) -> Table:
    """Auto beside plain decoding, by category, in cases of one prompt."""
    single = [cell for cell in cells if cell.case.batch == 1 and AUTO in cell.names]
    names = list(dict.fromkeys(name for cell in single for name in cell.categories))
    rows = []
    for cell in single:
        known = cell.to_dict()["systems"][AUTO]["by_category"]
        rows.append([cell.case.label, *(f"{number(known.get(name))}" for name in names)])
    return ("auto / plain", *names), rows


def ceiling_table(found: dict[str, Ceilings]) -> Table:
    """How near to the machine's limits."""
    rows = [
        [
            stream,
            f"{one.weight_bytes / 2**20:.1f}",
            f"{one.copy_rate / 1e9:.1f}",
            number(one.limit_ms),
            number(one.pass_ms),
            f"{100 * one.near:.0f} %",
            number(one.eight),
        ]
        for stream, one in found.items()
    ]
    head = (
        "stream",
        "weights, MiB",
        "copy, GB/s",
        "limit, ms",
        "a pass, ms",
        "limit / pass",
        "8 symbols / 1",
    )
    return head, rows


def synthetic_table(rows: Sequence[Synthetic]) -> Table:
    """The engine at any acceptance."""
    return (
        ("acceptance", "drafted", "symbols/round", "speed ratio", "ideal", "own ms/round"),
        [
            [
                f"{one.alpha:g}",
                str(one.num_draft_tokens),
                number(one.symbols_per_round),
                number(one.ratio),
                number(one.ideal),
                number(one.own_ms_per_round),
            ]
            for one in rows
        ],
    )


def markdown(results: Results) -> str:
    """The whole run, to read."""
    about = results.machine
    versions = ", ".join(f"{name} {found}" for name, found in about["versions"].items())
    parts = [
        f"```\n{results.command}\n```\n",
        f"{about['processor']}, {about['cores']} cores, {about['threads']} threads, "
        f"{about['instructions']}, Python {about['python']}; {versions}.\n",
        "Systems took turns; every figure is the median of ratios within a turn, per symbol.\n",
        _section("What is asked", goal_table(results.goals)),
        _section("How near to the limits", ceiling_table(results.ceilings)),
    ]
    if any(cell.case.stream == "text" for cell in results.cells):
        text = [cell for cell in results.cells if cell.case.stream == "text"]
        parts.append(_section("By category", category_table(text)))
    for cell in results.cells:
        same = "identical" if cell.identical else "NOT identical"
        parts.append(_section(cell.case.label, cell_table(cell)) + f"\nOur systems' symbols: {same}.\n")
    for stream, rows in results.synthetic.items():
        parts.append(_section(f"{stream}: the engine at any acceptance", synthetic_table(rows)))
    if left := _left_out(results):
        parts.append("### Left out\n\n" + "".join(f"- {name}: {why}\n" for name, why in left.items()))
    return "\n".join(parts)


def _left_out(results: Results) -> dict[str, str]:
    found = dict(results.left_out)
    for cell in results.cells:
        for name, why in cell.left_out.items():
            found[f"{name} ({cell.case.label})"] = why
    return found


def _section(title: str, table: Table) -> str:
    head, rows = table
    lines = [head, ["---"] * len(head), *rows]
    return f"### {title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(results: Results, folder: Path) -> list[Path]:
    """bench.json, bench.md, and bench.png where matplotlib is there; those that were written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / "bench.json", folder / "bench.md"]
    written[0].write_text(json.dumps(results.to_dict(), indent=1) + "\n", encoding="utf-8")
    written[1].write_text(markdown(results), encoding="utf-8")
    if results.cells and plot(results.cells, folder / "bench.png"):
        written.append(folder / "bench.png")
    return written


def plot(cells: Sequence[Cell], path: Path) -> bool:
    """A line for each case, a point for each system: its speed beside our plain decoding."""
    try:
        pyplot = import_module("matplotlib.pyplot")
        import_module("matplotlib").use("Agg")
    except ImportError:
        return False
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.42 * len(cells)), facecolor=_GROUND)
    axes.set_facecolor(_GROUND)
    axes.axvline(1.0, color=_FAINT, linewidth=1)
    for place, cell in enumerate(cells):
        for name in cell.names:
            _point(axes, cell, name, place)
    axes.set_yticks(range(len(cells)), [cell.case.label for cell in cells], color=_INK)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_xlabel("speed beside our plain decoding; filled: auto; rings: others", color=_INK)
    axes.invert_yaxis()
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    _legend(axes, cells)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor=_GROUND)
    pyplot.close(figure)
    return True


def _point(axes: Any, cell: Cell, name: str, place: int) -> None:
    colour, filled = _COLOURS[name.split()[0]], name == AUTO
    face = colour if filled else "none"
    axes.scatter([cell.ratio(name, PLAIN)], [place], s=46, edgecolors=colour, facecolors=face, zorder=3)


def _legend(axes: Any, cells: Sequence[Cell]) -> None:
    who = dict.fromkeys(name.split()[0] for cell in cells for name in cell.names)
    for one in who:
        axes.scatter([], [], s=46, color=_COLOURS[one], label=one)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(who))
