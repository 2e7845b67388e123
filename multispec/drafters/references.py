"""What drafters that copy share: reference texts as ids, checks of settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from multispec.errors import UsageError
from multispec.protocols import Context
from multispec.stream import StreamSpec

References = Sequence[Sequence[int]]


def reference_ids(name: str, references: Iterable[Iterable[int]]) -> tuple[tuple[int, ...], ...]:
    """Reference texts as tuples of ids.

    Raises:
        UsageError: a text instead of a list of texts, an empty one, or what is no id.
    """
    try:
        texts = tuple(tuple(int(x) for x in text) for text in references)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"{name} takes references as a list of texts, each a list of ids ({error}). For one text of ids "
            "pass [ids]; turn words into ids with the model's tokenizer first."
        ) from error
    empty = next((n for n, text in enumerate(texts) if not text), None)
    if empty is not None:
        raise UsageError(f"{name} got a reference without ids: number {empty} of {len(texts)}. Leave it out.")
    lowest = min((min(text) for text in texts), default=0)
    if lowest < 0:
        raise UsageError(f"{name} takes ids >= 0 as references: got {lowest}. Pass the ids of a tokenizer.")
    return texts


def require_at_least(name: str, settings: object, **least: int) -> None:
    """Hold whole numbers among the settings to their least values.

    Raises:
        UsageError: one of them is smaller.
    """
    for field, bound in least.items():
        if getattr(settings, field) < bound:
            raise UsageError(
                f"{name} needs {field} >= {bound}: got {field}={getattr(settings, field)}. Raise it, or use "
                "drafter=None for plain decoding."
            )


def takes_trees(context: Context, row: int) -> bool:
    """Whether a row's stream takes trees: parallel slots move in whole steps, along chains."""
    spec: StreamSpec | None = context.specs.get(row, context.prompts[row].spec)
    return spec is None or spec.step == 1
