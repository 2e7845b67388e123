"""The comparison of ways to speak runs from start to end, and its figures hold what the rules promise."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import multispec as ms
from multispec.errors import UsageError
from multispec.modalities.speech import Audio
from recipes import _speech_plot as plots
from recipes import compare_speech_methods as recipe
from recipes import generate_speech
from recipes._speech_plot import Point
from recipes._speech_recogniser import Recogniser, edits, recognised
from recipes._speech_ways import all_ways
from recipes._ways import PLAIN
from tests.models import speaking

ONLY = "prompt lookup 4, jacobi 8, scd_mc 8, LANTERN 0.1, budget 0.05, draft model 4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking.save(tmp_path_factory.mktemp("speech"), context=64)


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one run wrote."""
    out = tmp_path_factory.mktemp("out")
    words = {"model": folder / "target", "draft": folder / "draft", "texts": "go on; a fox", "out": out}
    recipe.main([f"--{name}={value}" for name, value in (words | {"seeds": 1, "only": ONLY}).items()])
    return out


@pytest.fixture(scope="module")
def rows(made: Path) -> dict[str, dict[str, Any]]:
    """Its figures, by the name of the way."""
    found = json.loads((made / "figures.json").read_text())["rows"]
    return {row["way"]: row for row in found}


def test_a_seed_says_the_very_codes_of_plain_decoding(rows: dict[str, dict[str, Any]]) -> None:
    seeded = [row for row in rows.values() if row["exactness"] == "seed"]
    assert {"plain", "jacobi 8", "prompt lookup 4", "draft model 4"} <= {row["way"] for row in seeded}
    for row in seeded:
        assert (row["identical"], row["length_share"]) == (1.0, 1.0)
        assert row["nats_per_code"] == rows["plain"]["nats_per_code"]
    assert rows["plain"]["calls_share"] == rows["plain"]["seconds_share"] == 1.0


def test_the_meter_is_zero_for_exact_ways_and_within_the_allowance(rows: dict[str, dict[str, Any]]) -> None:
    exact = [row["variation_per_code"] for row in rows.values() if row["exactness"] in ("seed", "law")]
    assert set(exact) == {0.0}
    assert 0 < rows["budget 0.05"]["variation_per_code"] <= 0.05


def test_files_are_kept(made: Path, rows: dict[str, dict[str, Any]]) -> None:
    with (made / "figures.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["way"] for line in lines] == list(rows)
    assert {"plain.wav", "budget-0.05.wav", "quality.png"} <= {one.name for one in made.iterdir()}
    assert Audio.read(made / "plain.wav").sampling_rate == 800
    with Image.open(made / "quality.png") as sheet:
        assert sheet.size == tuple(round(side * plots.DPI) for side in plots.SIZE)


def test_every_untrained_method_of_the_catalog_takes_part(folder: Path) -> None:
    generator = ms.load(folder / "target", draft=folder / "draft")
    ways = all_ways(generator)
    assert ways[0] is PLAIN and len({way.name for way in ways}) == len(ways)
    names = {part.name for way in ways for part in (way.drafter, way.verifier) if part is not None}
    fitting = [one for one in ms.catalog() if "speech" in one.streams and one.kind in ("drafter", "verifier")]
    own = {one.name for one in fitting if one.by_name and not one.base and not one.trained}
    assert own | {"draft_model"} <= names


class Letters:
    """A pronunciation that says each letter."""

    def symbols(self, text: str) -> list[str]:
        return [f"'{one}" for one in text]


def test_an_ear_counts_what_it_hears_wrongly() -> None:
    """Edits against the phonemes of the text; signs and stress do not count."""
    torch.manual_seed(0)
    model = Recogniser(3, 8, 1)
    ear = recipe.Ear(model, {"a": 1, "b": 2, "c": 3}, Letters())
    sound = Audio(torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)) / 4, 8000)
    heard = recognised(model.eval(), sound.resampled(16000).waveform[0].numpy())
    assert ear.errors("abc.", sound) == edits(heard, [1, 2, 3]) / 3
    assert ear.errors("ab", Audio(torch.zeros(1, 0), 8000)) == 1.0
    with pytest.raises(UsageError, match="needs a model that speaks phonemes"):
        recipe.Ear.of("nowhere", None)


def test_a_plot_shows_what_was_understood(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    points = [
        Point(name=name, family=name, exactness=promise, calls=calls, nats=1.7, variation=calls, error=0.1)
        for name, promise, calls in (("plain", "seed", 1.0), ("budget", "bounded", 0.5))
    ]
    plots.plot(points, 0.05, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_settings_without_texts_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--texts= ; ", "--seeds=0"):
        with pytest.raises(SystemExit):
            recipe.parse([wrong])
        assert "one at least" in capsys.readouterr().err


def test_the_shortest_program_speaks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "model": folder / "target",
        "text": "Go on, 2 foxes.",
        "out": tmp_path / "a.flac",
        "voice": "pad",
    }
    more = {"drafter": "prompt_lookup", "temperature": 0.9, "seed": 3}
    generate_speech.main([f"--{name}={value}" for name, value in (words | more).items()])
    shown = capsys.readouterr().out
    assert "Go on, two foxes." in shown and "target calls" in shown and "s of sound" in shown
    assert Audio.read(tmp_path / "a.flac").duration > 0
