"""auto: never much slower than plain decoding, near the best fixed choice, quick when something changes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

import multispec as ms
from multispec.asking import Asked, Methods, automatic, batch_of
from multispec.drafters import Among, DraftModel, Jacobi, PromptLookup
from multispec.errors import UnknownNameError, UsageError
from multispec.generator import Generator
from multispec.policies import Auto, Candidate, CostTable, FixedLength, Off
from multispec.policies.estimates import Acceptance, Line
from multispec.protocols import Budget, Past
from multispec.testing import ScriptedDrafter, TableModel
from multispec.verifiers import Cascade, Coupled
from tests.models import zoo

pytestmark = pytest.mark.usefixtures("unchecked")
IDS = list(zoo.IDS)
STEP = 1.0  # seconds of a plain round of the world below


@dataclass(frozen=True)
class Guess:
    """A drafter of the world below: how often it is right, and what a drafted symbol costs."""

    right: Callable[[int], float]
    cost: Callable[[int], float]
    speaks: float = 1.0


def always(value: float) -> Callable[[int], float]:
    """The same in every round."""
    return lambda _: value


@dataclass
class World:
    """Rounds with a clock of their own: symbols and seconds so far, and what was asked for."""

    drafters: list[Guess]
    rounds: int = 0
    symbols: int = 0
    seconds: float = 0.0
    step: int = 1

    def __post_init__(self) -> None:
        self.asked: list[Budget] = []
        self._random = random.Random(1)

    def run(
        self, policy: Any, rounds: int, default: int = 5, jump: Callable[[int, float], float] | None = None
    ) -> World:
        """Let a policy choose for so many rounds; ``jump`` falsifies what its clock says."""
        past = Past(rounds=1, seconds=STEP, step=self.step)
        for number in range(rounds):
            budget = policy.budget(past, default)
            self.asked.append(budget)
            drafted, kept, drafting = self._round(number, budget)
            taken = STEP * (1 + 0.02 * drafted) + drafting
            self.rounds, self.symbols, self.seconds = (
                number + 1,
                self.symbols + 1 + kept,
                self.seconds + taken,
            )
            shown = taken if jump is None else jump(number, taken)
            past = Past(
                rounds=number + 2,
                last_nodes=budget.nodes,
                last_drafted=drafted * self.step,
                last_accepted=kept * self.step,
                last_depth=drafted,
                last_kept=kept,
                step=self.step,
                seconds=shown,
                draft_seconds=min(drafting, shown),
                widest=drafted * self.step,
                memory=budget.memory,
            )
        return self

    def _round(self, number: int, budget: Budget) -> tuple[int, int, float]:
        nodes = budget.nodes // self.step
        if not nodes:
            return 0, 0, 0.0
        one = self.drafters[budget.drafter]
        if self._random.random() >= one.speaks:
            return 0, 0, 0.0
        kept = 0
        while kept < nodes and self._random.random() < one.right(number):
            kept += 1
        return nodes, kept, nodes * one.cost(number)

    @property
    def pace(self) -> float:
        """Symbols per time of a plain round: 1 is plain decoding."""
        return self.symbols * STEP / self.seconds


def best_fixed(make: Callable[[], World], rounds: int) -> float:
    """The pace of the best fixed length, plain decoding among them."""
    return max(make().run(FixedLength(num_draft_tokens=n), rounds).pace for n in (1, 2, 3, 4, 6, 8, 10))


@pytest.mark.parametrize("cost", [0.01, 0.2, 0.5])
def test_a_useless_drafter_costs_next_to_nothing(cost: float) -> None:
    """It is switched off, and what is left are the tries."""
    world = World([Guess(always(0.0), always(cost))]).run(Auto(), 400)
    assert world.pace > 0.97
    assert sum(budget.nodes > 0 for budget in world.asked[20:]) <= 16


@pytest.mark.parametrize(("right", "cost"), [(0.9, 0.05), (0.8, 0.3), (0.6, 0.1), (0.95, 0.01), (0.4, 0.02)])
def test_near_the_best_fixed_length(right: float, cost: float) -> None:
    """From the drafter's own length to a longer or a shorter one."""

    def make() -> World:
        return World([Guess(always(right), always(cost))])

    assert make().run(Auto(), 500).pace > 0.93 * best_fixed(make, 500)


