"""PLD+: exact, and of several matches the one that looks alike to the target."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from multispec.drafters import PLDPlus
from multispec.errors import UnsupportedError, UsageError
from multispec.sampling import Noise
from multispec.stream import Draft
from multispec.testing import TableModel, enumerate_law, play, row
from multispec.verifiers import Rejection
from tests.models.test_self_speculation import asked, joint, model, opened, plainly, rows, target, tiny


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    """Sessions run where the loop runs them."""
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_symbols(family: str) -> None:
    """Coupled, ragged rows, greedy and sampled: those of plain decoding."""
    found = play(target(family), *(row(drafter=PLDPlus(num_draft_tokens=4), **one) for one in rows()))
    assert [one.tokens.tolist() for one in found] == plainly(family)
    assert not any(one.report.drafter_failures for one in found)
    assert sum(one.report.drafted for one in found) > 10


def test_rejection_gives_the_law_of_the_target() -> None:
    """Every draw explored, through the real loop: the target's joint law to 1e-9."""

    def run(noise: Noise) -> tuple[int, ...]:
        settings = {"drafter": PLDPlus(num_draft_tokens=2), "verifier": Rejection()}
        return tuple(
            play(tiny(), row((1, 0, 2), noise=noise, max_new_tokens=2, **settings))[0].tokens.tolist()
        )

    found = enumerate_law(run, horizon=2)
    assert max(abs(found[pair] - joint()[pair]) for pair in found) < 1e-9


def test_the_likest_place_is_copied_from() -> None:
    """By the values of one layer, from the model's own cache; of every other match another draft."""
    ids, layer = (5, 3, 9, 7, 3, 11, 2, 3, 4, 6), 2
    whole = model("llama")(input_ids=torch.tensor([ids]), use_cache=True).past_key_values
    v = whole.layers[layer].values[0].transpose(0, 1).flatten(1)
    likest = max((1, 4, 7), key=lambda j: float(F.cosine_similarity(v[j - 1], v[len(ids) - 1], dim=0)))
    _, context = opened("llama", ids)
    (draft,) = PLDPlus(layer=layer).begin(context).propose([asked(ids, (3,), nodes=2)])
    assert draft.ids == list(ids[likest + 1 : likest + 3])


def propose(ids: tuple[int, ...], last: int) -> Draft:
    _, context = opened("llama", ids)
    return PLDPlus().begin(context).propose([asked(ids, (last,), nodes=3)])[0]


def test_one_match_none_and_a_period() -> None:
    """What runs into the end goes on into its own copy; the first symbol has nothing before it."""
    assert propose((5, 3, 9, 7), 3).ids == [9, 7, 3]
    assert propose((5, 9, 7, 3), 3).ids == [3, 3, 3]
    assert propose((3, 9, 7), 3).ids == propose((5, 9, 7), 3).ids == []


def test_what_cannot_be_is_refused() -> None:
    """Layers that are not there, nothing to compare, a target without a cache that can be read."""
    with pytest.raises(UsageError, match="layers 0 to 3"):
        play(target("llama"), row((1, 2), drafter=PLDPlus(layer=4)))
    with pytest.raises(UsageError, match="candidates >= 1"):
        PLDPlus(candidates=0)
    with pytest.raises(UsageError, match="layer >= 0"):
        PLDPlus(layer=-1)
    with pytest.raises(UnsupportedError, match="pld_plus drafts in the target's key/value cache"):
        play(TableModel(24), row(drafter=PLDPlus()))
