"""ZipAR: the schedule of its authors, a meter that matches enumeration, and exact verifiers untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from multispec.drafters.jacobi import Jacobi
from multispec.drafters.zipar import ZipAR
from multispec.errors import DraftError, UnsupportedError, UsageError
from multispec.protocols import Standing
from multispec.sampling import CounterNoise, Law, Noise, Sampling
from multispec.stream import Draft, Generation, Prompt
from multispec.testing import FakeModel, TableModel, enumerate_law, play, row
from multispec.verifiers import Coupled, Rejection
from multispec.verifiers.zipar import ZipARVerifier
from tests.core.pictures import RowEnds, Uneven, random_picture, raster, smooth_picture

pytestmark = pytest.mark.usefixtures("unchecked")


def drawn(model: FakeModel, length: int, window: int = 1, **changes: Any) -> Generation:
    settings: dict[str, Any] = {
        "drafter": ZipAR(window),
        "verifier": ZipARVerifier(),
        "max_new_tokens": length,
    }
    return play(model, row(**(settings | changes)))[0]


def plain(model: FakeModel, length: int, **changes: Any) -> list[int]:
    found: list[int] = play(model, row(max_new_tokens=length, **changes))[0].tokens.tolist()
    return found


# ---- the schedule ----


@pytest.mark.parametrize("window", [1, 2, 3, 5, 8])
def test_the_number_of_passes_is_that_of_the_paper(window: int) -> None:
    """W + window (H - 1), the pass over the prompt among them."""
    width, height = 8, 6
    found = drawn(random_picture(raster(4, width)), width * height, window)
    assert found.report.target_calls == width + window * (height - 1)
    assert len(found.tokens) == width * height and not found.report.drafter_failures


def test_row_ends_cost_no_pass() -> None:
    """A forced symbol is decided as soon as the one before it, and spends nothing."""
    width, height = 6, 4
    model = random_picture(raster(4, width, ends=True))
    found = drawn(model, (width + 1) * height, window=2)
    assert found.tokens.tolist()[width :: width + 1] == [4] * height
    assert found.report.target_calls <= width + 1 + 2 * (height - 1)
    assert found.report.forced == height


@pytest.mark.parametrize("header", [1, 2, 5])
def test_a_header_is_no_row(header: int) -> None:
    """Symbols forced before the picture move its rows: as many passes, and the same neighbours."""
    width, height = 6, 4
    spec = replace(raster(4, width, ends=True), grammar=RowEnds(4, width, header))
    found = drawn(random_picture(spec), header + (width + 1) * height, window=2)
    assert found.tokens.tolist()[:header] == [4] * header
    assert found.tokens.tolist()[header + width :: width + 1] == [4] * height
    assert found.report.target_calls <= 1 + width + 1 + 2 * (height - 1)


@pytest.mark.parametrize("window", [8, 30])
def test_rows_that_wait_for_each_other_are_plain_decoding(window: int) -> None:
    """With a window of a whole row nothing is provisional: the seed's own symbols, nothing spent."""
    model = random_picture(raster(5, 8))
    found = drawn(model, 40, window, sampling=Sampling(seed=4))
    assert found.tokens.tolist() == plain(model, 40, sampling=Sampling(seed=4))
    assert found.report.variation_spent == 0
    assert found.report.target_calls == 40


def test_a_short_chain_makes_rows_wait() -> None:
    """Rows beyond the budget begin later; the picture is complete and the meter runs all the same."""
    model = random_picture(raster(5, 8))
    passes = [
        drawn(model, 48, drafter=ZipAR(1, num_draft_tokens=nodes)).report.target_calls
        for nodes in (4, 12, 60)
    ]
    assert passes[0] > passes[1] > passes[2] == 8 + 5
    uneven = drawn(model, 48, policy=Uneven((9, 0, 30, 4)))
    assert len(uneven.tokens) == 48 and not uneven.report.drafter_failures


