"""The embedded speech models: ordinary folders, small enough, exact under drafting, in fewer target calls."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Xcodec2Model

import multispec as ms
from multispec.generator import Generator
from multispec.loading import assets

FOLDER = assets() / "speech"
TEXT = "The old man went to the sea."
SEED = 3


@pytest.fixture(scope="module")
def generator() -> Generator:
    """All models, loaded once."""
    return ms.load("speech")


def settings(generator: Generator, temperature: float | None = None, seed: int = SEED) -> ms.Sampling:
    """The model's own, with a seed."""
    usual: ms.Sampling = generator.modality.sampling
    return replace(usual, seed=seed, temperature=usual.temperature if temperature is None else temperature)


@pytest.fixture(scope="module")
def plain(generator: Generator) -> ms.Generation:
    """One sentence without drafting."""
    made: ms.Generation = generator.generate(TEXT, drafter=None, sampling=settings(generator))
    return made


def test_the_folders_are_ordinary_and_small() -> None:
    """transformers reads them; 30 MB together, the draft at most a quarter of the target."""
    target, draft = (AutoModelForCausalLM.from_pretrained(FOLDER / name) for name in ("target", "draft"))
    assert target.dtype == draft.dtype == torch.bfloat16
    assert draft.num_parameters() <= target.num_parameters() / 4
    assert len(AutoTokenizer.from_pretrained(FOLDER / "target")) > 100
    assert Xcodec2Model.from_pretrained(FOLDER / "codec").config.sampling_rate >= 16_000
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 30e6


def test_a_sentence(plain: ms.Generation) -> None:
    """It comes to its end by itself, takes as long as such a sentence takes, and is heard."""
    sound = plain.output
    assert plain.finish_reason == "stop" and sound.sampling_rate == 16_000
    assert 1.0 < sound.duration < 3.5
    assert sound.waveform.abs().max() <= 1 and sound.waveform.square().mean().sqrt() > 0.01


@pytest.mark.parametrize(("temperature", "share"), [(None, 1.5), (0.0, 2.0)])
def test_the_same_samples_in_fewer_calls(
    generator: Generator, temperature: float | None, share: float
) -> None:
    """At the model's settings and greedily, with the draft that comes with it."""
    asked = settings(generator, temperature)
    plain, made = (generator.generate(TEXT, drafter=way, sampling=asked) for way in (None, "auto"))
    assert made.tokens.equal(plain.tokens) and made.output.waveform.equal(plain.output.waveform)
    assert made.report.target_calls * share <= plain.report.target_calls
    auto = generator.methods.drafter("auto")
    assert auto is not None and auto.name == "draft_model"


def test_windows_are_exact_too(generator: Generator, plain: ms.Generation) -> None:
    """Without any draft model."""
    made = generator.generate(TEXT, drafter="jacobi", sampling=settings(generator))
    assert made.tokens.equal(plain.tokens)


def test_sentences_of_a_batch_are_those_alone(generator: Generator, plain: ms.Generation) -> None:
    """Two texts, two voices, their own seeds, drafted together."""
    asked = [settings(generator), settings(generator, seed=5)]
    other = {"text": "Go home!", "voice": "woman"}
    both = generator.generate([TEXT, other], sampling=asked)
    assert both[0].tokens.equal(plain.tokens)
    assert both[1].tokens.equal(generator.generate(other, drafter=None, sampling=asked[1]).tokens)


def test_any_english_without_a_synthesiser(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read out, and words that no book has are spelled by the model of pronunciation."""
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    made = generator.generate("3 blorfing wugs.", sampling=settings(generator))
    assert made.finish_reason == "stop" and made.output.duration > 0.5


def test_chunks_join_to_the_whole(generator: Generator, plain: ms.Generation) -> None:
    """What streams is what is generated at once, but for rounding, and comes in several chunks."""
    steps = generator.stream(TEXT, sampling=settings(generator))
    chunks = [step.delta.waveform for step in steps if step.delta]
    assert len(chunks) > 2
    torch.testing.assert_close(torch.cat(chunks, dim=1), plain.output.waveform, atol=1e-3, rtol=0)
