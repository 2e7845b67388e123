"""The parts of window drafters: starts, the maximal coupling, trees, what a window keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

import multispec as ms
from multispec.drafters.jacobi import Jacobi
from multispec.drafters.row_copy import RowCopy
from multispec.drafters.scd_mc import ScdMaximal, maximal_coupling
from multispec.drafters.sjd import SJD
from multispec.drafters.sjd_pac import SjdPac
from multispec.drafters.starts import Filled, Start, Tail
from multispec.drafters.window import upcoming
from multispec.errors import UnknownNameError, UsageError
from multispec.history import History
from multispec.processing import Pipeline
from multispec.protocols import Budget, Context, DraftSession, Request
from multispec.sampling import CounterNoise, Law, Sampling
from multispec.stream import Draft, Observation, Prompt, Slot, StreamSpec
from multispec.testing import FakeModel, TableModel, play, row
from multispec.tree import depths
from multispec.verifiers import Coupled, Rejection
from tests.core.pictures import random_picture, raster
from tests.models import zoo

CPU = torch.device("cpu")


def request(generated: Sequence[int], nodes: int = 6, **changes: Any) -> Request:
    history = History([0])
    history.extend(generated)
    settings: dict[str, Any] = {
        "row": 0,
        "history": history,
        "budget": Budget(nodes=nodes),
        "noise": CounterNoise(5),
        "pipeline": Pipeline(Sampling(), 9),
        "coupled": False,
    }
    return Request(**(settings | changes))


def filled(start: Start, spec: StreamSpec, generated: Sequence[int], count: int, **changes: Any) -> Filled:
    asked = request(generated, **changes)
    tail = Tail(start, spec, spec.vocab_size, CPU)
    return tail.fill(asked, [], count, lambda law, positions: asked.noise.symbols(law, positions))


# ---- starts ----


@pytest.mark.parametrize(
    ("start", "expected"),
    [("copy_above", [4, 5, 6, 4, 5]), ("copy_left", [6] * 5), ("repeat_last", [6] * 5)],
)
def test_copies_of_a_picture(start: Start, expected: list[int]) -> None:
    """Rows of three: the row above, over and over; the neighbour; the last symbol."""
    assert filled(start, raster(9, 3), [1, 2, 3, 4, 5, 6], 5).tokens == expected


@pytest.mark.parametrize("start", ["copy_above", "copy_left", "uniform", "random", "repeat_last"])
def test_forced_symbols_are_what_they_are(start: Start) -> None:
    """Rows of two, closed by symbol 5: copies of it are not allowed elsewhere, so nothing copies it."""
    found = filled(start, raster(5, 2, ends=True), [1, 2, 5, 3], 6)
    assert [found.tokens[i] for i in (1, 4)] == [5, 5]
    assert 5 not in [found.tokens[i] for i in (0, 2, 3, 5)]
    if start == "copy_above":
        assert found.tokens == [2, 5, 3, 2, 5, 3]


def test_frames_copy_their_own_codebook() -> None:
    """Three codebooks with ids of their own: above is the same one, a frame before."""
    spec = StreamSpec(slots=(Slot(size=3), Slot(size=3, offset=3), Slot(size=3, offset=6)))
    for start in ("copy_above", "copy_left", "repeat_last"):
        assert filled(start, spec, [1, 4, 8, 2], 5).tokens == [4, 8, 2, 4, 8]
    drawn = filled("uniform", spec, [1, 4, 8, 2], 6)
    assert [token // 3 for token in drawn.tokens] == [1, 2, 0, 1, 2, 0]


def test_uniform_is_uniform_and_says_so() -> None:
    """Draws spread over what is allowed, and q is 1 / n there and 0 elsewhere."""
    spec = raster(4, 3, ends=True)
    found = filled("uniform", spec, [1], 2000)
    drawn = [token for place, token in enumerate(found.tokens) if (place + 1) % 4 != 3]
    assert all(300 < drawn.count(code) < 450 for code in range(4))
    q = found.q(5, CPU)
    assert torch.allclose(q[0], torch.tensor([0.25] * 4 + [0.0]).double())
    assert q[2].tolist() == [0, 0, 0, 0, 1]  # the row end


def test_random_ids_are_point_masses() -> None:
    found = filled("random", raster(9, 3), [1], 50)
    assert len(set(found.tokens)) == 9
    ids = torch.tensor(found.tokens)
    assert torch.equal(found.q(9, CPU), torch.nn.functional.one_hot(ids, 9).double())


def test_nothing_to_copy_is_drawn() -> None:
    """The first symbol of a stream has no neighbours: uniform, with its q."""
    found = filled("copy_above", raster(4, 3), [], 3)
    assert found.drawn == [0] and len(found.tokens) == 3
    assert found.q(4, CPU)[0].tolist() == pytest.approx([0.25] * 4)


def test_unsure_starts_end_the_window() -> None:
    """A uniform law is an unsure one: the budget's confidence stops behind it."""
    assert len(filled("uniform", raster(9, 3), [1], 6, budget=Budget(6, confidence=0.5)).tokens) == 1
    assert len(filled("copy_left", raster(9, 3), [1], 6, budget=Budget(6, confidence=0.5)).tokens) == 6


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", [Jacobi, SJD, ScdMaximal, SjdPac])
def test_settings_are_checked(method: Any) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'copy_left'"):
        method(start="copy_lef")
    with pytest.raises(UsageError, match="at least one symbol"):
        method(num_draft_tokens=0)


