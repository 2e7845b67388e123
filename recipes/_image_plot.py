"""What drafting saves against what becomes of the pictures, as one sheet of three plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

SIZE, DPI = (15.0, 9.5), 130
INK, FAINT, GROUND = "#262628", "#8a8883", "#fcfbf9"
# Seed and law; then one colour for each relaxed family, dark enough to be read as words.
EXACT = {"seed": "#1f4e8c", "law": "#5fa3dc"}
COLOURS = ("#c2410c", "#9d174d", "#15803d", "#7c3aed", "#0f766e", "#a16207", "#b91c1c", "#475569")
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


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    width: float
    height: float

    def over(self, other: Box) -> float:
        """The area that both cover."""
        wide = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        high = min(self.bottom + self.height, other.bottom + other.height) - max(self.bottom, other.bottom)
        return max(wide, 0.0) * max(high, 0.0)

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """Its point that is nearest to another."""
        across = min(max(x, self.left), self.left + self.width)
        return across, min(max(y, self.bottom), self.bottom + self.height)


def around(x: float, y: float, size: tuple[float, float], gap: float) -> list[Box]:
    """Where a label of this size may lie beside a point: nearest first."""
    wide, high = size
    found = []
    for far, turn in product(range(1, 13), range(16)):
        angle, away = math.tau * turn / 16, gap * far
        middle = (
            x + (wide / 2 + away) * math.cos(angle),
            y + (high / 2 + away) * math.sin(angle),
        )
        found.append(Box(middle[0] - wide / 2, middle[1] - high / 2, wide, high))
    return found


def crossed(start: tuple[float, float], end: tuple[float, float], box: Box) -> bool:
    """Whether a line passes through a box; looked at in steps, which is enough for a leader."""
    steps = (i / 8 for i in range(1, 8))
    at = ((start[0] + (end[0] - start[0]) * s, start[1] + (end[1] - start[1]) * s) for s in steps)
    return any(box.nearest(*one) == one for one in at)


@dataclass(frozen=True)
class Labels:
    """Places labels beside points so that they cover neither each other nor a point."""

    points: Sequence[tuple[float, float]]
    sizes: Sequence[tuple[float, float]]
    bounds: Box
    marks: Sequence[tuple[float, float]] = ()  # points without a label, not to be covered either
    gap: float = 9.0

    def place(self, sweeps: int = 4) -> list[Box]:
        """A box for each point: crowded points first, then each again among all others."""
        order = sorted(range(len(self.points)), key=self._room)
        placed: dict[int, Box] = {}
        for number in [*order, *(order * (sweeps - 1))]:
            others = [box for other, box in placed.items() if other != number]
            placed[number] = self._best(number, others)
        return [placed[number] for number in range(len(self.points))]

    def _best(self, number: int, others: Sequence[Box]) -> Box:
        least, best = math.inf, None
        for box in around(*self.points[number], self.sizes[number], self.gap):
            # Distance alone is a part of the cost: what is far cannot be better than what was found near.
            if self._far(number, box) < least and (cost := self._cost(number, box, others)) < least:
                least, best = cost, box
        return best or Box(*self.points[number], *self.sizes[number])

    def _far(self, number: int, box: Box) -> float:
        here = self.points[number]
        return math.dist(here, box.nearest(*here)) / self.gap

    def _room(self, number: int) -> float:
        here = self.points[number]
        return sum(sorted(math.dist(here, one) for one in self.points)[:4])

    def _cost(self, number: int, box: Box, others: Sequence[Box]) -> float:
        here, area = self.points[number], box.width * box.height
        end = box.nearest(*here)
        covered = sum(box.over(one) for one in others) + area - box.over(self.bounds)
        hidden = sum(
            math.dist(box.nearest(*one), one) < 0.8 * self.gap for one in (*self.points, *self.marks)
        )
        through = sum(crossed(here, end, one) for one in others)
        return 50 * covered / area + 8 * hidden + 12 * through + self._far(number, box)


def missing() -> str:
    """Why nothing can be plotted; empty where it can."""
    try:
        import_module("matplotlib")
    except ImportError as error:
        return (
            f"No plot: it needs the package matplotlib, which cannot be imported ({error}): "
            "pip install 'multispec[plots]'"
        )
    return ""


def plot(points: Sequence[Point], floor: Floor, path: Path) -> None:
    """Write the sheet."""
    figure = import_module("matplotlib.figure").Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    figure.set_facecolor(GROUND)
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
        # Axes, the marks on it, and the words for the first of them.
        self._labelled: list[tuple[Any, list[tuple[float, float]], list[tuple[str, str]]]] = []
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
        self._labelled.append((axes, [(float(x), float(y)) for x, y in marks], words))
        axes.set_xlabel("target calls, as a share of plain decoding", color=INK)

    def _marks(self, axes: Any, some: Sequence[Point], height: Any) -> None:
        for family, trained in dict.fromkeys(one.series for one in some):
            own, colour = [one for one in some if one.series == (family, trained)], self._colours[family]
            at = [one.calls for one in own], [height(one) for one in own]
            axes.plot(*at, color=colour, linewidth=1, alpha=0.4, zorder=2)
            axes.scatter(*at, s=38, color=colour, marker="D" if trained else "o", zorder=4)
        marks = [(one.calls, height(one)) for one in some]
        self._labelled.append((axes, marks, [(one.label, self._colours[one.family]) for one in some]))

    def _frame(self, axes: Any, title: str, name: str) -> None:
        axes.set_facecolor(GROUND)
        axes.set_title(title, loc="left", fontsize=11.5, color=INK)
        axes.set_ylabel(name, color=INK)
        axes.set_xscale("log", base=2)
        axes.set_xlim(*self._reach)
        shares = [one for one in map(Fraction, _SHARES.split()) if one > self._reach[0]]
        axes.set_xticks(list(map(float, shares)), list(map(str, shares)))
        axes.minorticks_off()
        axes.grid(color="#ebe8e2", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)

    def label(self, renderer: Any) -> None:
        """Words beside every mark, with a line where they had to move away."""
        for axes, marks, words in self._labelled:
            named = [n for n, (word, _) in enumerate(words) if word]
            marks, words = [marks[n] for n in named], [words[n] for n in named]
            texts = [self._text(word, colour) for word, colour in words]
            sizes = [(one.width, one.height) for one in (_box(text, renderer) for text in texts)]
            at, others = _pixels(axes, marks), _pixels(axes, self._unlabelled.get(axes, []))
            boxes = Labels(at, sizes, _box(axes, renderer), others).place()
            for text, box, (x, y), (_, colour) in zip(texts, boxes, at, words, strict=True):
                text.set_position((box.left, box.bottom))
                self._leader(box, x, y, colour)

    def _text(self, word: str, colour: str) -> Any:
        plain = import_module("matplotlib.transforms").IdentityTransform()
        return self._figure.text(0, 0, word, fontsize=8.5, color=colour, va="bottom", transform=plain)

    def _leader(self, box: Box, x: float, y: float, colour: str) -> None:
        end = box.nearest(x, y)
        if math.dist(end, (x, y)) < 14:
            return
        line = import_module("matplotlib.lines").Line2D(
            *zip((x, y), end, strict=True),
            color=colour,
            linewidth=0.7,
            alpha=0.6,
            transform=import_module("matplotlib.transforms").IdentityTransform(),
        )
        self._figure.add_artist(line)


def _box(artist: Any, renderer: Any) -> Box:
    found = artist.get_window_extent(renderer)
    return Box(float(found.x0), float(found.y0), float(found.width), float(found.height))


def _pixels(axes: Any, marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    found = [axes.transData.transform(mark) for mark in marks]
    return [(float(x), float(y)) for x, y in found]
