"""Jacobi windows: the seed's own symbols, the target's own law, and fewer passes on smooth pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from multispec.drafters.jacobi import Jacobi
from multispec.drafters.row_copy import RowCopy
from multispec.drafters.scd_mc import ScdMaximal, coupled
from multispec.drafters.sjd import SJD
from multispec.drafters.sjd_pac import SjdPac
from multispec.drafters.starts import Tail
from multispec.drafters.window import Window, each_stream
from multispec.drafters.zipar import ZipAR
from multispec.guidance import Guidance
from multispec.policies import Confidence, FixedLength, Heuristic
from multispec.protocols import Context, Drafter, DraftSession, Request
from multispec.sampling import Noise, Sampling
from multispec.stream import Draft, Prompt
from multispec.testing import FakeModel, TableModel, enumerate_law, play, row
from multispec.verifiers import Coupled, Rejection
from tests.core.pictures import RaceNoise, Uneven, random_picture, raster, smooth_picture

pytestmark = pytest.mark.usefixtures("unchecked")

LENGTH = 4  # a picture of two by two
JointLaw = dict[tuple[int, ...], float]
Rule = Callable[[Tensor, Sequence[int]], Tensor]


# ---- under rejection: the law of a picture, by enumeration through the real loop ----


def untouched(logits: Tensor, prefix: Sequence[int]) -> Tensor:
    return logits


def penalised(logits: Tensor, prefix: Sequence[int]) -> Tensor:
    found = logits.clone()
    for symbol in {*prefix}:
        found[symbol] = found[symbol] * 1.6 if found[symbol] < 0 else found[symbol] / 1.6
    return found / 0.8


def best_two(logits: Tensor, prefix: Sequence[int]) -> Tensor:
    return logits.masked_fill(logits < logits.topk(2).values[-1], -torch.inf)


PENALISED = {"temperature": 0.8, "repetition_penalty": 1.6}


def expected_law(model: FakeModel, rule: Rule = untouched, length: int = LENGTH, end: int = -1) -> JointLaw:
    """The product of the conditional laws, read off the model."""
    law: JointLaw = {(): 1.0}
    for _ in range(length):
        grown: JointLaw = {}
        for prefix, mass in law.items():
            if prefix and prefix[-1] == end:
                grown[prefix] = mass
                continue
            probs = rule(model.after([1, *prefix], 1), [1, *prefix]).softmax(-1).tolist()
            grown |= {(*prefix, symbol): mass * p for symbol, p in enumerate(probs) if p > 0}
        law = grown
    return law


def enumerated(model: FakeModel, *, race: bool = False, **changes: Any) -> tuple[JointLaw, int, int]:
    """The law of the first symbols; windows reach beyond them. With what was drafted and accepted."""
    counts = [0, 0]
    asked = row(verifier=Rejection(), max_new_tokens=LENGTH + 8)
    asked = replace(asked, stops=(lambda ids, scores: len(ids) > LENGTH,), **changes)

    def run(noise: Noise) -> tuple[int, ...]:
        found = play(model, replace(asked, noise=RaceNoise(noise) if race else noise))[0]
        counts[0] += found.report.drafted
        counts[1] += found.report.accepted
        return tuple(found.tokens.tolist())

    return enumerate_law(run, horizon=LENGTH), counts[0], counts[1]


def distance(found: JointLaw, expected: JointLaw) -> float:
    assert sum(found.values()) == pytest.approx(1, abs=1e-9)
    return max(abs(found.get(key, 0.0) - expected.get(key, 0.0)) for key in found | expected)


WINDOWS: dict[str, Drafter] = {
    "sjd": SJD(4),
    "sjd uniform": SJD(2, "uniform"),
    "sjd random": SJD(1, "random"),
    "scd_mc": ScdMaximal(4),
    "scd_mc left": ScdMaximal(3, "copy_left"),
    "jacobi": Jacobi(4),
    "jacobi last": Jacobi(3, "repeat_last"),
    "sjd_pac": SjdPac(4, width=2, depth=1),
    "sjd_pac chain": SjdPac(3, width=1),
    "row_copy": RowCopy(3),
    "zipar": ZipAR(window=1),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_rejection_has_the_law_of_the_picture(name: str) -> None:
    """Two by two of three codes, windows over several rounds: within 1e-9."""
    model = random_picture(raster(), support=2 if "uniform" in name or "random" in name else None)
    found, drafted, accepted = enumerated(model, drafter=WINDOWS[name], race="jacobi" in name)
    assert distance(found, expected_law(model)) < 1e-9
    assert 0 < accepted < drafted


@pytest.mark.parametrize("drafter", [SJD(3), ScdMaximal(3), Jacobi(3), SjdPac(4, width=2)], ids=str)
@pytest.mark.parametrize(("sampling", "rule"), [(PENALISED, penalised), ({"top_k": 2}, best_two)])
def test_rules_that_look_at_the_prefix(drafter: Drafter, sampling: dict[str, Any], rule: Rule) -> None:
    """Laws of drafted places depend on the drafted prefix; supports end short of a tree's width."""
    model = random_picture(raster(), seed=5, support=2)
    changes = {"drafter": drafter, "sampling": Sampling(**sampling)}
    found, drafted, accepted = enumerated(model, race=isinstance(drafter, Jacobi), **changes)
    assert distance(found, expected_law(model, rule)) < 1e-9
    assert 0 < accepted < drafted


