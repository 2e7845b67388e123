"""The exception tree, and messages that name the rule, what was got and what to do."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from multispec import errors
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import (
    DraftError,
    DrafterWarning,
    GenerationError,
    IncompatibleModelsError,
    InvalidLogitsError,
    MethodWarning,
    ModelLoadError,
    MultispecError,
    OutOfMemoryError,
    OutputError,
    OutputWarning,
    PromptError,
    SamplingError,
    UnknownNameError,
    UnsupportedError,
    UsageError,
)
from multispec.generator import Generator
from multispec.history import History
from multispec.processing import Pipeline, Places
from multispec.sampling import MAX_SEED, Sampling
from multispec.stream import Draft, Prompt
from multispec.targets.causal import CausalRunner
from multispec.targets.rowwise import RowwiseSession
from multispec.testing import FakeModel, TableModel, play, row

TREE: dict[type[BaseException], tuple[type[BaseException], ...]] = {
    UsageError: (MultispecError, ValueError),
    UnknownNameError: (UsageError,),
    SamplingError: (UsageError,),
    PromptError: (UsageError,),
    IncompatibleModelsError: (UsageError,),
    DraftError: (UsageError,),
    ModelLoadError: (MultispecError, OSError),
    UnsupportedError: (MultispecError,),
    OutputError: (MultispecError, OSError),
    GenerationError: (MultispecError, RuntimeError),
    InvalidLogitsError: (GenerationError,),
    OutOfMemoryError: (GenerationError,),
    DrafterWarning: (UserWarning,),
    OutputWarning: (UserWarning,),
    MethodWarning: (UserWarning,),
}


@pytest.mark.parametrize("kind", TREE)
def test_the_tree_is_the_one_drawn(kind: type[BaseException]) -> None:
    assert kind.__bases__ == TREE[kind]
    assert kind.__doc__


def test_the_drawing_is_complete() -> None:
    """Every exception of the module stands in its docstring."""
    named = set(re.findall(r"\b[A-Z]\w+(?:Error|Warning)\b", errors.__doc__ or ""))
    public = {name for name in vars(errors) if name.endswith(("Error", "Warning"))}
    assert public <= named


def test_unknown_names_offer_the_nearest() -> None:
    error = UnknownNameError("drafter", "promt_lookup", ["prompt_lookup", "draft_model"])
    assert "Did you mean 'prompt_lookup'? Known: draft_model, prompt_lookup." in str(error)
    assert "Did you mean" not in str(UnknownNameError("drafter", "zzz", ["prompt_lookup"]))


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, r"temperature must be >= 0: got -0.1. 0 is greedy"),
    ({"temperature": float("nan")}, "temperature must be >= 0: got nan"),
    ({"temperature": float("inf")}, "temperature must be >= 0: got inf"),
    ({"top_k": -1}, "top_k must be >= 0: got -1. Use 0"),
    ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]: got 0.0"),
    ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]: got 1.5"),
    ({"min_p": -0.5}, r"min_p must lie in \[0, 1\]: got -0.5"),
    ({"min_p": 1.5}, r"min_p must lie in \[0, 1\]: got 1.5"),
    ({"typical_p": 0.0}, r"typical_p must lie in \(0, 1\]: got 0.0"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be > 0: got 0.0"),
    ({"seed": -1}, r"seed must lie in \[0, 2\*\*63\): got -1"),
    ({"seed": MAX_SEED + 1}, r"seed must lie in \[0, 2\*\*63\)"),
    ({"sample": -1}, r"sample must lie in \[0, 2\*\*31\): got -1"),
    ({"sample": 2**31}, r"sample must lie in \[0, 2\*\*31\)"),
    ({"min_new_tokens": -1}, "min_new_tokens must be >= 0: got -1"),
    ({"bad_words": [[1], []]}, "a bad word needs ids"),
    ({"allowed_ids": []}, "allowed_ids must leave a symbol"),
]


@pytest.mark.parametrize(("asked", "message"), SETTINGS)
def test_sampling_says_which_setting_is_wrong(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message):
        Sampling(**asked)


def test_settings_at_their_bounds_are_fine() -> None:
    Sampling(temperature=0, top_p=1, min_p=1, typical_p=1, seed=MAX_SEED, sample=2**31 - 1)


def test_drafters_say_what_they_need() -> None:
    with pytest.raises(UsageError, match="num_draft_tokens must be >= 1: got 0"):
        DraftModel(TableModel(), 0)
    with pytest.raises(UsageError, match="min_ngram <= max_ngram"):
        PromptLookup(max_ngram=2, min_ngram=3)


def test_a_tree_for_a_model_that_takes_chains() -> None:
    runner = CausalRunner(SimpleNamespace(forward=lambda input_ids, past_key_values: None))
    session = RowwiseSession(runner, [Prompt(ids=torch.tensor([1]))])
    tree = Draft(tokens=torch.tensor([1, 2]), parents=(-1, -1))
    with pytest.raises(UnsupportedError, match="Use a drafter that drafts chains"):
        session.score([0], [1], [tree])


def failing(raised: Exception) -> FakeModel:
    """A model whose second pass fails."""

    def after(ids: Sequence[int], prompt_length: int) -> Tensor:
        if len(ids) > prompt_length:
            raise raised
        return torch.zeros(12, dtype=torch.float64)

    return FakeModel(after, TableModel().spec)


@pytest.mark.parametrize(
    "raised",
    [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory: 9")],
)
def test_out_of_memory_names_what_was_computed(raised: Exception) -> None:
    """And carries what was made before."""
    generator = Generator(failing(raised))
    message = "No memory left for a pass .*over 1 symbols: .*Lower the batch"
    with pytest.raises(OutOfMemoryError, match=message) as caught:
        generator.generate([1], drafter=None, max_new_tokens=4)
    assert [len(one.tokens) for one in caught.value.partial] == [1]


@pytest.mark.parametrize("raised", [RuntimeError("shapes differ"), UsageError("wrong"), KeyError("x")])
def test_other_errors_pass_through_the_loop(raised: Exception) -> None:
    with pytest.raises(type(raised)) as caught:
        play(failing(raised), row())
    assert caught.value is raised


def test_partial_starts_empty() -> None:
    assert GenerationError("half-way").partial == []


def test_a_drafter_warning_can_be_silenced_by_its_class() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DrafterWarning)
        warnings.warn("set aside", DrafterWarning, stacklevel=1)


def test_culprit_of_nothing_in_particular() -> None:
    """A place that is fine after every rule blames them together."""
    places = Places(History([1]), ((),))
    assert Pipeline(Sampling(), 3).culprit(torch.zeros(1, 3), places, 0) == "the rules together"
