"""Speed against deviation of every method, and the speed of each exact one, as one sheet of plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from recipes._plot import COLOURS, EXACT, FAINT, GROUND, INK, Words, bare, figure_of

DPI, WIDTH, TOP, LINE = 130, 15.0, 7.5, 0.185
COLUMNS = 3
PROMISES = {"seed": "exact: the symbols of the seed", "law": "exact: the law of plain decoding"}
_PLURAL = {"policy": "policies"}
# One for each kind of prompts.
SHAPES = "oD^s"
_TICKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One method on one kind of prompts: how many times as fast as plain, and what it erred by."""

    kind: str
    method: str
    prompts: str
    exactness: str
    speed: float
    variation: float

    @property
    def exact(self) -> bool:
        """Whether what it makes has the law of plain decoding."""
        return self.exactness in EXACT

    @property
    def family(self) -> str:
        """The method without its setting."""
        return self.method.partition(" ")[0]


def plot(points: Sequence[Point], title: str, path: Path) -> None:
    """Write the sheet: above one panel for each kind of prompts, below the exact methods by name."""
    prompts = list(dict.fromkeys(one.prompts for one in points))
    columns = _columns([one for one in points if one.exact and one.kind])
    longest = max((len(column) for column in columns), default=0)
    height = TOP + 1.2 + LINE * longest
    figure, canvas = figure_of((WIDTH, height), DPI)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12.5, color=INK)
    above, below = figure.subfigures(2, 1, height_ratios=(TOP, max(height - TOP, 1.0)))
    for part in (above, below):
        part.set_facecolor(GROUND)
    colours, words = _colours(points), list[Words]()
    for place, kind in enumerate(prompts):
        axes = above.add_subplot(1, len(prompts), place + 1)
        some = [one for one in points if one.prompts == kind]
        words.append(_deviations(axes, some, f"Speed against deviation, {kind}", colours))
    for place, column in enumerate(columns):
        _speeds(below.add_subplot(1, len(columns), place + 1), points, column, prompts)
    _legend(above, prompts)
    canvas.draw()
    figure.set_layout_engine("none")  # labels are in pixels: nothing may move any more
    for one in words:
        one.write(figure, canvas.get_renderer())
    figure.savefig(path, dpi=DPI, facecolor=GROUND)


def _colours(points: Sequence[Point]) -> dict[str, str]:
    families = list(dict.fromkeys(one.family for one in points if not one.exact))
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(families)}


def _deviations(axes: Any, points: Sequence[Point], title: str, colours: dict[str, str]) -> Words:
    """Exact methods at 0, the best of them named; all others where the meter puts them."""
    bare(axes, title)
    axes.set_xlabel("total variation spent per symbol (exact: 0)", color=INK)
    axes.set_ylabel("times as fast as plain decoding", color=INK)
    axes.axhline(1.0, color=FAINT, linewidth=1, zorder=1)
    _scale(axes, [one.variation for one in points])
    tints = [EXACT.get(one.exactness) or colours[one.family] for one in points]
    marks = [(one.variation, one.speed) for one in points]
    for (x, y), tint, one in zip(marks, tints, points, strict=True):
        axes.scatter([x], [y], s=14 if one.exact else 36, color=tint, alpha=0.8, zorder=3)
    best = sorted((one for one in points if one.exact), key=lambda one: -one.speed)[:4]
    named = [not one.exact or one in best or not one.kind for one in points]
    words = [(p.method if shown else "", tint) for p, shown, tint in zip(points, named, tints, strict=True)]
    return Words(axes, marks, words, [mark for mark, shown in zip(marks, named, strict=True) if not shown])


def _scale(axes: Any, values: Sequence[float]) -> None:
    """Linear up to the smallest deviation, by powers behind it: 0 is a place of its own."""
    some = [value for value in values if value > 0]
    least, most = min(some, default=0.01), max(some, default=0.1)
    axes.set_xscale("symlog", linthresh=least, linscale=0.4)
    axes.set_xlim(-0.8 * least, 2.2 * most)
    ticks = [one for one in _TICKS if least <= one <= 2 * most]
    axes.set_xticks([0.0, *ticks], ["0", *(f"{one:g}" for one in ticks)])
    axes.minorticks_off()


def _columns(points: Sequence[Point]) -> list[list[tuple[str, str]]]:
    """Kind and method of each line, of all columns about as many; within a kind the fastest first."""
    best: dict[tuple[str, str], float] = {}
    for one in points:
        name = (one.kind, one.method)
        best[name] = max(best.get(name, 0.0), one.speed)
    kinds = list(dict.fromkeys(kind for kind, _ in best))
    names = sorted(best, key=lambda name: (kinds.index(name[0]), -best[name]))
    size = max(math.ceil(len(names) / COLUMNS), 1)
    return [names[start : start + size] for start in range(0, len(names), size)]


def _speeds(
    axes: Any, points: Sequence[Point], column: Sequence[tuple[str, str]], prompts: Sequence[str]
) -> None:
    """A line for each exact method."""
    kinds = [_PLURAL.get(kind, f"{kind}s") for kind, _ in groupby(column, key=lambda name: name[0])]
    bare(axes, f"Exact {', '.join(kinds)}")
    axes.set_yticks(range(len(column)), [method for _, method in column], color=INK, fontsize=8.5)
    axes.set_ylim(len(column) - 0.4, -0.6)
    axes.axvline(1.0, color=FAINT, linewidth=1, zorder=1)
    axes.set_xlabel("times as fast as plain decoding", color=INK)
    fastest = max((one.speed for one in points if one.exact), default=1.0)
    axes.set_xlim(0.0, 1.08 * max(fastest, 1.0))
    for one in points:
        if (one.kind, one.method) in column and one.exact:
            place, shape = column.index((one.kind, one.method)), _shape(prompts, one.prompts)
            axes.scatter([one.speed], [place], s=30, color=EXACT[one.exactness], marker=shape, zorder=3)


def _shape(prompts: Sequence[str], kind: str) -> str:
    return SHAPES[prompts.index(kind) % len(SHAPES)]


def _legend(above: Any, prompts: Sequence[str]) -> None:
    axes = above.axes[0]
    for exactness, colour in EXACT.items():
        axes.scatter([], [], s=30, color=colour, label=PROMISES[exactness])
    if len(prompts) > 1:
        for kind in prompts:
            axes.scatter([], [], s=30, color=FAINT, marker=_shape(prompts, kind), label=f"below: {kind}")
    above.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9.5, labelcolor=INK)
