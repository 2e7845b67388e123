"""``multispec methods``: the catalog."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from multispec.cli._console import Debug, Json, console, running, table
from multispec.errors import UnknownNameError

KINDS = ("drafter", "verifier", "policy")


def methods(
    kind: Annotated[str | None, typer.Option(help="drafter, verifier or policy.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List every drafter, verifier and policy with what it promises and where it is published."""
    with running(debug):
        from multispec.methods import catalog

        if kind is not None and kind not in KINDS:
            raise UnknownNameError("kind", kind, KINDS)
        found = [entry.to_dict() for entry in catalog() if kind in (None, entry.kind)]
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
            return
        columns = ("name", "kind", "exactness", "trained", "paper", "what it does")
        rows = [
            [
                one["name"],
                one["kind"],
                one["exactness"],
                "yes" if one["trained"] else "no",
                one["paper"],
                one["summary"],
            ]
            for one in found
        ]
        console().print(table(columns, rows))
