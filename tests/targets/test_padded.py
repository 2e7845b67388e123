"""Passes of one shape: the same bits alone, in a draft and in a batch, in half precision too."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters import DraftModel
from multispec.errors import UnsupportedError
from multispec.loading import assets
from multispec.targets import CausalTarget, EncoderDecoderTarget, deterministic
from multispec.targets.padded import BUCKET, COLUMNS, PaddedSession, unsteady
from tests.models import zoo

HALF = (torch.bfloat16, torch.float16)
PROMPTS = [[(5 * n + 7 * k) % zoo.VOCABULARY for k in range(3 + n % 5)] for n in range(20)]


@cache
def target(dtype: torch.dtype, name: str = "llama") -> CausalTarget:
    """A target of one shape, of a model of its own."""
    return CausalTarget(zoo.build(name).to(dtype), deterministic=True)


@cache
def draft(dtype: torch.dtype) -> Any:
    return zoo.build("llama", 1).to(dtype)


def tokens(generator: ms.Generator, prompts: Any, drafter: Any, **settings: Any) -> list[list[int]]:
    greedy: dict[str, Any] = {"max_new_tokens": 10, "sampling": ms.Sampling(temperature=0), "policy": None}
    settings = greedy | settings
    return [one.tokens.tolist() for one in generator.generate(prompts, drafter=drafter, **settings)]


@pytest.mark.parametrize("dtype", HALF)
def test_drafts_change_no_symbol_in_half_precision(dtype: torch.dtype, unchecked: None) -> None:
    """Twenty prompts, greedy: plain, a draft model, prompt lookup; in one batch."""
    generator = ms.Generator(target(dtype))
    plain = tokens(generator, PROMPTS, None)
    assert len({tuple(one) for one in plain}) > 10
    for drafter in (DraftModel(draft(dtype), 4), DraftModel(target(dtype), 11), "prompt_lookup"):
        assert tokens(generator, PROMPTS, drafter) == plain


def test_scores_are_the_same_bits_with_any_drafter_and_neighbour() -> None:
    """Not the symbols alone: every logit of every position."""
    generator = ms.Generator(target(torch.bfloat16))
    settings: dict[str, Any] = {"max_new_tokens": 70, "output_scores": True, "policy": None}
    settings["sampling"] = ms.Sampling(temperature=0.8, seed=3)
    alone = generator.generate(PROMPTS[4], drafter=None, **settings)
    drafted = generator.generate(PROMPTS[4], drafter=DraftModel(target(torch.bfloat16), 6), **settings)
    among = generator.generate([PROMPTS[3], PROMPTS[4]], drafter="prompt_lookup", **settings)[1]
    assert len(alone.tokens) == 70 > BUCKET, "over the end of a bucket"
    for other in (drafted, among):
        assert torch.equal(other.tokens, alone.tokens)
        assert torch.equal(torch.as_tensor(other.scores), torch.as_tensor(alone.scores))
    assert drafted.report.acceptance_rate == 1 and drafted.report.target_calls < 20


@pytest.mark.skipif(not (assets() / "text" / "target" / "config.json").is_file(), reason="no embedded models")
def test_the_embedded_text_model_in_bfloat16(unchecked: None) -> None:
    generator = ms.load("text", dtype="bfloat16", deterministic=True)
    starts = ("Once upon a time", "She said that", "In the dark wood")
    prompts = [f"{start} there was" for start in starts]
    plain = tokens(generator, prompts, None, max_new_tokens=8)
    for drafter in ("draft_model", "prompt_lookup"):
        assert tokens(generator, prompts, drafter, max_new_tokens=8) == plain


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mistral"])
def test_modules_and_windows_too(name: str) -> None:
    """A model that is run by its own modules; windows that are shorter than the stream."""
    found = target(torch.bfloat16, name)
    assert found.capabilities.way == f"{found.way} in passes of {COLUMNS} symbols"
    generator = ms.Generator(found)
    assert tokens(generator, PROMPTS[:4], "prompt_lookup") == tokens(generator, PROMPTS[:4], None)


def test_a_stream_may_fill_the_context() -> None:
    """Padding stands behind the last position that the model has learned."""
    model = zoo.build("gpt2", n_positions=48).bfloat16()
    generator = ms.load(model=model, deterministic=True)
    plain = tokens(generator, PROMPTS[:1], None, max_new_tokens=60)
    assert len(plain[0]) + len(PROMPTS[0]) >= 48
    assert tokens(generator, PROMPTS[:1], "prompt_lookup", max_new_tokens=60) == plain


def test_in_float32_it_is_what_the_model_emits() -> None:
    generator = ms.load(model=zoo.shared("llama"), deterministic=True)
    plain = zoo.plain_generate("llama", max_new_tokens=20)
    for drafter in (None, "prompt_lookup"):
        assert tokens(generator, [list(zoo.IDS)], drafter, max_new_tokens=20) == [plain]


def test_guided_rows_and_rows_that_wait() -> None:
    generator = ms.Generator(target(torch.bfloat16))
    settings: dict[str, Any] = {"guidance": 2.0, "negative": [[1, 2]] * 4, "batch_size": 2}
    plain = tokens(generator, PROMPTS[:4], None, **settings)
    assert tokens(generator, PROMPTS[:4], "prompt_lookup", **settings) == plain
    assert tokens(generator, PROMPTS[:4], "prompt_lookup", max_memory="1GB") == tokens(
        generator, PROMPTS[:4], None
    )


def test_memory_of_a_row_is_as_predicted() -> None:
    found = target(torch.float16)
    prompt = ms.Prompt(ids=torch.tensor(PROMPTS[0]))
    with torch.inference_mode():
        session = found.begin([prompt], [50], 256)
        assert isinstance(session, PaddedSession)
        session.prefill()
        assert session._rows[0].cache.allocated == found.cache_bytes(prompt, 50)


@pytest.fixture
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def test_rows_go_back_and_leave(_inference: None) -> None:
    found = target(torch.bfloat16)
    session = found.begin([ms.Prompt(ids=torch.tensor(one)) for one in PROMPTS[:2]], [30, 30], 8)
    session.prefill()
    before = session.length(1)
    first = session.extend([1], [4])[0]
    assert session.rewind(1, before) == before
    assert session.walk(1, [4, 6], lambda logits: None) == 1
    session.checkpoint(1)
    assert session.length(1) == before + 2
    session.rewind(1, before)
    session.drop([0])
    assert torch.equal(session.extend([1], [4])[0], first)


# ---- what is refused ----


@pytest.mark.parametrize("name", ["mamba", "lfm2", "bloom"])
def test_a_state_that_cannot_be_padded_is_refused(name: str) -> None:
    with pytest.raises(
        UnsupportedError, match="keeps its state in a cache of its own, where padding would stay"
    ):
        ms.load(model=zoo.shared(name), deterministic=True)
    with pytest.raises(UnsupportedError, match="deterministic pads every pass"):
        CausalTarget(zoo.shared(name), deterministic=True)


def test_an_encoder_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="EncoderDecoderTarget is run rowwise"):
        ms.load(model=zoo.shared("t5"), deterministic=True)
    with pytest.raises(UnsupportedError, match="deterministic pads the passes of a decoder"):
        deterministic(EncoderDecoderTarget(zoo.shared("bart")))


def test_trees_and_conditioning_are_refused(_inference: None) -> None:
    found = target(torch.bfloat16)
    assert not found.capabilities.supports_tree and "score chains" in found.capabilities.why
    prompt = ms.Prompt(ids=torch.tensor([3, 4]))
    session = found.begin([prompt], [20], 8)
    session.prefill()
    with pytest.raises(UnsupportedError, match="scores chains"):
        session.score([0], [1], [ms.Draft(tokens=torch.tensor([1, 2]), parents=(-1, -1))])
    given = ms.Prompt(ids=torch.tensor([3, 4]), conditioning={"pixel_values": torch.zeros(1)})
    with pytest.raises(UnsupportedError, match="a prompt with conditioning"):
        found.begin([given], [20], 8)


class Uneven:
    """A forward whose kernels round by the place of a symbol in its pass."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.like, self.layers, self.attention = inner, inner.like, inner.layers, inner.attention

    def __call__(self, ids: Any, step: Any, cache: Any, keep: Any) -> Any:
        out = self._inner(ids, step, cache, keep)
        return out * (1 + 1e-2 * torch.arange(out.shape[1])[:, None])


def test_kernels_that_do_not_keep_the_bits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = target(torch.bfloat16)
    assert found._forward is not None
    assert "from those of one by one" in str(unsteady(Uneven(found._forward), zoo.VOCABULARY, 8, None))
    assert "too short to try it" in str(unsteady(found._forward, zoo.VOCABULARY, 8, 20))
    monkeypatch.setattr("multispec.targets.causal.unsteady", lambda *_: "they do not")
    with pytest.raises(
        UnsupportedError, match=r"LlamaForCausalLM in torch.float32 on this machine they do not"
    ):
        ms.load(model=zoo.shared("llama"), deterministic=True)
