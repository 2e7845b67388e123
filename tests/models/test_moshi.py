"""Moshi: the same words and codes as the model's own generate, whatever drafts, in batches, in a dialogue."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, MoshiConfig, MoshiForConditionalGeneration
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import multispec as ms
from multispec.drafters import Jacobi, PromptLookup
from multispec.drafters.depth_ngram import DepthNgram
from multispec.drafters.previous_frame import PreviousFrame
from multispec.errors import ModelLoadError, PromptError, UnknownNameError, UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.modalities.speech.adapter import Speech
from multispec.modalities.speech.families import family_of, moshi
from multispec.modalities.speech.families.moshi import OWN, USER, Moshi, MoshiLayout, WordsAndSound
from multispec.modalities.speech.family import FrameLayout, SpeechFamily
from multispec.processing import Places
from multispec.protocols import Drafter
from multispec.row import Row, RowSettings
from multispec.sampling import Sampling
from multispec.stream import Draft, Generation
from multispec.testing import ScriptedDrafter, play, row
from tests.models import words

BOOKS, CODES, STEPS = 4, 16, 6
STEP = BOOKS + 1
TEXTS = ("a fox", "the quick brown fox", "dog", "lazy days are over")


def _config(window: int) -> Any:
    size: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    codec = {
        "model_type": "mimi",
        "sampling_rate": 1600,
        "hidden_size": 16,
        "num_filters": 4,
        "upsampling_ratios": [4, 2],
        "codebook_size": CODES,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "num_quantizers": BOOKS,
        "upsample_groups": 16,
        "intermediate_size": 32,
        **size,
        "num_hidden_layers": 1,
    }
    depth = {"hidden_size": 16, "ffn_dim": 32, "max_position_embeddings": STEP, **size}
    return MoshiConfig(
        vocab_size=340,
        hidden_size=24,
        ffn_dim=48,
        num_codebooks=BOOKS,
        max_position_embeddings=64,
        sliding_window=window,
        initializer_range=0.4,
        audio_encoder_config=codec,
        depth_decoder_config=depth | {"sliding_window": STEP, "initializer_range": 0.4},
        **size,
    )


def build(window: int = 64) -> Any:
    """A random Moshi of four codebooks, to which silence is not code 0."""
    with torch.inference_mode(False), torch.random.fork_rng():
        torch.manual_seed(0)
        found: Any = MoshiForConditionalGeneration(_config(window)).eval()
        for name, weight in found.depth_decoder.named_parameters():
            # transformers draws those of each codebook from a normal law, whatever their width.
            if weight.ndim == 3:
                weight.data.mul_(0.6 if "lm_heads" in name else 0.25)
        for name, buffer in found.audio_encoder.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
    return found


@cache
def model() -> Any:
    """One model for all tests that leave it as it is."""
    return build()


@cache
def family() -> Moshi:
    """The family around it."""
    return Moshi.from_model(model(), words.byte_level())


def request(prompt: ms.Prompt, **changes: Any) -> RowSettings:
    """Greedily, six steps."""
    settings: dict[str, Any] = {"sampling": Sampling(temperature=0), "max_new_tokens": STEPS * STEP}
    return replace(row(**(settings | changes)), prompt=prompt)


def question(frames: int = 4) -> Tensor:
    """What the other side says."""
    return torch.randint(CODES, (frames, BOOKS), generator=torch.Generator().manual_seed(7))


@cache
def prompts() -> tuple[ms.Prompt, ...]:
    """Words in silence, and dialogues, in which words go on for longer than the question or not."""
    return (
        family().prompt(TEXTS[0]),
        family().hearing(question()),
        family().hearing(question(30), TEXTS[2]),
        family().hearing(question(2), TEXTS[3]),
    )


def speak(drafter: Drafter | None, count: int = 4) -> list[Generation]:
    """The steps of the first prompts together, each with its own sampling."""
    pairs = zip(prompts()[:count], SAMPLED, strict=False)
    return play(family().target, *(request(one, drafter=drafter, sampling=how) for one, how in pairs))


def own_generate(prompt: ms.Prompt, steps: int = STEPS, of: Any = None) -> tuple[list[int], Tensor]:
    """The words and the codes ``[T, K]`` that the model's own greedy generate goes on with."""
    ids, given = prompt.ids[None, 1:], dict[str, Any]()
    count = ids.shape[1]
    if count:
        silence = family().silence.expand(count, -1)
        user = prompt.conditioning.get(USER, silence)[:count]
        given = {"input_ids": ids, "moshi_audio_codes": silence.T[None]}
        given["user_audio_codes"] = torch.cat([user, silence[len(user) :]]).T[None]
    settings: dict[str, Any] = {"do_sample": False, "depth_decoder_do_sample": False}
    out = (of or model()).generate(
        **given, **settings, max_new_tokens=steps, return_audio_waveforms=False, return_audio_codes=True
    )
    return out.sequences[0, count + 1 :].tolist(), out.audio_codes[0].T[count:]