def test_a_drafter_that_seldom_speaks_costs_what_it_says() -> None:
    """Nothing drafted is a plain round: it stays on, and pays where it has something to say."""
    world = World([Guess(always(0.9), always(0.0), speaks=0.2)]).run(Auto(), 300, default=10)
    assert world.pace > 1.3
    assert sum(budget.nodes > 0 for budget in world.asked) > 250


def test_the_better_of_two_is_found_and_followed_when_they_change_places() -> None:
    """Within tens of rounds after the text has changed its character."""

    def swapping(early: float, late: float) -> Callable[[int], float]:
        return lambda number: early if number < 200 else late

    drafters = [Guess(swapping(0.9, 0.0), always(0.05)), Guess(swapping(0.0, 0.9), always(0.05))]
    policy = Auto(candidates=(Candidate("a", 0, 5), Candidate("b", 1, 5)))
    asked = World(drafters).run(policy, 500).asked
    before, after = asked[30:200], asked[280:]
    assert sum(one.nodes > 0 and one.drafter == 0 for one in before) > 0.9 * len(before)
    assert sum(one.nodes > 0 and one.drafter == 1 for one in after) > 0.9 * len(after)


def test_a_text_that_becomes_easy_is_noticed_while_drafting_is_off() -> None:
    world = World([Guess(lambda number: 0.0 if number < 200 else 0.95, always(0.05))])
    asked = world.run(Auto(), 400).asked
    assert sum(one.nodes > 0 for one in asked[30:200]) < 20
    assert sum(one.nodes > 0 for one in asked[275:]) > 110


def test_a_drafter_whose_cost_explodes_is_switched_off_within_a_few_rounds() -> None:
    world = World([Guess(always(0.9), lambda number: 0.05 if number < 100 else 5.0)])
    asked = world.run(Auto(), 160).asked
    assert all(one.nodes for one in asked[50:100])
    assert not any(one.nodes for one in asked[107:112])


@pytest.mark.parametrize("jump", [-50.0, 0.0, 1e6])
def test_a_clock_that_jumps_is_forgotten(jump: float) -> None:
    """One impossible time does not decide anything for long."""
    world = World([Guess(always(0.8), always(0.05))])
    world.run(Auto(), 300, jump=lambda number, taken: jump if number == 60 else taken)
    assert world.pace > 0.85 * World(world.drafters).run(Auto(), 300).pace


def test_windows_keep_their_length_and_trees_are_judged_by_what_they_gave() -> None:
    """A candidate that is not elastic is asked for its own length or nothing."""
    windows = (Candidate("long", 0, 32, elastic=False), Candidate("short", 0, 8, elastic=False))
    asked = World([Guess(always(0.8), always(0.0))]).run(Auto(candidates=windows), 200).asked
    assert {one.nodes for one in asked} <= {0, 8, 32}
    assert {one.nodes for one in asked[:9]} == {0, 8, 32}


def test_parallel_slots_are_asked_for_whole_steps() -> None:
    world = World([Guess(always(0.9), always(0.05))], step=4).run(Auto(), 60, default=20)
    assert all(one.nodes % 4 == 0 for one in world.asked) and world.pace > 1.5


def test_without_a_clock_it_is_the_first_candidate_at_its_own_length() -> None:
    policy = Auto(candidates=(Candidate("a", 2, 7), Candidate("b", 1)))
    assert [policy.budget(Past(), 5)[0], policy.budget(Past(), 5).drafter] == [7, 2]


