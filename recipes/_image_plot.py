"""What drafting saves against what becomes of the pictures, as one sheet of three plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from recipes._plot import COLOURS, EXACT, FAINT, GROUND, INK, Words, bare, figure_of

SIZE, DPI = (15.0, 9.5), 130
_SHARES = "1 3/4 1/2 1/3 1/4 1/5 1/6 1/8 1/10 1/12 1/16 1/24 1/32"
PROMISES = {"seed": "the pictures of the seed", "law": "the law of plain decoding"}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way of drawing: calls as a share of plain's, and two measures of its pictures."""

    family: str
    setting: str
    exactness: str
    calls: float
    frechet: float
    variation: float
    trained: bool = False

    @property
    def exact(self) -> bool:
        """Whether its pictures have the law of plain ones."""
        return self.exactness in EXACT

    @property
    def label(self) -> str:
        """Family and setting."""
        return f"{self.family} {self.setting}".strip()

    @property
    def series(self) -> tuple[str, bool]:
        """What is joined by a line."""
        return self.family, self.trained


@dataclass(frozen=True)
class Floor:
    """The Frechet distance of plain pictures to plain ones, and how far such distances scatter."""

    value: float
    low: float
    high: float


def plot(points: Sequence[Point], floor: Floor, path: Path) -> None:
    """Write the sheet."""
    figure, canvas = figure_of(SIZE, DPI)
    grid = figure.add_gridspec(2, 2, width_ratios=(1.45, 1), height_ratios=(1.2, 1))
    sheet = _Sheet(figure, points, floor)
    left = [figure.add_subplot(grid[row, 0]) for row in range(2)]
    sheet.distances(left[0])
    sheet.variations(left[1])
    sheet.exact(figure.add_subplot(grid[:, 1]))
    canvas.draw()
    figure.set_layout_engine("none")  # labels are in pixels: nothing may move any more
    sheet.label(canvas.get_renderer())
    figure.savefig(path, dpi=DPI, facecolor=GROUND)


class _Sheet:
    """The three plots; ``label`` comes last, when the places of all marks are final."""

    def __init__(self, figure: Any, points: Sequence[Point], floor: Floor) -> None:
        self._figure, self._floor = figure, floor
        self._exact = [one for one in points if one.exact]
        self._relaxed = [one for one in points if not one.exact]
        families = list(dict.fromkeys(one.family for one in self._relaxed))
        self._colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(families)}
        calls = [one.calls for one in points]
        self._reach = (min(calls) / 1.2, max(max(calls), 1.0) * 1.2)
        self._words: list[Words] = []
        self._unlabelled: dict[Any, list[tuple[float, float]]] = {}

    def distances(self, axes: Any) -> None:
        """How far the pictures are from plain ones, as a set."""
        self._frame(axes, "Are they pictures of the same kind?", "Frechet distance to plain pictures")
        known = [one for one in (*self._exact, *self._relaxed) if math.isfinite(one.frechet)]
        if not known:
            axes.text(0.5, 0.5, "too few pictures for a distance", color=FAINT, transform=axes.transAxes)
            return
        floor = self._floor
        axes.axhspan(floor.low, floor.high, color="#e6e3dc", zorder=0, label="plain against plain")
        axes.axhline(floor.value, color=FAINT, linewidth=1, zorder=1)
        values = [one.frechet for one in known if one.frechet > 0]
        if max(values, default=1) > 12 * min(values, default=1):
            axes.set_yscale("log")
        self._unlabelled[axes] = [(one.calls, one.frechet) for one in known if one.exact]
        for exactness, colour in EXACT.items():
            some = [one for one in known if one.exactness == exactness]
            axes.scatter(
                [one.calls for one in some], [one.frechet for one in some], s=16, color=colour, alpha=0.75,
                zorder=3, label=f"exact: {PROMISES[exactness]}",
            )  # fmt: skip
        self._marks(axes, [one for one in known if not one.exact], lambda one: one.frechet)
        for trained, shape, words in ((False, "o", "without training"), (True, "D", "with a draft model")):
            if any(one.trained == trained for one in self._relaxed):
                axes.scatter([], [], s=38, color=FAINT, marker=shape, label=f"relaxed, {words}")
        legend = axes.figure.legend(
            loc="outside lower center", ncols=5, frameon=False, fontsize=9.5, labelcolor=INK
        )
        legend.set_in_layout(True)

    def variations(self, axes: Any) -> None:
        """What the meter says that the relaxed rules spent."""
        self._frame(axes, "What does it err by? (exact ways: 0)", "total variation spent per code")
        some = [one for one in self._relaxed if one.variation > 0]
        if some:
            axes.set_yscale("log")
        self._marks(axes, some, lambda one: one.variation)
        axes.set_xlabel("target calls, as a share of plain decoding", color=INK)

    def exact(self, axes: Any) -> None:
        """The exact ways: nothing but calls tells them apart, so one line for each family."""
        families = list(dict.fromkeys(one.family for one in self._exact))[::-1]
        self._frame(axes, "Exact ways: the pictures are as good as plain ones", "")
        axes.set_yticks(range(len(families)), families, color=INK, fontsize=10)
        axes.set_ylim(-0.7, len(families) - 0.3)
        marks = [(one.calls, families.index(one.family)) for one in self._exact]
        colours = [EXACT[one.exactness] for one in self._exact]
        axes.scatter(*zip(*marks, strict=True), s=42, color=colours, zorder=3)
        words = [(one.setting, colour) for one, colour in zip(self._exact, colours, strict=True)]
        self._words.append(Words(axes, [(float(x), float(y)) for x, y in marks], words))
        axes.set_xlabel("target calls, as a share of plain decoding", color=INK)

    def _marks(self, axes: Any, some: Sequence[Point], height: Any) -> None:
        for family, trained in dict.fromkeys(one.series for one in some):
            own, colour = [one for one in some if one.series == (family, trained)], self._colours[family]
            at = [one.calls for one in own], [height(one) for one in own]
            axes.plot(*at, color=colour, linewidth=1, alpha=0.4, zorder=2)
            axes.scatter(*at, s=38, color=colour, marker="D" if trained else "o", zorder=4)
        marks = [(one.calls, height(one)) for one in some]
        words = [(one.label, self._colours[one.family]) for one in some]
        self._words.append(Words(axes, marks, words, self._unlabelled.get(axes, [])))

    def _frame(self, axes: Any, title: str, name: str) -> None:
        bare(axes, title)
        axes.set_ylabel(name, color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xlim(*self._reach)
        shares = [one for one in map(Fraction, _SHARES.split()) if one > self._reach[0]]
        axes.set_xticks(list(map(float, shares)), list(map(str, shares)))
        axes.minorticks_off()

    def label(self, renderer: Any) -> None:
        """Words beside every mark, with a line where they had to move away."""
        for words in self._words:
            words.write(self._figure, renderer)
