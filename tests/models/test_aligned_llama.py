"""The embedded speech format: positions shared by text and sound, whatever drafts, in batches and trees."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import multispec as ms
from multispec.drafters.draft_model import DraftModel
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError
from multispec.modalities.speech.codecs._reach import UNBOUNDED, measured
from multispec.modalities.speech.codecs.xcodec2 import Xcodec2Codec
from multispec.modalities.speech.families import aligned_llama, family_of
from multispec.modalities.speech.families.aligned_llama import AlignedLlama, AlignedTarget, Scale
from multispec.modalities.speech.family import SpeechCodec, SpeechFamily
from multispec.modalities.speech.pronunciation import GAP, Pronunciation, Spelling, collapsed, pieces
from multispec.stream import Draft
from multispec.tree import path_to
from recipes import _speech_codec as sound
from recipes import _speech_models as ar

PHONEMES = ("b", "d", "g", "'oU", "'i:", "'a")
WORDS = {"go": "g 'oU", "bee": "b 'i:", "dad": "d 'a d"}
CODES = 16
TEXTS = ("Go, dad!", "bee", "dad go bee go")


@cache
def vocabulary() -> ar.Vocabulary:
    """Six phonemes, two voices, sixteen codes."""
    tokenizer = ar.phoneme_tokenizer(PHONEMES, ["man", "woman"])
    return ar.Vocabulary(tokenizer, CODES, {"'oU": 5.2, GAP: 0.4}, 3.3)


def llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama over it."""
    config = LlamaConfig(
        vocab_size=vocabulary().size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
        max_position_embeddings=160,
        **changes,
    )
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def save(folder: Path) -> Path:
    """``target``, ``draft``, ``codec`` and ``pronunciation`` side by side, as the embedded models lie."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        sound.codec(32, 1, (4, 4), 16, 2).save_pretrained(folder / "codec")
        Pronunciation(WORDS, Spelling(len(PHONEMES), 8), PHONEMES).save(folder / "pronunciation")
    for seed, name in enumerate(("target", "draft")):
        model = llama(seed)
        ar.annotate(model, vocabulary(), ["man", "woman"], 40, 0.9)
        model.save_pretrained(folder / name)
        vocabulary().tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders, shared by the tests."""
    return save(tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def family(folder: Path) -> AlignedLlama:
    """The target's family."""
    return aligned_llama.load(folder / "target", device="cpu")


def change(folder: Path, copy: Path, **changes: Any) -> Path:
    """A copy of the config with another "multispec" part; None takes a key out."""
    copy.mkdir()
    for path in (folder / "target").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    own = config["multispec"] | changes
    config["multispec"] = {name: one for name, one in own.items() if one is not None}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def test_it_is_a_family_of_speech(family: AlignedLlama, folder: Path) -> None:
    """It satisfies the protocol, and is found by its config."""
    assert isinstance(family, SpeechFamily) and isinstance(family.codec, SpeechCodec)
    config: Any = LlamaConfig.from_pretrained(folder / "target")
    entry = family_of(config)
    assert entry is not None and entry.module == "aligned_llama"
    config.multispec = {"modality": "image"}
    assert not aligned_llama.fits(config)
    assert family.voices == ("man", "woman") and family.sampling.temperature == 0.9
    assert family.text_limit == 40 and family.guidance.neutral


def test_a_prompt_is_voice_phonemes_begin(family: AlignedLlama) -> None:
    """The first voice where none is named; signs stay, a sentence ends with one."""
    tokenizer = vocabulary().tokenizer
    prompt = family.prompt("Go, dad!")
    names = ["<man>", "g", "'oU", ",", "d", "'a", "d", "!", ar.BEGIN]
    assert tokenizer.convert_ids_to_tokens(prompt.ids.tolist()) == names
    other = family.prompt("go dad", "woman")
    assert tokenizer.convert_ids_to_tokens(other.ids.tolist())[0] == "<woman>"
    assert tokenizer.convert_ids_to_tokens(other.ids.tolist())[3:] == [GAP, "d", "'a", "d", ".", ar.BEGIN]
    assert family.layout_of(prompt).num_codebooks == 1
    assert prompt.spec is not None and prompt.spec.end_ids == (vocabulary().end,)


def test_positions_follow_the_sound(family: AlignedLlama) -> None:
    """A symbol stands behind the frames of those before it; begin at 0, code t at t + 1."""
    scale = family.target.scale  # type: ignore[attr-defined]
    ids = torch.cat([family.prompt("go dad").ids, torch.tensor([30, 31])])
    # man 0, g 3.3, oU 5.2, gap 0.4, d 3.3, a 3.3, d 3.3, full stop, begin, two codes
    assert scale.places(ids).tolist() == [0, 0, 3, 8, 9, 12, 16, 19, 0, 1, 2]
    assert scale.start(torch.tensor([1, 2, 3])) == 2


@pytest.mark.parametrize("texts", [TEXTS[:1], TEXTS])
@torch.inference_mode()
def test_every_node_is_scored_as_by_a_plain_pass(family: AlignedLlama, texts: tuple[str, ...]) -> None:
    """Trees behind ragged rows, after commits and after a rewind, against the model's own forward."""
    target: Any = family.target
    prompts = [family.prompt(text) for text in texts]
    rows = list(range(len(prompts)))
    session = target.begin(prompts, [60] * len(rows), 8)
    first = session.prefill().logits
    offset, streams = vocabulary().offset, [prompt.ids.tolist() for prompt in prompts]
    for stream, logits in zip(streams, first, strict=True):
        assert torch.allclose(logits[0], target.plain(torch.tensor(stream))[-1], atol=1e-4)
    tree = Draft(tokens=torch.tensor([offset + 1, offset + 2, offset + 3]), parents=(-1, 0, 0))
    for turn in range(2):
        drafts = [tree if row % 2 == 0 else Draft.chain([offset + 4, offset + 5]) for row in rows]
        roots = [offset + 6 + row + turn for row in rows]
        scores = session.score(rows, roots, drafts).logits
        for stream, root, draft, found in zip(streams, roots, drafts, scores, strict=True):
            for node in range(-1, len(draft)):
                path = [draft.ids[step] for step in path_to(draft.parents, node)]
                assert torch.allclose(
                    found[node + 1], target.plain(torch.tensor([*stream, root, *path]))[-1], atol=1e-4
                )
        session.commit(rows, [(0,)] * len(rows))
        for stream, root, draft in zip(streams, roots, drafts, strict=True):
            stream += [root, draft.ids[0]]
    for row, stream in zip(rows, streams, strict=True):
        assert session.rewind(row, len(stream) - 1) == len(stream) - 1
        stream.pop()
    more = session.extend(rows, [offset] * len(rows))
    for stream, logits in zip(streams, more, strict=True):
        assert torch.allclose(logits[0], target.plain(torch.tensor([*stream, offset]))[-1], atol=1e-4)


@torch.inference_mode()
def test_rows_that_are_done_leave_the_others_alone(family: AlignedLlama) -> None:
    """After a row has been dropped, the rest keep their own positions."""
    target: Any = family.target
    prompts = [family.prompt(text) for text in TEXTS]
    session, offset = target.begin(prompts, [60] * 3, 8), vocabulary().offset
    session.prefill()
    session.drop([0])
    found = session.extend([1, 2], [offset + 1, offset + 2])
    for prompt, token, logits in zip(prompts[1:], (offset + 1, offset + 2), found, strict=True):
        expected = target.plain(torch.cat([prompt.ids, torch.tensor([token])]))[-1]
        assert torch.allclose(logits[0], expected, atol=1e-4)


def test_the_positions_matter(family: AlignedLlama) -> None:
    """Without them the same model says something else."""
    target: Any = family.target
    ids = family.prompt(TEXTS[0]).ids
    plain = target.model(input_ids=ids[None]).logits[0, -1]
    assert not torch.allclose(target.plain(ids)[-1], plain, atol=1e-2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_model_of_the_format_changes_nothing(
    family: AlignedLlama, folder: Path, temperature: float
) -> None:
    """The same codes with its own draft, with prompt lookup and plainly, one by one and together."""
    generator = ms.Generator(family.target)
    draft = aligned_llama.load(folder / "draft", device="cpu").target
    sampling = ms.Sampling(temperature=temperature, seed=3, min_new_tokens=16)
    prompts = [family.prompt(text) for text in TEXTS]
    plain = [generator.generate(p, drafter=None, sampling=sampling, max_new_tokens=24) for p in prompts]
    for drafter in (DraftModel(draft), "prompt_lookup", "jacobi"):
        found = generator.generate(prompts, drafter=drafter, sampling=sampling, max_new_tokens=24)
        assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in plain]
    for one in plain:
        codes = family.layout.codes(one.tokens.tolist())
        assert codes.shape[1] == 1 and (not len(codes) or 0 <= int(codes.max()) < CODES)


def test_its_own_draft_accepts_itself(family: AlignedLlama) -> None:
    """A draft that is the target drafts what the target says: positions are the same on both sides."""
    generator = ms.Generator(family.target)
    drafter = DraftModel(family.target, num_draft_tokens=4)
    sampling = ms.Sampling(seed=1, min_new_tokens=16)
    found = generator.generate(
        family.prompt(TEXTS[2]), drafter=drafter, policy=None, sampling=sampling, max_new_tokens=20
    )
    assert found.report.accepted == found.report.drafted > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("go 3", "cannot read '3'"),
        ("...", "nothing to speak"),
        ("идти", "cannot read"),
        ("", "nothing to speak"),
    ],
)
def test_what_cannot_be_read_is_refused(family: AlignedLlama, text: str, message: str) -> None:
    """Digits are read out before, by the modality."""
    with pytest.raises(PromptError, match=message):
        family.prompt(text)


