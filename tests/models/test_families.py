"""Twenty-three families: the same symbols as transformers' generate, whatever drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters import DraftModel
from multispec.errors import DrafterWarning, UnsupportedError
from multispec.targets.rowwise import RowwiseSession
from multispec.tree import path_to
from tests.models import zoo

LENGTH = 12
TREE = ms.Draft(tokens=torch.tensor([1, 8, 9, 30, 2, 40]), parents=(-1, -1, 1, 2, 1, 0))


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Sessions run where the loop runs them."""
    with torch.inference_mode():
        yield


def _generate(name: str, ids: Sequence[int] = zoo.IDS, **settings: Any) -> ms.Generation:
    settings = {"max_new_tokens": LENGTH, "drafter": None, **settings}
    result: ms.Generation = zoo.generator(name).generate(zoo.prompt(name, ids), **settings)
    return result


def _sampling(temperature: float) -> ms.Sampling:
    return ms.Sampling(temperature=temperature, seed=5)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_plain_decoding_is_transformers_greedy(name: str) -> None:
    """Without a drafter and at temperature 0, our target emits what ``model.generate`` emits."""
    found = _generate(name, sampling=_sampling(0)).tokens.tolist()
    assert found == zoo.plain_generate(name, max_new_tokens=LENGTH)
    assert len(found) == LENGTH
    assert len(set(found)) > 3, "a model that repeats itself tests nothing"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_drafting_changes_nothing(name: str, temperature: float) -> None:
    """The model itself, a stranger, and prompt lookup as drafters: the same symbols as plain decoding."""
    sampling = _sampling(temperature)
    plain = _generate(name, sampling=sampling).tokens.tolist()
    itself = _generate(name, sampling=sampling, drafter=DraftModel(zoo.shared(name)))
    stranger = _generate(name, sampling=sampling, drafter=DraftModel(zoo.shared(name, 1)))
    lookup = _generate(name, sampling=sampling, drafter="prompt_lookup")
    assert [run.tokens.tolist() for run in (itself, stranger, lookup)] == [plain] * 3
    assert itself.report.acceptance_rate == 1
    assert stranger.report.accepted < stranger.report.drafted


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_a_ragged_batch_is_each_row_alone(name: str) -> None:
    """Three prompts of different length together give what each gives alone."""
    rows = [zoo.IDS, zoo.IDS[:4], zoo.IDS[2:]]
    settings: dict[str, Any] = {"sampling": _sampling(0.9), "max_new_tokens": 10}
    together = zoo.generator(name).generate(
        [zoo.prompt(name, ids) for ids in rows],
        drafter=DraftModel(zoo.shared(name, 1), num_draft_tokens=3),
        **settings,
    )
    alone = [_generate(name, ids, **settings).tokens.tolist() for ids in rows]
    assert [row.tokens.tolist() for row in together] == alone


@pytest.mark.parametrize("name", zoo.SLIDING)
def test_generation_goes_beyond_the_sliding_window(name: str) -> None:
    """A prompt of three windows and six windows of output: still transformers' symbols."""
    ids = zoo.IDS * 2
    length = 6 * zoo.WINDOW
    drafter = DraftModel(zoo.shared(name, 1), num_draft_tokens=zoo.WINDOW + 2)
    settings: dict[str, Any] = {"max_new_tokens": length, "sampling": _sampling(0)}
    expected = zoo.plain_generate(name, ids, length)
    assert _generate(name, ids, **settings).tokens.tolist() == expected
    assert _generate(name, ids, drafter=drafter, **settings).tokens.tolist() == expected


