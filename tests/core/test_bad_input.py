"""What cannot be right is refused, by our own errors, with what to do; before any pass where possible."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import multispec as ms
from multispec import cache as cache_module
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import (
    DrafterWarning,
    GenerationError,
    IncompatibleModelsError,
    InvalidLogitsError,
    ModelLoadError,
    OutOfMemoryError,
    PromptError,
    SamplingError,
    UnknownNameError,
    UsageError,
)
from multispec.stream import Draft
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel
from multispec.verifiers import Rejection
from tests.models import words, zoo

pytestmark = pytest.mark.usefixtures("unchecked")

PROMPT = list(zoo.IDS)
GREEDY = ms.Sampling(temperature=0)


@contextmanager
def _no_pass(model: Any) -> Iterator[None]:
    """No forward pass of the model may happen inside."""
    runs: list[int] = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        yield
    finally:
        handle.remove()
    assert not runs, "the request was run before it was checked"


def _text(**options: Any) -> ms.Generator:
    return ms.load(model=zoo.build("llama", vocab_size=340, **options), tokenizer=words.byte_level())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model in a folder."""
    folder = tmp_path_factory.mktemp("model")
    zoo.shared("llama").save_pretrained(folder)
    return folder


def _copy(folder: Path, to: Path) -> Path:
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


# ---- models ----


def test_a_saved_model_loads_and_generates(saved: Path) -> None:
    """The folder that the broken copies below come from is good."""
    found = ms.load(saved).generate(PROMPT, drafter=None, sampling=GREEDY, max_new_tokens=5)
    assert found.tokens.tolist() == zoo.plain_generate("llama", max_new_tokens=5)


@pytest.mark.parametrize("name", ["txet", "textt"])
def test_an_unknown_model_name_offers_the_nearest(name: str) -> None:
    """A misspelt embedded name is not taken for a hub id."""
    with pytest.raises(UnknownNameError, match="Did you mean"):
        ms.load(name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """The path and what is expected in it are named."""
    with pytest.raises(ModelLoadError, match=r"nowhere.*Expected a folder with config.json"):
        ms.load(tmp_path / "nowhere")


def test_missing_weights(saved: Path, tmp_path: Path) -> None:
    """A folder with a configuration and no weights."""
    folder = _copy(saved, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="The weights in .* cannot be read"):
        ms.load(folder)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_truncated_weights(saved: Path, tmp_path: Path, kept: float) -> None:
    """A file that was cut short anywhere, down to nothing."""
    folder = _copy(saved, tmp_path)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ModelLoadError, match="cut short: compare its size"):
        ms.load(folder)


def test_a_tensor_that_is_missing_is_not_made_up(saved: Path, tmp_path: Path) -> None:
    """transformers would fill it with random numbers."""
    folder = _copy(saved, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"1 weights of .* are missing, the first is 'model.layers.1"):
        ms.load(folder)


def test_a_broken_tokenizer_file(saved: Path, tmp_path: Path) -> None:
    """The tokenizer is named, not the weights."""
    folder = _copy(saved, tmp_path)
    (folder / "tokenizer.json").write_text("{broken", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="tokenizer in .* cannot be read"):
        ms.load(folder)


def test_a_model_on_the_meta_device() -> None:
    """A model without weights is refused by the name of a parameter."""
    with torch.device("meta"):
        model = type(zoo.shared("llama"))(zoo.shared("llama").config)
    with pytest.raises(ModelLoadError, match="on the meta device.*from_pretrained"):
        ms.load(model=model)
    with pytest.raises(ModelLoadError, match="on the meta device"):
        DraftModel(model)


def test_neither_or_both_of_name_and_model() -> None:
    """load needs one of them."""
    with pytest.raises(UsageError, match="one of them"):
        ms.load()
    with pytest.raises(UsageError, match="one of them"):
        ms.load("text", model=zoo.shared("llama"))


def test_vocabularies_that_do_not_match() -> None:
    """A draft model of another family is refused when it is used, not set aside in silence."""
    other = DraftModel(zoo.build("gpt2", vocab_size=900))
    with pytest.raises(IncompatibleModelsError, match="share a vocabulary: the draft has 900"):
        zoo.generator("llama").generate(PROMPT, drafter=other)


