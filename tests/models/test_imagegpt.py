"""ImageGPT: the same codes as the model's own generate, whatever drafts, from nothing or a part."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
from transformers.models.imagegpt.image_processing_pil_imagegpt import ImageGPTImageProcessorPil

import multispec as ms
from multispec.errors import ModelLoadError, PromptError, UnsupportedError, UsageError
from multispec.modalities.image.adapter import GROUND, Images, to_pixels
from multispec.modalities.image.families import imagegpt
from multispec.modalities.image.families.imagegpt import ImageGPT
from multispec.modalities.image.family import Completes, Family, PictureCodec
from multispec.modalities.image.seeing import PAPER, acceptance_by_row, heat_map
from multispec.protocols import Target
from multispec.sampling import Sampling
from tests.models import pictures

SIDE, COLOURS = 4, 12


def build(seed: int = 0, **changes: Any) -> Any:
    """A random ImageGPT over 4 x 4 pixels of 12 colours."""
    options = {
        "vocab_size": COLOURS + 1,
        "n_positions": SIDE * SIDE,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "initializer_range": 0.25,
        **changes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ImageGPTForCausalImageModeling(ImageGPTConfig(**options)).eval()


def clusters(count: int = COLOURS) -> torch.Tensor:
    """Random colours in [-1, 1]."""
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def processor() -> Any:
    """The real image processor around them."""
    return ImageGPTImageProcessorPil(clusters=clusters().tolist(), size={"height": SIDE, "width": SIDE})


@cache
def family(seed: int = 0) -> ImageGPT:
    """The family of a random model, made once."""
    return ImageGPT.from_model(build(seed), clusters())


def rows(count: int, seed: int = 3) -> list[list[int]]:
    """Upper rows of a picture."""
    codes = torch.randint(0, COLOURS, (count, SIDE), generator=torch.Generator().manual_seed(seed))
    return [list(map(int, row)) for row in codes.tolist()]


def test_it_is_a_family() -> None:
    """The protocols are kept, and the config tells."""
    made = family()
    assert (
        isinstance(made, Family) and isinstance(made.codec, PictureCodec) and isinstance(made.target, Target)
    )
    assert imagegpt.fits(ImageGPTConfig()) and not imagegpt.fits(None)
    spec = made.target.spec
    assert (spec.vocab_size, spec.prompt_size, spec.fixed_length) == (COLOURS, COLOURS + 1, SIDE * SIDE)
    assert made.guidance.neutral and made.target.capabilities.supports_tree
    assert isinstance(made, Completes) and made.symbols == range(COLOURS) and made.sampling == Sampling()


@pytest.mark.parametrize("given", [0, 2])
def test_greedy_decoding_is_the_models_own_generate(given: int) -> None:
    """From nothing and from two rows: what ``model.generate`` emits, to the last pixel."""
    made, model = family(), build()
    prompt = made.completion(rows(given)) if given else made.prompt()
    length = SIDE * (SIDE - given)
    settings = {"max_new_tokens": length, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    own = model.generate(prompt.ids[None], attention_mask=torch.ones_like(prompt.ids)[None], **settings)
    found = pictures.symbols(made.target, [prompt], None, sampling=Sampling(temperature=0))[0]
    assert found.tokens.tolist() == own[0, len(prompt.ids) :].tolist()
    assert len(found.tokens) == length and len(set(found.tokens.tolist())) > 3


def test_drafting_changes_nothing() -> None:
    """Chains, trees and draft models in a ragged batch: the symbols of plain decoding."""
    made = family()
    prompts = [made.prompt(), *(made.completion(one) for one in (rows(1), rows(2), rows(2, seed=4)))]
    pictures.assert_drafting_changes_nothing(made.target, family(1).target, prompts)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True},
        {"n_inner": 24},
    ],
)
def test_every_setting_of_its_attention_is_kept(changes: dict[str, Any]) -> None:
    """Making the target compares it with the model's own forward, whatever its settings."""
    made = ImageGPT.from_model(build(**changes), clusters())
    prompt = made.completion(rows(1))
    with torch.inference_mode():
        session = made.target.begin([prompt], [len(prompt.ids) + 2], 1)
        expected = build(**changes)(input_ids=prompt.ids[None], use_cache=False).logits[0, -1]
        torch.testing.assert_close(session.prefill().logits[0][0], expected, rtol=1e-4, atol=1e-4)


def test_a_model_that_runs_otherwise_is_refused() -> None:
    """An activation between the layers that our arithmetic does not know is noticed."""
    model = build()
    model.transformer.drop = torch.nn.Tanh()
    with pytest.raises(UnsupportedError, match="differ by"):
        ImageGPT.from_model(model, clusters())


def test_a_whole_picture_through_the_front_door() -> None:
    """``max_new_tokens`` follows from the layout, and no pixel is cut off by the context."""
    made = family()
    result = ms.Generator(made.target).generate(made.prompt(), drafter="prompt_lookup")
    assert len(result.tokens) == SIDE * SIDE and not result.report.notes


