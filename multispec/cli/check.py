"""``multispec check``: exactness of every method on a model."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from multispec.cli._console import Debug, Draft, Json, console, load, running, table, way_of


def check(
    model: Annotated[
        str, typer.Argument(help='A folder, a hub id, or "text" for the embedded model.')
    ] = "text",
    draft: Draft = None,
    drafter: Annotated[
        list[str] | None, typer.Option(help="Check this drafter alone (or these): a name with its options.")
    ] = None,
    verifier: Annotated[
        list[str] | None, typer.Option(help="Check this rule alone (or these): a name with its options.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Fewer and shorter cases, every method once: under a minute on the embedded models.",
        ),
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check every promise of every method on MODEL; the exit code is 1 when one is broken.

    Every drafter is checked with the rule it fits best, and every rule with one or two drafters.
    """
    with running(debug):
        generator = load(model, draft)
        results = _checked(generator, quick, _chosen(generator, drafter or [], verifier or []))
        failed = [one for one in results if not one.ok]
        spared = _left_out(generator) if quick else []
        if as_json:
            rows = [one.to_dict() for one in results]
            found = {"model": model, "way": way_of(generator), "ok": not failed, "results": rows}
            if quick:
                found["left_out"] = spared
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            _show(model, generator, results, spared)
        if failed:
            raise typer.Exit(1)


def _chosen(generator: Any, drafters: list[str], verifiers: list[str]) -> dict[str, Any]:
    """What was asked for by name; drafters by themselves are tried with the natural rules."""
    chosen: dict[str, Any] = {}
    if drafters:
        chosen["drafters"] = {name: generator.methods.drafter(name) for name in drafters}
        verifiers = verifiers or ["coupled", "rejection"]
    if verifiers:
        chosen["verifiers"] = [generator.methods.verifier(name) for name in verifiers]
    return chosen


def _checked(generator: Any, quick: bool, chosen: dict[str, Any]) -> list[Any]:
    from multispec.checking import iter_checks

    results = []
    screen = console(stderr=True)
    with screen.status("checking ...") as status:
        for one in iter_checks(generator, quick=quick, **chosen):
            results.append(one)
            status.update(f"{len(results)} checks done, last: {one.name}")
    return results


def _left_out(generator: Any) -> list[str]:
    from multispec.checking import left_out

    return left_out(generator)


def _show(model: str, generator: Any, results: list[Any], spared: list[str]) -> None:
    screen = console()
    rows = [[one.name, one.compared, str(one.cases), _word(one), one.detail] for one in results]
    columns = ("check", "what is compared", "cases", "result", "detail")
    screen.print(table(columns, rows, f"{model}, run as {way_of(generator)}"))
    failed = sum(not one.ok for one in results)
    skipped = sum(one.skipped for one in results)
    passed = len(results) - failed - skipped
    style = "red" if failed else "green"
    screen.print(f"{passed} passed, {failed} failed, {skipped} skipped", style=style)
    if spared:
        screen.print(f"left out, being quick: {'; '.join(spared)}")


def _word(one: Any) -> str:
    return "skipped" if one.skipped else "[green]ok[/green]" if one.ok else "[red]FAILED[/red]"
