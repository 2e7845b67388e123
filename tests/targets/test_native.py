"""Passes in C: the model's own logits, and the same bits however symbols are put together."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters import DraftModel, PromptLookup
from multispec.errors import UnsupportedError
from multispec.generator import Generator
from multispec.stream import Draft, Prompt
from multispec.targets import CausalTarget, native
from multispec.targets.causal import attention_of, disagreement
from multispec.targets.fused import FusedForward
from multispec.targets.native import MOST_COLUMNS, NativeForward
from multispec.targets.views import Sublayers
from tests.models import zoo

pytestmark = [
    pytest.mark.usefixtures("unchecked"),
    pytest.mark.skipif(native.compiler() is None, reason="no C compiler"),
]
FAMILIES = ("llama", "mistral", "qwen3")
IDS = [3, 5, 7, 2, 9, 4]


def _target(family: str = "llama", seed: int = 0, **words: Any) -> CausalTarget:
    found = CausalTarget(zoo.build(family, seed, **words), owned=True)
    assert found.way == "NativeForward", found.capabilities.why
    return found


def _forward(target: CausalTarget) -> NativeForward:
    found = target._forward
    assert isinstance(found, NativeForward)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_models_own(family: str) -> None:
    """Ragged rows and trees, within a rounding."""
    target = _target(family)
    assert disagreement(target.model, _forward(target)) is None
    prompt, ids = torch.tensor(IDS), torch.tensor([IDS + [1, 2, 6]])
    with torch.inference_mode():
        session = target.begin([Prompt(ids=prompt)], [32], 4)
        session.prefill()
        found = session.score([0], [1], [Draft.chain([2, 6])]).logits[0]
        expected = target.model(ids).logits[0, len(IDS) :]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_bits_do_not_depend_on_what_stands_beside(family: str) -> None:
    """One by one, as a chain, as a branch of a tree, and in a batch of ragged rows: equal to the last bit."""
    target = _target(family)
    path = [1, 2, 6, 8, 3]
    alone = target.begin([Prompt(ids=torch.tensor(IDS))], [48], 16)
    alone.prefill()
    one_by_one = torch.cat([alone.extend([0], [token])[0] for token in path])
    chain = target.begin([Prompt(ids=torch.tensor(IDS))], [48], 16)
    chain.prefill()
    assert torch.equal(chain.score([0], path[:1], [Draft.chain(path[1:])]).logits[0], one_by_one)
    tree = Draft(tokens=torch.tensor([9, 2, 6, 4, 8, 3]), parents=(-1, -1, 1, 1, 2, 4))
    behind = target.begin([Prompt(ids=torch.tensor(IDS))], [48], 16)
    behind.prefill()
    found = behind.score([0], path[:1], [tree]).logits[0]
    assert torch.equal(found[[0, 2, 3, 5, 6]], one_by_one)
    behind.commit([0], [(1, 2, 4, 5)])
    assert torch.equal(behind.extend([0], [5])[0], alone.extend([0], [5])[0])
    others = [Prompt(ids=torch.tensor(ids)) for ids in ([4, 4], IDS, [*IDS, 1, 1])]
    batch = target.begin(others, [48] * 3, 16)
    batch.prefill()
    drafts = [Draft.chain([7] * 9), Draft.chain(path[1:]), Draft.empty()]
    row = batch.score([0, 1, 2], [2, path[0], 3], drafts).logits[1]
    torch.testing.assert_close(row[: len(path)], one_by_one, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_two_threads_give_the_same_bits() -> None:
    """Each sum belongs to one of them."""
    target = _target(hidden_size=512, intermediate_size=512)
    found = []
    before = torch.get_num_threads()
    for threads in (1, 2):
        session = target.begin([Prompt(ids=torch.tensor(IDS))], [32], 4)
        session.prefill()  # by the library, which divides sums otherwise
        torch.set_num_threads(threads)
        found.append(session.score([0], [1], [Draft.chain([2, 6, 8])]).logits[0])
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_bfloat16_is_taken_where_it_loses_nothing() -> None:
    """Weights that are bfloat16 numbers already; the logits stay the same."""
    plain = zoo.build("llama", 0)
    rounded = zoo.build("llama", 0).bfloat16().float()
    held = [CausalTarget(model, owned=True).capabilities.weights for model in (plain, rounded)]
    assert held[0].startswith("0 of") and not held[1].startswith("0 of")
    assert disagreement(rounded, _forward(CausalTarget(rounded, owned=True))) is None


@torch.inference_mode()
def test_sublayers_are_left_out_as_elsewhere() -> None:
    """The same logits as the fused way gives without them."""
    target = _target()
    skipped = Sublayers(attention=frozenset({0}), mlp=frozenset({1}))
    whole = _forward(target)
    prompts, found = [Prompt(ids=torch.tensor(IDS))], []
    for forward in (whole.without(skipped), whole.fused.without(skipped), whole):
        held = CausalTarget(target.model, owned=True)
        held._forward = forward
        session = held.begin(prompts, [32], 4)
        session.prefill()
        found.append(session.score([0], [1], [Draft.chain([2, 6])]).logits[0])
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@torch.inference_mode()
def test_large_passes_and_prompts_are_left_to_the_library() -> None:
    """More columns than are worth it."""
    target = _target()
    session = target.begin([Prompt(ids=torch.tensor(IDS))], [256], 100)
    session.prefill()
    many = [n % 20 for n in range(MOST_COLUMNS + 8)]
    found = session.score([0], [1], [Draft.chain(many)]).logits[0]
    ids = torch.tensor([[*IDS, 1, *many]])
    torch.testing.assert_close(found, target.model(ids).logits[0, len(IDS) :], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_every_way_to_draft_says_the_same(temperature: float) -> None:
    """Chains, trees, batches, self-speculation: the tokens of plain decoding and of the slow way."""
    draft = _target(seed=1)
    generator = Generator(_target(), draft=draft)
    slow = Generator(CausalTarget(zoo.build("llama", 0), fast="off"))
    prompts = [IDS, IDS[:2], [*IDS, *IDS]]
    sampling = [ms.Sampling(temperature=temperature, seed=n) for n in range(3)]
    words: dict[str, Any] = {"max_new_tokens": 16, "sampling": sampling, "policy": "fixed"}
    expected = [one.tokens.tolist() for one in slow.generate(prompts, drafter=None, **words)]
    for drafter in (None, DraftModel(draft), PromptLookup(), "skip_layers", "early_exit", "jacobi"):
        found = generator.generate(prompts, drafter=drafter, **words)
        assert [one.tokens.tolist() for one in found] == expected, drafter
    words["drafter"] = DraftModel(draft, structure="eagle2")
    for prompt, law, tokens in zip(prompts, sampling, expected, strict=True):
        words["sampling"] = law
        assert generator.generate(prompt, **words).tokens.tolist() == tokens


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache folder, and nothing that was compiled before."""
    monkeypatch.setattr(native, "cache_folder", lambda: tmp_path / "cache")
    native.library.cache_clear()
    yield tmp_path / "cache"
    native.library.cache_clear()


