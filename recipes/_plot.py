"""What the plots of the comparisons share: colours, and labels that cover neither points nor each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import product
from typing import Any

INK, FAINT, GROUND = "#262628", "#8a8883", "#fcfbf9"
# Seed and law; then one colour for each relaxed family, dark enough to be read as words.
EXACT = {"seed": "#1f4e8c", "law": "#5fa3dc"}
COLOURS = ("#c2410c", "#9d174d", "#15803d", "#7c3aed", "#0f766e", "#a16207", "#b91c1c", "#475569")


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


def figure_of(size: tuple[float, float], dpi: int) -> tuple[Any, Any]:
    """An empty sheet, and the canvas that it is drawn on."""
    figure = import_module("matplotlib.figure").Figure(figsize=size, dpi=dpi, layout="constrained")
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    figure.set_facecolor(GROUND)
    return figure, canvas


def bare(axes: Any, title: str) -> None:
    """A pale grid, no frame above and on the right."""
    axes.set_facecolor(GROUND)
    axes.set_title(title, loc="left", fontsize=11.5, color=INK)
    axes.grid(color="#ebe8e2", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


@dataclass(frozen=True)
class Words:
    """Labels of one panel: where the marks are, and what is written beside them in which colour."""

    axes: Any
    marks: Sequence[tuple[float, float]]
    words: Sequence[tuple[str, str]]
    others: Sequence[tuple[float, float]] = ()  # marks without a label
    size: float = 8.5

    def write(self, figure: Any, renderer: Any) -> None:
        """Words beside every mark that has some, with a line where they had to move away."""
        named = [n for n, (word, _) in enumerate(self.words) if word]
        marks, words = [self.marks[n] for n in named], [self.words[n] for n in named]
        texts = [self._text(figure, word, colour) for word, colour in words]
        sizes = [(one.width, one.height) for one in (box_of(text, renderer) for text in texts)]
        at, others = pixels(self.axes, marks), pixels(self.axes, self.others)
        boxes = Labels(at, sizes, box_of(self.axes, renderer), others).place()
        for text, box, (x, y), (_, colour) in zip(texts, boxes, at, words, strict=True):
            text.set_position((box.left, box.bottom))
            _leader(figure, box, x, y, colour)

    def _text(self, figure: Any, word: str, colour: str) -> Any:
        plain = import_module("matplotlib.transforms").IdentityTransform()
        return figure.text(0, 0, word, fontsize=self.size, color=colour, va="bottom", transform=plain)


def _leader(figure: Any, box: Box, x: float, y: float, colour: str) -> None:
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
    figure.add_artist(line)


def box_of(artist: Any, renderer: Any) -> Box:
    """Where something was drawn."""
    found = artist.get_window_extent(renderer)
    return Box(float(found.x0), float(found.y0), float(found.width), float(found.height))


def pixels(axes: Any, marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points of the data as points of the picture."""
    found = [axes.transData.transform(mark) for mark in marks]
    return [(float(x), float(y)) for x, y in found]
