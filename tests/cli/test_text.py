"""``multispec text``."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import multispec as ms
from multispec import loop
from multispec.cli import app
from multispec.generator import Stream

PROMPT = "Once upon a time"


def run(*arguments: str, model: str, **settings: Any) -> Result:
    """The command on a tiny model with short outputs."""
    short = ["--max-new-tokens", "24", "--drafter", "prompt_lookup"]
    return CliRunner().invoke(app, ["text", "--model", model, *short, *arguments], **settings)


def expected(model: str, seed: int = 0) -> ms.Generation:
    """What the library gives for the same."""
    sampling = ms.Sampling(temperature=0.8, seed=seed)
    found: ms.Generation = ms.load(model).generate(PROMPT, drafter=None, sampling=sampling, max_new_tokens=24)
    return found


def test_stdout_is_the_text_alone(target: str) -> None:
    result = run(PROMPT, model=target)
    assert result.exit_code == 0
    assert result.stdout == f"{expected(target).output}\n"
    assert "24 tokens in" in result.stderr


def test_seed_changes_the_text(target: str) -> None:
    result = run(PROMPT, "--seed", "7", model=target)
    assert result.stdout == f"{expected(target, seed=7).output}\n"


def test_json_is_one_object(target: str, draft: str) -> None:
    result = run(PROMPT, "--json", "--draft", draft, "--drafter", "draft_model", model=target)
    found = json.loads(result.stdout)
    assert found["tokens"] == expected(target).tokens.tolist()
    assert found["text"] == expected(target).output
    assert found["report"]["new_tokens"] == len(found["from_draft"]) == 24
    assert found["report"]["draft_calls"] > 0


def test_json_compares(target: str) -> None:
    result = run(PROMPT, "--json", "--compare", model=target)
    found = json.loads(result.stdout)["compare"]
    assert found["identical"] is True
    assert found["promise"] == "seed"
    assert found["plain"]["target_calls"] == 24
    assert found["speed_ratio"] > 0


def test_compare_shows_a_table(target: str) -> None:
    result = run(PROMPT, "--compare", model=target)
    assert "identical to plain decoding" in result.stdout
    assert "speculative" in result.stdout and "1.00x" in result.stdout


def test_compare_does_not_promise_too_much(target: str) -> None:
    result = run(PROMPT, "--compare", "--verifier", "rejection", model=target)
    assert "nor promised" in result.stdout


def test_profile_writes_a_trace_with_the_phases_named(target: str, tmp_path: Path) -> None:
    """Every round drafts and verifies under these names; the text is the same."""
    trace = tmp_path / "trace.json"
    result = run(PROMPT, "--profile", str(trace), model=target)
    assert result.stdout == f"{expected(target).output}\n" and "Trace:" in result.stderr
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("multispec: verify") == names.count("multispec: draft") - 1 >= 3
    assert names.count("multispec: prefill") == 1


@pytest.mark.parametrize("trace", ["trace.txt", "no/such/folder/trace.json"])
def test_profile_that_cannot_be_written(target: str, trace: str) -> None:
    result = run(PROMPT, "--profile", trace, model=target)
    assert result.exit_code == 2 and "--profile writes a .json" in result.stderr


def test_output_file(target: str, tmp_path: Path) -> None:
    run(PROMPT, "-o", str(tmp_path / "streamed.txt"), model=target)
    run(PROMPT, "--json", "-o", str(tmp_path / "whole.txt"), model=target)
    written = [path.read_text(encoding="utf-8") for path in sorted(tmp_path.iterdir())]
    assert written == [expected(target).output] * 2


def test_prompt_from_stdin(target: str) -> None:
    assert run("-", model=target, input=PROMPT).stdout == f"{expected(target).output}\n"


def test_stop_string_ends_the_text(target: str) -> None:
    whole = expected(target).output
    stop = whole[5:7]
    result = run(PROMPT, "--stop", stop, model=target)
    assert result.stdout == f"{whole[: whole.index(stop)]}\n"


def test_drafted_tokens_are_coloured_on_a_terminal(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = run(PROMPT, "--policy", "fixed", "--num-draft-tokens", "4", model=target)
    assert "accepted by the target" in result.stderr
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run(PROMPT, model=target)
    assert "\x1b[" not in plain.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--drafter", "promt_lookup"], 2, "Did you mean 'prompt_lookup'"),
        (["--temperature", "-1"], 2, "temperature must be >= 0"),
        (["--dtype", "float23"], 2, "Unknown dtype 'float23'"),
        (["--policy", "heuristic", "--num-draft-tokens", "3"], 2, "Leave one of them out"),
        (["--max-new-tokens", "0"], 2, "max_new_tokens must be >= 1"),
        (["--drafter", "draft_model"], 2, "needs a draft model"),
    ],
)
def test_wrong_usage_is_one_line(target: str, arguments: list[str], code: int, message: str) -> None:
    result = run(PROMPT, *arguments, model=target)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_missing_model_is_a_failure(tmp_path: Path) -> None:
    result = run(PROMPT, model=str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert "No model can be read" in result.stderr


def test_debug_shows_where(tmp_path: Path) -> None:
    result = run(PROMPT, "--debug", model=str(tmp_path / "nothing"))
    assert isinstance(result.exception, ms.errors.ModelLoadError)


def test_ctrl_c_between_rounds(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = ms.Generator.stream

    def steps(stream: Stream) -> Iterator[ms.Step]:
        for count, step in enumerate(stream):
            if count == 9:
                signal.raise_signal(signal.SIGINT)
            yield step

    def interrupted(self: ms.Generator, prompt: Any, **settings: Any) -> Stream:
        stream = begin(self, prompt, **settings)
        return Stream(steps(stream), lambda: stream.result)

    monkeypatch.setattr(ms.Generator, "stream", interrupted)
    result = run(PROMPT, model=target)
    assert result.exit_code == 130
    assert expected(target).output.startswith(result.stdout.strip("\n\ufffd"))
    assert len(result.stdout) > 1


def test_ctrl_c_inside_the_loop(target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, passes = loop.score, iter(range(100))

    def interrupted(*arguments: Any) -> Any:
        if next(passes) == 5:
            signal.raise_signal(signal.SIGINT)
        return before(*arguments)

    monkeypatch.setattr(loop, "score", interrupted)
    result = run(PROMPT, "-o", str(tmp_path / "part.txt"), model=target)
    assert result.exit_code == 130
    assert "Interrupted" in result.stderr
    assert (tmp_path / "part.txt").read_text(encoding="utf-8") == result.stdout[:-1]
