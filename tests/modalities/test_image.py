"""Pictures: the embedded format through the loop, partial pictures, and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

import multispec as ms
from multispec.errors import (
    ModelLoadError,
    OutputWarning,
    PromptError,
    SamplingError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from multispec.generator import Generator
from multispec.guidance import Guidance
from multispec.modalities.image import Family, Images, PictureCodec, VQCodec, to_image, to_pixels
from multispec.modalities.image.adapter import GROUND
from multispec.modalities.image.codec import check_codes
from multispec.modalities.image.families import FAMILIES, family_of, family_of_file, raster_llama
from multispec.modalities.image.reading import Alphabet, script
from multispec.modality import Modality
from multispec.neighbours import Neighbours
from multispec.policies import FixedLength
from multispec.stream import Prompt
from multispec.targets.loading import load_config
from multispec.verifiers.lantern import Lantern
from tests.models import drawing, words

CAPTION = "the quick brown fox"
SIDE = drawing.GRID[0] * drawing.STRIDE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawing.save(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def generator(folder: Path) -> Generator:
    return ms.load(folder / "target", draft=folder / "draft")


@pytest.fixture(scope="module")
def plain(generator: Generator) -> ms.Generation:
    found: ms.Generation = generator.generate(CAPTION, drafter=None)
    return found


def family_in(generator: Generator) -> Family:
    assert isinstance(generator.modality, Images)
    return generator.modality.family


# ---- the codec


def test_the_codec_keeps_its_contract(folder: Path) -> None:
    codec = VQCodec.load(folder / "vq")
    assert isinstance(codec, PictureCodec)
    assert (codec.cardinality, codec.stride, codec.decodes) == (drawing.CODES, drawing.STRIDE, True)
    pixels = torch.rand(3, 8, 12, generator=torch.Generator().manual_seed(0))
    codes = codec.encode(pixels)
    assert codes.shape == (4, 6) and 0 <= int(codes.min()) <= int(codes.max()) < codec.cardinality
    again = codec.decode(codes)
    assert again.shape == pixels.shape and 0 <= float(again.min()) <= float(again.max()) <= 1


def test_the_codec_is_the_one_of_diffusers(folder: Path) -> None:
    """Codes and pixels are those of the model's own forward, in its own scale of [-1, 1]."""
    codec, model = VQCodec.load(folder / "vq"), drawing.vq_model()
    pixels = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = model(pixels[None] * 2 - 1).sample[0]
    expected = ((whole + 1) / 2).clamp(0, 1)
    assert torch.allclose(codec.decode(codec.encode(pixels)), expected, atol=1e-5)


@pytest.mark.parametrize("code", [-1, drawing.CODES])
def test_a_code_outside_the_codebook_is_refused(folder: Path, code: int) -> None:
    codec = VQCodec.load(folder / "vq")
    with pytest.raises(UsageError, match=rf"Codes must lie in \[0, 12\).*got {code}"):
        codec.decode(torch.tensor([[0, code]]))
    with pytest.raises(UsageError, match="Codes must lie"):
        check_codes(torch.tensor([code]), drawing.CODES)


def test_a_picture_between_two_codes_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="multiples of 2 pixels: got 8 x 7"):
        VQCodec.load(folder / "vq").encode(torch.rand(3, 8, 7))


def test_without_diffusers_the_command_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'multispec\[image\]'"):
        VQCodec.load(folder / "vq")


def test_a_picture_tokenizer_that_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="The picture tokenizer cannot be read from"):
        VQCodec.load(tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match="weights of .*vq' are missing, the first is 'encoder"):
        VQCodec.load(drawing.save_vq(tmp_path / "vq", without="encoder."))


def test_pictures_and_pixels() -> None:
    pixels = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(2))
    image = to_image(pixels)
    assert image.size == (6, 4) and image.mode == "RGB"
    assert torch.allclose(to_pixels(image), pixels, atol=0.5 / 255 + 1e-6)
    clear = Image.new("RGBA", (1, 1), (255, 0, 0, 0))
    assert to_pixels(clear).flatten().tolist() == [1, 1, 1]