@pytest.mark.parametrize("kind", ["in silence", "behind words", "behind a question"])
def test_plain_greedy_is_the_models_own_generate(kind: str) -> None:
    """Words and codes: begun with nothing, behind words in silence, behind words and a question."""
    begun = family().hearing(family().silence.expand(3, -1))
    heard = family().hearing(question(len(family().prompt(TEXTS[1]).ids) - 1), TEXTS[1])
    prompt = {"in silence": begun, "behind words": family().prompt(TEXTS[1]), "behind a question": heard}[
        kind
    ]
    (found,) = play(family().target, request(prompt))
    said, codes = own_generate(prompt)
    assert found.tokens[:, 0].tolist() == said
    assert torch.equal(family().layout_of(prompt).codes(found.tokens.flatten().tolist()), codes)
    assert len(codes) == STEPS - 1 and len(codes.unique()) > 4


def test_what_is_behind_the_window_is_forgotten() -> None:
    """As by the model's own cache, also where drafts reach over its edge."""
    short = build(window=6)
    narrow = Moshi.from_model(short, words.byte_level())
    prompt, length = narrow.hearing(question(0)), 9 * STEP
    said, codes = own_generate(prompt, 9, short)
    for drafter in (None, Jacobi(num_draft_tokens=9)):
        (found,) = play(narrow.target, request(prompt, drafter=drafter, max_new_tokens=length))
        assert found.tokens[:, 0].tolist() == said
        assert torch.equal(narrow.layout_of(prompt).codes(found.tokens.flatten().tolist()), codes)
    assert said != play(family().target, request(prompt, max_new_tokens=length))[0].tokens[:, 0].tolist()


def test_the_other_side_is_heard_while_it_speaks() -> None:
    """Step by step, as by plain passes of the model over everything; silence behind the last frame."""
    prompt = prompts()[1]
    (found,) = play(family().target, request(prompt))
    network, start = model(), CODES
    text = [int(prompt.ids[0])]
    own = [torch.full((BOOKS,), start)]
    heard = [own[0], *question(), *family().silence.expand(STEPS, -1)]
    for step in range(STEPS):
        late = [torch.cat([now[:1], then[1:]]) for then, now in zip([own[0], *heard], heard, strict=False)]
        codes = torch.cat([torch.stack(own), torch.stack(late[: step + 1])], dim=1)
        inputs = network.decoder.model.embed_tokens(torch.tensor([text]))
        inputs = inputs + sum(book(codes[None, :, level]) for level, book in enumerate(network.embed_tokens))
        out = network.decoder(inputs_embeds=inputs)
        text.append(int(out.logits[0, -1].argmax()))
        said = [text[-1]]
        for _ in range(BOOKS):
            ids, state = torch.tensor([said]), out.last_hidden_state[:, -1:]
            mask = torch.ones_like(ids)
            logits = network.depth_decoder(input_ids=ids, last_hidden_state=state, attention_mask=mask).logits
            said.append(int(logits[0, -1].argmax()))
        if step == 0:
            said[2:] = [start] * (BOOKS - 1)
        own.append(torch.tensor(said[1:]))
        assert found.tokens[step].tolist() == said
    assert (
        found.tokens.tolist()
        != play(family().target, request(family().hearing(question(1))))[0].tokens.tolist()
    )


