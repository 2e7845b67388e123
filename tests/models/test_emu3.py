"""Emu3: the same symbols as the model's own generate with its hand-written grammar, whatever drafts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    Emu3TextConfig,
    Emu3VQVAEConfig,
    LlamaConfig,
)

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UsageError
from multispec.guidance import Guidance
from multispec.modalities.image import Images
from multispec.modalities.image.families import emu3
from multispec.modalities.image.families.emu3 import Emu3, ScatteredRaster, VisualIds, text_model
from multispec.modalities.image.family import Family, PictureCodec
from multispec.modalities.layout import Layout, Raster
from multispec.sampling import Sampling
from multispec.stream import Allowed, Forced
from multispec.targets import CausalTarget
from multispec.targets.causal import attention_of, disagreement
from multispec.targets.fused import FusedForward
from multispec.verifiers.lantern import Lantern
from tests.models import pictures

CODES = 24
CAPTIONS = ("a red dog", "two cats", "blue", "a long sentence about 3 birds")
NAMED = {
    "image_token": "<image>",
    "boi_token": "<|image start|>",
    "eoi_token": "<|image end|>",
    "image_wrapper_token": "<|image token|>",
    "eof_token": "<|extra_201|>",
}
SIZE = (6, 8)  # 3 x 4 codes of 2 pixels each


def _orders(kind: str) -> tuple[list[str], list[str]]:
    """Symbols first in the vocabulary and behind its marks: codes in order, reversed, or scattered."""
    codes = [f"<|visual token {n:06d}|>" for n in range(CODES)]
    if kind == "scattered":
        return codes[10:4:-1], [*codes[:5], "<|extra_200|>", *codes[11:]]
    return [], ["<|extra_200|>", *(codes if kind == "ordered" else codes[::-1])]


@cache
def words(kind: str = "ordered") -> Any:
    """A tiny tokenizer with the names that Emu3 needs."""
    first, plain = _orders(kind)
    return pictures.tokenizer(NAMED, plain, first)


def processor(kind: str = "ordered") -> Any:
    """The real processor around it, whose own pictures have 6 x 6 pixels."""
    made = Emu3Processor(Emu3ImageProcessor(image_mean=[0.5] * 3, image_std=[0.5] * 3), words(kind))
    made.image_area = 36
    return made


def build(seed: int = 0, kind: str = "ordered", **changes: Any) -> Any:
    """A random Emu3 with 24 codes in a vocabulary of 96."""
    text: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 128,
        "pad_token_id": words(kind).pad_token_id,
        "bos_token_id": words(kind).bos_token_id,
        "eos_token_id": words(kind).eos_token_id,
    }
    vq: dict[str, Any] = {
        "codebook_size": CODES,
        "base_channels": 32,
        "channel_multiplier": [1, 1],
        "num_res_blocks": 1,
        "temporal_downsample_factor": 1,
        "attn_resolutions": [],
        "hidden_size": 32,
    }
    named = words(kind).get_vocab()
    kept = {name: one for name, one in named.items() if name.startswith(("<|", "<image"))}
    extra: dict[str, Any] = {"vocabulary_map": kept} | changes
    config = Emu3Config(
        text_config=Emu3TextConfig(**text).to_dict(),
        vq_config=Emu3VQVAEConfig(**vq).to_dict(),
        **extra,
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Emu3ForConditionalGeneration(config).eval()
    return model


@cache
def family(seed: int = 0, kind: str = "ordered") -> Emu3:
    """One family per seed and order of ids, shared by the tests."""
    return Emu3.from_model(build(seed, kind), processor(kind))


@cache
def model(kind: str = "ordered") -> Any:
    """The model of ``family(0, kind)``, again: the same seed."""
    return build(0, kind)


def guided(
    caption: str, scale: float = 3.0, size: tuple[int, int] = SIZE, kind: str = "ordered", **other: Any
) -> ms.Prompt:
    """The prompt with its other branch, as the modality makes it."""
    own = family(0, kind)
    prompt = own.prompt(caption, size)
    guidance = replace(own.guidance, scale=scale)
    return replace(prompt, guidance=guidance, unconditional=own.unconditional(prompt, other.get("negative")))


def own_generate(prompt: ms.Prompt, layout: Layout, kind: str = "ordered") -> list[int]:
    """The model's own greedy generate, with the grammar written as its documentation does."""
    known = words(kind)
    codes = model(kind).vocabulary_mapping.image_tokens
    row_end = known.convert_tokens_to_ids("<|extra_200|>")
    start, width, height = len(prompt.ids), layout.width, layout.height

    def allowed(batch: int, ids: torch.Tensor) -> Sequence[int]:
        offset = len(ids) - start + 1
        behind = offset - height * (width + 1)
        if behind > 0:
            return [(known.eof_token_id, known.eoi_token_id, known.eos_token_id)[behind - 1]]
        return [row_end] if offset % (width + 1) == 0 else codes

    extra: dict[str, Any] = {}
    if prompt.guided and prompt.unconditional is not None and prompt.guidance is not None:
        extra = {
            "negative_prompt_ids": prompt.unconditional.ids[None],
            "guidance_scale": prompt.guidance.scale,
        }
    found = model(kind).generate(
        prompt.ids[None],
        attention_mask=torch.ones_like(prompt.ids[None]),
        prefix_allowed_tokens_fn=allowed,
        max_new_tokens=layout.length,
        do_sample=False,
        **extra,
    )
    return list(found[0, start:].tolist())