def test_pictures_of_different_sizes_share_a_batch() -> None:
    """Each row has the grid of its own prompt, and its neighbours change nothing."""
    model = random_picture(raster(5, 8))
    sizes = ((8, 24), (4, 24), (6, 18))
    rows = []
    for n, (width, length) in enumerate(sizes):
        asked = row(drafter=ZipAR(2), verifier=ZipARVerifier(), max_new_tokens=length)
        prompt = Prompt(ids=torch.tensor([1]), spec=raster(5, width))
        rows.append(replace(asked, prompt=prompt, sampling=Sampling(seed=n)))
    together = play(model, *rows)
    alone = [play(model, one)[0] for one in rows]
    assert [one.tokens.tolist() for one in together] == [one.tokens.tolist() for one in alone]
    calls = [one.report.target_calls for one in together]
    assert calls == [width + 2 * (length // width - 1) for width, length in sizes]


def test_nothing_is_spent_where_only_neighbours_matter() -> None:
    """A field whose laws look left and up has all it looks at decided: plain decoding in fewer passes."""
    model = smooth_picture()
    found = drawn(model, 256, window=2)
    assert found.tokens.tolist() == plain(model, 256)
    assert found.report.target_calls == 16 + 2 * 15
    assert found.report.variation_spent == pytest.approx(0, abs=1e-9)


# ---- the meter ----


@pytest.mark.parametrize(("codes", "width", "height"), [(3, 2, 2), (2, 3, 2), (2, 2, 3)])
def test_the_meter_equals_enumeration(codes: int, width: int, height: int) -> None:
    """What is reported, on average, is the total variation between the output's laws and the target's."""
    model = random_picture(raster(codes, width), seed=codes)
    length = width * height

    def run(noise: Noise) -> tuple[tuple[int, ...], float]:
        found = drawn(model, length, noise=noise)
        return tuple(found.tokens.tolist()), found.report.variation_spent

    law = enumerate_law(run)
    joint = {tokens: mass for (tokens, _), mass in law.items()}
    assert len(joint) == len(law) == codes**length
    assert sum(joint.values()) == pytest.approx(1, abs=1e-9)
    reported = sum(mass * spent for (_, spent), mass in law.items())
    assert reported == pytest.approx(variation(model, joint, codes), abs=1e-9)
    assert reported > 0.01


def variation(model: FakeModel, joint: dict[tuple[int, ...], float], codes: int) -> float:
    """The mean over all prefixes of TV(law of the output's next symbol, law of the target's)."""
    total = 0.0
    for length in range(len(next(iter(joint)))):
        prefixes: dict[tuple[int, ...], list[float]] = {}
        for tokens, mass in joint.items():
            prefixes.setdefault(tokens[:length], [0.0] * codes)[tokens[length]] += mass
        for prefix, found in prefixes.items():
            p = model.after([1, *prefix], 1).softmax(-1).tolist()
            total += sum(abs(o - sum(found) * one) for o, one in zip(found, p, strict=True)) / 2
    return total


def test_point_masses_spend_what_p_leaves_out() -> None:
    """Settled symbols without a law: TV(one-hot, p) is 1 - p(x)."""
    p = Law(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]).double().log(), greedy=False)
    draft = replace(Draft.chain([1, 1]), settled=2).check(3)
    verdict = ZipARVerifier().verify(draft, p, CounterNoise(0), Standing(5))
    assert verdict.path == (0, 1) and verdict.tokens[:2] == (1, 1)
    assert verdict.spent == pytest.approx((0.75, 0.2, 0.0))
    assert verdict.tokens[2] == int(CounterNoise(0).symbols(p.at(2), [7]))


# ---- beside other parts ----


def test_the_verifier_alone_is_plain_decoding() -> None:
    """Drafts of other drafters have nothing settled."""
    model = random_picture(raster(5, 8))
    found = drawn(model, 30, drafter=Jacobi(8))
    assert found.tokens.tolist() == plain(model, 30)
    assert found.report.target_calls == 30 and found.report.variation_spent == 0


@pytest.mark.parametrize("ends", [False, True])
def test_exact_verifiers_stay_exact(ends: bool) -> None:
    """Under ``coupled`` it is a drafter like any other; under ``rejection`` it drafts with its q."""
    model = random_picture(raster(5, 4, ends=ends))
    for seed in range(6):
        settings: dict[str, Any] = {"sampling": Sampling(seed=seed, top_k=3)}
        found = drawn(model, 24, verifier=Coupled(), **settings)
        assert found.tokens.tolist() == plain(model, 24, **settings)
        tested = drawn(model, 24, verifier=Rejection(), **settings)
        assert tested.report.variation_spent == 0 and not tested.report.drafter_failures
        assert tested.report.accepted > 0


def test_streams_without_rows_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="without row_length"):
        drawn(TableModel(5), 8)


def test_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="window >= 1"):
        ZipAR(window=0)
    with pytest.raises(UsageError, match="at least one symbol"):
        ZipAR(num_draft_tokens=0)


@pytest.mark.parametrize(("parents", "settled"), [((-1, 0), 3), ((-1, 0), -1), ((-1, -1), 1)])
def test_settled_counts_the_front_of_a_chain(parents: Sequence[int], settled: int) -> None:
    draft = Draft(tokens=torch.tensor([1, 2]), parents=tuple(parents), settled=settled)
    with pytest.raises(DraftError, match="front of a chain"):
        draft.check(5)