DRAFTERS: dict[str, Drafter] = {
    "prompt_lookup": PromptLookup(),
    "jacobi": Jacobi(num_draft_tokens=9),
    "previous_frame": PreviousFrame(num_draft_tokens=7),
    "depth_ngram": DepthNgram(num_draft_tokens=11),
}


# Of the four prompts: two greedily, two by a seed.
SAMPLED = tuple(Sampling(temperature=temperature, seed=3) for temperature in (0.0, 0.5, 0.5, 0.0))


@cache
def plain() -> list[Generation]:
    """What the seeds say, each prompt by itself."""
    return [
        play(family().target, request(one, sampling=sampling))[0]
        for one, sampling in zip(prompts(), SAMPLED, strict=True)
    ]


@pytest.mark.parametrize("name", DRAFTERS)
def test_any_drafter_leaves_the_codes_as_they_are(name: str) -> None:
    """One prompt alone and four together, greedily and by a seed."""
    for count in (1, 4):
        found = speak(DRAFTERS[name], count)
        for one, other in zip(found, plain(), strict=False):
            assert torch.equal(one.tokens, other.tokens)
            assert one.report.drafter_failures == 0


def test_good_guesses_cut_sequential_passes() -> None:
    """Of both models: frames are drafted beside the codes within them."""
    script, target, counts = plain()[0].tokens.flatten().tolist(), family().target, []
    for guesses in (None, script, [339] * len(script)):
        before = replace(target.passes)
        drafter = None if guesses is None else ScriptedDrafter(guesses, num_draft_tokens=2 * STEP)
        (found,) = speak(drafter, 1)
        assert found.tokens.flatten().tolist() == script
        counts.append((target.passes.time - before.time, target.passes.depth - before.depth))
    # The last step's codes ask for no pass over time.
    assert counts[0] == (STEPS - 1, STEPS * BOOKS)
    assert counts[1][0] * 2 <= counts[0][0] + 1 and counts[1][1] * 3 <= counts[0][1]


def test_a_layout_is_late_by_a_step() -> None:
    """All codebooks but the first; words, what is left of a frame before and the last step are no codes."""
    layout: FrameLayout = MoshiLayout(num_codebooks=3, codes_per_book=8, words=20, begun=(8, 8))
    frames = torch.arange(6).view(2, 3)
    stream = layout.tokens(frames)
    assert stream.tolist() == [3, 0, 8, 8, 3, 3, 1, 2, 3, 0, 4, 5]
    assert torch.equal(layout.codes(stream.tolist()), frames) and len(layout.codes(stream.tolist()[:7])) == 0
    places = [layout.coordinates(position) for position in range(8)]
    assert places == [None, (0, 0), None, None, None, (1, 0), (0, 1), (0, 2)]
    assert layout.tokens(frames[:0]).shape == (0,)
    with pytest.raises(UsageError, match=r"must lie in \[0, 8\)"):
        layout.codes([3, 9, 8, 8, 3, 3, 1, 2])


def test_words_and_sound_have_settings_of_their_own() -> None:
    """Each slot has the law of transformers' warpers for it; greedily nothing is left to them."""
    sound = Sampling(temperature=1.3, top_k=6, top_p=0.9)
    asked = replace(family(), words=Sampling(temperature=0.4, top_k=3)).prompt(TEXTS[0])
    running = Row(0, request(asked, sampling=sound), family().target.spec)
    scores = torch.randn(1, 340, generator=torch.Generator().manual_seed(1))
    warpers: dict[str, list[Any]] = {
        "words": [TemperatureLogitsWarper(0.4), TopKLogitsWarper(3)],
        "sound": [TemperatureLogitsWarper(1.3), TopKLogitsWarper(6), TopPLogitsWarper(0.9)],
    }
    for place in range(2 * STEP):
        law = running.pipeline.law(scores, Places(running.history, ((),))).probs[0]
        expected = scores
        for warper in warpers["words" if place % STEP == 0 else "sound"]:
            expected = warper(torch.zeros(1, 1, dtype=torch.long), expected)
        if not 2 <= place < STEP:
            torch.testing.assert_close(law, expected.double().softmax(-1)[0])
        else:
            assert law[family().silence[place - 1]] == 1
        running.history.extend([1])
    assert asked.spec is not None and asked.spec.drawn(Sampling(temperature=0)).processors == ()
    greedy = WordsAndSound(words=Sampling(temperature=0), sound=sound, prompt=1, step=STEP)
    assert greedy(torch.zeros(1, 1, dtype=torch.long), scores).softmax(-1).max() == 1