def test_a_family() -> None:
    """It keeps the protocols, and knows its own configuration."""
    assert isinstance(family(), Family)
    assert isinstance(family().codec, PictureCodec)
    assert isinstance(family().layout(), Layout)
    assert emu3.fits(model().config)
    assert not emu3.fits(LlamaConfig())
    assert family().guidance == Guidance(scale=3.0, convention="log_softmax")
    assert family().sampling == Sampling(top_k=2048)
    assert family().target.capabilities.supports_tree


@pytest.mark.parametrize("kind", ["ordered", "reversed", "scattered"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_plain_decoding_is_the_models_own_greedy(scale: float, kind: str) -> None:
    """Whatever the order of the ids of codes: generate with ``prefix_allowed_tokens_fn`` and guidance."""
    own = family(0, kind)
    for caption in CAPTIONS:
        prompt = guided(caption, scale, kind=kind)
        found = pictures.symbols(own.target, [prompt], None, sampling=Sampling(temperature=0))
        assert pictures.tokens(found) == [own_generate(prompt, own.layout_of(prompt), kind)]


def test_a_negative_caption_is_the_models_own() -> None:
    """``negative_prompt_ids`` of generate, of another length than the prompt."""
    prompt = guided(CAPTIONS[0], negative="low quality")
    assert prompt.unconditional is not None
    assert len(prompt.unconditional.ids) != len(prompt.ids)
    found = pictures.symbols(family().target, [prompt], None, sampling=Sampling(temperature=0))
    assert pictures.tokens(found) == [own_generate(prompt, family().layout_of(prompt))]


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "ordered"), (3.0, "scattered")])
def test_drafting_changes_nothing(scale: float, kind: str) -> None:
    """Any drafter, alone and in a batch of pictures of several sizes, with and without guidance."""
    sizes = [SIZE, (4, 6), (6, 6), (2, 10)]
    prompts = [guided(caption, scale, size, kind) for caption, size in zip(CAPTIONS, sizes, strict=True)]
    pictures.assert_drafting_changes_nothing(family(0, kind).target, family(1, kind).target, prompts)


def test_transformers_refuses_what_we_do() -> None:
    """Drafting for two prompts, which guidance would make four rows."""
    ids = guided(CAPTIONS[0]).ids[None].repeat(2, 1)
    with pytest.raises(ValueError, match="only supported for batch_size = 1"):
        model().generate(ids, prompt_lookup_num_tokens=3, guidance_scale=3.0, max_new_tokens=4)


def test_the_grammar_forces_what_it_must() -> None:
    """Row ends, end-of-frame, end-of-image and eos, and codes nowhere else."""
    prompt = guided(CAPTIONS[0])
    (found,) = pictures.symbols(family().target, [prompt], None)
    known = words()
    rows = found.tokens[:-3].view(3, 5)
    assert (rows[:, -1] == known.convert_tokens_to_ids("<|extra_200|>")).all()
    assert found.tokens[-3:].tolist() == [known.eof_token_id, known.eoi_token_id, known.eos_token_id]
    assert found.report.forced == 3 + 3
    assert found.finish_reason == "stop"
    assert family().layout_of(prompt).grid(found.tokens.tolist()).shape == (3, 4)