@pytest.mark.parametrize("name", zoo.TREES)
def test_a_tree_is_scored_as_each_of_its_paths(name: str) -> None:
    """Each node of a tree gets the logits of a plain forward over the path that leads to it."""
    target = zoo.generator(name).target
    assert target.capabilities.supports_tree
    session = target.begin([zoo.prompt(name)], [32], len(TREE))
    session.prefill()
    found = session.score([0], [6], [TREE]).logits[0]
    for node in range(-1, len(TREE)):
        path = [int(TREE.tokens[step]) for step in path_to(TREE.parents, node)]
        expected = zoo.forward_last(name, [*zoo.IDS, 6, *path])
        torch.testing.assert_close(found[node + 1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", zoo.TREES)
def test_a_branch_is_kept_and_the_rest_forgotten(name: str) -> None:
    """After the third branch of a tree is committed, the cache holds that branch and nothing else."""
    session = zoo.generator(name).target.begin([zoo.prompt(name)], [32], len(TREE))
    session.prefill()
    session.score([0], [6], [TREE])
    session.commit([0], [(1, 2, 3)])
    assert session.length(0) == len(zoo.IDS) + 4
    found = session.score([0], [11], [ms.Draft.empty()]).logits[0][0]
    expected = zoo.forward_last(name, [*zoo.IDS, 6, 8, 9, 30, 11])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class _Branches:
    """A drafter that always drafts a tree."""

    name = "branches"
    num_draft_tokens = len(TREE)
    calls = 0

    def begin(self, context: Any) -> _Branches:
        return self

    def propose(self, requests: Sequence[Any]) -> list[ms.Draft]:
        return [TREE if request.budget.nodes >= len(TREE) else ms.Draft.empty() for request in requests]

    def observe(self, row: int, observation: Any) -> None: ...

    def end(self, rows: Sequence[int]) -> None: ...


@pytest.mark.parametrize("name", zoo.CHAINS)
def test_a_tree_is_refused_with_a_reason(name: str) -> None:
    """Where a model cannot score trees, the target says why, and a tree sets the drafter aside."""
    target = zoo.generator(name).target
    assert not target.capabilities.supports_tree
    assert len(target.capabilities.why) > 20
    session = target.begin([zoo.prompt(name)], [32], len(TREE))
    session.prefill()
    with pytest.raises(UnsupportedError, match="Use a drafter that drafts chains"):
        session.score([0], [6], [TREE])
    with pytest.warns(DrafterWarning, match="scores chains only"):
        drafted = _generate(name, drafter=_Branches(), sampling=_sampling(0))
    assert drafted.tokens.tolist() == _generate(name, sampling=_sampling(0)).tokens.tolist()


@pytest.mark.parametrize("name", zoo.TREES)
def test_a_tree_drafter_changes_nothing(name: str) -> None:
    """A drafter of trees, nearly always wrong, leaves the output as it is."""
    settings: dict[str, Any] = {"sampling": _sampling(0.9), "max_new_tokens": 10}
    drafted = _generate(name, drafter=_Branches(), **settings)
    assert drafted.report.drafted > 0 and not drafted.report.drafter_failures
    assert drafted.tokens.tolist() == _generate(name, **settings).tokens.tolist()


@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
@pytest.mark.parametrize("name", zoo.RECURRENT)
def test_partial_acceptance_restores_the_state(name: str, accepted: int) -> None:
    """A state that cannot be cropped is as if the rejected symbols had never been run."""
    session = zoo.generator(name).target.begin([zoo.prompt(name)], [32], 4)
    session.prefill()
    session.score([0], [6], [ms.Draft.chain([11, 12, 13])])
    session.commit([0], [tuple(range(accepted))])
    kept = [*zoo.IDS, 6, *[11, 12, 13][:accepted]]
    assert session.length(0) == len(kept)
    found = session.score([0], [20], [ms.Draft.chain([21])]).logits[0]
    for row, tail in zip(found, ([20], [20, 21]), strict=True):
        expected = zoo.forward_last(name, [*kept, *tail])
        torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", zoo.RECURRENT)
def test_a_run_of_rejections_keeps_passes_short(name: str) -> None:
    """What is replayed after rejections stays bounded, and the logits stay those of a plain pass."""
    session = zoo.generator(name).target.begin([zoo.prompt(name)], [64], 4)
    assert isinstance(session, RowwiseSession)
    session.prefill()
    ids = list(zoo.IDS)
    longest = passes = 0
    for step in range(24):
        root = (step * 7) % zoo.VOCABULARY
        passes += sum(session.score([0], [root], [ms.Draft.chain([1, 2, 3])]).calls)
        longest = max(longest, len(session._rows[0].fed))
        session.commit([0], [()])
        ids.append(root)  # pyright: ignore[reportArgumentType]
    # Short convolutions alone can be cropped, so nothing is ever replayed there.
    assert passes >= 26 if name != "lfm2" else passes == 24, "replays count as passes"
    assert longest <= 8 + 4, "leftovers up to the limit, the root and three drafts"
    found = session.score([0], [33], [ms.Draft.empty()]).logits[0][0]
    torch.testing.assert_close(found, zoo.forward_last(name, [*ids, 33]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "mamba", "lfm2", "bloom", "t5"])
def test_a_draft_session_goes_back_to_its_checkpoint_or_further(name: str) -> None:
    """``rewind`` ends at the length asked for, or at the checkpoint before it, and goes on from there."""
    session = zoo.generator(name).target.begin([zoo.prompt(name)], [32], 4)
    session.prefill()
    start = session.length(0)
    session.checkpoint(0)
    for token in (11, 12, 13):
        session.score([0], [token], [ms.Draft.empty()])
        session.commit([0], [()])
    where = session.rewind(0, start + 2)
    assert where == session.length(0) and where in (start, start + 2)
    rest = [11, 12, 20][where - start :]
    found = session.score([0], rest[:1], [ms.Draft.chain(rest[1:])]).logits[0][-1]
    fresh = zoo.generator(name).target.begin([zoo.prompt(name)], [32], 4)
    fresh.prefill()
    expected = fresh.score([0], [11], [ms.Draft.chain([12, 20])]).logits[0][-1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
