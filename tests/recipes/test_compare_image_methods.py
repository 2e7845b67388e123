"""The comparison runs from start to end on a tiny model, and its figures hold what the rules promise."""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import multispec as ms
from recipes import _image_plot as plots
from recipes import _plot
from recipes import compare_image_methods as recipe
from recipes._image_plot import Floor, Point
from recipes._image_ways import all_ways
from recipes._plot import Box, Labels
from recipes._ways import PLAIN
from tests.models import drawing, zoo

# Pictures of 12 x 12 pixels: as large as the window of SSIM at least.
GRID = [6, 6]
ONLY = "prompt lookup, jacobi 16, scd_mc 16, LANTERN 0.1, budget 0.05, ZipAR 3, draft model 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, a draft and a picture tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    drawing.save_vq(folder / "vq")
    drawing.save_language_model(folder / "target", seed=0, grid=GRID)
    drawing.save_language_model(folder / "draft", seed=1, grid=GRID)
    return folder


@pytest.fixture(scope="module")
def flags(folder: Path) -> Callable[..., list[str]]:
    """Flags of a short run."""

    def made(out: Path, **changes: Any) -> list[str]:
        words = {
            "model": folder / "target",
            "draft": folder / "draft",
            "captions": "red heart; cat face",
            "seeds": 1,
            "references": 2,
            "only": ONLY,
            "out": out,
        }
        return [f"--{name}={value}" for name, value in (words | changes).items()]

    return made