# ---- drawing


def test_the_parts_keep_their_protocols(generator: Generator) -> None:
    assert isinstance(generator.modality, Modality)
    assert isinstance(family_in(generator), Family)


def test_a_caption_becomes_a_picture(plain: ms.Generation) -> None:
    assert plain.finish_reason == "stop" and len(plain.tokens) == 16
    assert plain.output.size == (SIDE, SIDE)
    assert plain.output.info["caption"] == CAPTION
    codes = (plain.tokens - drawing.OFFSET).view(drawing.GRID)
    assert plain.output.info["grid"] == tuple(map(tuple, codes.tolist()))
    assert torch.allclose(
        to_pixels(plain.output), VQCodec(drawing.vq_model()).decode(codes), atol=0.5 / 255 + 1e-6
    )


def test_the_stream_is_bos_caption_image(generator: Generator) -> None:
    prompt = generator.modality.encode("quick")
    caption = words.byte_level()("quick")["input_ids"]
    assert prompt.ids.tolist() == [2, *caption, drawing.BEGIN_OF_IMAGE]
    assert prompt.unconditional is not None and prompt.guidance is not None
    assert prompt.unconditional.ids.tolist() == [2, drawing.BEGIN_OF_IMAGE]
    assert prompt.guidance.scale == 3.0 and prompt.spec is not None
    assert prompt.spec.row_length == 4 and prompt.text == "quick"


@pytest.mark.parametrize("drafter", ["auto", "draft_model", "prompt_lookup"])
def test_drafting_changes_no_pixel(generator: Generator, plain: ms.Generation, drafter: str) -> None:
    found = generator.generate(CAPTION, drafter=drafter)
    assert found.tokens.equal(plain.tokens)
    assert found.output.tobytes() == plain.output.tobytes()


def test_a_draft_longer_than_the_picture_is_cut(generator: Generator, plain: ms.Generation) -> None:
    found = generator.generate(CAPTION, policy=FixedLength(num_draft_tokens=10_000))
    assert found.tokens.equal(plain.tokens) and len(found.tokens) == 16


def test_a_batch_is_the_pictures_by_themselves(generator: Generator, plain: ms.Generation) -> None:
    requests = [CAPTION, {"caption": "lazy dog", "size": (SIDE, SIDE)}, {"caption": CAPTION}]
    found = generator.generate(requests, guidance=[3.0, 1.0, None])
    assert [one.output.info["caption"] for one in found] == [CAPTION, "lazy dog", CAPTION]
    assert found[0].tokens.equal(plain.tokens) and found[2].tokens.equal(plain.tokens)
    alone = generator.generate("lazy dog", guidance=1.0)
    assert found[1].tokens.equal(alone.tokens)


def test_guidance_and_negatives_change_the_law(generator: Generator) -> None:
    def scores(**settings: Any) -> torch.Tensor:
        found = generator.generate(CAPTION, drafter=None, max_new_tokens=1, output_scores=True, **settings)
        assert found.scores is not None
        return torch.as_tensor(found.scores[0, drawing.OFFSET :])

    c, u = scores(guidance=1.0), scores(guidance=0.0)
    assert torch.allclose(scores(), u + 3 * (c - u), atol=1e-4)
    other = scores(negative="lazy dog", guidance=0.0)
    assert torch.allclose(scores(negative="lazy dog", guidance=2.0), other + 2 * (c - other), atol=1e-4)
    given = generator.modality.encode("lazy dog")
    assert torch.allclose(scores(negative=given, guidance=0.0), other, atol=1e-5)