# ---- names ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"drafter": "promptlookup"}, "Unknown drafter 'promptlookup'. Did you mean 'prompt_lookup'"),
        ({"verifier": "rejecton"}, "Unknown verifier 'rejecton'. Did you mean 'rejection'"),
        ({"policy": "fixd"}, "Unknown policy 'fixd'. Did you mean 'fixed'"),
        ({"max_new_token": 3}, "Unknown option 'max_new_token'. Did you mean 'max_new_tokens'"),
        ({"temperature": 0.5}, "Unknown option 'temperature'"),
        ({"num_assistant_tokens_schedule": "constnt"}, "Did you mean 'constant'"),
        ({"drafter": "draft_model"}, "needs a draft model.*assistant_model="),
    ],
)
@pytest.mark.parametrize("way", ["generate", "stream"])
def test_unknown_methods_and_options(wrong: dict[str, Any], message: str, way: str) -> None:
    """Each names the nearest that exists, at once, from generate and from stream."""
    generator = zoo.generator("llama")
    with _no_pass(zoo.shared("llama")), pytest.raises(UsageError, match=message):
        getattr(generator, way)(PROMPT, **wrong)


def test_parts_that_cannot_be_right_are_refused_when_made() -> None:
    """Drafters check their own settings."""
    with pytest.raises(UsageError, match="num_draft_tokens must be >= 1"):
        DraftModel(zoo.shared("llama"), num_draft_tokens=0)
    with pytest.raises(UsageError, match="1 <= min_ngram <= max_ngram"):
        PromptLookup(max_ngram=1, min_ngram=2)


# ---- prompts ----

BAD_PROMPTS: dict[str, tuple[Any, str]] = {
    "no ids": ([], "at least one symbol"),
    "an empty tensor": (torch.empty(0, dtype=torch.long), "at least one symbol"),
    "an empty row": ([[5], []], "at least one symbol"),
    "a negative id": ([5, -3], r"must lie in \[0, 64\): got -3"),
    "an id too big": ([5, 64], r"must lie in \[0, 64\): got 64"),
    "words without a tokenizer": ("hello", "Pass tokenizer="),
    "a number": (3, "Pass tokenizer="),
    "nothing": (None, "Pass tokenizer="),
    "floats": ([0.5, 1.5], "must be ids"),
    "a float tensor": (torch.tensor([0.5, 1.5]), "must be ids"),
    "a dict": ({"role": "user", "content": "hi"}, "must be ids"),
    "float ids in a Prompt": (lambda: ms.Prompt(ids=torch.tensor([5.0, 6.0])), "whole numbers"),
    "a Prompt of two dimensions": (
        lambda: ms.Prompt(ids=torch.tensor([[5, 6]])),
        "at least one symbol",
    ),
}


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_prompts_that_cannot_be_right(name: str) -> None:
    """Empty, out of range, or of the wrong type."""
    prompt, message = BAD_PROMPTS[name]
    prompt = prompt() if callable(prompt) else prompt
    with _no_pass(zoo.shared("llama")), pytest.raises(PromptError, match=message):
        zoo.generator("llama").generate(prompt, max_new_tokens=3)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "gives no symbols"),
        (["fine", ""], "gives no symbols"),
        ([{"role": "user", "content": "hi"}], "no chat template"),
        (3.5, "A prompt is text, a list of messages, ids, or a Prompt: got float"),
    ],
)
def test_texts_that_cannot_be_right(prompt: Any, message: str) -> None:
    """With a tokenizer."""
    with pytest.raises(PromptError, match=message):
        _text().generate(prompt, max_new_tokens=3)


def test_a_prompt_beyond_the_context_window() -> None:
    """No room for a single symbol: both numbers are named."""
    generator = ms.load(model=zoo.build("llama", max_position_embeddings=32))
    with pytest.raises(PromptError, match="The prompt has 32 symbols and the model's context is 32"):
        generator.generate([5] * 32)


