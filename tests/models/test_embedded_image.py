"""The embedded image models: ordinary folders, small enough, exact under drafting and in few target calls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

import multispec as ms
from multispec.generator import Generator
from multispec.loading import assets

FOLDER = assets() / "image"
CODES = 256
SEED = ms.Sampling(seed=3)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Both models, loaded once."""
    return ms.load("image")


@pytest.fixture(scope="module")
def plain(generator: Generator) -> ms.Generation:
    """One picture without drafting."""
    made: ms.Generation = generator.generate("red heart", drafter=None, sampling=SEED)
    return made


def test_the_folders_are_ordinary_and_small() -> None:
    """transformers and diffusers read them; 24 MB together, the draft at most a quarter of the target."""
    target, draft = (AutoModelForCausalLM.from_pretrained(FOLDER / name) for name in ("target", "draft"))
    assert target.dtype == draft.dtype == torch.bfloat16
    assert draft.num_parameters() <= target.num_parameters() / 4
    assert AutoTokenizer.from_pretrained(FOLDER / "target")("red heart")["input_ids"]
    assert VQModel.from_pretrained(FOLDER / "vq").config["num_vq_embeddings"] >= 128
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 24e6


def test_a_picture(plain: ms.Generation) -> None:
    """64 x 64 pixels of at least 256 codes; a red heart is red in the middle and white in the corners."""
    assert len(plain.tokens) == plain.report.target_calls == CODES
    assert isinstance(plain.output, Image.Image) and plain.output.size == (64, 64)
    pixels = np.asarray(plain.output).astype(int)
    red, green, blue = pixels[24:36, 24:40].reshape(-1, 3).mean(0)
    assert red > green + 60 and red > blue + 60
    assert pixels[-6:, :6].mean() > 220


@pytest.mark.parametrize(("drafter", "share"), [("auto", 3), ("jacobi", 3), ("draft_model", 2)])
def test_the_same_pixels_in_fewer_calls(
    generator: Generator, plain: ms.Generation, drafter: str, share: int
) -> None:
    """Exact, at temperature 1 and the model's own guidance, in a part of the calls."""
    made = generator.generate("red heart", drafter=drafter, sampling=SEED)
    assert made.tokens.equal(plain.tokens)
    assert made.output.tobytes() == plain.output.tobytes()
    assert made.report.target_calls <= CODES / share


def test_auto_is_the_window_unless_a_draft_was_asked_for(generator: Generator) -> None:
    """A window saves more calls than the draft that comes with the model; a draft that is named is used."""
    named = ms.load("image", draft=FOLDER / "draft")
    made = [one.methods.drafter("auto") for one in (generator, named)]
    assert [one.name for one in made if one is not None] == ["jacobi", "draft_model"]


def test_pictures_of_a_batch_are_those_alone(generator: Generator, plain: ms.Generation) -> None:
    """Two captions with their own seeds, drafted together."""
    other = ms.Sampling(seed=5)
    both = generator.generate(["red heart", "blue fish"], sampling=[SEED, other])
    assert both[0].tokens.equal(plain.tokens)
    assert both[1].tokens.equal(generator.generate("blue fish", drafter=None, sampling=other).tokens)
