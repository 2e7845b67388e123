"""The systems of the benchmark generate: ours, transformers, llama.cpp's file, known drafts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM
from typer.testing import CliRunner

import multispec as ms
from multispec.bench.cases import Case
from multispec.bench.gguf import check_fits, paired
from multispec.bench.llama_cpp import llama_cpp_systems
from multispec.bench.ours import metered, our_systems
from multispec.bench.peers import transformers_systems
from multispec.bench.run import Requests
from multispec.bench.session import Plan
from multispec.bench.synthetic import Known, ideal, synthetic
from multispec.cli import app, bench
from multispec.errors import UnsupportedError, UsageError
from multispec.generator import Generator
from multispec.sampling import Sampling

GREEDY = Requests(Case("text", 0.0, 1), Sampling(), 6, ("chat",))


@pytest.fixture(scope="module")
def generator(folders: tuple[Path, Path]) -> Generator:
    """The tiny models."""
    target, draft = folders
    found: Generator = ms.load(target, draft=draft)
    return found


def _encode(generator: Generator, text: str) -> list[int]:
    found: list[int] = generator.modality.encode(text).ids.tolist()
    return found


def test_ours_and_transformers_say_the_same_greedily(
    generator: Generator, folders: tuple[Path, Path]
) -> None:
    """One prompt and three, by every system that takes them; all make as many symbols as asked."""
    target, draft = folders
    ours, left_out = our_systems(generator, "text", ("draft_model:num_draft_tokens=2", "no_such_thing"))
    assert [one.name for one in ours] == ["multispec plain", "multispec auto", "multispec draft_model 2"]
    assert "no_such_thing" in left_out
    peers = transformers_systems(str(target), str(draft), lambda text: _encode(generator, text), None)
    for batch in (1, 3):
        case = Case("text", 0.0, batch)
        request = Requests(case, Sampling(), 6, ("chat", "story")).turn(0)
        taking_part = [one for one in (*ours, *peers) if not one.refuses(case)]
        found = {one.name: one.run(request) for one in taking_part}
        assert len({run.tokens for run in found.values()}) == 1, found
        assert all(run.symbols == 6 * batch for run in found.values())
        assert all(run.forward is not None for name, run in found.items() if "transformers" in name)
        batched = {"transformers generate_batch"} if batch > 1 else {"transformers assisted"}
        assert batched <= set(found)


def test_forward_passes_are_timed(generator: Generator, folders: tuple[Path, Path]) -> None:
    """Inside models is less than all; a target that shows no passes has no such figure."""
    fresh = ms.load(folders[0])
    (plain, *_), _ = our_systems(fresh, "text", (), metered(fresh.target))
    run = plain.run(GREEDY.turn(0))
    assert run.forward is not None and 0 < run.forward < run.seconds
    assert metered(object()) is None


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_known_drafts_are_right_as_often_as_asked(generator: Generator, alpha: float) -> None:
    """And the output is that of plain decoding, whatever they are."""
    (plain, *_), _ = our_systems(generator, "text")
    (found,) = synthetic(plain, GREEDY.turn(0), (alpha,), (2,), runs=1)
    assert found.ideal == ideal(alpha, 2)
    script = plain.run(GREEDY.turn(0)).tokens[0]
    result = generator.generate(
        GREEDY.turn(0).prompts[0],
        drafter=Known(script, alpha, 2),
        sampling=ms.Sampling(temperature=0),
        max_new_tokens=6,
        policy=None,
    )
    assert tuple(result.tokens.tolist()) == script
    if alpha == 1.0:
        assert result.report.accepted == result.report.drafted > 0
    if alpha == 0.0:
        assert result.report.accepted == 0 < result.report.drafted


def test_an_acceptance_is_a_chance() -> None:
    """Nothing else."""
    with pytest.raises(UsageError, match="from 0 to 1"):
        Known((1,), 1.5)


def test_paired_rows_are_rotated_alike() -> None:
    """Rotating halves of a head, and neighbours of its paired rows, gives the same scores."""
    torch.manual_seed(0)
    heads, d, width = 2, 8, 5
    weight, x = torch.randn(heads * d, width), torch.randn(3, width)
    angle = torch.arange(3.0)[:, None] * (10_000.0 ** (-torch.arange(0, d, 2) / d))
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    q = (x @ weight.T).view(3, heads, d)
    first, second = q[..., : d // 2], q[..., d // 2 :]
    halves = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    p = (x @ paired(weight, heads).T).view(3, heads, d)
    even, odd = p[..., 0::2], p[..., 1::2]
    neighbours = torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2)
    scores = [torch.einsum("shd,thd->hst", one, one) for one in (halves, neighbours)]
    torch.testing.assert_close(scores[0], scores[1])


def test_what_gguf_cannot_hold_is_refused() -> None:
    """Another architecture."""
    model = OPTForCausalLM(
        OPTConfig(vocab_size=8, hidden_size=8, ffn_dim=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(UnsupportedError, match="OPTForCausalLM"):
        check_fits(model)


def test_llama_cpp_says_what_transformers_says(generator: Generator, folders: tuple[Path, Path]) -> None:
    """Where its package is there; where it is not, it is left out with what to install."""
    try:
        systems = llama_cpp_systems(str(folders[0]), lambda text: _encode(generator, text), 256)
    except UnsupportedError as error:
        assert "pip install" in str(error)
        return
    (plain, *_), _ = our_systems(generator, "text")
    expected = plain.run(GREEDY.turn(0)).tokens
    assert [one.run(GREEDY.turn(0)).tokens for one in systems] == [expected, expected]
    assert all(one.refuses(Case("text", 0.0, 4)) for one in systems)


def test_the_command_measures_and_keeps(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """A whole run on tiny models, then one that is held against impossible ratios."""
    target, draft = folders
    words = ["bench", "text", "--model", str(target), "--draft", str(draft), "--quick", "--new-tokens", "6"]
    words += ["--category", "chat", "--method", "prompt_lookup", "--out", str(tmp_path), "--json"]
    kept = tmp_path / "kept.json"
    ran = CliRunner().invoke(app, [*words, "--peers", "none", "--save-baseline", str(kept)])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    assert [cell["case"] for cell in found["cells"]] == [
        "text, greedy, batch 1",
        "text, 0.8, batch 1",
        "text, greedy, batch 4",
        "text, 0.8, batch 4",
    ]
    assert all(cell["identical"] for cell in found["cells"])
    assert found["decisions"]["text"]["share"] < 1 and found["ceilings"]["text"]["near"] > 0
    assert len(found["queued"]) == 1
    ratios = json.loads(kept.read_text())["ratios"]
    kept.write_text(json.dumps({"ratios": {case: dict.fromkeys(row, 1e9) for case, row in ratios.items()}}))
    again = CliRunner().invoke(app, [*words, "--peers", "none", "--baseline", str(kept)])
    assert again.exit_code == 1 and json.loads(again.stdout)["fallen"]


def test_a_quick_look_takes_what_is_named() -> None:
    """Its own numbers stand in for the defaults, not for what was asked."""
    named = {"temperatures": "1", "batches": None, "runs": None, "new_tokens": 200}
    plan = bench._plan(["text"], [], [], ("none", ""), named, True)
    assert (plan.temperatures, plan.batches, plan.runs, plan.new_tokens) == ((1.0,), (1, 4), 1, 200)
    plan = bench._plan([], [], [], ("llama.cpp", "0.5"), dict.fromkeys(named), False)
    assert plan == Plan(peers=("llama.cpp",), alphas=(0.5,))


def test_the_command_measures_the_engine_alone(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """At any acceptance, with a table to read."""
    words = ["bench", "text", "--model", str(folders[0]), "--synthetic", "0.5,1", "--new-tokens", "8"]
    ran = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert "the engine at any acceptance" in ran.stdout
    assert len(json.loads((tmp_path / "bench.json").read_text())["synthetic"]["text"]) == 4


@pytest.mark.parametrize(
    "words",
    [
        ["smell"],
        ["text", "--batches", "one"],
        ["text", "--batches", "1.5"],
        ["text", "image", "--model", "somewhere"],
        ["text", "--category", "poem"],
        ["text", "--baseline", "nowhere.json"],
    ],
)
def test_wrong_words_are_refused(words: list[str]) -> None:
    """With exit code 2, and before a model is loaded."""
    ran = CliRunner().invoke(app, ["bench", *words])
    assert ran.exit_code == 2, ran.output
