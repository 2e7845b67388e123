"""``multispec speech``."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import multispec as ms
from multispec import loop
from multispec.cli import app
from multispec.modalities.speech import Audio, Spoken, speak
from tests.modalities.test_audio import Loudspeaker
from tests.models import speaking

TEXT = "the quick fox"
LONG = "Go on, fox. It has 2 dogs! And so on."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speaking.save(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def generator(model: Path) -> ms.Generator:
    return ms.load(model / "target")


@pytest.fixture(scope="module")
def whole(generator: ms.Generator) -> Spoken:
    """What the library says for the long text."""
    return speak(generator, LONG, drafter=None, sampling=ms.Sampling(seed=11))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the command."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, model: Path) -> Result:
    drafter = [] if "--drafter" in arguments else ["--drafter", "prompt_lookup"]
    seed = [] if "--seed" in arguments else ["--seed", "11"]
    return CliRunner().invoke(app, ["speech", "--model", str(model / "target"), *drafter, *seed, *arguments])


def near(path: Path, sound: Audio) -> bool:
    """Whether a file holds a sound, in 16 bits."""
    found = Audio.read(path)
    assert found.sampling_rate == sound.sampling_rate
    return torch.allclose(found.waveform, sound.waveform, atol=1 / 32000)


def test_the_file_is_the_sound(model: Path, here: Path, whole: Spoken) -> None:
    result = run(LONG, "-o", "folder/fox.wav", model=model)
    assert result.exit_code == 0 and result.stdout == ""
    assert near(here / "folder" / "fox.wav", whole.audio)
    assert "3 utterances" in result.stderr and "real-time factor" in result.stderr
    assert "Written: folder/fox.wav" in result.stderr


def test_without_a_name_the_text_is_one(model: Path, here: Path, generator: ms.Generator) -> None:
    run("Go on, fox!", model=model)
    assert [path.name for path in here.iterdir()] == ["go-on-fox.wav"]


def test_settings_reach_the_model(model: Path, here: Path, generator: ms.Generator) -> None:
    options = ["--voice", "pad", "--temperature", "0.5", "--top-k", "4", "--seed", "3", "--dtype", "float32"]
    run(TEXT, "-o", "a.flac", *options, model=model)
    sampling = ms.Sampling(temperature=0.5, top_k=4, seed=3)
    assert near(here / "a.flac", speak(generator, TEXT, voice="pad", sampling=sampling).audio)


def test_a_text_from_standard_input(model: Path, here: Path) -> None:
    arguments = ["speech", "-", "-o", "a.wav", "--model", str(model / "target")]
    assert CliRunner().invoke(app, arguments, input="go on\n").exit_code == 0
    assert (here / "a.wav").is_file()


def test_json_is_one_object(model: Path, here: Path, whole: Spoken) -> None:
    draft = ["--drafter", "draft_model", "--draft", str(model / "draft")]
    result = run(LONG, "--json", "--compare", "--stream", *draft, model=model)
    found = json.loads(result.stdout)
    assert found["text"] == LONG and found["files"] == [] and list(here.iterdir()) == []
    assert [one["text"] for one in found["utterances"]] == [one.text for one in whole.utterances]
    for one, wanted in zip(found["utterances"], whole.results, strict=True):
        assert one["tokens"] == wanted.tokens.tolist() and one["finish_reason"] == "stop"
    assert found["duration"] == pytest.approx(whole.audio.duration) and found["sampling_rate"] == 800
    assert found["delivery"]["duration"] == pytest.approx(whole.audio.duration)
    assert found["delivery"]["first_audio"] <= found["delivery"]["seconds"]
    compared = found["compare"]
    assert compared["identical_codes"] is compared["identical_samples"] is True
    assert compared["promise"] == "seed"
    plain = sum(one.report.target_calls for one in whole.results)
    assert compared["plain"]["target_calls"] == plain >= compared["speculative"]["target_calls"]


def test_compare_shows_a_table(model: Path, here: Path) -> None:
    result = run(TEXT, "--compare", model=model)
    assert "Samples: identical to plain decoding" in result.stdout
    assert "real-time factor" in result.stdout and "1.00x" in result.stdout
    other = run(TEXT, "--compare", "--verifier", "rejection", model=model)
    assert "nor promised" in other.stdout or "identical to plain" in other.stdout


def test_a_stream_says_when_its_chunks_came(model: Path, here: Path, whole: Spoken) -> None:
    result = run(LONG, "-o", "a.wav", "--stream", "--chunk", "2", model=model)
    assert result.stderr.count(" s of sound\n") > len(whole.utterances)
    assert "first sound after" in result.stderr and "worst gap" in result.stderr
    assert near(here / "a.wav", whole.audio)


def test_it_is_played_while_it_comes(
    model: Path, here: Path, whole: Spoken, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Loudspeaker()
    found.most = 1000
    monkeypatch.setitem(sys.modules, "sounddevice", found)
    result = run(LONG, "--play", model=model)
    assert result.exit_code == 0 and list(here.iterdir()) == []
    heard = torch.cat([torch.from_numpy(rows) for rows in found.heard]).T
    assert heard.shape == whole.audio.waveform.shape
    assert torch.allclose(heard, whole.audio.waveform.clamp(-1, 1), atol=1e-5)
    assert found.done == ["start", "stop", "close"] and found.settings["samplerate"] == 800


def test_a_loudspeaker_that_goes_away_loses_nothing(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert "pip install 'sounddevice'" in run(TEXT, "--play", model=model).stderr
    monkeypatch.setitem(sys.modules, "sounddevice", Loudspeaker())
    result = run(LONG, "--play", "-o", "a.wav", model=model)
    assert result.exit_code == 1 and "plays no sound: Device unavailable" in result.stderr
    assert "Broken off" in result.stderr and Audio.read("a.wav").duration > 0


def test_a_spectrogram(model: Path, here: Path) -> None:
    result = run(LONG, "-o", "a.wav", "--spectrogram", "b/a.png", model=model)
    assert "Written: a.wav, b/a.png" in result.stderr
    with Image.open(here / "b" / "a.png") as picture:
        assert picture.width > 1000 < 2 * picture.height


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "Interrupted: 1 of 3 utterances are finished."),
        (RuntimeError("out of luck"), 1, "Broken off: 1 of 3 utterances are finished."),
    ],
)
def test_what_was_said_is_kept(
    model: Path, here: Path, whole: Spoken, monkeypatch: pytest.MonkeyPatch, error: Any, code: int, said: str
) -> None:
    begun = list[int]()

    def rounds(*arguments: Any) -> Iterator[Any]:
        begun.append(0)
        for steps in loop.rounds(*arguments):
            yield steps
            if len(begun) == 2:
                if isinstance(error, KeyboardInterrupt):
                    signal.raise_signal(signal.SIGINT)
                raise error

    monkeypatch.setattr("multispec.generator.rounds", rounds)
    result = run(LONG, "-o", "fox.wav", "--compare", model=model)
    assert result.exit_code == code and said in result.stderr and result.stdout == ""
    first = whole.results[0].output.waveform
    assert torch.allclose(
        Audio.read("fox.wav").waveform[:, 4 : first.shape[1] - 4], first[:, 4:-4], atol=1e-4
    )
    assert ("out of luck" in result.stderr) == (code == 1) and "Traceback" not in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
def test_a_full_disk_loses_nothing(model: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = here / "temporary"
    other.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(other))
    (here / "full.wav").symlink_to("/dev/full")
    result = run(TEXT, "-o", "full.wav", model=model)
    assert result.exit_code == 1 and "No space left" in result.stderr
    assert f"Written: {other / 'full.wav'}" in result.stderr
    assert Audio.read(other / "full.wav").duration > 0


def test_a_voice_that_never_ends_is_said(model: Path, here: Path, tmp_path_factory: Any) -> None:
    """The sound is cut where the context ends, and kept."""
    folder = tmp_path_factory.mktemp("endless")
    speaking.save_codec(folder / "codec")
    endless = {"min_new_tokens": 100}
    speaking.save_language_model(folder / "target", context=32, text_limit=8, sampling=endless)
    result = run("a", "-o", "a.wav", model=folder)
    assert Audio.read("a.wav").duration == 29 * 8 / 800
    assert "Warning: utterance 1: no end within 29 symbols: it was cut there." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "fox.mp3"], "expected one of .wav, .flac, .ogg"),
        (["-o", "fox"], "the ending of 'fox'"),
        (["--spectrogram", "map.doc"], "The ending of 'map.doc' stands for no picture"),
        (["--voice", "padd"], "Did you mean 'pad'"),
        (["--chunk", "0"], "--chunk"),
        (["--drafter", "promt_lookup"], "Did you mean 'prompt_lookup'"),
        (["--dtype", "float23"], "Unknown dtype 'float23'"),
        (["--temperature", "-1"], "temperature must be >= 0"),
    ],
)
def test_wrong_usage_is_one_line(model: Path, here: Path, arguments: list[str], message: str) -> None:
    result = run(TEXT, *arguments, model=model)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert result.stdout == "" and list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "There is nothing to say in ''"), ("привет", "(cyrillic)"), ("b" * 30, "A word is longer than")],
)
def test_texts_that_cannot_be_said(model: Path, here: Path, text: str, message: str) -> None:
    result = run(text, model=model)
    assert result.exit_code == 2 and message in result.stderr and list(here.iterdir()) == []


def test_a_model_of_words_is_refused(here: Path, target: str) -> None:
    result = CliRunner().invoke(app, ["speech", TEXT, "--model", target])
    assert result.exit_code == 1 and "speaks no codes of a codec" in result.stderr


@pytest.mark.parametrize("name", ["soundfile", "matplotlib"])
def test_without_the_libraries_the_command_is_named(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    result = run(TEXT, "--spectrogram", "a.png", model=model)
    assert result.exit_code == 1 and "pip install 'multispec[" in result.stderr
    assert list(here.iterdir()) == []