def test_a_cost_table_spares_the_plain_round() -> None:
    """What passes cost is known: nothing has to be tried but the drafter."""
    costs = CostTable((1, 4), ((1.0, 1.1, 1.2), (2.0, 2.1, 2.2)))
    asked = World([Guess(always(0.9), always(0.05))]).run(Auto(costs=costs), 5).asked
    assert all(one.nodes for one in asked)


def test_it_explains_itself() -> None:
    """What was chosen, and what the others are expected to give."""
    asked = World([Guess(always(0.0), always(0.3))]).run(Auto(candidates=(Candidate("a"),)), 40).asked
    notes = [one.note for one in asked if one.note]
    assert any(note.startswith("plain (a 0.") for note in notes)


@pytest.mark.parametrize(
    "words",
    [
        {"candidates": ()},
        {"candidates": (Candidate("a", 0, -1),)},
        {"candidates": (Candidate("a", -1),)},
        {"keep": 1.0},
    ],
)
def test_settings_that_cannot_be(words: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="auto needs one candidate"):
        Auto(**words)


def test_a_line_keeps_its_slope_where_all_lie_at_one_place() -> None:
    line = Line.begun(0.1)
    for nodes in (0, 8) * 10:
        line = line.seen(nodes, 1 + 0.05 * nodes, 0.9)
    for _ in range(50):
        line = line.seen(8, 1.4, 0.9)
    assert line.at(0) == pytest.approx(1.0, abs=0.02) and line.at(16) == pytest.approx(1.8, abs=0.04)


def test_acceptance_by_position() -> None:
    """Position j is looked at where those before it were accepted; places behind the last share one."""
    rates = Acceptance.begun(0.5, 3)
    for _ in range(60):
        rates = rates.counted(5, 2, 0.9).counted(5, 5, 0.9)
    first, second, third = rates.rates
    assert first == pytest.approx(1.0, abs=0.01) and second == pytest.approx(1.0, abs=0.01)
    assert 0.7 < third < 0.8  # of four looks at places behind the second, three are accepted


# ---- in the loop ----


@pytest.mark.usefixtures("timed")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_useless_drafter_changes_no_symbol(temperature: float) -> None:
    """The same tokens as plain decoding, whatever was tried, and the report says what was chosen."""
    generator = zoo.generator("llama")
    asked: dict[str, Any] = {"sampling": ms.Sampling(temperature=temperature, seed=3), "max_new_tokens": 60}
    useless = ScriptedDrafter([1] * 200)
    plain = generator.generate(IDS, drafter=None, **asked)
    auto = generator.generate(IDS, drafter=useless, policy="auto", **asked)
    assert auto.tokens.tolist() == plain.tokens.tolist()
    assert auto.report.why and "plain" in str(auto.report) and auto.report.to_dict()["why"]


@pytest.mark.usefixtures("timed")
def test_a_row_of_a_batch_gives_what_it_gives_alone() -> None:
    """Every row chooses for itself, by the times of the batch that it is in."""
    generator = ms.Generator(zoo.generator("llama").target, draft=zoo.shared("llama", seed=1))
    asked: dict[str, Any] = {"max_new_tokens": 40}
    seeds = [ms.Sampling(seed=n) for n in range(3)]
    prompts = [IDS, IDS[:4], IDS[2:]]
    together = generator.generate(prompts, sampling=seeds, **asked)
    for prompt, seed, found in zip(prompts, seeds, together, strict=True):
        alone = generator.generate(prompt, sampling=seed, drafter=None, **asked)
        assert found.tokens.tolist() == alone.tokens.tolist()