def test_max_new_tokens_is_cut_at_the_context_window_and_noted() -> None:
    """What does not fit is left out, and the report says so."""
    generator = ms.load(model=zoo.build("llama", max_position_embeddings=32))
    result = generator.generate([5] * 30, max_new_tokens=10)
    assert len(result.tokens) == 2
    assert result.report.notes == ["max_new_tokens cut from 10 to 2: the context is 32"]
    assert "note" in str(result.report)


# ---- settings ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -0.1}, "temperature must be >= 0: got -0.1. 0 is greedy"),
        ({"temperature": math.nan}, "temperature must be >= 0: got nan"),
        ({"temperature": math.inf}, "temperature must be >= 0: got inf"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]: got 0.0"),
        ({"top_p": 1.01}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": math.nan}, r"top_p must lie in \(0, 1\]"),
        ({"top_k": -1}, "top_k must be >= 0"),
        ({"min_p": 1.5}, r"min_p must lie in \[0, 1\]"),
        ({"typical_p": 0}, r"typical_p must lie in \(0, 1\]"),
        ({"repetition_penalty": 0}, "repetition_penalty must be > 0"),
        ({"seed": -1}, r"seed must lie in \[0, 2\*\*63\)"),
        ({"seed": 2**63}, r"seed must lie in \[0, 2\*\*63\)"),
        ({"sample": -1}, "sample must lie in"),
        ({"min_new_tokens": -1}, "min_new_tokens must be >= 0"),
        ({"bad_words": [[]]}, "a bad word needs ids"),
        ({"allowed_ids": []}, "allowed_ids must leave a symbol"),
        ({"temperature": "hot"}, "temperature must be"),
        ({"top_k": 2.5}, "top_k must be"),
        ({"seed": 1.5}, "seed must"),
        ({"seed": "7"}, "seed must"),
        ({"presence_penalty": math.nan}, "presence_penalty must be"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be"),
    ],
)
def test_sampling_settings_out_of_range(wrong: dict[str, Any], message: str) -> None:
    """Each is refused when Sampling is made."""
    with pytest.raises(SamplingError, match=message):
        ms.Sampling(**wrong)


BAD_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "no symbols": ({"max_new_tokens": 0}, "max_new_tokens must be >= 1: got 0"),
    "negative": ({"max_new_tokens": -4}, "max_new_tokens must be >= 1: got -4"),
    "half a symbol": ({"max_new_tokens": 2.5}, "max_new_tokens must be"),
    "a word": ({"max_new_tokens": "ten"}, "max_new_tokens must be"),
    "lengths": (
        {"max_new_tokens": [3, 4]},
        "max_new_tokens must be one value or one per prompt: got 2 for 1",
    ),
    "samplings": ({"sampling": [GREEDY, GREEDY]}, "sampling must be one value or one per prompt: got 2"),
    "drafters": ({"drafter": [None, None]}, "drafter must be one value or one per prompt: got 2"),
    "policies": ({"policy": ["fixed", "off"]}, "policy must be one value or one per prompt: got 2"),
    "a dict for sampling": ({"sampling": {"temperature": 0}}, "Sampling"),
    "bias": ({"sampling": ms.Sampling(logit_bias={64: 1.0})}, r"logit_bias names ids outside \[0, 64\)"),
    "allowed": ({"sampling": ms.Sampling(allowed_ids=[-1])}, "allowed_ids names ids outside"),
    "bad words": ({"sampling": ms.Sampling(bad_words=[[3, 99]])}, "bad_words names ids outside"),
    "stop without tokenizer": ({"stop": ["x"]}, "Stop strings need a tokenizer"),
    "a streamer with a batch": ({"streamer": object()}, "A streamer follows one prompt: got 2"),
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_cannot_be_right(name: str) -> None:
    """Refused before any pass of the model."""
    wrong, message = BAD_SETTINGS[name]
    prompt: Any = [PROMPT, PROMPT] if "streamer" in wrong else PROMPT
    with _no_pass(zoo.shared("llama")), pytest.raises(UsageError, match=message):
        zoo.generator("llama").generate(prompt, **wrong)


