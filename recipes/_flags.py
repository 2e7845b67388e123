"""Settings from the command line: every field of a dataclass is a flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, TypeVar

S = TypeVar("S")


def parse(
    kind: type[S],
    arguments: Sequence[str] | None,
    description: str | None,
    wrong: Callable[[S], str] = lambda _: "",
) -> S:
    """The settings that the flags give; ``wrong`` says why they cannot be, "" where they can.

    ``--new-tokens 8`` for the field ``new_tokens``. A field that is False by default is a switch, one without
    a default has to be given. What is wrong ends the program, and the message says how it is called.
    """
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    for one in fields(kind):  # type: ignore[arg-type]
        parser.add_argument(f"--{one.name.replace('_', '-')}", **_reading(one))
    settings = kind(**vars(parser.parse_args(arguments)))
    if why := wrong(settings):
        parser.error(why)
    return settings


def _reading(one: Field[Any]) -> dict[str, Any]:
    if one.default is MISSING:
        return {"type": {"int": int, "float": float}.get(str(one.type), str), "required": True}
    if isinstance(one.default, bool):
        return {"action": "store_true"}
    return {"type": type(one.default), "default": one.default}


def first_line(text: str | None) -> str:
    """What a module's docstring says at once."""
    return (text or "").partition("\n")[0]