@pytest.fixture(scope="module")
def made(flags: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run wrote."""
    out = tmp_path_factory.mktemp("out")
    recipe.main(flags(out))
    return out


@pytest.fixture(scope="module")
def rows(made: Path) -> dict[str, dict[str, Any]]:
    """Its figures, by the name of the way."""
    found = json.loads((made / "figures.json").read_text())["rows"]
    return {row["way"]: row for row in found}


def test_a_seed_draws_the_very_picture_of_plain_decoding(rows: dict[str, dict[str, Any]]) -> None:
    """Codes identical, PSNR inf, SSIM 1, the same likelihood, the distance of plain itself."""
    seeded = [row for row in rows.values() if row["exactness"] == "seed"]
    assert {"plain", "jacobi 16", "prompt lookup", "draft model 4"} <= {row["way"] for row in seeded}
    for row in seeded:
        assert (row["identical"], row["psnr"], row["ssim"]) == (1.0, "inf", 1.0)
        assert row["nats_per_code"] == rows["plain"]["nats_per_code"]
        assert row["frechet"] == row["frechet_floor"]


def test_the_meter_is_zero_for_exact_ways_and_within_the_allowance(rows: dict[str, dict[str, Any]]) -> None:
    """Seed and law spend nothing; a budget of 0.05 spends some, and no more."""
    exact = [row["variation_per_code"] for row in rows.values() if row["exactness"] in ("seed", "law")]
    assert set(exact) == {0.0}
    assert 0 < rows["budget 0.05"]["variation_per_code"] <= 0.05
    assert rows["ZipAR 3"]["variation_per_code"] > 0


def test_calls_are_those_of_the_reports(rows: dict[str, dict[str, Any]]) -> None:
    """Plain decoding makes a call for each code; the schedule of ZipAR is known beforehand."""
    assert rows["plain"]["target_calls"] == 36
    assert rows["plain"]["calls_share"] == rows["plain"]["seconds_share"] == 1.0
    # He et al. (2024): W + window (H - 1).
    assert rows["ZipAR 3"]["target_calls"] == 6 + 3 * 5
    assert all(row["step_compression"] * row["target_calls"] == pytest.approx(36) for row in rows.values())


def test_the_same_figures_are_kept_as_csv(made: Path, rows: dict[str, dict[str, Any]]) -> None:
    """A line for each way, with the columns of the JSON file."""
    with (made / "figures.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["way"] for line in lines] == list(rows)
    assert all(float(line["target_calls"]) == rows[line["way"]]["target_calls"] for line in lines)
    assert set(lines[0]) == set(rows["plain"])


def test_the_contact_sheet_has_a_picture_for_each_way(made: Path, rows: dict[str, dict[str, Any]]) -> None:
    """As square as it goes."""
    with Image.open(made / "pictures.png") as sheet:
        across = math.ceil(math.sqrt(len(rows)))
        assert sheet.width > across * 128
        assert sheet.height > math.ceil(len(rows) / across) * 128


def test_every_untrained_method_of_the_catalog_takes_part(folder: Path) -> None:
    """Drafters and verifiers that fit pictures, by themselves; the draft model, where one was loaded."""
    generator = ms.load(folder / "target", draft=folder / "draft", modality="image")
    ways = all_ways(generator)
    assert ways[0] is PLAIN
    assert len({way.name for way in ways}) == len(ways)
    names = {part.name for way in ways for part in (way.drafter, way.verifier) if part is not None}
    fitting = [one for one in ms.catalog() if "image" in one.streams and one.kind in ("drafter", "verifier")]
    own = {one.name for one in fitting if one.by_name and not one.base and not one.trained}
    assert own | {"draft_model"} <= names
    alone = all_ways(ms.load(folder / "target", modality="image"))
    assert not any(way.trained for way in alone)
    assert {way.name for way in alone} == {way.name for way in ways if not way.trained}


def test_what_the_model_cannot_be_run_with_is_left_out_with_the_reason(
    flags: Callable[..., list[str]], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A draft of another vocabulary: the table is made without it, and says why."""
    other = drawing.save_language_model(tmp_path / "other", seed=1, grid=GRID)
    zoo.build("llama", 0, vocab_size=drawing.VOCABULARY + 600).save_pretrained(other)
    recipe.main(flags(tmp_path, draft=other, only="draft model 4", captions="cat face"))
    found = json.loads((tmp_path / "figures.json").read_text())
    assert [row["way"] for row in found["rows"]] == ["plain"]
    assert "vocabulary" in found["left_out"]["draft model 4"]
    assert "Left out: draft model 4" in capsys.readouterr().out
    # One picture is too few for a distance.
    assert found["rows"][0]["frechet"] == "nan"


def test_settings_without_pictures_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """No captions, no seeds."""
    for wrong in ("--captions= ; ", "--seeds=0", "--references=0"):
        with pytest.raises(SystemExit):
            recipe.parse([wrong])
        assert "one at least" in capsys.readouterr().err


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, and no traceback."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'multispec[plots]'" in _plot.missing()


def test_labels_cover_neither_each_other_nor_a_point() -> None:
    """Forty points, many of them close together."""
    chance = random.Random(0)
    points = [(chance.gauss(500, 130), chance.gauss(400, 110)) for _ in range(40)]
    sizes = [(chance.uniform(20, 90), 12.0) for _ in points]
    bounds = Box(0, 0, 1000, 800)
    boxes = Labels(points, sizes, bounds).place()
    for place, box in enumerate(boxes):
        assert box.over(bounds) == pytest.approx(box.width * box.height)
        assert not any(box.over(other) > 0 for other in boxes[place + 1 :])
        assert all(box.nearest(*point) != point for point in points)


def test_a_plot_is_written(tmp_path: Path) -> None:
    """Exact and relaxed points, some at one place, one without a distance."""
    pytest.importorskip("matplotlib")
    points = [
        Point(family="plain", setting="", exactness="seed", calls=1.0, frechet=0.2, variation=0.0),
        Point(family="jacobi", setting="16", exactness="seed", calls=0.4, frechet=0.2, variation=0.0),
        Point(family="sjd", setting="16", exactness="law", calls=0.4, frechet=0.3, variation=0.0),
        Point(family="budget", setting="0.1", exactness="bounded", calls=0.2, frechet=9.0, variation=0.1),
        Point(
            family="budget",
            setting="0.2",
            exactness="bounded",
            calls=0.1,
            frechet=math.nan,
            variation=0.2,
            trained=True,
        ),
    ]
    plots.plot(points, Floor(0.2, 0.1, 0.3), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as sheet:
        assert sheet.size == tuple(round(side * plots.DPI) for side in plots.SIZE)
