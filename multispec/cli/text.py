"""``multispec text``: generate text, and show what drafting did."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli import _timing
from multispec.cli._console import (
    INTERRUPTED,
    Debug,
    Draft,
    Fast,
    Json,
    Model,
    Painter,
    Profile,
    console,
    dtype_of,
    load,
    noticed,
    profiled,
    running,
    say,
)
from multispec.errors import UsageError


def text(
    prompt: Annotated[str, typer.Argument(help="Where to go on from; - reads standard input.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the text to this file too.")
    ] = None,
    model: Model = "text",
    draft: Draft = None,
    drafter: Annotated[
        str, typer.Option(help="auto, none, or a drafter that `multispec methods` lists.")
    ] = "auto",
    verifier: Annotated[str, typer.Option(help="A verifier of `multispec methods`.")] = "coupled",
    policy: Annotated[str, typer.Option(help="auto, or a policy of `multispec methods`.")] = "auto",
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.8,
    top_k: Annotated[int, typer.Option(help="Keep the k best; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep this much mass; 1 is off.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop what is this unlikely; 0 is off.")] = 0.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="The longest output.")] = 200,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    num_draft_tokens: Annotated[
        int | None, typer.Option(help="Draft tokens per round, with --policy auto or fixed.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Time plain decoding too, and compare the tokens.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="Where to run, such as cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    fast: Fast = None,
    profile: Profile = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Generate text from PROMPT; what was drafted is shown in green."""
    with running(debug):
        import multispec as ms

        sampling = ms.Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        settings: dict[str, Any] = {
            "drafter": drafter,
            "verifier": verifier,
            "policy": _policy(policy, num_draft_tokens),
            "sampling": sampling,
            "max_new_tokens": max_new_tokens,
            "stop": stop or None,
        }
        words = sys.stdin.read() if prompt == "-" else prompt
        generator = load(model, draft, device=device, dtype=dtype_of(dtype), fast=fast)
        run = _as_json if as_json else _as_text
        with profiled(profile):
            run(generator, words, settings, output, compare)


def _policy(policy: str, count: int | None) -> Any:
    if count is None:
        return policy
    if policy not in ("auto", "fixed"):
        raise UsageError(
            f"--num-draft-tokens fixes the length that --policy {policy} chooses: got both. "
            "Leave one of them out."
        )
    from multispec.policies import FixedLength

    return FixedLength(num_draft_tokens=count)


def _as_json(
    generator: Any, prompt: str, settings: dict[str, Any], output: Path | None, compare: bool
) -> None:
    result = generator.generate(prompt, **settings)
    found = {
        "text": result.output,
        "tokens": result.tokens.tolist(),
        "from_draft": list(result.from_draft),
        "finish_reason": result.finish_reason,
        "report": result.report.to_dict(),
    }
    if output is not None:
        result.save(output)
    interrupted = result.finish_reason == "interrupted"
    if compare and not interrupted:
        found["compare"] = _compared(generator, settings, _timed(generator, prompt, settings))
    typer.echo(json.dumps(found, ensure_ascii=False))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _as_text(
    generator: Any, prompt: str, settings: dict[str, Any], output: Path | None, compare: bool
) -> None:
    with noticed() as interrupts:
        written = _streamed(generator, prompt, settings)
    if output is not None:
        output.write_text(written, encoding="utf-8")
    if interrupts:
        say("Interrupted: this is what was generated.", "yellow")
        raise typer.Exit(INTERRUPTED)
    if compare:
        _show_comparison(generator, prompt, settings)


def _streamed(generator: Any, prompt: str, settings: dict[str, Any]) -> str:
    """Show the text as it comes; returns it."""
    painter, pieces = Painter(), []
    steps = generator.stream(prompt, **settings)
    painter.legend()
    if painter.colours:
        console().print(prompt, style="dim", markup=False, end="", soft_wrap=True)
    try:
        for step in steps:
            painter.write(step.delta, step.from_draft)
            pieces.append(step.delta or "")
    except KeyboardInterrupt:  # between two rounds, outside the loop that ends quietly
        pass
    sys.stdout.write("\n")
    sys.stdout.flush()
    say(_summary(steps.result.report), "dim")
    return "".join(pieces)


def _summary(report: Any) -> str:
    """What it cost, in one line."""
    return (
        f"{report.new_tokens} tokens in {report.clock.total:.2f} s "
        f"({report.tokens_per_second:.1f} tokens/s): "
        f"{report.target_calls} target calls, {report.accepted} of {report.drafted} drafted tokens accepted"
    )


def _timed(generator: Any, prompt: str, settings: dict[str, Any]) -> dict[str, _timing.Timed]:
    drafters = {"plain": None, "speculative": settings["drafter"]}
    return _timing.take_turns(generator, prompt, settings, drafters)


def _compared(generator: Any, settings: dict[str, Any], timed: dict[str, _timing.Timed]) -> dict[str, Any]:
    plain, drafted = timed["plain"], timed["speculative"]
    return {
        "identical": _timing.identical(timed),
        "promise": generator.methods.verifier(settings["verifier"]).exactness,
        "speed_ratio": drafted.tokens_per_second / plain.tokens_per_second,
        "plain": plain.to_dict(),
        "speculative": drafted.to_dict(),
    }


def _show_comparison(generator: Any, prompt: str, settings: dict[str, Any]) -> None:
    timed = _timed(generator, prompt, settings)
    found = _compared(generator, settings, timed)
    screen = console()
    screen.print(_timing.as_table(timed, "medians of 3 runs in turn, after a warm-up"))
    screen.print(_timing.verdict("Tokens", found["identical"], found["promise"]))