def test_trees_are_checked() -> None:
    for width, depth in ((0, 2), (4, 0), (300, 2)):
        with pytest.raises(UsageError, match="A tree needs"):
            SjdPac(width=width, depth=depth)
    with pytest.raises(UsageError, match="row_copy needs a window"):
        RowCopy(num_draft_tokens=0)


# ---- the maximal coupling ----


def test_the_coupling_is_maximal_and_has_the_law() -> None:
    """Sum over x ~ q: the law of y is p, and y = x with 1 - TV; also where laws are equal or disjoint."""
    torch.manual_seed(0)
    p, q = (torch.rand(50, 6).double().pow(3) for _ in range(2))
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    q[0] = p[0]
    p[1], q[1] = torch.tensor([0.5, 0.5, 0, 0, 0, 0]), torch.tensor([0, 0, 0.2, 0.8, 0, 0])
    q[2] = torch.tensor([0, 0, 1.0, 0, 0, 0])
    law, kept = torch.zeros_like(p), torch.zeros(50).double()
    for x in range(6):
        given = maximal_coupling(p, q.clamp(min=1e-300), torch.full((50,), x))
        law += q[:, x, None] * given
        kept += q[:, x] * given[:, x]
    assert torch.allclose(law, p, atol=1e-12)
    assert torch.allclose(kept, torch.minimum(p, q).sum(-1), atol=1e-12)


# ---- what a window keeps ----


def test_laws_of_a_chain_and_of_a_tree() -> None:
    """Behind the last accepted node, first child by first child; behind that, the root's own line."""
    chain = Draft.chain([1, 2, 3, 4])
    assert upcoming(chain, ()) == [0, 1, 2, 3]
    assert upcoming(chain, (0, 1)) == [2, 3]
    assert upcoming(chain, (0, 1, 2, 3)) == []
    # Two siblings, two children each, and a chain behind the first leaf.
    tree = Draft(tokens=torch.arange(8), parents=(-1, -1, 0, 0, 1, 1, 2, 6))
    assert upcoming(tree, ()) == [0, 2, 6, 7]
    assert upcoming(tree, (0,)) == [2, 6, 7]
    assert upcoming(tree, (1,)) == [4, 6, 7]
    assert upcoming(tree, (1, 5)) == [6, 7]
    assert upcoming(tree, (0, 2, 6, 7)) == []


def session(drafter: Any, spec: StreamSpec) -> DraftSession:
    prompts, specs = {0: Prompt(ids=torch.tensor([0]))}, {0: spec}
    found: DraftSession = drafter.begin(
        Context(prompts=prompts, capacity={0: 99}, vocab_size=spec.vocab_size, device=CPU, specs=specs)
    )
    return found


def observed(draft: Draft, scores: torch.Tensor, start: int, path: tuple[int, ...] = ()) -> Observation:
    emitted = (*(draft.ids[node] for node in path), 0)
    law = Law(scores, greedy=False)
    return Observation(draft=draft, path=path, emitted=emitted, logits=scores, law=law, start=start)


def test_the_window_is_drawn_from_the_last_pass() -> None:
    """Kept laws come first and are on record as q; the tail follows."""
    drafting, spec = session(SJD(4), raster(9, 3)), raster(9, 3)
    assert spec.vocab_size == 9
    draft = Draft.chain([1, 2, 3, 4], torch.full((4, 9), 1 / 9).double())
    scores = torch.randn(5, 9, generator=torch.Generator().manual_seed(1)).double()
    drafting.observe(0, observed(draft, scores, start=4, path=(0,)))
    found = drafting.propose([request([1] * 6)])[0].check(9)
    assert found.kind == "sampled" and found.q is not None and len(found) == 6
    assert torch.allclose(found.q[:3], scores[2:].softmax(-1))
    assert found.q[3:].amax(-1).tolist() == [1, 1, 1]


def test_places_without_a_law_are_filled() -> None:
    """A prefix that cannot be gives NaN or nothing: from there on the window starts anew."""
    drafting = session(ScdMaximal(4), raster(9, 3))
    scores = torch.zeros(5, 9).double()
    scores[2], scores[4, 3] = -torch.inf, torch.nan
    drafting.observe(0, observed(Draft.chain([1, 2, 3, 4]), scores, start=4))
    found = drafting.propose([request([7] * 5)])[0].check(9)
    assert found.q is not None
    assert found.q[0].tolist() == pytest.approx([1 / 9] * 9)
    assert found.q[1:].amax(-1).tolist() == [1] * 5