def test_numbers_are_read_out_for_it(family: AlignedLlama) -> None:
    """What the modality asks of a model that knows words alone."""
    assert family.read("3 cats").split() == ["three", "cats"]


def test_bad_requests_are_refused(family: AlignedLlama) -> None:
    """An unknown voice, a text beyond the context, guidance away from nothing."""
    with pytest.raises(UnknownNameError, match="woman"):
        family.prompt("go", "women")
    with pytest.raises(PromptError, match="context holds 160"):
        family.prompt("go " * 40)
    prompt = family.prompt("go")
    with pytest.raises(UnsupportedError, match="never trained without a text"):
        family.unconditional(prompt, None)
    assert family.unconditional(prompt, "bee").ids.tolist() == family.prompt("bee").ids.tolist()


def test_an_unknown_word_is_spelled_by_the_model(family: AlignedLlama) -> None:
    """Possessives too, and a word that spells to nothing at all is still a prompt."""
    assert family.words is not None
    assert family.words.of_word("go'") == ["g", "'oU"]
    assert set(family.words.symbols("zyx go")[-4:-1]) >= {"g", "'oU"}


def test_characters_need_no_pronunciation(folder: Path, tmp_path: Path) -> None:
    """Then the tokenizer reads the text itself, and refuses what it does not know."""
    copy = change(folder, tmp_path / "characters", text="characters", codec=str(folder / "codec"))
    family = aligned_llama.load(copy, device="cpu")
    assert family.prompt("b d").ids[1:3].tolist() == vocabulary().prompt("b d", "man")[1:3]
    with pytest.raises(PromptError, match="no symbol"):
        family.prompt("z")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": {"offset": 16, "size": 12}}, "12 codes"),
        ({"codes": {"offset": 90, "size": 16}}, "up to 106 in a vocabulary"),
        ({"frame_rate": 75}, "75 times a second"),
        ({"voices": ["man", "child"]}, "lacks the voices .'child'."),
        ({"text_scale": None}, "text_scale"),
        ({"text": "morse"}, "does not describe"),
        ({"sampling": {"temperature": -1}}, "does not describe"),
        ({"pronunciation": "../nowhere"}, "No pronunciation"),
        ({"codec": "../nowhere"}, "No codec"),
    ],
)
def test_folders_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Each with what is wrong."""
    known = {"codec": str(folder / "codec"), "pronunciation": str(folder / "pronunciation")}
    copy = change(folder, tmp_path / "bad", **(known | changes))
    with pytest.raises(ModelLoadError, match=message):
        aligned_llama.load(copy, device="cpu")


def test_a_folder_without_its_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    """By name of the files."""
    copy = change(folder, tmp_path / "bare", codec=str(folder / "codec"))
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelLoadError, match="tokenizer"):
        aligned_llama.load(copy, device="cpu")


def test_other_arithmetic_is_refused() -> None:
    """A Llama with another activation, and one whose passes do not agree."""
    scale = Scale(torch.ones(vocabulary().size, dtype=torch.float64), vocabulary().begin)
    with pytest.raises(UnsupportedError, match="silu"):
        AlignedTarget(llama(hidden_act="gelu"), scale)
    broken = llama()
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UnsupportedError, match="otherwise than by its plain forward"):
        AlignedTarget(broken, scale)


def test_a_codec_of_silent_parts_is_decoded_by_pieces(family: AlignedLlama, folder: Path) -> None:
    """Its reach is what it is measured to be; with attention that is heard there is no bound."""
    assert family.codec.reach == (5, 5)
    far = measured(family.codec, 1e-6, frames=32)
    assert max(far) <= 5 and min(far) > 2
    codec = Xcodec2Codec.load(folder / "codec")
    torch.nn.init.normal_(codec.model.acoustic_decoder.layers[0].self_attn.o_proj.weight)
    assert aligned_llama.bounded(codec).reach == (UNBOUNDED, UNBOUNDED)


def test_owners_of_things_need_no_spelling() -> None:
    """The end follows from the last sound."""
    known = {"cat": "k 'a t", "dog": "d 'O: g", "fox": "f '0 k s"}
    words = Pronunciation(known, Spelling(3, 4), ("I#", "s", "z"))
    assert [words.of_word(one)[3:] for one in ("cat's", "dog's")] == [["s"], ["z"]]
    assert words.of_word("fox's") == [*known["fox"].split(), "I#", "z"]


def test_pieces_are_words_and_signs() -> None:
    """Accents fall, quotes are not heard, dashes are commas, hyphens are gaps."""
    assert pieces("“Café”—it’s well-known; so?") == ["cafe", ",", "it's", "well", "known", ",", "so", "?"]
    assert collapsed([0, 1, 1, 0, 1, 2, 2]) == [1, 1, 2]
