"""The counters add up, by the definitions the field agrees on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from multispec.drafters import DraftModel
from multispec.report import Clock, Report
from multispec.stream import Generation
from multispec.testing import ScriptedDrafter, ScriptedModel, TableModel, TreeDrafter, play, row
from multispec.verifiers import Rejection


def filled() -> Report:
    """Four rounds: all of 3, 1 of 3, 0 of 2, and a plain step."""
    report = Report()
    report.count_round((1, 2, 3), (1, 2, 3), 4)
    report.count_round((1, 2, 3), (1,), 2, (0.25, 0.0))
    report.count_round((1, 2), (), 1, (0.5,))
    report.count_round((), (), 1)
    return report


def test_rates_are_those_of_the_field() -> None:
    """The bonus symbol counts in the mean acceptance length and not in the acceptance rate."""
    report = filled()
    assert (report.rounds, report.new_tokens, report.drafted, report.accepted) == (4, 8, 8, 4)
    assert report.acceptance_rate == 0.5
    assert report.mean_acceptance_length == 2.0
    assert report.histogram == {3: 1, 1: 1, 0: 2}
    assert report.variation_spent == 0.75


def test_step_compression_counts_every_call() -> None:
    """The call over the prompt gives the first symbol, so plain decoding is at 1."""
    report = filled()
    report.target_calls = 4
    assert report.step_compression == report.to_dict()["step_compression"] == 2.0


def test_positions_that_were_never_drafted_are_no_rejections() -> None:
    """Unconditional rates: of the drafts that reached position i, those whose symbol i was accepted."""
    report = filled()
    assert (report.drafted_at, report.accepted_at) == ([3, 3, 2], [2, 1, 1])
    assert report.acceptance_by_position == [2 / 3, 1 / 3, 1 / 2]


def test_an_empty_report_divides_by_nothing() -> None:
    report = Report()
    assert (report.acceptance_rate, report.mean_acceptance_length, report.step_compression) == (0, 0, 0)
    assert (report.tokens_per_second, report.acceptance_by_position) == (0, [])


def test_a_report_prints_and_dumps() -> None:
    report = filled()
    report.notes.append("something to know")
    assert json.loads(json.dumps(report.to_dict()))["histogram"] == {"0": 2, "1": 1, "3": 1}
    text = str(report)
    assert "8 / 4" in text
    assert "something to know" in text
    assert len({line.index("  ") for line in text.splitlines() if "verify" in line}) == 1


def test_the_clock_gives_the_rest_to_overhead(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = Clock()
    with clock.measure("total"), clock.measure("verify"):
        pass
    assert (clock.verify, clock.total, clock.overhead) == (2.0, 10.0, 8.0)
    copied = clock.snapshot()
    clock.total = 20.0
    assert copied.total == 10.0


def test_the_clock_counts_a_phase_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    clock = Clock()
    with pytest.raises(ZeroDivisionError), clock.measure("draft"):
        raise ZeroDivisionError
    assert clock.draft == 4.0


DRAFTERS = {
    "plain": None,
    "draft_model": DraftModel(TableModel(seed=3, strict=False), 3),
    "trees": TreeDrafter(TableModel(seed=3), (2, 1), "sampled"),
    "random_trees": TreeDrafter(),
}


@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_the_counters_add_up(drafter: str, rule: str) -> None:
    """Over real runs: histogram, rounds, flags and emitted symbols tell the same story."""
    asked: dict[str, Any] = {"drafter": DRAFTERS[drafter], "max_new_tokens": 30}
    if rule == "rejection":
        asked["verifier"] = Rejection()
    found = play(TableModel(seed=3), row(**asked))[0]
    report = found.report
    assert report.new_tokens == len(found.tokens) == len(found.from_draft) == 30
    assert sum(report.histogram.values()) == report.rounds == report.target_calls
    assert sum(n * count for n, count in report.histogram.items()) == report.accepted
    assert report.accepted == sum(found.from_draft) == sum(report.accepted_at)
    assert report.new_tokens - report.accepted <= report.rounds
    assert report.drafted >= report.accepted
    assert (report.drafted == 0) == (drafter == "plain")


def run_of(script: tuple[int, ...], drafted: tuple[int, ...], **asked: Any) -> Generation:
    return play(ScriptedModel(script), row(drafter=ScriptedDrafter(drafted), **asked))[0]


def test_symbols_behind_a_stop_are_not_counted() -> None:
    """A stop in the middle of an accepted draft trims it before anything is counted."""
    script = (1, 2, 3, 4, 5, 6, 7)
    found = run_of(script, script, end_ids=(3,))
    assert found.tokens.tolist() == [1, 2, 3]
    assert found.finish_reason == "stop"
    assert found.from_draft == (False, True, True)
    assert (found.report.drafted, found.report.accepted) == (2, 2)
    assert found.report.histogram == {0: 1, 2: 1}


def test_the_last_round_counts_what_was_drafted_in_it() -> None:
    """The length cap shortens the draft, so nothing is drafted in vain."""
    script = (1, 2, 3, 4, 5, 6, 7)
    found = run_of(script, script, max_new_tokens=4)
    assert found.finish_reason == "length"
    assert (found.report.drafted, found.report.accepted, found.report.rounds) == (2, 2, 2)
    assert found.report.mean_acceptance_length == 2