@pytest.mark.parametrize("coupled", [False, True])
def test_a_tree_of_siblings_and_a_chain(coupled: bool) -> None:
    """Width 3, depth 2: siblings differ, all nodes of a depth share children, one chain goes on."""
    drafting = session(SjdPac(20, width=3, depth=2), raster(9, 3))
    scores = torch.randn(8, 9, generator=torch.Generator().manual_seed(1)).double()
    scores[3] = torch.tensor([0.0, 1.0] + [-torch.inf] * 7)  # only two symbols for the second place
    drafting.observe(0, observed(Draft.chain([1] * 7), scores, start=4, path=(0,)))
    asked = request([7] * 6, nodes=20, coupled=coupled)
    found = drafting.propose([asked])[0].check(9)
    levels = [[n for n, d in enumerate(depths(found.parents)) if d == depth] for depth in (1, 2, 3)]
    assert [len(level) for level in levels] == [3, 6, 1] and len(found) == 20
    tokens = [[found.ids[n] for n in level] for level in levels]
    assert len({*tokens[0]}) == 3
    assert tokens[1] == tokens[1][:2] * 3 and {*tokens[1]} == {0, 1}
    assert found.kind == ("point" if coupled else "without_replacement")
    best = int(asked.noise.symbols(Law(scores[2:3], greedy=False), [6]))
    assert not coupled or found.ids[0] == best


def test_levels_that_do_not_fit_are_left_out() -> None:
    drafting = session(SjdPac(20, width=4, depth=3), raster(9, 3))
    drafting.observe(0, observed(Draft.chain([1] * 7), torch.randn(8, 9).double(), start=4))
    for nodes, deepest in ((3, 3), (5, 2), (20, 2), (84, 3), (100, 19)):
        found = drafting.propose([request([7] * 5, nodes=nodes)])[0].check(9)
        assert len(found) == nodes
        assert max(depths(found.parents)) == deepest


def test_symbols_are_kept_from_pass_to_pass() -> None:
    """Where the law did not change, scd_mc and jacobi keep every symbol and sjd hardly any."""
    kept = {}
    scores = torch.zeros(41, 500).double()
    for drafter in (SJD(40, "uniform"), ScdMaximal(40, "uniform"), Jacobi(40, "uniform")):
        drafting = session(drafter, raster(500, 8))
        first = drafting.propose([request([7] * 5, nodes=40)])[0]
        drafting.observe(0, observed(first, scores, start=5))
        second = drafting.propose([request([7] * 6, nodes=40)])[0]
        kept[drafter.name] = sum(a == b for a, b in zip(first.ids[1:], second.ids, strict=False))
    assert kept["scd_mc"] == kept["jacobi"] == 39
    assert kept["sjd"] <= 2


# ---- real models, through the front door ----


@pytest.mark.parametrize(
    "drafter", [Jacobi(8), SJD(8), ScdMaximal(8), SjdPac(12, width=2), RowCopy(4)], ids=lambda d: str(d.name)
)
def test_a_text_model_drafts_for_itself(drafter: Any) -> None:
    """Windows work on any stream: a tiny Llama emits the seed's text in a ragged batch, trees included."""
    generator = zoo.generator("llama")
    prompts = [[5, 9, 3], [7], [4, 8, 15, 16, 23]]
    sampling = [ms.Sampling(seed=n, temperature=0.6 * n) for n in range(3)]
    settings: dict[str, Any] = {"sampling": sampling, "max_new_tokens": 16}
    plain = generator.generate(prompts, drafter=None, **settings)
    found = generator.generate(prompts, drafter=drafter, **settings)
    assert [one.tokens.tolist() for one in found] == [one.tokens.tolist() for one in plain]
    tested = generator.generate(prompts, drafter=drafter, verifier="rejection", **settings)
    assert not any(one.report.drafter_failures for one in (*found, *tested))
    assert sum(one.report.drafted for one in tested) > 0


def test_models_that_score_chains_only_get_chains_at_width_one() -> None:
    """A tree sets the drafter aside with a warning; ``width=1`` has none."""
    model = TableModel(8, supports_tree=False)
    (found,) = play(model, row(drafter=SjdPac(8, width=1), max_new_tokens=20))
    assert not found.report.drafter_failures
    with pytest.warns(ms.errors.DrafterWarning, match="scores chains only"):
        play(model, row(drafter=SjdPac(8, width=2), max_new_tokens=20))


def test_the_copy_of_a_repeating_row_is_accepted_whole() -> None:
    """A picture of equal rows: one pass per draft."""
    cycle = [1, 2, 3, 4]

    def after(prefix: Sequence[int], prompt_length: int) -> torch.Tensor:
        scores = torch.full((5,), -torch.inf)
        scores[cycle[(len(prefix) - prompt_length) % 4]] = 0.0
        return scores

    model = FakeModel(after, raster(5, 4))
    for verifier in (Coupled(), Rejection()):
        (found,) = play(model, row(drafter=RowCopy(7), verifier=verifier, max_new_tokens=36))
        assert found.tokens.tolist() == cycle * 9
        assert found.report.target_calls <= 9
    random = random_picture(raster(5, 4))
    asked = replace(row(drafter=RowCopy(7), max_new_tokens=20), verifier=Coupled())
    assert play(random, asked)[0].tokens.tolist() == play(random, row(max_new_tokens=20))[0].tokens.tolist()
