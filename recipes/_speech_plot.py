"""What drafting saves against what becomes of the speech, as one sheet of plots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes._plot import COLOURS, EXACT, FAINT, GROUND, INK, Words, bare, figure_of

SIZE, DPI = (14.0, 9.0), 130


@dataclass(frozen=True, kw_only=True)
class Point:
    """One way of speaking: calls as a share of plain's, nats per code and the variation it spent."""

    name: str
    family: str
    exactness: str
    calls: float
    nats: float
    variation: float
    error: float | None = None  # phonemes that a recogniser heard wrongly

    @property
    def exact(self) -> bool:
        """Whether its sounds have the law of plain ones."""
        return self.exactness in EXACT


@dataclass(frozen=True)
class Measure:
    """What is drawn upwards: a title, the name of the axis, and the values."""

    title: str
    name: str
    values: Sequence[float]


def plot(points: Sequence[Point], scatter: float, path: Path) -> None:
    """Write the sheet; ``scatter`` is the standard error of plain decoding's nats per code."""
    figure, canvas = figure_of(SIZE, DPI)
    measures = _measures(points)
    panels = [figure.add_subplot(1, len(measures), n + 1) for n in range(len(measures))]
    colours = _colours(points)
    plain = next(one for one in points if one.name == "plain")
    panels[0].axhspan(plain.nats - 2 * scatter, plain.nats + 2 * scatter, color="#e6e3dc", zorder=0)
    for axes, measure in zip(panels, measures, strict=True):
        _draw(axes, points, measure, colours)
    canvas.draw()
    figure.set_layout_engine("none")  # labels are in pixels: nothing may move any more
    for axes, measure in zip(panels, measures, strict=True):
        _words(axes, points, measure, colours).write(figure, canvas.get_renderer())
    figure.savefig(path, dpi=DPI, facecolor=GROUND)


def _measures(points: Sequence[Point]) -> list[Measure]:
    found = [
        Measure(
            "Does it say what the model would? (band: plain, two standard errors)",
            "nats per code under the target",
            [one.nats for one in points],
        ),
        Measure(
            "What does it err by? (exact ways: 0)",
            "total variation spent per code",
            [one.variation for one in points],
        ),
    ]
    errors = [one.error for one in points if one.error is not None]
    if len(errors) == len(points):
        found.append(Measure("Is it understood?", "phonemes heard wrongly", errors))
    return found


def _colours(points: Sequence[Point]) -> dict[str, str]:
    families = list(dict.fromkeys(one.family for one in points if not one.exact))
    relaxed = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(families)}
    return {one.name: EXACT.get(one.exactness) or relaxed[one.family] for one in points}


def _draw(axes: Any, points: Sequence[Point], measure: Measure, colours: dict[str, str]) -> None:
    bare(axes, measure.title)
    axes.set_ylabel(measure.name, color=INK)
    axes.set_xlabel("target calls, as a share of plain decoding", color=INK)
    axes.tick_params(colors=FAINT)
    for one, value in zip(points, measure.values, strict=True):
        axes.scatter([one.calls], [value], s=34, color=colours[one.name], zorder=3)


def _words(axes: Any, points: Sequence[Point], measure: Measure, colours: dict[str, str]) -> Words:
    """Names beside what is not exact, and beside the best exact ways: the others lie where these do."""
    best = {one.name for one in sorted((p for p in points if p.exact), key=lambda p: p.calls)[:3]}
    marks = [(one.calls, value) for one, value in zip(points, measure.values, strict=True)]
    named = [not one.exact or one.name in best or one.name == "plain" for one in points]
    words = [(p.name if shown else "", colours[p.name]) for p, shown in zip(points, named, strict=True)]
    others = [mark for mark, shown in zip(marks, named, strict=True) if not shown]
    return Words(axes, marks, words, others, size=8.0)
