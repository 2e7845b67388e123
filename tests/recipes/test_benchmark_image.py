"""The benchmark runs from start to end on a tiny model and keeps every figure that it prints."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.models import drawing

pytestmark = pytest.mark.slow

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark_image.py"


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of one short run."""
    folder = drawing.save(tmp_path_factory.mktemp("models"))
    out = folder / "figures.json"
    flags = {
        "model": folder / "target",
        "draft": folder / "draft",
        "captions": "red heart; cat face",
        "batches": "2",
        "windows": "8",
        "runs": 1,
        "out": out,
    }
    with pytest.MonkeyPatch.context() as patch:
        words = [f"--{name}={value}" for name, value in flags.items()]
        patch.setattr(sys, "argv", [str(RECIPE), *words])
        runpy.run_path(str(RECIPE), run_name="__main__")
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


def test_every_setting_has_every_figure(figures: list[dict[str, Any]]) -> None:
    """With guidance and without: the same lines for each."""
    names = [row["what"] for row in figures]
    assert len(names) == len(set(names))
    cases = [f"batch 2, {guidance}" for guidance in ("guided", "no guidance")]
    asked = {}
    for case in cases:
        lines = [row for row in figures if row["what"].startswith(case + ":")]
        asked[case] = [row["goal"] for row in lines]
        assert len([goal for goal in asked[case] if goal is not None]) == 10
        for part in ("target calls", "time", "budget 0.05", "lantern", "gsd", "sjd"):
            assert any(part in row["what"].lower() for row in lines), part
    assert len(figures) == sum(map(len, asked.values()))


def test_figures_are_ratios_and_the_verdict_is_about_the_median(figures: list[dict[str, Any]]) -> None:
    """Positive, and met exactly where the median is not above what is asked."""
    for row in figures:
        assert row["value"] > 0
        assert row["met"] == (None if row["goal"] is None else row["value"] <= row["goal"])


def test_drafting_makes_no_more_calls_and_acceptance_is_a_part_of_the_time(
    figures: list[dict[str, Any]],
) -> None:
    """Bounds that hold whatever the model: calls of the best way, shares of the time, the budget."""
    for row in figures:
        if "target calls" in row["what"] and row["what"].endswith("/ plain"):
            assert row["value"] <= 1
        if "share of the time" in row["what"]:
            assert row["value"] < 1
        if "variation spent" in row["what"]:
            assert row["value"] <= 0.05
