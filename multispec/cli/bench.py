"""``multispec bench``: what speculation gains on this machine, beside what else could be used."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from multispec.cli._console import Debug, Draft, Json, console, dtype_of, load, running, say, table

_OUT = Path(".bench/bench")


def bench(
    streams: Annotated[
        list[str] | None, typer.Argument(help="text, image, speech; all that are installed unless named.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A folder or hub id, for one stream; else the embedded one.")
    ] = None,
    draft: Draft = None,
    category: Annotated[
        list[str] | None, typer.Option(help="A category of text prompts; may be repeated. All unless named.")
    ] = None,
    temperatures: Annotated[
        str | None, typer.Option(help="Separated by commas, 0 is greedy; 0,0.8,1 unless named.")
    ] = None,
    batches: Annotated[
        str | None, typer.Option(help="How many prompts together, separated by commas; 1,4,16 unless named.")
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A fixed drafter of `multispec methods` to try; may be repeated."),
    ] = None,
    peers: Annotated[
        str, typer.Option(help="transformers, llama.cpp, separated by commas; or none.")
    ] = "transformers,llama.cpp",
    synthetic: Annotated[
        str,
        typer.Option(help="Instead: the engine at these acceptances, as 0.5,0.7,0.9, without a draft model."),
    ] = "",
    runs: Annotated[int | None, typer.Option(help="Turns of each case; 3 unless named.")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Symbols of a text; 128 unless named.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every system; 0: as many as torch takes.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Unless named: 1 turn, greedy and 0.8, 1 and 4 prompts, 64 symbols."),
    ] = False,
    out: Annotated[Path, typer.Option(help="The folder for bench.json, bench.md and bench.png.")] = _OUT,
    baseline: Annotated[
        Path | None, typer.Option(help="Ratios of an earlier run; the exit code is 1 where one fell.")
    ] = None,
    tolerance: Annotated[float, typer.Option(help="How much a ratio may fall.")] = 0.2,
    save_baseline: Annotated[Path | None, typer.Option(help="Keep the ratios of this run here.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure plain, automatic and fixed ways of ours and of others, in turns within one run."""
    with running(debug):
        from multispec.bench import regression
        from multispec.bench.files import write

        plan = _plan(
            streams or [],
            category or [],
            method or [],
            (peers, synthetic),
            {"temperatures": temperatures, "batches": batches, "runs": runs, "new_tokens": new_tokens},
            quick,
        )
        before = regression.load(baseline) if baseline is not None else {}
        results = _run(plan, (model, draft, dtype_of(dtype)), threads)
        files = write(results, out)
        if save_baseline is not None:
            regression.save(save_baseline, results.cells, results.machine)
        fallen = regression.falls(before, results.cells, tolerance)
        if as_json:
            typer.echo(json.dumps(results.to_dict() | {"fallen": [one._asdict() for one in fallen]}))
        else:
            _show(results, fallen)
            say(f"Kept: {', '.join(map(str, files))}", "dim")
    if fallen:
        raise typer.Exit(1)


def _plan(
    streams: list[str],
    categories: list[str],
    methods: list[str],
    lists: tuple[str, str],
    sizes: dict[str, Any],
    quick: bool,
) -> Any:
    from multispec.bench.session import QUICK, STREAMS, Plan

    peers, alphas = lists
    named = {name: given for name, given in sizes.items() if given is not None}
    for name in ("temperatures", "batches"):
        if name in named:
            named[name] = _numbers(f"--{name}", named[name], float if name == "temperatures" else int)
    return Plan(
        streams=tuple(streams) or STREAMS,
        categories=tuple(categories),
        methods=tuple(methods),
        peers=() if peers == "none" else tuple(_parts(peers)),
        alphas=_numbers("--synthetic", alphas, float),
        **(QUICK if quick else {}) | named,
    )


def _parts(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _numbers(option: str, text: str, kind: type[float] | type[int]) -> tuple[float, ...]:
    """The numbers of an option.

    Raises:
        UsageError: something else.
    """
    from multispec.errors import UsageError

    try:
        return tuple(kind(one) for one in _parts(text))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers separated by commas: got {text!r} ({error}).") from error


def _run(plan: Any, what: tuple[str | None, str | None, Any], threads: int) -> Any:
    import torch

    from multispec.bench.session import Loaded, run
    from multispec.errors import UsageError

    model, draft, dtype = what
    if (model is not None or draft is not None) and len(plan.streams) != 1:
        raise UsageError(f"--model and --draft belong to one stream: got {plan.streams}. Name it.")
    if threads:
        torch.set_num_threads(threads)
    screen = console(stderr=True)

    def loaded(stream: str) -> Loaded:
        generator = load(model or stream, draft, dtype=dtype, modality=stream)
        return Loaded(generator, *_folders(stream, model, draft), dtype)

    with screen.status("loading ...") as status:
        return run(plan, loaded, _command(), status.update)


def _folders(stream: str, model: str | None, draft: str | None) -> tuple[str, str | None]:
    """Where peers find the same weights."""
    from multispec.loading import assets

    if model is not None:
        return model, draft
    folder = assets() / stream
    return str(folder / "target"), draft or str(folder / "draft")


def _command() -> str:
    return shlex.join(["multispec", *sys.argv[1:]])


def _show(results: Any, fallen: list[Any]) -> None:
    from multispec.bench import files

    screen = console()
    for cell in results.cells:
        columns, rows = files.cell_table(cell)
        same = "" if cell.identical else " (our systems' symbols are NOT identical)"
        screen.print(table(columns, rows, cell.case.label + same))
    for stream, found in results.synthetic.items():
        columns, rows = files.synthetic_table(found)
        screen.print(table(columns, rows, f"{stream}: the engine at any acceptance"))
    for title, (columns, rows) in (
        ("How near to the limits", files.ceiling_table(results.ceilings)),
        ("What is asked", files.goal_table(results.goals)),
    ):
        screen.print(table(columns, rows, title))
    for name, why in results.left_out.items():
        say(f"Left out: {name}. {why}", "yellow")
    for one in fallen:
        say(f"Fell: {one.case}, {one.what}: {one.before:.2f} before, {one.now:.2f} now.", "red")