def test_both_auto_is_a_draft_model_and_what_needs_none() -> None:
    """Named drafters are taken as they are; a rule that a drafter makes no sense for leaves it out."""
    methods = Methods(draft=TableModel())
    several, policy = methods.pair("auto", "auto", Coupled())
    assert isinstance(several, Among) and [one.name for one in several.drafters] == [
        "draft_model",
        "prompt_lookup",
    ]
    assert isinstance(policy, Auto) and [one.name for one in policy.candidates] == [
        "draft_model",
        "prompt_lookup",
    ]
    assert isinstance(methods.pair("auto", "auto", Cascade(deferral="chow"))[0], DraftModel)
    assert isinstance(methods.pair("auto", "fixed", Coupled())[0], DraftModel)
    assert isinstance(methods.pair("prompt_lookup", "auto", Coupled())[0], PromptLookup)
    assert methods.pair("none", "auto", Coupled()) == (None, Off())
    with pytest.raises(UnknownNameError):
        methods.pair("auto", "automatic", Coupled())


def test_a_window_takes_part_once_for_each_length() -> None:
    policy = automatic(Jacobi(num_draft_tokens=32))
    assert isinstance(policy, Auto)
    assert [(one.size, one.elastic) for one in policy.candidates] == [(32, False), (8, False)]


def _shown(world: World, rounds: int, policy: Auto) -> object:
    """What it remembers behind so many rounds."""
    return world.run(policy, rounds).asked[-1].memory


def test_what_was_learned_is_not_tried_over_again() -> None:
    """A useless drafter is not asked at all in a short request, a good one at the best length at once."""
    useless = [Guess(always(0.0), always(0.5))]
    learned = _shown(World(useless), 60, Auto())
    again = World(useless).run(Auto(learned=learned), 12)
    assert sum(budget.nodes > 0 for budget in again.asked) <= 2
    good = [Guess(always(0.9), always(0.02))]
    learned = _shown(World(good), 60, Auto())
    assert World(good).run(Auto(learned=learned), 1).asked[0].nodes >= 8


def test_what_was_learned_is_doubted() -> None:
    """A text as easy as the last one was hard, and the other way round: tens of rounds, not hundreds."""
    easy, hard = [Guess(always(0.95), always(0.05))], [Guess(always(0.0), always(0.5))]
    learned = _shown(World(hard), 300, Auto())
    assert World(easy).run(Auto(learned=learned), 200).pace > 2.0
    learned = _shown(World(easy), 300, Auto())
    assert World([Guess(always(0.0), always(0.05))]).run(Auto(learned=learned), 200).pace > 0.9


def test_foreign_memories_are_ignored() -> None:
    """Of another policy, or of another number of candidates."""
    two = (Candidate("a", 0), Candidate("b", 1))
    learned = _shown(World([Guess(always(0.5), always(0.1))] * 2), 40, Auto(candidates=two))
    for strange in (learned, "something else"):
        assert Auto(learned=strange).budget(Past(), 7).nodes == 7


@pytest.mark.usefixtures("timed")
def test_requests_alike_share_what_they_learn() -> None:
    """Same rule, temperature and width; others begin anew, and no symbol changes."""
    target, draft = (ms.targets.CausalTarget(zoo.build("llama", seed)) for seed in (0, 1))
    generator = Generator(target, draft=draft)
    prompts = [IDS, IDS[:3]]
    cold = ms.Sampling(temperature=0)
    first = generator.generate(prompts, max_new_tokens=24, sampling=cold)
    row = _row_of(generator, prompts, cold)
    assert isinstance(row.policy, Auto) and row.policy.learned is not None
    assert _row_of(generator, IDS, cold).policy == replace(row.policy, learned=None)
    assert _row_of(generator, prompts, ms.Sampling(temperature=1)).policy.learned is None
    second = generator.generate(prompts, max_new_tokens=24, sampling=cold)
    assert [one.tokens.tolist() for one in first] == [one.tokens.tolist() for one in second]


def _row_of(generator: Any, prompt: Any, sampling: Any) -> Any:
    """The settings of the first row of such a request."""
    asked = Asked(sampling=sampling, max_new_tokens=4)
    return batch_of(generator.target, generator.modality, generator.methods, prompt, asked).rows[0].settings
