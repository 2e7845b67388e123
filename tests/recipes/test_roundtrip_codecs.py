"""The recipe on tiny random codecs in folders: a line for each, and what cannot be read is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from multispec.errors import UsageError
from multispec.modalities.speech.audio import Audio
from recipes import roundtrip_codecs
from tests.models import codecs


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Two short chirps at two rates, one of them in stereo."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number, rate in enumerate((800, 1600)):
        steps = torch.arange(rate // 4) / rate
        wave = torch.sin(900 * steps.square())[None].repeat(number + 1, 1)
        Audio(0.5 * wave, rate).save(folder / f"{number}.wav")
    return folder


def test_a_line_for_each_codec(tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Random weights give noise, which is said; a folder without a codec is passed over with its error."""
    for name in ("dac", "mimi"):
        codecs.codec(name).model.save_pretrained(tmp_path / name)
    named = ", ".join(str(tmp_path / name) for name in ("dac", "nothing", "mimi"))
    out = tmp_path / "out"
    lines = roundtrip_codecs.main(
        ["--codecs", named, "--sounds", str(sounds), "--out", str(out), "--keep", "1"]
    )
    assert [Path(one.codec).name for one in lines] == ["dac", "mimi"]
    dac, mimi = lines
    assert (dac.sounds, dac.frame_rate, dac.codebooks) == (2, 100.0, 3)
    assert dac.kilobits == pytest.approx(1.2)
    assert mimi.reach[1] == 0 and mimi.measured[1] == 0
    assert all(one.measured[side] <= one.reach[side] for one in lines for side in (0, 1))
    said = capsys.readouterr().out
    assert "what comes back is noise" in said and "nothing: No codec can be read" in said.replace("\n", "")
    assert [one["codec"] for one in json.loads((out / "codecs.json").read_text("utf-8"))] == [
        one.codec for one in lines
    ]
    assert Audio.read(out / "dac" / "0.wav").sampling_rate == 800
    assert not (out / "dac" / "1.wav").exists()


def test_measures() -> None:
    """A sound and itself; twice as loud; a folder without sounds."""
    wave = torch.sin(torch.arange(800) / 5)[None]
    assert roundtrip_codecs.snr(wave, wave) > 100
    assert roundtrip_codecs.snr(wave, wave * 0.9) == pytest.approx(20, abs=0.01)
    assert roundtrip_codecs.spectral_distance(wave, wave, 800) == 0
    assert roundtrip_codecs.spectral_distance(wave, wave * 2, 800) == pytest.approx(6.02, abs=0.5)
    with pytest.raises(UsageError, match="No .wav or .flac file"):
        roundtrip_codecs.sounds(Path("tests"), 3)