def test_without_a_compiler_it_is_the_fused_way(no_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reason is told."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = CausalTarget(zoo.build("llama", 0), owned=True)
    assert found.way == "FusedForward" and "No C compiler" in found.capabilities.why
    assert found.capabilities.supports_tree


def test_a_compiler_that_fails_is_told(
    no_library: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With what it said first; nothing is left behind."""
    cc = tmp_path / "broken"
    cc.write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 1\n")
    cc.chmod(0o755)
    monkeypatch.setenv("CC", str(cc))
    with pytest.raises(UnsupportedError, match="no such flag"):
        native.library()
    assert not list(no_library.glob("*"))


def test_what_is_damaged_is_compiled_anew(no_library: Path) -> None:
    """Half a file is replaced; what is whole is found."""
    kept = no_library / native._name()
    no_library.mkdir()
    kept.write_bytes(b"half of it")
    assert native.library() is not None
    made = kept.stat()
    assert made.st_size > 1000
    native.library.cache_clear()
    assert native.library() is not None and kept.stat().st_mtime_ns == made.st_mtime_ns


@torch.inference_mode()
def test_what_is_out_of_range_is_refused() -> None:
    """An id that the model does not know, and more symbols than the cache has room for."""
    target = _target()
    session = target.begin([Prompt(ids=torch.tensor(IDS))], [12], 2)
    session.prefill()
    with pytest.raises(IndexError, match="an id"):
        session.extend([0], [zoo.VOCABULARY])
    with pytest.raises(IndexError, match="a place"):
        session.score([0], [1], [Draft.chain([2] * 20)])


def test_models_that_it_cannot_run_are_refused() -> None:
    """Biases, other dtypes, sizes that do not fit its vectors."""
    wrong = [
        (zoo.build("llama", 0, attention_bias=True), "biases"),
        (zoo.build("llama", 0).double(), "float64"),
        (zoo.build("llama", 0, intermediate_size=44), "multiples"),
    ]
    for model, why in wrong:
        with pytest.raises(UnsupportedError, match=why):
            NativeForward(FusedForward(model, attention_of(model)))
        assert CausalTarget(model, owned=True).way == "FusedForward"