def test_only_codes_are_drawn(generator: Generator) -> None:
    """The vocabulary has words too; the grammar leaves them out, at any temperature."""
    wild = [ms.Sampling(temperature=5.0, seed=seed) for seed in range(4)]
    for found in generator.generate([CAPTION] * 4, sampling=wild):
        assert int(found.tokens.min()) >= drawing.OFFSET


def test_an_empty_caption_draws_anything(generator: Generator) -> None:
    """It is the unconditional branch itself, which guidance then leaves as it is."""
    first, second = (generator.generate("", guidance=scale).tokens for scale in (1.0, 3.0))
    assert first.equal(second)


def test_ids_without_a_layout_are_no_picture(generator: Generator) -> None:
    found = generator.generate([2, drawing.BEGIN_OF_IMAGE], max_new_tokens=3)
    assert found.output is None
    deltas = [step.delta for step in generator.stream([2, drawing.BEGIN_OF_IMAGE], max_new_tokens=3)]
    assert deltas == [None] * 3


# ---- partial pictures


def test_a_stream_shows_each_finished_row(generator: Generator, plain: ms.Generation) -> None:
    steps = generator.stream(CAPTION)
    shown = [(step.position, step.delta) for step in steps]
    pictures = {position: delta for position, delta in shown if delta is not None}
    assert list(pictures) == [3, 7, 11, 15]
    assert pictures[15].tobytes() == plain.output.tobytes() == steps.result.output.tobytes()
    assert pictures[7].info["grid"][2:] == ((-1,) * 4,) * 2
    ground = tuple(round(one * 255) for one in GROUND)
    assert pictures[7].getpixel((0, SIDE - 1)) == ground != pictures[15].getpixel((0, SIDE - 1))


def test_a_stream_shows_every_step_on_request(generator: Generator) -> None:
    every = Generator(generator.target, replace_partial(generator, "step"))
    pictures = [step.delta for step in every.stream(CAPTION, drafter=None)]
    assert all(isinstance(one, Image.Image) for one in pictures) and len(pictures) == 16
    ground = tuple(round(one * 255) for one in GROUND)
    assert pictures[4].getpixel((0, 2)) != ground == pictures[4].getpixel((2, 2))
    never = Generator(generator.target, replace_partial(generator, "none"))
    assert [step.delta for step in never.stream(CAPTION, drafter=None)] == [None] * 16


def replace_partial(generator: Generator, partial: Any) -> Images:
    assert isinstance(generator.modality, Images)
    return replace(generator.modality, partial=partial)


def test_an_unknown_kind_of_partial_pictures(generator: Generator) -> None:
    with pytest.raises(UsageError, match="partial is one of row, step, none: got 'sometimes'"):
        Images(family_in(generator), "sometimes")


@pytest.mark.parametrize("count", [0, 1, 6, 15])
def test_a_part_of_the_symbols_is_a_part_of_the_picture(
    generator: Generator, plain: ms.Generation, count: int
) -> None:
    """What is there looks as it was decoded with its own continuation; the rest is the ground."""
    prompt = generator.modality.encode(CAPTION)
    found = generator.modality.decode(prompt, plain.tokens.tolist()[:count], ())
    ground = tuple(round(one * 255) for one in GROUND)
    for row in range(SIDE):
        for column in range(SIDE):
            there = row // 2 * 4 + column // 2 < count
            assert (found.getpixel((column, row)) != ground) == there


# ---- neighbours


def test_relaxed_rules_are_given_the_codebook(generator: Generator) -> None:
    near = generator.modality.neighbours
    assert near is not None and near is generator.modality.neighbours
    assert near.symbols == range(drawing.OFFSET, drawing.VOCABULARY) and near.size == drawing.CODES
    found = generator.generate(CAPTION, verifier=Lantern(delta=0.5, k=4))
    assert int(found.tokens.min()) >= drawing.OFFSET and len(found.tokens) == 16


