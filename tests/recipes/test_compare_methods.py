"""The comparison of all methods: files, going on where it ended, the table, and what takes part."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import multispec as ms
from multispec.errors import UsageError
from multispec.stream import Prompt
from multispec.testing import TableModel
from recipes import _method_plot as plots
from recipes import compare_methods as recipe
from recipes._catalog_ways import Entrant, LeftOut, References, entrants
from recipes._journal import Journal
from recipes._method_plot import Point
from recipes._ways import PLAIN

ONLY = "drafter prompt_lookup, drafter rest, verifier budget 0.1, policy off"
WORDS = {"stream": "text", "new-tokens": 6, "seeds": 1, "prompts": "Once upon a time", "only": ONLY}


def flags(out: Path, **changes: Any) -> list[str]:
    words = WORDS | {"out": out} | {name.replace("_", "-"): value for name, value in changes.items()}
    return [f"--{name}={value}" for name, value in words.items()]


def rows_of(out: Path) -> dict[str, dict[str, str]]:
    with (out / "figures.csv").open(encoding="utf-8") as file:
        return {f"{line['kind']} {line['method']}".strip(): line for line in csv.DictReader(file)}


@pytest.mark.usefixtures("unchecked")
def test_a_run_is_kept_and_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embedded models: figures, table, plot; the second start generates nothing and writes the same."""
    monkeypatch.setattr(recipe, "EVERY", 2)
    recipe.main(flags(tmp_path))
    rows, journal = rows_of(tmp_path), (tmp_path / "runs.jsonl").read_text().splitlines()
    names = [json.loads(line)["name"] for line in journal[1:]]
    assert names[::3] == ["plain"] * 2 and names.count("plain") == 2 and len(names) == 6
    assert {"plain", "drafter prompt_lookup", "drafter rest", "policy off"} <= {*rows}
    assert (rows["plain"]["mean_acceptance_length"], rows["plain"]["turns"]) == ("1.0", "1")
    assert {rows[name]["variation_per_symbol"] for name in ("plain", "drafter rest")} == {"0.0"}
    assert rows["verifier budget 0.1"]["exactness"] == "bounded"
    assert float(rows["policy off"]["calls_share"]) == 1.0
    assert "| prompt_lookup | drafter | coupled | seed |" in (tmp_path / "table.md").read_text()
    with Image.open(tmp_path / "speed.png") as sheet:
        assert sheet.width == round(plots.WIDTH * plots.DPI)
    files = {one.name: one.read_bytes() for one in tmp_path.iterdir()}

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is left to generate")

    with monkeypatch.context() as patched:
        patched.setattr(ms.Generator, "generate", refuse)
        recipe.main(flags(tmp_path))
    assert all((tmp_path / name).read_bytes() == known for name, known in files.items())
    with pytest.raises(UsageError, match=r"got new_tokens=7, expected new_tokens=6\. Pass --restart"):
        recipe.main(flags(tmp_path, new_tokens=7))


def entrants_of(stream: str, draft: bool, out: Path) -> dict[str, Entrant | LeftOut]:
    """By name, of a model of five symbols."""
    small = TableModel(vocab_size=5, seed=3) if draft else None
    generator = ms.Generator(TableModel(vocab_size=5, seed=2), draft=small)
    references = References(lambda: [[0, 1, 2]], 5, out / "references.datastore")
    return {one.name: one for one in entrants(generator, stream, references)}


@pytest.mark.parametrize("stream", ["text", "image", "speech"])
def test_every_method_of_the_catalog_takes_part_or_says_why_not(stream: str, tmp_path: Path) -> None:
    found = entrants_of(stream, True, tmp_path)
    assert next(iter(found)) == PLAIN.name
    names = [(one.kind, one.method.partition(" ")[0]) for one in found.values()]
    assert {(one.kind, one.name) for one in ms.catalog() if stream in one.streams} <= {*names}
    ways = {name: one.make() for name, one in found.items() if isinstance(one, Entrant)}
    assert {name for name, way in ways.items() if way.drafter is None} == {PLAIN.name}
    assert all(f"{way.family} {way.setting}" == name for name, way in ways.items() if way is not PLAIN)
    assert all(way.exact for name, way in ways.items() if not name.startswith("verifier"))
    left_out = {name: one.why for name, one in found.items() if isinstance(one, LeftOut)}
    assert left_out["verifier specinfer"] == "It is rejection under another name."
    assert left_out["drafter shared_vocabulary"].startswith("It needs a draft model")
    assert ("structure medusa" in ways) == (stream == "text") != ("structure medusa" in left_out)


def test_without_a_draft_model_rules_go_with_a_window(tmp_path: Path) -> None:
    found = entrants_of("text", False, tmp_path)
    rule, policy, tree = (found[name] for name in ("verifier typical", "policy svip", "structure rsd_s"))
    assert isinstance(rule, Entrant) and rule.make().drafter.name == rule.beside == "scd_mc"
    assert isinstance(policy, LeftOut) and isinstance(tree, LeftOut)
    assert policy.why == tree.why == "It needs a draft model, and the model came without one."


def run(name: str, number: int, seconds: float, calls: int, **more: Any) -> recipe.Run:
    known = {"prompts": "free text", "exactness": "seed", "symbols": 10, "rounds": 5, "variation": 0.0}
    # Seconds for a symbol of plain decoding: 0.1, 0.2, 0.4.
    words: dict[str, Any] = known | {"seed": 0, "steps": 10.0, "plain": 2.0**number / 10} | more
    return recipe.Run(name=name, number=number, seconds=seconds, calls=calls, **words)