@pytest.mark.parametrize("stop", ["", [""], ["x", ""]])
def test_an_empty_stop_string(stop: Any) -> None:
    """It would stop everywhere."""
    with pytest.raises(UsageError, match="must not be empty"):
        _text().generate("the", stop=stop, max_new_tokens=3)


def test_stops_per_prompt_of_the_wrong_number() -> None:
    """A list of lists has one entry per prompt."""
    with pytest.raises(UsageError, match="stop must be one value or one per prompt: got 3 for 2"):
        _text().generate(["the", "fox"], stop=[["a"], ["b"], []], max_new_tokens=3)


# ---- what breaks half-way ----


class _Poison:
    """A processor that spoils the scores once the ids reach a length."""

    def __init__(self, length: int, value: float) -> None:
        self.length, self.value = length, value

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, self.value) if input_ids.shape[1] >= self.length else scores


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("drafter", [None, "prompt_lookup"])
def test_scores_from_which_nothing_can_be_drawn(value: float, drafter: Any) -> None:
    """The position and the processor are named, and what was made before is kept."""
    plain = zoo.plain_generate("llama", max_new_tokens=8)
    poison = _Poison(len(PROMPT) + 4, value)
    settings: dict[str, Any] = {"sampling": GREEDY, "logits_processor": [poison]}
    with pytest.raises(InvalidLogitsError, match="at position 4 of row 0: after _Poison") as caught:
        zoo.generator("llama").generate(PROMPT, drafter=drafter, max_new_tokens=8, **settings)
    assert caught.value.partial[0].tokens.tolist() == plain[:4]


def test_the_model_itself_gives_nan() -> None:
    """Broken weights are told from broken rules."""
    model = TableModel(6, table=torch.full((7, 6), math.nan, dtype=torch.float64))
    with pytest.raises(InvalidLogitsError, match="position 0 of row 0: after the model's own logits"):
        ms.Generator(model).generate([1], max_new_tokens=3)


@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_allowed_ids_and_bans_that_leave_nothing(verifier: str) -> None:
    """Two settings that exclude each other are found at the first symbol."""
    sampling = ms.Sampling(allowed_ids=[5], bad_words=[[5]])
    with pytest.raises(InvalidLogitsError, match="position 0"):
        zoo.generator("llama").generate(PROMPT, sampling=sampling, verifier=verifier, max_new_tokens=3)


def test_a_processor_that_raises() -> None:
    """The error says after how many symbols and why; ``partial`` holds the symbols before it."""

    def fussy(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= len(PROMPT) + 3:
            raise ZeroDivisionError("too long for me")
        return scores

    plain = zoo.plain_generate("llama", max_new_tokens=8)
    settings: dict[str, Any] = {"sampling": GREEDY, "logits_processor": [fussy]}
    with pytest.raises(GenerationError, match="after 3 symbols: ZeroDivisionError: too long") as caught:
        zoo.generator("llama").generate(PROMPT, drafter=None, max_new_tokens=8, **settings)
    assert caught.value.partial[0].tokens.tolist() == plain[:3]
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def _raises(request: Any) -> Draft:
    raise RuntimeError("no idea")


BAD_DRAFTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "raises": (_raises, "RuntimeError: no idea"),
    "too big": (lambda _: Draft.chain([64]), r"must lie in \[0, 64\): got \[64\]"),
    "negative": (lambda _: Draft.chain([-1]), "must lie in"),
    "a child before its parent": (
        lambda _: Draft(tokens=torch.tensor([3, 4]), parents=(1, -1)),
        "parents come before their children",
    ),
    "parents missing": (
        lambda _: Draft(tokens=torch.tensor([3, 4]), parents=(-1,)),
        "one parent per token",
    ),
    "q missing": (
        lambda _: Draft(tokens=torch.tensor([3]), parents=(-1,), kind="sampled"),
        "needs q",
    ),
    "q no law": (lambda _: Draft.chain([3], torch.full((1, 64), 0.5)), "must sum to 1"),
    "q of another vocabulary": (
        lambda _: Draft.chain([3], torch.full((1, 8), 0.125)),
        r"got \(1, 8\) for 1 nodes and 64 symbols",
    ),
    "too long": (lambda _: Draft.chain([3] * 60), "exceeds the budget"),
    "not a draft": (lambda _: [3, 4], "returns a Draft per request: got list"),
    "nothing": (lambda _: None, "returns a Draft per request: got NoneType"),
}