def test_a_neighbour_table_that_does_not_fit_is_refused(generator: Generator) -> None:
    wrong = Neighbours(codebook=torch.randn(drawing.CODES, 2), offset=drawing.OFFSET + 1)
    with pytest.raises(UsageError, match="must lie within the vocabulary: got 12 codes from id 342 on"):
        generator.generate(CAPTION, verifier=Lantern(neighbours=wrong))


def test_neighbours_need_no_layout(generator: Generator) -> None:
    """A model whose own size does not fit into its context still has a codebook."""
    too_large: Any = Changed(family_in(generator))
    too_large.layout = lambda size=None: pytest.fail("neighbours asked for a layout")
    near = Images(too_large).neighbours
    book = family_in(generator).codec.codebook
    expected = torch.cdist(book[:1], book)[0].argsort()[1] + drawing.OFFSET
    assert near.of(torch.tensor([drawing.OFFSET, 5]), 1).tolist() == [[int(expected)], [5]]


# ---- sampling


def test_pictures_are_drawn_as_their_family_says(generator: Generator, plain: ms.Generation) -> None:
    """Without a word of the caller's; a ``Sampling`` of theirs is taken as it is."""
    greedy: Any = Changed(family_in(generator))
    greedy.sampling = ms.Sampling(temperature=0)
    changed = Generator(generator.target, Images(greedy))
    expected = generator.generate(CAPTION, sampling=ms.Sampling(temperature=0)).tokens
    assert changed.generate(CAPTION).tokens.equal(expected) and not plain.tokens.equal(expected)
    assert changed.generate(CAPTION, sampling=ms.Sampling()).tokens.equal(plain.tokens)
    config = GenerationConfig(do_sample=True)
    assert changed.generate(CAPTION, generation_config=config).tokens.equal(plain.tokens)


def test_only_some_families_complete_pictures(generator: Generator) -> None:
    with pytest.raises(UnsupportedError, match="RasterLlama draws whole pictures only"):
        generator.generate({"rows": [[1, 2, 3, 4]]})