def test_settings_are_the_checkpoint_s() -> None:
    """Of the depth decoder for sound; those of its authors where it says nothing of sampling."""
    own: Any = GenerationConfig(do_sample=True, temperature=0.6, top_k=9)
    own.depth_decoder_config = {"do_sample": True, "temperature": 0.9, "top_p": 0.8}
    sampled = (Sampling(temperature=0.6, top_k=9), Sampling(temperature=0.9, top_p=0.8))
    assert moshi.samplings_of(own) == sampled
    own.depth_decoder_config = GenerationConfig(do_sample=True, temperature=0.9, top_p=0.8)
    assert moshi.samplings_of(own) == sampled
    published = moshi.samplings_of(GenerationConfig())
    assert published == (Sampling(temperature=0.7, top_k=25), Sampling(temperature=0.8, top_k=250))


def test_it_speaks(tmp_path: Path) -> None:
    """Through the speech modality: a folder is loaded, and makes sound as long as what it hears."""
    model().save_pretrained(tmp_path)
    words.byte_level().save_pretrained(tmp_path)
    loaded = moshi.load(tmp_path, device="cpu")
    assert isinstance(loaded, SpeechFamily) and loaded.voices == ()
    entry = family_of(loaded.config)
    assert entry is not None and entry.module == "moshi"
    assert torch.equal(loaded.silence, family().silence)
    found = Generator(loaded.target, Speech(loaded)).generate(
        loaded.hearing(question(3)), drafter="depth_ngram"
    )
    assert found.output.waveform.shape == (1, 3 * loaded.codec.hop)
    assert loaded.said([105, *[0] * BOOKS, 3, *[0] * BOOKS]) == loaded.tokenizer.decode([105])
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ModelLoadError, match="cut short"):
        moshi.load(tmp_path, device="cpu")


def test_what_cannot_be_done_is_refused() -> None:
    """A live voice, guidance, voices, codes of another codec, no text, more than fits, a smaller codec."""
    with pytest.raises(UnsupportedError, match="known beforehand"):
        family().hearing(iter(question()))
    with pytest.raises(UnsupportedError, match="guide away"):
        family().unconditional(prompts()[0], None)
    with pytest.raises(UnknownNameError, match="'bob'"):
        family().prompt("a fox", "bob")
    with pytest.raises(UsageError):
        family().hearing(question() + CODES)
    with pytest.raises(PromptError, match="reads nothing"):
        family().prompt("")
    with pytest.raises(PromptError, match="holds 64 steps"):
        family().prompt("a fox " * 60)
    with pytest.raises(PromptError, match="holds 64 positions"):
        play(family().target, request(family().hearing(question(90)), max_new_tokens=90 * STEP))
    with pytest.raises(UnsupportedError, match="are chains"):
        tree = Draft(tokens=torch.tensor([1, 2]), parents=(-1, -1))
        session = family().target.begin([prompts()[1]], [STEP * 4], 4)
        session.prefill()
        session.score([0], [1], [tree])
    wide = deepcopy(model())
    wide.config.audio_vocab_size = CODES + 4
    with pytest.raises(UnsupportedError, match="says codes below 20"):
        Moshi.from_model(wide, words.byte_level())
    assert OWN not in prompts()[1].conditioning
