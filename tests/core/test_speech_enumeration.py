"""Exact laws of speech: 2 frames x 2 codebooks x 3 codes, flat, delayed and two-level, by enumeration.

A round is enumerated through the real loop from everything that can have been made before it; from rounds
the law of whole streams is put together, and compared with the target's own, read off its tables.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from multispec.drafters import DraftModel
from multispec.errors import DrafterWarning, InvalidLogitsError, UnsupportedError, UsageError
from multispec.methods import catalog
from multispec.neighbours import Neighbours
from multispec.protocols import Drafter, Request, Standing, Verifier
from multispec.sampling import CounterNoise, Law, Noise, Purpose, Sampling
from multispec.stream import Draft
from multispec.testing import EnumeratedNoise, ScriptedDrafter, SlotTableModel, enumerate_law, play, row
from multispec.verifiers import (
    GSD,
    MTAD,
    PCG,
    BiLD,
    BlockVerification,
    Blockwise,
    BudgetedRejection,
    Cascade,
    Contrastive,
    CoolSD,
    KSeq,
    Lantern,
    LanternPlusPlus,
    Lenience,
    Nucleus,
    Optimal,
    Rejection,
    SampleAndMatch,
    SpecHub,
    SSDBeta,
    Tolerance,
    TopBeta,
    TopK,
    Traversal,
    Typical,
)
from multispec.verifiers.joint import JointStep
from tests.core.speech_streams import STREAMS, JointLaw, Near, Speech, Tally, a_round, outcomes

pytestmark = pytest.mark.usefixtures("unchecked")

EXACT = 1e-9
LAWFUL: dict[str, Verifier] = {
    "rejection": Rejection(),
    "rejection_by_slots": Rejection(frames="slots"),
    "block": BlockVerification(),
    "traversal": Traversal(),
    "k_seq": KSeq(),
    "spechub": SpecHub(),
    "sample_and_match": SampleAndMatch(),
    "optimal": Optimal(),
}
KINDS = ("point", "sampled")


@cache
def stream(name: str) -> Speech:
    return STREAMS[name]()


def law_of(speech: Speech, drafter: Drafter, verifier: Verifier, tally: Tally) -> JointLaw:
    """That of whole streams: after each round, what can have been made has the chance of all ways to it."""
    law: JointLaw = {}
    reached: JointLaw = {(): 1.0}
    while reached:
        made = min(reached, key=len)
        mass = reached.pop(made)
        if len(made) + speech.spec.step >= speech.length:
            # What is left is one step, for which nothing is drafted.
            rest = outcomes(speech.laws(made)) if len(made) < speech.length else {(): 1.0}
            for step, chance in rest.items():
                law[*made, *step] = law.get((*made, *step), 0.0) + mass * chance
            continue

        def run(noise: Noise, made: tuple[int, ...] = made) -> tuple[int, ...]:
            found = a_round(speech, made, drafter, verifier, noise, 4)
            tally.drafted += found.report.drafted
            tally.accepted += found.report.accepted
            return tuple(found.history.generated)

        for after, chance in enumerate_law(run).items():
            reached[after] = reached.get(after, 0.0) + mass * chance
    return law


def assert_same_law(found: JointLaw, expected: JointLaw) -> None:
    assert sum(found.values()) == pytest.approx(1, abs=EXACT)
    assert set(found) == set(expected)
    assert max(abs(found[key] - expected[key]) for key in expected) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", LAWFUL)
@pytest.mark.parametrize("name", STREAMS)
def test_the_law_is_the_targets(name: str, rule: str, kind: str) -> None:
    """Every rule of laws, on every kind of stream, with given and with drawn symbols: 81 outcomes to 1e-9."""
    speech, tally = stream(name), Tally()
    expected = speech.law()
    assert len(expected) == 81
    assert_same_law(law_of(speech, Near(speech, kind), LAWFUL[rule], tally), expected)
    assert 0 < tally.accepted < tally.drafted


def rules_of_speech(*tags: str) -> set[type]:
    return {one.method for one in catalog() if one.exactness in tags and "speech" in one.streams}


def test_every_rule_of_laws_is_here() -> None:
    assert rules_of_speech("law") == {type(rule) for rule in LAWFUL.values()}


class Liar(Near):
    """Symbols of one law, q of another."""

    def propose(self, request: Request) -> Draft:
        draft = super().propose(request)
        return draft if draft.q is None else replace(draft, q=(draft.q + draft.q.roll(1, -1)) / 2)


@pytest.mark.parametrize("name", STREAMS)
def test_a_wrong_q_is_noticed(name: str) -> None:
    """So the tests above can fail."""
    speech = stream(name)
    found, expected = law_of(speech, Liar(speech), Rejection(), Tally()), speech.law()
    assert max(abs(found.get(key, 0) - mass) for key, mass in expected.items()) > 1e-3


# ---- pairs that cannot be: refused before a symbol is made, or drafted without ----


@pytest.mark.parametrize("rule", LAWFUL)
def test_a_draft_model_is_refused_on_parallel_slots(rule: str) -> None:
    speech = stream("delayed")
    with pytest.raises(UnsupportedError, match="2 slots of this stream move together"):
        play(speech.model, row(speech.prompt, drafter=DraftModel(speech.near), verifier=LAWFUL[rule]))
    assert not speech.model.sessions[-1].calls


@pytest.mark.parametrize("name", ["delayed", "two_level"])
def test_trees_are_set_aside(name: str) -> None:
    """Streams of frames take chains: the output is that of no drafter."""
    speech = stream(name)
    settings: dict[str, Any] = {"sampling": Sampling(seed=5), "max_new_tokens": speech.length}
    plain = play(speech.model, row(speech.prompt, **settings))[0]
    tree = Draft(tokens=torch.tensor([0, 1]), parents=(-1, -1))
    drafter = ScriptedDrafter(lambda request: tree)
    with pytest.warns(DrafterWarning, match="takes chains|scores chains only"):
        found = play(speech.model, row(speech.prompt, drafter=drafter, **settings))[0]
    assert torch.equal(plain.tokens, found.tokens) and found.report.drafter_failures == 1


@pytest.mark.parametrize("rule", LAWFUL)
def test_a_law_that_is_none_is_named(rule: str) -> None:
    """NaN in one slot of the second step, drafted or not: what was made before is kept."""
    table = SlotTableModel(2, 4, seed=3).table
    table[:, 1, :3] = torch.nan
    model = SlotTableModel(table=table, spec=stream("delayed").spec)
    for drafter in (None, ScriptedDrafter([0, 3, 1, 1, 3, 1])):
        asked = row((3, 3), drafter=drafter, verifier=LAWFUL[rule], max_new_tokens=6)
        with pytest.raises(InvalidLogitsError, match="slot 1 at position 3 of row 0"):
            play(model, asked)


def test_frames_are_joint_or_slots() -> None:
    with pytest.raises(UsageError, match="'joint' or as 'slots': got 'frame'"):
        Rejection(frames="frame")  # type: ignore[arg-type]


# ---- a step of parallel slots as one symbol ----


def steps(slots: int, size: int, seed: int, near: float) -> tuple[Tensor, Tensor]:
    """p and q of the slots of a step; of four symbols p rules one out, of three q does in the first slot."""
    generator = torch.Generator().manual_seed(seed)
    p, noise = (torch.randn(slots, size, generator=generator, dtype=torch.float64) for _ in range(2))
    q = p + near * noise
    if size > 3:
        p = p.masked_fill(p == p.amin(-1, keepdim=True), -torch.inf)
    else:
        q[0, q[0].argmin()] = -torch.inf
    return p.softmax(-1), q.softmax(-1)


def left_over(p: Tensor, q: Tensor) -> JointLaw:
    """norm((p - q)+) of the joint laws, and their total variation under ()."""
    joint_p, joint_q = outcomes(p), outcomes(q)
    rest = {y: max(mass - joint_q.get(y, 0.0), 0.0) for y, mass in joint_p.items()}
    total = sum(rest.values())
    return {(): total, **{y: mass / total for y, mass in rest.items() if mass > 0}}


SIZES = [(2, 4, 0.3), (2, 3, 2.0), (3, 3, 0.4), (1, 4, 0.5)]


@pytest.mark.parametrize(("slots", "size", "near"), SIZES)
def test_a_step_is_kept_with_the_overlap_of_the_joint_laws(slots: int, size: int, near: float) -> None:
    """1 - TV of products, which is more than the product of 1 - TV; the law of the step is the target's."""
    p, q = steps(slots, size, 1, near)

    def run(noise: Noise) -> tuple[tuple[int, ...], bool]:
        x = noise.choose(q, range(slots), Purpose.DRAFT)
        draft, law = Draft.chain(x, q), Law(p.log(), greedy=False)
        verdict = Rejection().verify_step(draft, law, noise, Standing(0))
        return verdict.tokens, bool(verdict.path)

    found = enumerate_law(run)
    kept = sum(mass for (_, whole), mass in found.items() if whole)
    assert kept == pytest.approx(1 - left_over(p, q)[()], abs=1e-12)
    alone = math.prod((torch.minimum(p, q).sum(-1)).tolist())
    assert kept > alone + 1e-3 if slots > 1 else kept == pytest.approx(alone)
    law: JointLaw = {}
    for (tokens, _), mass in found.items():
        law[tokens] = law.get(tokens, 0.0) + mass
    assert_same_law(law, outcomes(p))