def test_a_picture_is_completed_through_the_front_door() -> None:
    """Given rows are drawn as given from the first partial picture on, and so is the rest in the end."""
    made = family()
    generator = ms.Generator(made.target, Images(made))
    result = generator.generate({"rows": rows(2)})
    assert result.tokens.equal(ms.Generator(made.target).generate(made.completion(rows(2))).tokens)
    grid = [*rows(2), *result.tokens.view(2, SIDE).tolist()]
    assert result.output.info["grid"] == tuple(map(tuple, grid))
    assert torch.allclose(
        to_pixels(result.output), made.codec.decode(torch.tensor(grid)), atol=0.5 / 255 + 1e-6
    )
    shown = [
        step.delta for step in generator.stream({"rows": torch.tensor(rows(2))}) if step.delta is not None
    ]
    assert [one.info["grid"][2][0] >= 0 for one in shown] == [True, True]
    begun = generator.modality.decode(made.completion(rows(2)), [], ())
    assert begun.info["grid"] == (*map(tuple, rows(2)), (-1,) * SIDE, (-1,) * SIDE)
    ground = tuple(round(one * 255) for one in GROUND)
    for y in range(SIDE):
        assert (begun.getpixel((0, y)) == ground) == (y >= 2)
    both = generator.generate([{"rows": rows(2)}, ""])
    assert both[0].tokens.equal(result.tokens) and len(both[1].tokens) == SIDE * SIDE
    with pytest.raises(PromptError, match="completed from 1 to 3 rows"):
        generator.generate({"rows": "ab"})


def test_a_heat_map_of_a_completion_leaves_the_given_rows_out() -> None:
    """They were not drawn, so they have no share; the shares of the others stand beside their rows."""
    made = family()
    result = ms.Generator(made.target, Images(made)).generate({"rows": rows(1)})
    assert len(acceptance_by_row(result)) == 3
    blank, drawn = (heat_map(result).crop((330, 52 + 64 * n, 460, 52 + 64 * (n + 1))) for n in (0, 1))
    assert len(set(blank.tobytes())) < len(set(drawn.tobytes()))
    assert blank.tobytes() == Image.new("RGB", blank.size, PAPER).tobytes()


def test_a_completed_picture_keeps_its_upper_rows() -> None:
    """The layout of a completion counts what is drawn and shows the whole."""
    made = family()
    layout = made.layout_of(made.completion(rows(2)))
    assert (layout.height, layout.width, layout.length) == (SIDE, SIDE, 8)
    assert [layout.coordinates(n) for n in (0, 3, 4, 7, 8)] == [(2, 0), (2, 3), (3, 0), (3, 3), None]
    grid = layout.grid([7] * 5, missing=1)
    assert grid[:2].tolist() == rows(2) and grid[2:].flatten().tolist() == [7] * 5 + [1] * 3
    assert made.layout_of(made.prompt()) == made.layout((SIDE, SIDE))


def test_colours_and_back() -> None:
    """Codes are the nearest clusters, as the image processor finds them."""
    codec = family().codec
    codes = torch.randint(0, COLOURS, (SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    pixels = codec.decode(codes)
    assert pixels.shape == (3, SIDE, SIDE) and float(pixels.min()) >= 0 and float(pixels.max()) <= 1
    assert torch.equal(codec.encode(pixels), codes)
    photo = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    whole = (photo * 255).round() / 255
    expected = processor()((whole * 255).round().to(torch.uint8), return_tensors="pt")["input_ids"][0]
    assert codec.encode(whole).flatten().tolist() == expected.tolist()
    with pytest.raises(UsageError, match="must lie in"):
        codec.decode(torch.full((1, 1), COLOURS))


def test_what_it_cannot_do_is_refused() -> None:
    """Words, guidance, other sizes, rows that are none."""
    made = family()
    with pytest.raises(PromptError, match="reads no words"):
        made.prompt("a red dog")
    with pytest.raises(UnsupportedError, match="without captions"):
        made.unconditional(made.prompt(), None)
    with pytest.raises(UsageError, match="4 x 4"):
        made.prompt("", (64, 64))
    for wrong in ([], [[1, 2]], rows(SIDE), torch.full((1, SIDE), 0.5), [[1], [1, 2]], "ab"):
        with pytest.raises(PromptError):
            made.completion(wrong)
    with pytest.raises(PromptError, match="must lie in"):
        made.completion([[COLOURS] * SIDE])


def test_models_that_do_not_fit_are_refused() -> None:
    """No square, no clusters, the clusters of another model, no weights."""
    with pytest.raises(UnsupportedError, match="square"):
        ImageGPT.from_model(build(n_positions=24), clusters())
    with pytest.raises(ModelLoadError, match="clusters"):
        ImageGPT.from_model(build(), None)
    with pytest.raises(ModelLoadError, match="12 colours"):
        ImageGPT.from_model(build(), clusters(7))
    with torch.device("meta"):
        model = ImageGPTForCausalImageModeling(ImageGPTConfig(n_layer=1))
    with pytest.raises(ModelLoadError, match="no weights"):
        ImageGPT.from_model(model, clusters(512))


def test_loading_from_a_folder(tmp_path: Path) -> None:
    """Saved and read again it draws the same; what is missing is named."""
    build().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match="preprocessor_config"):
        imagegpt.load(tmp_path, device="cpu")
    processor().save_pretrained(tmp_path)
    made = imagegpt.load(tmp_path, device="cpu")
    found = pictures.symbols(made.target, [made.prompt()], None)
    assert pictures.tokens(found) == pictures.tokens(pictures.symbols(family().target, [made.prompt()], None))
    torch.testing.assert_close(made.codec.codebook, clusters())
    assert ms.load(tmp_path, device="cpu").generate("").output.size == (SIDE, SIDE)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    weights.pop("transformer.ln_f.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"ln_f\.weight"):
        imagegpt.load(tmp_path, device="cpu")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ModelLoadError, match="cannot be read"):
        imagegpt.load(tmp_path, device="cpu")
