"""What passes cost: measured in time, kept under a name of model and machine, remade when unusable."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

import multispec as ms
from multispec.policies.kept_costs import KeptCosts, sketched
from multispec.stream import Prompt
from multispec.testing import SlotTableModel, TableModel
from tests.models import zoo

pytestmark = pytest.mark.usefixtures("timed")
PROMPT = Prompt(ids=torch.tensor([1, 2, 3]))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("MULTISPEC_CACHE", str(tmp_path))
    return tmp_path


def test_a_table_is_measured_once_and_kept(folder: Path) -> None:
    """The second generator reads what the first one measured."""
    target = zoo.generator("llama").target
    table = KeptCosts(target, "llama")(PROMPT)
    assert table is not None and table.rows == (1, 4) and table.nodes == 32
    assert all(a <= b for row in table.seconds for a, b in itertools.pairwise(row))
    (file,) = folder.iterdir()
    again = KeptCosts(target, "llama")
    assert again.file == file and again(PROMPT) == table
    assert KeptCosts(target, "another").file != file
    torch.set_num_threads(2)
    try:
        assert KeptCosts(target, "llama").file != file
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"key": "of another machine"}', "null"])
def test_what_cannot_be_used_is_made_anew(broken: str) -> None:
    """Truncated, foreign, or no table at all."""
    costs = KeptCosts(TableModel(), "table")
    costs.file.write_text(broken)
    assert costs(PROMPT) is not None
    assert json.loads(costs.file.read_text())["rows"] == [1, 4]


def test_times_that_make_no_sense_are_made_anew() -> None:
    costs = KeptCosts(TableModel(), "table")
    costs(PROMPT)
    kept = json.loads(costs.file.read_text())
    costs.file.write_text(json.dumps(kept | {"seconds": [[-1.0, 2.0]], "rows": [1]}))
    again = KeptCosts(TableModel(), "table")(PROMPT)
    assert again is not None and min(again.seconds[0]) > 0


def test_without_a_folder_it_measures_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MULTISPEC_CACHE", str(tmp_path / "file"))
    assert KeptCosts(TableModel(), "table")(PROMPT) is not None


def test_time_that_is_up_leaves_the_rest_in_proportion() -> None:
    """One length is measured at least; no more rows are begun."""
    ticks = itertools.count()
    table = sketched(TableModel(), PROMPT, 0.0, lambda: float(next(ticks)))
    assert table.rows == (1,) and table.nodes == 32
    assert table.at(1, 32) == pytest.approx(1.64 * table.at(1, 0))


def test_parallel_slots_have_no_table(folder: Path) -> None:
    assert KeptCosts(SlotTableModel(), "slots")(PROMPT) is None
    assert not list(folder.iterdir())


def test_load_measures_when_auto_is_asked_for_first(folder: Path) -> None:
    """Not before, and not for another policy."""
    generator = ms.load(model=zoo.shared("llama"))
    generator.generate([1, 2, 3], policy="fixed", max_new_tokens=3)
    generator.generate([1, 2, 3], drafter=None, max_new_tokens=3)
    assert not list(folder.iterdir())
    generator.generate([1, 2, 3], max_new_tokens=3)
    assert len(list(folder.iterdir())) == 1