@pytest.mark.parametrize(("slots", "size", "near"), SIZES)
def test_a_proposal_that_is_kept_has_the_joint_residual(slots: int, size: int, near: float) -> None:
    """Exactly, by enumeration of one proposal; in the mean no more than K are needed, however near q is."""
    for seed, q_near in itertools.product(range(2), (near, 0.0)):
        p, q = steps(slots, size, seed, q_near)
        if not q_near:
            q = p * (1 + 1e-4 * torch.arange(size))
            q = q / q.sum(-1, keepdim=True)
        proposal = enumerate_law(partial(_one, JointStep(p, q, 0)))
        missed = proposal.pop((), 0.0)
        expected = left_over(p, q)
        expected.pop(())
        kept = {y: mass / (1 - missed) for y, mass in proposal.items()}
        assert max(abs(kept.get(y, 0.0) - mass) for y, mass in expected.items()) < EXACT
        assert set(kept) <= set(expected)
        assert 1 - missed >= 1 / slots - 1e-9


def _one(step: JointStep, noise: Noise) -> tuple[int, ...]:
    found = step.proposed(noise, 1)
    return () if found is None else tuple(found)


@pytest.mark.parametrize("near", [0.3, 2.0])
def test_proposals_until_one_is_kept_draw_from_the_residual(near: float) -> None:
    """250 seeds (chi-square)."""
    p, q = steps(2, 3, 1, near)
    expected = left_over(p, q)
    expected.pop(())
    counts = dict.fromkeys(expected, 0)
    for seed in range(250):
        counts[tuple(JointStep(p, q, 6).instead(CounterNoise(seed), formed=0))] += 1
    common = [y for y, mass in expected.items() if mass * 250 >= 5]
    rare = [y for y in expected if y not in common]
    pairs = [(counts[y], 250 * expected[y]) for y in common]
    if rare:
        pairs.append((sum(counts[y] for y in rare), 250 * sum(expected[y] for y in rare)))
    seen, wanted = zip(*pairs, strict=True)
    assert chisquare(seen, wanted, sum_check=False).pvalue > 1e-3


