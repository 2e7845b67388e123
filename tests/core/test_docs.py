"""The pages of docs/ run as they stand, and the bugs that they warn of are found by what they show."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from multispec.drafters import EachRow
from multispec.errors import DrafterWarning
from multispec.processing import Places
from multispec.protocols import Context, DraftSession, Exactness, Request, Standing, Verifier
from multispec.sampling import Law, Noise, Purpose
from multispec.stream import Draft, Observation, Verdict
from multispec.testing import TableModel, one_trial, output_law, variation
from multispec.verifiers import Lenience, Rejection

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = ("write_a_drafter.md", "write_a_verifier.md")


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block behind the ones before it; the example itself has fewer than 40 lines."""
    module = ModuleType("page_of_docs")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    first, *others = blocks(page)
    assert others and len(first.strip().splitlines()) <= 40
    for block in (first, *others):
        exec(compile(block, page, "exec"), vars(module))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / link).exists(), link


# ---- planted bugs ----

MODEL = TableModel(4, seed=1, support=3)
NEAR = TableModel(4, seed=2)
# What a planted bug makes of the law that the token was drawn from: (token, q).
Bug = Callable[[torch.Tensor, torch.Tensor, Request], tuple[torch.Tensor, torch.Tensor]]


def drawn(law: torch.Tensor, before: torch.Tensor, request: Request) -> torch.Tensor:
    return request.noise.choose(law, [request.round_start], Purpose.DRAFT)


def right(law: torch.Tensor, before: torch.Tensor, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ q, and that q."""
    return drawn(law, before, request), law


def stale(law: torch.Tensor, before: torch.Tensor, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """x ~ q, and the q of another prefix."""
    return drawn(law, before, request), before


def best(law: torch.Tensor, before: torch.Tensor, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """x = argmax q, and q as if it had been drawn."""
    return law.argmax(-1), law


def dropped(law: torch.Tensor, before: torch.Tensor, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """x from the more probable symbols alone, and the whole q."""
    kept = law.masked_fill(law == law.min(), 0.0)
    return drawn(kept / kept.sum(), before, request), law


@dataclass(frozen=True)
class Planted:
    """Drafts one symbol by a model's law, with a bug."""

    name: ClassVar[str] = "planted"
    bug: Bug
    num_draft_tokens: int = 1

    def begin(self, context: Context) -> DraftSession:
        return EachRow(context, lambda _: self)

    def propose(self, request: Request) -> Draft:
        history = request.history
        laws = [
            request.pipeline.law(NEAR.after(ids, history.prompt_length)[None], Places(history, ((),))).probs
            for ids in (history.ids, history.ids[:-1] + [0])
        ]
        return Draft.chain(*self.bug(laws[0], laws[1], request))

    def observe(self, observation: Observation) -> None:
        """It learns nothing."""


def apart(bug: Bug, rule: Verifier | None = None) -> float:
    found = output_law(MODEL, Planted(bug), rule or Rejection(), max_new_tokens=3)
    return variation(found, output_law(MODEL))


def test_a_right_drafter_passes() -> None:
    assert apart(right) < 1e-9


@pytest.mark.parametrize("bug", [stale, best, dropped])
def test_a_planted_bug_of_a_drafter_is_found(bug: Bug) -> None:
    assert apart(bug) > 1e-3


def test_a_law_without_mass_on_what_was_drawn_is_refused() -> None:
    """The other way of dropping a symbol: from q, when it was drawn."""

    def cut(law: torch.Tensor, before: torch.Tensor, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
        x = drawn(law, before, request)
        left = law.index_fill(1, x, 0.0)
        return x, left / left.sum()

    with pytest.warns(DrafterWarning, match="mass on the"), pytest.raises(AssertionError, match="set aside"):
        apart(cut)


@dataclass(frozen=True, kw_only=True)
class AtZero:
    """Speculative sampling whose test is u <= p / q: at u = 0 a symbol without mass passes."""

    name: ClassVar[str] = "at_zero"
    exactness: ClassVar[Exactness] = "law"
    coupled: ClassVar[bool] = False

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        grid = torch.full((1, 4), 0.25, dtype=torch.float64)
        u = int(noise.choose(grid, [standing.start], Purpose.ACCEPT, 1)) / 4 if len(draft) else 1.0
        q = p.probs[:1] if draft.q is None else draft.q
        if len(draft) and u <= float(p.probs[0, draft.ids[0]] / q[0, draft.ids[0]]):
            return Rejection().verify(draft, p, _Passing(noise), standing)
        return Rejection().verify(Draft.empty(), Law(p.scores[:1], greedy=p.greedy), noise, standing)


class _Passing:
    """Noise that passes every test."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise
        self.symbols, self.perturbed, self.choose = noise.symbols, noise.perturbed, noise.choose

    def accepts(
        self, p: torch.Tensor, q: torch.Tensor, positions: Sequence[int], key: int = 0
    ) -> torch.Tensor:
        return torch.ones(len(p), dtype=torch.bool)


def test_a_test_that_passes_at_zero_is_found() -> None:
    """A symbol that the target never emits comes out."""
    p, q = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.2, 0.3, 0.5])
    assert one_trial(Rejection(), p, q).law[2] == 0
    assert one_trial(AtZero(), p, q).law[2] > 0
    assert apart(right, AtZero()) > 1e-3


@dataclass(frozen=True, kw_only=True)
class Silent:
    """Lenience that says it spends half of what it does."""

    name: ClassVar[str] = "silent"
    exactness: ClassVar[Exactness] = "heuristic"
    coupled: ClassVar[bool] = False

    def verify(self, draft: Draft, p: Law, noise: Noise, standing: Standing) -> Verdict:
        found = Lenience(l=0.5).verify(draft, p, noise, standing)
        return found._replace(spent=tuple(one / 2 for one in found.spent))


def test_a_meter_that_is_off_is_found() -> None:
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    right, wrong = one_trial(Lenience(l=0.5), p, q), one_trial(Silent(), p, q)
    assert right.reported == pytest.approx(right.variation)
    assert wrong.reported == pytest.approx(wrong.variation / 2) and wrong.variation > 0.05