@pytest.mark.parametrize("kind", ["ordered", "reversed", "scattered"])
def test_the_codec_decodes_as_the_model(kind: str) -> None:
    """Pixels are those of ``decode_image_tokens``, whatever the order of the ids."""
    own, prompt = family(0, kind), guided(CAPTIONS[0], kind=kind)
    (found,) = pictures.symbols(own.target, [prompt], None)
    grid = own.layout_of(prompt).grid(found.tokens.tolist())
    pixels = own.codec.decode(grid)
    expected = model(kind).decode_image_tokens(image_tokens=found.tokens[None], height=3, width=4)[0]
    torch.testing.assert_close(pixels, (expected / 2 + 0.5).clamp(0, 1))
    assert pixels.shape == (3, *SIZE)
    with pytest.raises(UsageError, match=r"Codes must lie in \[0, 24\)"):
        own.codec.decode(grid + CODES)


@pytest.mark.parametrize("kind", ["ordered", "scattered"])
def test_encoding_is_the_models_own(kind: str) -> None:
    """The ids of a picture are those that the model's own tokenizer of pictures gives."""
    own = family(0, kind)
    pixels = torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(2))
    codes = own.codec.encode(pixels)
    with torch.inference_mode():
        ids = model(kind).model.get_image_tokens((pixels * 2 - 1)[None], torch.tensor([SIZE]))
    layout = own.layout(SIZE)
    assert torch.equal(layout.grid([*ids.tolist(), *own.marks.tail]), codes)
    assert own.codec.codebook.shape == (CODES, 4)
    with pytest.raises(UsageError, match="multiples of 2 pixels: got 6 x 7"):
        own.codec.encode(torch.rand(3, 6, 7))


def test_ids_and_codes() -> None:
    """Ascending ids, and the code in each name."""
    visual = family(0, "reversed").codec.visual
    assert visual.contiguous
    assert visual.codes.tolist() == list(range(CODES))[::-1]
    scattered = family(0, "scattered").codec.visual
    assert not scattered.contiguous
    assert {one: code for one, code in zip(scattered.ids, scattered.codes.tolist(), strict=True)} == {
        one: code for code, one in model("scattered").vocabulary_mapping.img2bpe.items()
    }
    with pytest.raises(ModelLoadError, match="without gaps: got 1 of them"):
        VisualIds.named({"<|visual token 000003|>": 4})


@pytest.mark.parametrize("kind", ["ordered", "reversed", "scattered"])
def test_neighbours_follow_the_ids(kind: str) -> None:
    """The nearest code of each, by the model's own map from ids to codes, also where no picture fits."""
    own = replace(family(0, kind), area=10**6)
    with pytest.raises(UsageError, match="the model's context holds 128"):
        own.layout()
    ids_of = model(kind).vocabulary_mapping.bpe2img
    book = model(kind).model.vqmodel.quantize.embedding.weight.detach()
    order = {code: one for one, code in ids_of.items()}
    near = Images(own).neighbours
    for one, code in ids_of.items():
        distances = (book - book[code]).square().sum(-1)
        closest = [order[int(other)] for other in distances.argsort()[1:4]]
        assert near.of(torch.tensor([one]), 3).tolist() == [closest]
        found = near.squared_distances(torch.tensor([one]), torch.tensor([[*closest, 95]]))
        expected = [*distances.sort().values[1:4].tolist(), torch.inf]
        torch.testing.assert_close(found, torch.tensor([expected]))
    prompt = guided(CAPTIONS[0], kind=kind)
    generator = ms.Generator(own.target, Images(family(0, kind)))
    found = generator.generate(
        prompt, verifier=Lantern(delta=0.5, k=4), drafter=pictures.guesses(96, tree=True)
    )
    assert family(0, kind).layout_of(prompt).grid(found.tokens.tolist()).shape == (3, 4)


def test_a_scattered_layout() -> None:
    """Forced symbols of the raster inside, codes by their ids, and what is no code."""
    layout = family(0, "scattered").layout(SIZE)
    assert isinstance(layout, ScatteredRaster)
    assert isinstance(family().layout(SIZE), Raster)
    ids = layout.ids
    assert layout.grammar([]) == Allowed(ids)
    assert isinstance(layout.grammar([0] * 4), Forced)
    assert layout.coordinates(5) == (1, 0)
    assert layout.spec.vocab_size == 96
    assert layout.spec.row_length == 5
    assert layout.grid([ids[3]], 7).tolist() == [[3, 7, 7, 7], [7] * 4, [7] * 4]
    with pytest.raises(UsageError, match=r"symbol 95 at position 1 is no code.* 24 ids from 0"):
        layout.grid([ids[3], 95])