@pytest.mark.parametrize("name", BAD_DRAFTS)
@pytest.mark.parametrize("verifier", ["coupled", "rejection"])
def test_a_drafter_that_breaks_its_contract_is_set_aside(name: str, verifier: str) -> None:
    """One warning with the reason, a note in the report, and the output of plain decoding."""
    propose, message = BAD_DRAFTS[name]
    settings: dict[str, Any] = {"sampling": GREEDY, "max_new_tokens": 10, "verifier": verifier}
    with pytest.warns(DrafterWarning, match=message) as warned:
        found = zoo.generator("llama").generate(PROMPT, drafter=ScriptedDrafter(propose), **settings)
    assert found.tokens.tolist() == zoo.plain_generate("llama", max_new_tokens=10)
    assert len(warned) == 1 and found.report.drafter_failures == 1
    assert found.report.notes[0].startswith("drafter set aside")


def test_a_row_whose_drafter_fails_does_not_disturb_the_others() -> None:
    """In a batch with two drafters, one of them broken, the other goes on drafting."""
    good = DraftModel(zoo.shared("llama"))
    settings: dict[str, Any] = {"sampling": GREEDY, "max_new_tokens": 10}
    with pytest.warns(DrafterWarning, match="no idea"):
        found = zoo.generator("llama").generate(
            [PROMPT, PROMPT], drafter=[ScriptedDrafter(_raises), good], **settings
        )
    plain = zoo.plain_generate("llama", max_new_tokens=10)
    assert [one.tokens.tolist() for one in found] == [plain, plain]
    assert [one.report.drafter_failures for one in found] == [1, 0]
    assert found[1].report.acceptance_rate == 1


@pytest.mark.parametrize("drafter", [None, "prompt_lookup"])
def test_ctrl_c_returns_what_was_generated(drafter: Any) -> None:
    """The interrupted row says so and keeps its symbols."""

    def interrupt(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] >= len(PROMPT) + 5:
            raise KeyboardInterrupt
        return scores

    result = zoo.generator("llama").generate(
        PROMPT, drafter=drafter, sampling=GREEDY, logits_processor=[interrupt], max_new_tokens=30
    )
    assert result.finish_reason == "interrupted"
    made = result.tokens.tolist()
    assert 0 < len(made) <= 5 and made == zoo.plain_generate("llama", max_new_tokens=5)[: len(made)]


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory"), MemoryError()],
)
def test_out_of_memory_names_what_was_being_allocated(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of which layer, how much, and what to lower."""

    class _Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def zeros(self, *_: Any, **__: Any) -> Any:
            raise error

    generator = ms.load(model=zoo.shared("llama"))
    monkeypatch.setattr(cache_module, "torch", _Torch())
    with pytest.raises(OutOfMemoryError, match=r"cache of layer 0: .* MiB of shape .* Lower max_new_tokens"):
        generator.generate(PROMPT, max_new_tokens=5)


def test_out_of_memory_inside_a_pass_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that runs out in the middle of a pass keeps what was made."""
    model = ScriptedModel([2, 3, 4, 5])
    after = model.after

    def exhausted(prefix: Any, length: int) -> Any:
        if len(prefix) > 4:
            raise torch.OutOfMemoryError("no memory")
        return after(prefix, length)

    model.after = exhausted
    with pytest.raises(OutOfMemoryError, match="over 1 symbols") as caught:
        ms.Generator(model).generate([1], drafter=None, max_new_tokens=9)
    assert caught.value.partial[0].tokens.tolist() == [2, 3, 4, 5]


def test_an_error_of_ours_is_one_tree() -> None:
    """Everything above is a MultispecError, and the kinds that Python has are kept."""
    assert issubclass(UsageError, ms.MultispecError) and issubclass(UsageError, ValueError)
    assert issubclass(ModelLoadError, OSError)
    assert issubclass(GenerationError, RuntimeError)
    assert Rejection().exactness == "law"
