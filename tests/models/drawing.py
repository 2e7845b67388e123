"""Tiny random image models in the embedded format: a VQModel, and Llamas over captions and codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import VQModel

from tests.models import words, zoo

GRID = (4, 4)
STRIDE = 2
CODES = 12
# The symbols of words.byte_level() come first, then the one that begins a picture, then the codes.
BEGIN_OF_IMAGE = 340
OFFSET = 341
VOCABULARY = OFFSET + CODES


def vq_model(seed: int = 0, codes: int = CODES) -> Any:
    """A random picture tokenizer whose codes decode to different colours."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = VQModel(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            num_vq_embeddings=codes,
            norm_num_groups=4,
        )
        model.eval()
        model.quantize.embedding.weight.data.normal_()
    return model


def save_vq(folder: Path, codes: int = CODES, without: str | None = None) -> Path:
    """The picture tokenizer in a folder; on request ``without`` the weights whose names begin so."""
    model = vq_model(codes=codes)
    if without is not None:
        kept = {name: one for name, one in model.state_dict().items() if not name.startswith(without)}
        model.state_dict = lambda *_, **__: kept
    model.save_pretrained(folder)
    return folder


def save_language_model(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """The Llama with its tokenizer; ``changes`` go into the "multispec" part of its config."""
    model = zoo.build("llama", seed, vocab_size=VOCABULARY, initializer_range=0.5)
    own = {
        "modality": "image",
        "grid": list(GRID),
        "codes": {"offset": OFFSET, "size": CODES},
        "begin_of_image": BEGIN_OF_IMAGE,
        "vq": "../vq",
        "guidance": 3.0,
    }
    model.config.multispec = {name: one for name, one in (own | changes).items() if one is not None}
    model.save_pretrained(folder)
    words.byte_level().save_pretrained(folder)
    return folder


def save(folder: Path) -> Path:
    """``target``, ``draft`` and ``vq`` side by side, as the embedded models lie."""
    save_vq(folder / "vq")
    save_language_model(folder / "target", seed=0)
    save_language_model(folder / "draft", seed=1)
    return folder


def described(folder: Path) -> dict[str, Any]:
    """The config.json of a folder."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