@pytest.mark.parametrize("size", [(6, 8), (8, 6), (2, 12), (6, 6)])
def test_the_prompt_is_the_processors(size: tuple[int, int]) -> None:
    """The ids of the processor for image generation, for the same grid."""
    made = processor()
    made.downsample_ratio = 2
    given = made(
        text=CAPTIONS[0],
        return_for_image_generation=True,
        ratio=f"{size[1]}:{size[0]}",
        image_area=size[0] * size[1],
        return_tensors="pt",
    )
    prompt = family().prompt(CAPTIONS[0], size)
    assert torch.equal(prompt.ids, given["input_ids"][0])
    layout = family().layout_of(prompt)
    assert (layout.height, layout.width) == tuple(given["image_sizes"][0])
    assert layout == family().layout(size)


def test_the_other_branch() -> None:
    """The same grid behind nothing, or behind a negative caption."""
    prompt = family().prompt("a dog", SIZE)
    blank, negative = (family().unconditional(prompt, one) for one in (None, "a cat"))
    assert words().decode(blank.ids) == "<s><|image start|>3*4<|image token|>"
    assert words().decode(negative.ids) == "<s>a cat<|image start|>3*4<|image token|>"
    with pytest.raises(PromptError, match="Shorten the caption"):
        family().unconditional(prompt, "a" * 120)
    assert family().layout_of(blank) == family().layout_of(negative) == family().layout_of(prompt)


def test_its_own_size() -> None:
    """A square of the processor's area."""
    assert family().layout() == family().layout((6, 6))
    assert family().layout_of(family().prompt("a")) == family().layout((6, 6))
    with pytest.raises(UsageError, match="says nothing of its picture"):
        family().layout_of(ms.Prompt(ids=torch.tensor([1])))


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((6, 7), "multiples of 2 pixels: got 6 x 7. The nearest is 6 x 8"),
        ((0, 4), "multiples of 2 pixels: got 0 x 4. The nearest is 2 x 4"),
        ((40, 40), "takes 423 symbols, .* holds 128, .* at most about 20 x 20 pixels"),
    ],
)
def test_sizes_that_it_cannot_draw(size: tuple[int, int], message: str) -> None:
    """Odd ones and large ones: it says what it can draw."""
    with pytest.raises(UsageError, match=message):
        family().prompt("a", size)


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("", "reads nothing"),
        ("日本語", "unknown"),
        ("a <|image token|> b", "control symbol"),
        ("a" * 20, "Shorten the caption"),
    ],
)
def test_captions_that_cannot_be_read(caption: str, message: str) -> None:
    """Nothing, another script, control symbols, no room left."""
    with pytest.raises(PromptError, match=message):
        family().prompt(caption, (20, 20))


def test_the_text_model_shares_its_weights() -> None:
    """No copy, the model's own logits, and the fused arithmetic of the Llama family agrees with them."""
    shell = text_model(model())
    assert shell.lm_head.weight.data_ptr() == model().lm_head.weight.data_ptr()
    ids = guided(CAPTIONS[0]).ids[None]
    with torch.inference_mode():
        torch.testing.assert_close(shell(ids).logits, model()(ids).logits)
    assert disagreement(shell, FusedForward(shell, attention_of(shell))) is None
    target = family().target
    assert isinstance(target, CausalTarget)
    assert target.way in ("FusedForward", "ModuleForward")


def test_a_folder(tmp_path: Path) -> None:
    """Saved by transformers, loaded by us: the same symbols."""
    model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    loaded = emu3.load(tmp_path, device="cpu")
    found = pictures.symbols(loaded.target, [loaded.prompt(CAPTIONS[0], SIZE)], None)
    again = pictures.symbols(family().target, [family().prompt(CAPTIONS[0], SIZE)], None)
    assert pictures.tokens(found) == pictures.tokens(again)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelLoadError, match="The weights of the picture model cannot be read"):
        emu3.load(tmp_path, device="cpu")


def test_models_that_do_not_fit() -> None:
    """Names that are missing, and parts of different checkpoints."""
    named = model().config.vocabulary_map
    few = {name: one for name, one in named.items() if "000023" not in name}
    with pytest.raises(ModelLoadError, match="names 23 codes, and its picture tokenizer has 24"):
        Emu3.from_model(build(vocabulary_map=few), processor())
    endless = {name: one for name, one in named.items() if "extra_200" not in name}
    with pytest.raises(ModelLoadError, match=r"must name '<\|extra_200\|>'"):
        Emu3.from_model(build(vocabulary_map=endless), processor())
    with pytest.raises(ModelLoadError, match="names no boi_token"):
        Emu3.from_model(model(), pictures.tokenizer({}))
