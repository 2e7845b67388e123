"""The benchmark of look-ups runs from start to end on a short text and keeps every figure that it prints."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "benchmark_lookup.py"
DRAFTERS = (
    "prompt_lookup suffix_automaton suffix_decoding token_recycling rest cacheback anpd n_grammys aded llma"
)


def test_every_figure_of_the_benchmark_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All drafters, the datastore and both rules on trees; each time a positive number."""
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--smoke", "--out", str(out)])
    runpy.run_path(str(RECIPE), run_name="__main__")
    found = json.loads(out.read_text())
    assert [line["drafter"] for line in found["drafting"]] == DRAFTERS.split()
    assert all(line["round_ms"] > 0 and line["bytes_per_token"] > 0 for line in found["drafting"])
    assert all(line["accepted"] >= 1 for line in found["drafting"])
    assert found["datastore"]["symbols"] == 3333 and found["datastore"]["seconds"] > 0
    assert {(line["verifier"], line["nodes"]) for line in found["trees"]} == {
        (name, nodes) for name in ("coupled", "rejection") for nodes in (0, 8)
    }
    assert "a round of drafting behind 400 symbols" in capsys.readouterr().out
