"""What a verifier accepts, and which symbols are said to come from the draft."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from multispec.protocols import Standing, Verifier
from multispec.sampling import CounterNoise, Law
from multispec.stream import Draft
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel, TreeDrafter, play, row
from multispec.verifiers import Coupled, Rejection

RULES: list[Verifier] = [Coupled(), Rejection()]
SCRIPT = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
# The target after the root and after each node of the tree below: it wants 5, then 6, then 7.
TREE = Draft(tokens=torch.tensor([4, 5, 6, 6, 0, 7]), parents=(-1, -1, 0, 1, 1, 3))
WANTED = (5, 0, 6, 1, 7, 2, 8)


def one_hot(symbols: tuple[int, ...]) -> Law:
    return Law(torch.eye(12, dtype=torch.float64)[list(symbols)].log(), greedy=False)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("greedy", [True, False])
def test_always_accepted(rule: Verifier, greedy: bool) -> None:
    """A draft that is right is emitted whole, with one symbol of the target behind it."""
    law = Law(one_hot((5, 6, 7)).scores, greedy=greedy)
    verdict = rule.verify(Draft.chain([5, 6]), law, CounterNoise(0), Standing(3))
    assert (verdict.path, verdict.tokens, verdict.spent) == ((0, 1), (5, 6, 7), ())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_never_accepted(rule: Verifier) -> None:
    """A wrong first symbol leaves the target's own."""
    verdict = rule.verify(Draft.chain([4, 6]), one_hot((5, 6, 7)), CounterNoise(0), Standing(0))
    assert (verdict.path, verdict.tokens) == ((), (5,))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_accepted_up_to_the_first_difference(rule: Verifier) -> None:
    verdict = rule.verify(Draft.chain([5, 0, 7]), one_hot((5, 6, 7, 8)), CounterNoise(0), Standing(0))
    assert (verdict.path, verdict.tokens) == ((0,), (5, 6))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_nothing_drafted(rule: Verifier) -> None:
    verdict = rule.verify(Draft.empty(), one_hot((5,)), CounterNoise(0), Standing(0))
    assert (verdict.path, verdict.tokens) == ((), (5,))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_tree_is_walked_along_what_the_target_wants(rule: Verifier) -> None:
    """The second child of the root, its first child, and that one's child."""
    verdict = rule.verify(TREE, one_hot((5, 0, 6, 1, 7, 2, 8)), CounterNoise(0), Standing(0))
    assert (verdict.path, verdict.tokens) == ((1, 3, 5), (5, 6, 7, 8))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_siblings_that_repeat_a_symbol_do_no_harm(rule: Verifier) -> None:
    draft = Draft(tokens=torch.tensor([4, 4, 5]), parents=(-1, -1, -1))
    verdict = rule.verify(draft, one_hot((5, 0, 0, 6)), CounterNoise(0), Standing(0))
    assert (verdict.path, verdict.tokens) == ((2,), (5, 6))


ACCEPTANCE = {
    "always": (SCRIPT, [False, True, True, True, True, False, True, True, True, False]),
    "never": ((0,) * 11, [False] * 10),
    "sometimes": (
        (1, 2, 0, 4, 5, 0, 0, 8, 9, 10, 11),
        [False, True, False, True, True, False, False, True, True, False],
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("name", ACCEPTANCE)
def test_flags_say_which_symbols_were_drafted(name: str, rule: Verifier) -> None:
    """Through the loop, against a target that follows a script."""
    drafted, flags = ACCEPTANCE[name]
    asked: dict[str, Any] = {"verifier": rule, "max_new_tokens": 10}
    found = play(ScriptedModel(SCRIPT), row(drafter=ScriptedDrafter(drafted), **asked))[0]
    assert found.tokens.tolist() == list(SCRIPT[:10])
    assert list(found.from_draft) == flags
    assert found.report.accepted == sum(flags)


@pytest.mark.parametrize("kind", ["point", "sampled", "without_replacement"])
def test_a_tree_of_the_target_itself_is_always_accepted_by_rejection(kind: Any) -> None:
    """q = p: the first sibling passes with certainty (min(1, p / q) = 1), but for point masses."""
    target = TableModel(seed=6)
    drafter = TreeDrafter(target, (2, 1), kind, 4)
    found = play(target, row(drafter=drafter, verifier=Rejection(), max_new_tokens=40))[0]
    rate = found.report.accepted_at[0] / found.report.drafted_at[0]
    assert rate == 1 if kind != "point" else 0 < rate < 1


def test_a_coupled_tree_of_the_target_itself_is_always_accepted() -> None:
    """Shared noise: the best of log q + G is the target's own symbol."""
    target = TableModel(seed=6)
    drafter = TreeDrafter(target, (2, 2), "sampled", 6)
    found = play(target, row(drafter=drafter, max_new_tokens=40))[0]
    assert found.report.acceptance_by_position[:1] == [1.0]


def test_rejection_corrects_with_what_the_draft_left() -> None:
    """After a rejection the symbol comes from (p - q)+: never one that q over-proposed."""
    p, q = torch.tensor([0.1, 0.5, 0.4, 0.0]).double(), torch.tensor([0.7, 0.1, 0.2, 0.0]).double()
    law = Law(torch.stack([p, p]).log(), greedy=False)
    corrections = []
    for seed in range(200):
        draft = Draft.chain([0], q[None])
        verdict = Rejection().verify(draft, law, CounterNoise(seed), Standing(0))
        if not verdict.path:
            corrections.append(verdict.tokens[0])
    assert set(corrections) == {1, 2}
    assert 120 < len(corrections) < 200  # 1 - 0.1 / 0.7 of 200 is 171


def test_rejection_falls_back_to_p_where_nothing_is_left() -> None:
    """p = q up to the last bit: no division by zero."""
    p = torch.tensor([0.5, 0.5]).double()
    noise = CounterNoise(1)

    class Unlucky(CounterNoise):
        def accepts(self, p: Tensor, q: Tensor, positions: Any, key: int = 0) -> Tensor:
            return torch.zeros(len(p), dtype=torch.bool)

    law = Law(torch.stack([p, p]).log(), greedy=False)
    verdict = Rejection().verify(Draft.chain([0], p[None]), law, Unlucky(noise.seed), Standing(0))
    assert verdict.path == ()
    assert verdict.tokens[0] in (0, 1)


def test_rules_declare_their_promise() -> None:
    assert (Coupled.exactness, Coupled.coupled) == ("seed", True)
    assert (Rejection.exactness, Rejection.coupled) == ("law", False)