def test_figures_are_medians_of_ratios_within_a_turn() -> None:
    """The machine was slower in some turns; a shorter text costs less and is not faster for it."""
    methods = [
        Entrant("", "plain", "", lambda: PLAIN),
        Entrant("drafter", "a", "coupled", lambda: PLAIN),
        Entrant("drafter", "b", "coupled", lambda: PLAIN),
        Entrant("verifier", "c", "draft_model", lambda: PLAIN),
    ]
    turns = [recipe.Turn("free text", number, "x", 0) for number in range(3)]
    plain = [run("plain", number, 2.0**number, 10, rounds=10) for number in range(3)]
    own = [run("drafter a", number, seconds, 5) for number, seconds in enumerate((1.0, 1.0, 1.0))]
    ended = run("drafter b", 0, 0.05, 2, symbols=5, steps=5.0, rounds=1)
    spent = run("verifier c", 1, 1.0, 4, exactness="bounded", variation=0.5)
    elsewhere = run("drafter a", 7, 1.0, 5)
    rows = recipe.figures(methods, [*plain, *own, ended, spent, elsewhere], turns)
    assert [row.method for row in rows] == ["plain", "b", "a", "c"]
    a, b, c = rows[2], rows[1], rows[3]
    assert (a.turns, a.slowest, a.speed, a.fastest) == (3, 1.0, 2.0, 4.0)
    assert (a.mean_acceptance_length, a.calls_share) == (2.0, 0.5)
    assert b.speed == pytest.approx(10.0) and b.calls_share == pytest.approx(0.4)
    assert (c.exactness, c.variation_per_symbol, c.speed) == ("bounded", 0.05, 2.0)
    text = recipe.markdown("Methods", rows, {"policy d": "It broke."})
    assert "| a | drafter | coupled | seed | 2.00 | 0.500 | 2.00 | 1.00 | 4.00 | 0.0000 |" in text
    assert text.startswith("# Methods\n\n## Free text\n\n| method | kind |")
    assert text.endswith("## Left out\n\n- policy d: It broke.\n")


def test_reasons_are_a_sentence() -> None:
    assert recipe.sentence("It needs 0.5 of\n  a model. Pass one.") == "It needs 0.5 of a model."
    assert recipe.sentence("It needs draft=... of load.") == "It needs draft=... of load."


def test_a_journal_forgets_a_line_that_was_cut_off(tmp_path: Path) -> None:
    """What was whole is kept, and what is added stands on a line of its own."""
    path = tmp_path / "deep" / "runs.jsonl"
    Journal.at(path, {"tokens": 8}).add({"name": "a"})
    path.write_text(path.read_text() + '{"name": "b', encoding="utf-8")
    again = Journal.at(path, {"tokens": 8})
    again.add({"name": "c"})
    assert again.lines == [{"name": "a"}, {"name": "c"}]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"tokens": 8}, *again.lines]
    with pytest.raises(UsageError, match="got tokens=9, expected tokens=8"):
        Journal.at(path, {"tokens": 9})
    assert Journal.at(path, {"tokens": 9}, restart=True).lines == []


def test_settings_that_cannot_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("--prompts= ; ", "--seeds=0"):
        with pytest.raises(SystemExit):
            recipe.parse([wrong])
        assert "one at least" in capsys.readouterr().err
    with pytest.raises(UsageError, match="A stream is text, image, speech: got 'smell'"):
        recipe.main(["--stream=smell", f"--out={tmp_path / 'none'}"])
    with pytest.raises(UsageError, match="--references are texts: got 'x.txt' for the stream image"):
        recipe.main(["--stream=image", "--references=x.txt", f"--out={tmp_path / 'none'}"])
    assert not (tmp_path / "none").exists()


def test_turns_go_through_all_prompts_before_the_next_seed() -> None:
    turns = recipe.Settings(seeds=2, first_seed=4).turns()
    assert [(one.number, one.seed) for one in turns] == [(n, seed) for seed in (4, 5) for n in range(4)]
    assert [one.prompts for one in turns[:4]] == ["free text"] * 2 + ["code editing"] * 2
    assert "ValueError" in turns[2].prompt and turns[2].prompt.endswith("def add(self, name, value):\n")
    given = recipe.Settings(prompts="a; b", stream="image", seeds=1).turns()
    assert [(one.prompts, one.prompt) for one in given] == [("prompts", "a"), ("prompts", "b")]


class Letters:
    """A modality whose ids are letters."""

    @property
    def modality(self) -> Letters:
        return self

    def encode(self, text: str) -> Prompt:
        return Prompt(ids=torch.tensor([ord(letter) for letter in text]))


def test_references_are_read_from_a_text_or_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "REFERENCE_SYMBOLS", 4)
    (tmp_path / "a.txt").write_text("abcdef")
    assert recipe.read_references(tmp_path / "a.txt", Letters()) == [[97, 98, 99, 100]]
    (tmp_path / "b.txt").write_text("c")
    (tmp_path / "c.md").write_text("no text")
    assert recipe.read_references(tmp_path, Letters()) == [[97, 98], [99]]
    with pytest.raises(UsageError, match="takes a text or a folder of .txt"):
        recipe.read_references(tmp_path / "d.txt", Letters())
    (tmp_path / "e.txt").write_text(" ")
    with pytest.raises(UsageError, match="has no text"):
        recipe.read_references(tmp_path / "e.txt", Letters())


def test_a_plot_of_exact_methods_alone_is_written(tmp_path: Path) -> None:
    """One kind of prompts, nothing that errs."""
    pytest.importorskip("matplotlib")
    points = [
        Point(kind=kind, method=name, prompts="captions", exactness="law", speed=speed, variation=0.0)
        for kind, name, speed in (("", "plain", 1.0), ("drafter", "a", 2.0), ("policy", "b", 0.5))
    ]
    plots.plot(points, "Methods", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