def test_many_slots_with_large_vocabularies() -> None:
    """Nine codebooks of 1,024 codes: what comes in place of a refused step is drawn in a few proposals."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 1024, generator=generator, dtype=torch.float64)
    for near in (1e-6, 0.3, 3.0):
        step = JointStep(logits[0].softmax(-1), (logits[0] + near * logits[1]).softmax(-1), 0)
        for seed in range(3):
            y = torch.tensor(step.instead(CounterNoise(seed)))
            p_y, q_y = (law.gather(-1, y[:, None]).log().sum() for law in (step.p, step.q))
            assert p_y > q_y


def test_where_nothing_is_left_over() -> None:
    """Equal laws, whose test fails by a last bit alone: p; and certain laws."""
    p, _ = steps(2, 3, 0, 1.0)
    law = enumerate_law(lambda noise: tuple(JointStep(p, p, 0).instead(noise)))
    assert_same_law(law, outcomes(p))
    certain = torch.eye(3, dtype=torch.float64)[[2, 1]]
    assert JointStep(certain, p, 0).instead(EnumeratedNoise()) == [2, 1]


@dataclass(frozen=True, eq=False)
class Looking(Near):
    """The second slot is drawn behind the first: what it repeats, it repeats for certain."""

    def propose(self, request: Request) -> Draft:
        draft = super().propose(request)
        if (
            draft.q is None
            or len(draft) != 2
            or len(self.speech.permitted(request.history.generated)[1]) == 1
        ):
            return draft
        first = draft.ids[0]
        return Draft.chain([first, first], torch.stack([draft.q[0], torch.eye(4).double()[first]]))


def law_of_a_step(rule: Verifier, drafter: Drafter) -> JointLaw:
    """That of the second step of the delayed stream, where both slots are free."""

    def run(noise: Noise) -> tuple[int, ...]:
        found = a_round(stream("delayed"), (1, 3), drafter, rule, noise, 2)
        return tuple(found.history.generated[2:4])

    return enumerate_law(run, horizon=4)


def test_slots_that_see_each_other_are_judged_by_themselves() -> None:
    """By slots and in line the law holds; joint it does not, and its docstring says so."""
    speech = stream("delayed")
    expected = outcomes(speech.laws((1, 3)))
    for rule in ("rejection_by_slots", "block", "traversal", "sample_and_match"):
        assert_same_law(law_of_a_step(LAWFUL[rule], Looking(speech)), expected)
    found = law_of_a_step(Rejection(), Looking(speech))
    assert max(abs(found.get(key, 0) - mass) for key, mass in expected.items()) > 1e-3


def whole_steps_kept(rule: Verifier, kind: str) -> float:
    """The chance that the second step of the delayed stream is kept as it was drafted."""
    speech = stream("delayed")

    def run(noise: Noise) -> bool:
        return len(a_round(speech, (1, 3), Near(speech, kind), rule, noise, 2).history.generated) == 6

    return enumerate_law(run, horizon=4).get(True, 0.0)


def test_how_often_a_step_is_kept() -> None:
    """Drawn symbols: joint most, then a chain judged as a whole, then slots; given ones: all alike."""
    chosen = ("rejection", "rejection_by_slots", "block", "traversal", "k_seq")
    sampled = {name: whole_steps_kept(LAWFUL[name], "sampled") for name in chosen}
    assert sampled["rejection"] > sampled["block"] + 1e-4
    assert sampled["block"] == pytest.approx(sampled["traversal"], abs=1e-12)
    assert sampled["block"] > sampled["rejection_by_slots"] + 1e-4
    assert sampled["k_seq"] == pytest.approx(sampled["rejection_by_slots"], abs=1e-12)
    given = {whole_steps_kept(LAWFUL[name], "point") for name in ("rejection", "rejection_by_slots", "block")}
    assert max(given) == pytest.approx(min(given), abs=1e-12)


# ---- meters ----

SHARED = Neighbours(codebook=torch.tensor([[1.0, 0.0], [0.9, 0.4], [-0.2, 1.0]]))
OTHER = Neighbours(codebook=torch.tensor([[0.0, 1.0], [1.0, 0.1], [0.2, 0.9]]))
APART = Neighbours(
    codebook=torch.cat([torch.nn.functional.pad(SHARED.codebook, (0, 1)), OTHER.codebook @ torch.eye(3)[1:]])
)


def relaxed(near: Neighbours) -> dict[str, Verifier]:
    """One of each, lenient enough to err."""
    return {
        "bild": BiLD(rollback=2.0),
        "blockwise": Blockwise(k=2),
        "budget": BudgetedRejection(per_token=0.05),
        "cascade": Cascade(deferral="token_v3", alpha=0.4),
        "contrastive": Contrastive(),
        "cool_sd": CoolSD(delta=1.3),
        "gsd": GSD(group=3, gap=1.0, radius=5.0, neighbours=near),
        "lantern": Lantern(delta=0.4, k=2, neighbours=near),
        "lantern_pp": LanternPlusPlus(delta=5.0, k=2, neighbours=near),
        "lenience": Lenience(l=0.6),
        "mtad": MTAD(tau=0.4),
        "nucleus": Nucleus(top_p=0.6),
        "pcg": PCG(theta=0.7, neighbours=near),
        "pcg_levels": PCG(theta=0.7, levels=(SHARED, OTHER) if near is SHARED else (near,)),
        "ssd_beta": SSDBeta(beta=0.15),
        "tolerance": Tolerance(t=3),
        "top_beta": TopBeta(beta=2, tau=0.6),
        "top_k": TopK(k=2),
        "typical": Typical(eps=0.2, delta=0.6),
    }


NEEDING_Q = {"contrastive"}


@pytest.fixture
def _tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTISPEC_CACHE", str(tmp_path))


def metered(speech: Speech, rule: Verifier, kind: str, made: Sequence[int]) -> tuple[set[float], float]:
    """What a round says that its drafted step cost, in every branch, and what the law of that step says."""
    step = speech.spec.step

    def run(noise: Noise) -> tuple[tuple[int, ...], float]:
        found = a_round(speech, made, Near(speech, kind), rule, noise, step)
        assert found.report.drafted == step or 1 in map(len, speech.permitted(made))
        return tuple(found.history.generated[len(made) :][:step]), found.report.variation_spent

    law, p = enumerate_law(run, horizon=len(made) + step), speech.laws(made)
    o = torch.zeros_like(p)
    for (tokens, _), mass in law.items():
        o[range(step), list(tokens)] += mass
    assert float(o.sum()) == pytest.approx(step, abs=1e-12)
    return {spent for _, spent in law}, float((o - p).abs().sum()) / 2


@pytest.mark.usefixtures("_tables")
@pytest.mark.parametrize("rule", relaxed(SHARED))
@pytest.mark.parametrize("name", STREAMS)
def test_the_meter_is_the_variation(name: str, rule: str) -> None:
    """Given and drawn symbols: the number is the total variation of each slot's law, whatever was drawn."""
    speech = stream(name)
    one, erred = relaxed(APART if name == "flat" else SHARED)[rule], 0.0
    for kind, first in zip(KINDS, (0, 2), strict=True):
        made = (first, 3) if name == "delayed" else (first,)
        if kind == "point" and rule in NEEDING_Q:
            with pytest.raises(UnsupportedError, match="Use "):
                metered(speech, one, kind, made)
            continue
        spent, true = metered(speech, one, kind, made)
        assert all(number == pytest.approx(true, abs=EXACT) for number in spent)
        erred = max(erred, true)
    assert erred > 1e-3


def test_every_relaxed_rule_of_speech_is_here() -> None:
    known = {type(rule) for rule in relaxed(SHARED).values()}
    assert rules_of_speech("group", "bounded", "heuristic") == known
