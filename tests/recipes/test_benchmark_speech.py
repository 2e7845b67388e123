"""The benchmark of speech runs from start to end on a tiny model and keeps every figure that it prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from recipes import benchmark_speech as recipe
from recipes._two_level import BOOKS, depth_passes
from tests.models import speaking

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The rows of one short run."""
    folder = speaking.save(tmp_path_factory.mktemp("speech"), context=64)
    out = folder / "figures.json"
    flags = {
        "model": folder / "target",
        "draft": folder / "draft",
        "texts": "go on; a fox",
        "batches": "1,2",
        "windows": "8",
        "runs": 1,
        "out": out,
    }
    recipe.main([f"--{name}={value}" for name, value in flags.items()])
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return rows


def test_every_setting_has_every_figure(figures: list[dict[str, Any]]) -> None:
    """Both batches, sampled and greedy; first audio where one listens to one stream."""
    names = [row["what"] for row in figures]
    assert len(names) == len(set(names))
    for batch, lines in ((1, 6), (2, 5)):
        for law in ("temperature", "greedy"):
            assert sum(name.startswith(f"batch {batch}, {law}") for name in names) == lines
    assert sum("first audio" in name for name in names) == 2


def test_drafting_makes_no_more_calls(figures: list[dict[str, Any]]) -> None:
    """Figures are positive ratios, and the verdict is about the median."""
    for row in figures:
        assert row["value"] > 0
        assert row["met"] == (None if row["goal"] is None else row["value"] <= row["goal"])
        if "target calls" in row["what"]:
            assert row["value"] <= 1


def test_depth_passes_follow_the_guesses() -> None:
    """One pass for each code but the first; right guesses are read in one pass with others."""
    plain, some, all_right = depth_passes(2), depth_passes(2, 0.9), depth_passes(2, 1.0)
    assert plain == BOOKS - 1
    assert all_right * 3 <= plain and all_right <= some <= plain + 1