# ---- what is refused


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("красное сердце", r"never seen 'к' \(cyrillic\): it reads latin letters"),
        ("心", r"never seen '心' \(cjk\)"),
        ("a 🦊", r"never seen '🦊' \(sign\)"),
        ("a <s> b", "holds the control symbol '<s>'"),
        ("fox " * 40, "A picture of this size needs 16 symbols of the model's context of 128: got"),
    ],
)
def test_captions_that_cannot_be_read(generator: Generator, caption: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generator.generate(caption)
    with pytest.raises(PromptError):
        generator.generate("fox", negative=caption)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (3.5, "A picture is asked for by a caption"),
        ({"caption": 3}, "A picture is asked for by a caption"),
        ({"caption": "fox", "side": 3}, "A picture is asked for by a caption"),
    ],
)
def test_prompts_that_are_no_captions(generator: Generator, prompt: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        generator.generate(prompt)


@pytest.mark.parametrize("size", [(9, 8), (16, 16), (8, 0), "8x8", (8,), (8.0, 8.0)])
def test_sizes_that_cannot_be_drawn(generator: Generator, size: Any) -> None:
    with pytest.raises(
        UsageError, match=r"pictures of 8 x 8 pixels and no others|A size is \(height, width\)"
    ):
        generator.generate({"caption": "fox", "size": size})


def test_settings_that_cannot_be_right(generator: Generator) -> None:
    with pytest.raises(SamplingError, match="guidance scale must be a finite number >= 0: got -1"):
        generator.generate(CAPTION, guidance=-1.0)
    with pytest.raises(UsageError, match=r"no text to stop at: got stop=\['x'\]"):
        generator.generate(CAPTION, stop="x")
    with pytest.raises(PromptError, match="A negative prompt is a caption: got int"):
        generator.generate(CAPTION, negative=3)


def test_words_that_the_tokenizer_has_no_symbol_for() -> None:
    tokenizer = words.sentence_pieces()
    alphabet = Alphabet.of(tokenizer)
    assert alphabet.scripts == {"LATIN"} and script("я") == "CYRILLIC"
    assert str(alphabet) == "latin letters" and str(Alphabet(frozenset(), frozenset())) == "no letters"
    alphabet.check("anything, café 1")
    with pytest.raises(PromptError, match="Write the caption in that, instead of 'ж'"):
        alphabet.check("ж")


def test_unknown_words_are_said(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    tokenizer = words.sentence_pieces()
    tokenizer.unk_token = "<unk>"
    try:
        tokenizer.save_pretrained(tmp_path / "target")
        generator = ms.load(tmp_path / "target")
    finally:
        tokenizer.unk_token = None
    with pytest.raises(PromptError, match="that this model's tokenizer has no symbol for. It reads latin"):
        generator.generate("fox Q")


def test_a_checkpoint_without_a_decoder_keeps_the_symbols(
    folder: Path, plain: ms.Generation, tmp_path: Path
) -> None:
    shutil.copytree(folder / "target", tmp_path / "target")
    drawing.save_vq(tmp_path / "vq", without="decoder.")
    generator = ms.load(tmp_path / "target")
    with pytest.warns(OutputWarning, match="no decoder weights"):
        found = generator.generate(CAPTION)
    assert found.output is None and found.tokens.equal(plain.tokens)
    assert "no output: The picture tokenizer has no decoder" in found.report.notes[0]
    with pytest.raises(UnsupportedError, match="got NoneType"):
        found.save(tmp_path / "fox.png")
    steps = generator.stream(CAPTION)
    assert [step.delta for step in steps] == [None] * 16
    with pytest.warns(OutputWarning):
        assert steps.result.tokens.equal(plain.tokens)


def test_an_ending_that_is_no_format(plain: ms.Generation, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'fox.xyz' cannot be written: unknown file extension"):
        plain.save(tmp_path / "fox.xyz")
    assert Image.open(plain.save(tmp_path / "fox.png")).tobytes() == plain.output.tobytes()


# ---- loading


def test_the_families_have_one_table() -> None:
    names = [entry.module for entry in FAMILIES]
    assert len(set(names)) == len(names) and names[0] == "raster_llama"
    for name in names:
        assert (Path(raster_llama.__file__).parent / f"{name}.py").is_file()


def test_the_family_follows_from_the_config(folder: Path) -> None:
    found = family_of(load_config(folder / "target"))
    assert found is not None and found.module == "raster_llama"
    config = load_config(folder / "target")
    config.multispec = {"modality": "speech"}
    assert family_of(config) is None and family_of(load_config("multispec/assets/text/target")) is None


def test_bare_weight_files_are_those_of_llamagen(folder: Path, tmp_path: Path) -> None:
    """They have no config; a folder of transformers without one is still said to lack it."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "vq_ds16_c2i.pt").touch()
    for path in (Path("owner/name/c2i_B_256.pt"), tmp_path / "a"):
        found = family_of_file(path)
        assert found is not None and found.module == "llamagen"
    assert family_of_file(folder / "target") is None and family_of_file("Qwen/Qwen3-8B") is None
    (tmp_path / "a" / "c2i_B_256.pt").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError):
        ms.load(tmp_path / "a")
    (tmp_path / "b").mkdir()
    shutil.copy(folder / "target" / "model.safetensors", tmp_path / "b")
    with pytest.raises(ModelLoadError, match="No model can be read"):
        ms.load(tmp_path / "b")


def test_a_config_of_an_unknown_type_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llamagen"}))
    with pytest.raises(ModelLoadError, match=str(tmp_path)):
        ms.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "never-heard-of"}))
    with pytest.raises(UnsupportedError, match="is of type 'never-heard-of', which draws no pictures"):
        ms.load(tmp_path, modality="image")


class Changed:
    """A family of which a test changes a part."""

    def __init__(self, family: Family) -> None:
        self.target, self.codec, self.layout = family.target, family.codec, family.layout
        self.prompt, self.layout_of, self.guidance = family.prompt, family.layout_of, family.guidance
        self.sampling, self.symbols, self.unconditional = (
            family.sampling,
            family.symbols,
            family.unconditional,
        )


def test_a_model_without_guidance_draws(generator: Generator) -> None:
    """As ImageGPT: it only has to draw when nobody guides."""

    def refuse(prompt: Prompt, negative: str | None, /) -> Prompt:
        raise UnsupportedError("there is nothing to guide it by")

    unguided: Any = Changed(family_in(generator))
    unguided.guidance, unguided.unconditional = Guidance(), refuse
    free = Generator(generator.target, Images(unguided))
    assert free.generate(CAPTION).tokens.equal(generator.generate(CAPTION, guidance=1.0).tokens)
    with pytest.raises(UnsupportedError, match="nothing to guide it by"):
        free.generate(CAPTION, guidance=2.0)


def test_text_needs_nothing_of_pictures() -> None:
    """In a process of its own: the table of families imports neither diffusers nor pillow."""
    import subprocess
    import sys

    program = (
        "import sys, transformers, multispec.targets.loading;"
        "before = set(sys.modules);"  # transformers itself may want some of them
        "from multispec.loading import load; load('text');"
        "added = set(sys.modules) - before;"
        "print(sorted({'diffusers', 'PIL', 'multispec.modalities.image.adapter'} & added))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_the_modality_can_be_chosen(folder: Path) -> None:
    as_text = ms.load(folder / "target", modality="text").generate("the", max_new_tokens=3)
    assert isinstance(as_text.output, str)
    as_image = ms.load(folder / "target", modality="image")
    assert isinstance(as_image.modality, Images)
    with pytest.raises(UnsupportedError, match="draws no pictures. Families that do: raster_llama"):
        ms.load("multispec/assets/text/target", modality="image")
    with pytest.raises(UnknownNameError, match="Unknown modality 'smell'"):
        ms.load(folder / "target", modality="smell")


def test_loads_that_cannot_be_right(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="read captions with a tokenizer of their own"):
        ms.load(folder / "target", tokenizer=words.byte_level())
    with pytest.raises(UsageError, match="A model object does not say how it draws"):
        ms.load(model=object(), modality="image")
    with pytest.raises(ModelLoadError, match="No model can be read"):
        ms.load(tmp_path / "nothing", modality="image")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": None}, "does not describe its pictures: KeyError.*It needs grid"),
        ({"grid": 16}, "does not describe its pictures: TypeError"),
        ({"codes": {"offset": drawing.OFFSET, "size": 9}}, "draws with 9 codes, .* has 12"),
        ({"vq": "../elsewhere"}, "The picture tokenizer cannot be read from .*elsewhere"),
    ],
)
def test_folders_that_do_not_hold_together(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = drawing.described(tmp_path / "target")
    own = {name: one for name, one in (config["multispec"] | changes).items() if one is not None}
    (tmp_path / "target" / "config.json").write_text(json.dumps(config | {"multispec": own}))
    with pytest.raises(ModelLoadError, match=message):
        ms.load(tmp_path / "target")


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "target" / name).unlink()
    with pytest.raises(ModelLoadError, match="The tokenizer of the picture model cannot be read"):
        ms.load(tmp_path / "target")


def test_a_prompt_may_bring_its_own_guidance(generator: Generator, plain: ms.Generation) -> None:
    """A ``Prompt`` is taken as it is."""
    prompt = generator.modality.encode(CAPTION)
    assert generator.generate(prompt).tokens.equal(plain.tokens)
    bare = Prompt(ids=prompt.ids, spec=prompt.spec)
    assert generator.generate(bare).tokens.equal(generator.generate(CAPTION, guidance=1.0).tokens)
