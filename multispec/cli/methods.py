"""``multispec methods``: the catalog."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.markup import escape

from multispec.cli._console import Debug, Json, console, markdown, running, table
from multispec.cli._survey import SURVEY, systems_of
from multispec.errors import UnknownNameError, UsageError

KINDS = ("drafter", "verifier", "policy", "structure")
PROMISES = ("seed", "law", "group", "bounded", "heuristic", "any")
STREAMS = ("text", "image", "speech")
HEAD = """# The methods

Made by a command, and held up to date by a test:

    multispec methods --markdown > docs/methods.md

Drafters, policies and structures never change what a verifier promises: `seed` the very symbols of plain
decoding, `law` its distribution, `group` its distribution over groups of symbols, `bounded` a total variation
that you set, `heuristic` nothing but a meter. Each works on its own: any drafter with any verifier and any
policy, and what makes no sense is refused before anything is computed. Names take settings behind a colon:
`drafter="prompt_lookup:max_ngram=5"`, `verifier="budget:per_token=0.1"`, `drafter="rest:corpus.datastore"`.

## From the survey to the catalog

Systems in the order of *Speculative Decoding and Beyond* (arXiv 2502.19732).
"""


def methods(
    kind: Annotated[str | None, typer.Option(help="drafter, verifier, policy or structure.")] = None,
    exactness: Annotated[str | None, typer.Option(help="seed, law, group, bounded or heuristic.")] = None,
    stream: Annotated[str | None, typer.Option(help="text, image or speech.")] = None,
    search: Annotated[str | None, typer.Option(help="A word of a name, a system, a paper or a line.")] = None,
    presets: Annotated[bool, typer.Option(help="With settings of other papers as entries.")] = True,
    as_json: Json = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
    debug: Debug = False,
) -> None:
    """List every drafter, verifier, policy and structure: what it promises, where it runs, who wrote it."""
    with running(debug):
        _known("kind", kind, KINDS)
        _known("exactness", exactness, PROMISES)
        _known("stream", stream, STREAMS)
        if as_markdown:
            if (kind, exactness, stream, search, presets, as_json) != (None, None, None, None, True, False):
                raise UsageError("--markdown prints the whole page: got other options too. Leave them out.")
            typer.echo(page(), nl=False)
            return
        wanted = {"kind": kind, "exactness": exactness}
        found = [
            one
            for one in rows()
            if all(value in (None, one[name]) for name, value in wanted.items())
            and stream in (None, *one["streams"])
            and (presets or not one["base"])
            and _mentions(one, search)
        ]
        if as_json:
            typer.echo(json.dumps(found, ensure_ascii=False))
        else:
            _show(found)


def _known(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UnknownNameError(option, value, known)


def rows() -> list[dict[str, Any]]:
    """Every entry, with the systems that it is a part of."""
    from multispec.methods import catalog

    return [{**one.to_dict(), "systems": systems_of(one.kind, one.name)} for one in catalog()]


def _mentions(one: dict[str, Any], text: str | None) -> bool:
    words = (one["name"], one["paper"], one["summary"], one["base"], *one["systems"])
    return text is None or any(text.lower() in word.lower() for word in words)


def _show(found: list[dict[str, Any]]) -> None:
    screen = console()
    columns = ("name", "exactness", "streams", "paper", "what it does")
    for kind in KINDS:
        some = [one for one in found if one["kind"] == kind]
        if some:
            lines = [[escape(cell) for cell in _line(one)] for one in some]
            screen.print(table(columns, lines, f"{_plural(kind)} ({len(some)})"))
    screen.print(f"{len(found)} methods. Settings stand behind a colon: budget:per_token=0.1, rest:FILE.")


def _line(one: dict[str, Any]) -> list[str]:
    streams = "all" if len(one["streams"]) == len(STREAMS) else ", ".join(one["streams"])
    needs = f" Needs {one['needs']}." if one["needs"] else ""
    summary = f"{one['base']}: {one['summary']}" if one["base"] else one["summary"]
    return [one["name"], one["exactness"], streams, one["paper"], summary + needs]


def page() -> str:
    """docs/methods.md: the systems of the survey, then every entry."""
    entries = [one for one in rows() if one["package"] == "multispec"]
    files = {f"{one['kind']} {one['name']}": one["file"] for one in entries}
    parts = [HEAD]
    for section, systems in SURVEY.items():
        lines = []
        for system in systems:
            paths = dict.fromkeys(files[one] for one in system.methods)
            shown = ", ".join(f"{kind} `{name}`" for kind, name in map(str.split, system.methods))
            lines.append([system.name, shown, ", ".join(map(_link, paths)), system.note])
        parts.append(f"\n### {section}\n\n{markdown(('system', 'catalog', 'file', 'note'), lines)}")
    for kind in KINDS:
        columns = ("name", "exactness", "streams", "paper", "what it does", "file")
        some = [one for one in entries if one["kind"] == kind]
        lines = [[cell.replace("|", "\\|") for cell in _line(one)] + [_link(one["file"])] for one in some]
        lines = [[f"`{name}`", *rest] for name, *rest in lines]
        parts.append(f"\n## {_plural(kind).capitalize()}\n\n{markdown(columns, lines)}")
    return "".join(parts)


def _plural(kind: str) -> str:
    return "policies" if kind == "policy" else f"{kind}s"


def _link(file: str) -> str:
    return f"[{file.rpartition('/')[2]}](../{file})"