WIDE: list[Drafter] = [SJD(4), ScdMaximal(4), Jacobi(4), SjdPac(6, width=2), ZipAR(window=1)]


@pytest.mark.parametrize("drafter", WIDE, ids=str)
@pytest.mark.parametrize("policy", [Uneven(), Confidence(threshold=0.6, max_draft_tokens=6), Heuristic()])
def test_windows_of_changing_width(drafter: Drafter, policy: Any) -> None:
    """Budgets that change, rounds without a draft, windows that end at an unsure law."""
    model = random_picture(raster(), seed=7, support=2)
    changes = {"drafter": drafter, "policy": policy}
    found, drafted, accepted = enumerated(model, race=isinstance(drafter, Jacobi), **changes)
    assert distance(found, expected_law(model)) < 1e-9
    assert 0 < accepted < drafted


def test_a_deep_tree_keeps_the_law() -> None:
    """Two levels of two siblings and a chain below, kept from round to round."""
    model = random_picture(raster(), seed=11, support=2)
    found, drafted, accepted = enumerated(model, drafter=SjdPac(8, width=2, depth=2))
    assert distance(found, expected_law(model)) < 1e-9
    assert 0 < accepted < drafted


@pytest.mark.parametrize("drafter", [ScdMaximal(3), Jacobi(3), SjdPac(4, width=2)], ids=str)
def test_guided_rows_keep_the_law(drafter: Drafter) -> None:
    """p is formed from both branches; the window knows nothing of it."""
    model, guidance = random_picture(raster()), Guidance(scale=2.5)
    empty = Prompt(ids=torch.tensor([2]))
    prompt = Prompt(ids=torch.tensor([1]), unconditional=empty, guidance=guidance)

    def mixed(logits: Tensor, prefix: Sequence[int]) -> Tensor:
        other = model.after([2, *prefix[1:]], 1)
        return other + 2.5 * (logits - other)

    changes = {"drafter": drafter, "prompt": prompt}
    found, _, accepted = enumerated(model, race=isinstance(drafter, Jacobi), **changes)
    assert distance(found, expected_law(model, mixed)) < 1e-9
    assert accepted > 0


@pytest.mark.parametrize("drafter", [SJD(4), ScdMaximal(4), Jacobi(4), SjdPac(4, width=2)], ids=str)
def test_ends_inside_a_window(drafter: Drafter) -> None:
    """The last code ends the stream: nothing behind it is kept, and the law of lengths is right."""
    model = TableModel(3, order=2, seed=2, scale=1.0, end_ids=(2,))
    changes = {"drafter": drafter, "end_ids": (2,)}
    found, drafted, accepted = enumerated(model, race=isinstance(drafter, Jacobi), **changes)
    assert distance(found, expected_law(model, end=2)) < 1e-9
    assert 0 < accepted < drafted


@pytest.mark.parametrize("start", ["copy_above", "uniform"])
def test_the_shared_noise_has_the_law(start: Any) -> None:
    """Under ``coupled`` too, where the noise of one position meets one law after the other."""
    model = random_picture(raster())
    width = 4 if start == "copy_above" else 1
    changes = {"drafter": Jacobi(width, start), "verifier": Coupled()}
    found, drafted, accepted = enumerated(model, race=True, **changes)
    assert distance(found, expected_law(model)) < 1e-9
    assert 0 < accepted < drafted


@dataclass(frozen=True)
class Released:
    """The coupling with the fault of its public release: a kept symbol keeps its old q on record."""

    name = "released"
    num_draft_tokens: int = 4

    def begin(self, context: Context) -> DraftSession:
        size, device = context.vocab_size, context.device
        return each_stream(context, lambda spec: _Faulty(coupled, Tail("copy_above", spec, size, device)))


@dataclass
class _Faulty(Window):
    def propose(self, request: Request) -> Draft:
        seen = self.seen
        draft = super().propose(request)
        if seen is None or seen.draft.q is None or draft.q is None:
            return draft
        q, shift = draft.q.clone(), len(seen.path) + 1
        for node in range(min(len(draft), len(seen.draft) - shift)):
            if draft.ids[node] == seen.draft.ids[node + shift]:
                q[node] = seen.draft.q[node + shift]
        return replace(draft, q=q)


def test_the_wrong_record_is_noticed() -> None:
    """The enumeration can fail: with the old law on record the output is biased."""
    model = random_picture(raster())
    found, _, _ = enumerated(model, drafter=Released())
    assert distance(found, expected_law(model)) > 1e-3


# ---- under coupled: the symbols of the seed ----


SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"repetition_penalty": 1.4, "presence_penalty": 0.3},
    {"temperature": 0, "frequency_penalty": 0.4},
)
POLICIES: tuple[Any, ...] = (FixedLength(), Heuristic(), Uneven((7, 0, 3, 12)), Confidence(threshold=0.5))
GUESSERS: tuple[Drafter, ...] = (
    Jacobi(8),
    Jacobi(12, "uniform"),
    SJD(8, "random"),
    ScdMaximal(8, "copy_left"),
    SjdPac(24, width=3, depth=2),
    SjdPac(12, width=2, depth=3, start="repeat_last"),
    RowCopy(6),
)
STREAMS: dict[str, Callable[[], FakeModel]] = {
    "picture": lambda: random_picture(raster(6, 4)),
    "row ends": lambda: random_picture(raster(6, 4, ends=True)),
    "text": lambda: TableModel(12, order=2, seed=4, end_ids=(11,)),
}


def _rows(n: int, guided: bool, **changes: Any) -> Any:
    prompt = Prompt(ids=torch.tensor([1 + n % 5, 2]))
    if guided:
        empty = Prompt(ids=torch.tensor([0]))
        prompt = replace(prompt, unconditional=empty, guidance=Guidance(scale=1.0 + 0.5 * (n % 4)))
    sampling = Sampling(seed=100 + n, **SETTINGS[n % len(SETTINGS)])
    return replace(row(max_new_tokens=20 + n % 3, **changes), prompt=prompt, sampling=sampling)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("stream", STREAMS)
def test_the_output_is_that_of_the_seed(stream: str, guided: bool) -> None:
    """Every drafter, setting and policy, alone and in ragged batches of four: equal plain decoding."""
    model = STREAMS[stream]()
    ends = {"end_ids": model.spec.end_ids}
    accepted = 0
    for number, drafter in enumerate(GUESSERS):
        chosen = range(8 * number, 8 * number + 8)
        asked = [_rows(n, guided, drafter=drafter, policy=POLICIES[n % 4], **ends) for n in chosen]
        plain = [play(model, replace(one, drafter=None))[0].tokens.tolist() for one in asked]
        batches = [play(model, *asked[:4]), play(model, *asked[4:7]), play(model, asked[7])]
        found = [one for batch in batches for one in batch]
        assert [one.tokens.tolist() for one in found] == plain, str(drafter)
        assert not any(one.report.drafter_failures for one in found)
        accepted += sum(one.report.accepted for one in found)
    assert accepted > 60


@pytest.mark.parametrize("drafter", [*GUESSERS, ZipAR(window=2)], ids=str)
def test_greedy_rejection_is_greedy_decoding(drafter: Drafter) -> None:
    """At temperature 0 there is one law and one output, also with siblings under ``rejection``."""
    model = random_picture(raster(6, 4))
    asked = row(drafter=drafter, sampling=Sampling(temperature=0), max_new_tokens=24)
    plain, found = play(model, replace(asked, drafter=None), replace(asked, verifier=Rejection()))
    assert found.tokens.tolist() == plain.tokens.tolist()
    assert found.report.accepted > 0 and not found.report.drafter_failures


@pytest.mark.parametrize("verifier", [Coupled(), Rejection()], ids=["coupled", "rejection"])
@pytest.mark.parametrize(
    "drafter", [Jacobi(128), SJD(128), ScdMaximal(128), SjdPac(200), RowCopy(99)], ids=str
)
def test_a_window_larger_than_the_picture(drafter: Drafter, verifier: Any) -> None:
    """The budget trims it, by the length that was asked for or by the picture's own."""
    model = random_picture(raster(6, 4, length=12))
    for length in (5, 12, 40):
        (found,) = play(model, row(drafter=drafter, verifier=verifier, max_new_tokens=length))
        assert len(found.tokens) == min(length, 12)
        assert not found.report.drafter_failures
        assert max(len(call.drafts[0]) for call in model.sessions[-1].calls) < min(length, 12) + 30
        chains = [len(call.drafts[0]) for call in model.sessions[-1].calls if call.drafts[0].is_chain]
        assert max(chains, default=0) < min(length, 12)


# ---- passes on a smooth picture ----


def passes(drafter: Drafter, verifier: Any, seeds: int = 2) -> float:
    """Target calls for a picture of 256 symbols, at temperature 1."""
    rows = [row(drafter=drafter, verifier=verifier, max_new_tokens=256) for _ in range(seeds)]
    rows = [replace(one, sampling=Sampling(seed=n)) for n, one in enumerate(rows)]
    found = play(smooth_picture(), *rows)
    return sum(one.report.target_calls for one in found) / seeds


def test_coupled_windows_need_fewer_passes_than_independent_draws() -> None:
    """A window of 64 on a smooth picture: keeping symbols from pass to pass pays twice over."""
    sjd = passes(SJD(64), Rejection())
    assert passes(ScdMaximal(64), Rejection()) < 0.6 * sjd
    assert passes(Jacobi(64), Rejection()) < 0.6 * sjd
    assert passes(Jacobi(64), Coupled()) < 0.6 * sjd
    assert passes(SjdPac(64), Rejection()) < 0.7 * sjd
    assert sjd < 160


def test_a_wider_window_needs_fewer_passes() -> None:
    """Symbols settle before the window reaches them."""
    assert passes(Jacobi(64), Coupled()) < 0.8 * passes(Jacobi(8), Coupled())
